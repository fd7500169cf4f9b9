"""`backplane.broker.publisher`: what a publish waits for during an outage, and in which order."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from backplane.broker.keep import Keep
from backplane.broker.publish_buffer import PublishBuffer
from backplane.errors import (
    BrokerUnavailableError,
    ClosedError,
    PublishError,
    PublishOutcomeUnknownError,
)
from backplane.history_rules import History
from tests.unit.controlled_adapter import Adapter, ControlledHistoryAdapter
from tests.unit.doubles import Gate, until_idle
from tests.unit.kit import (
    SETTINGS,
    WAIT_SECONDS,
    SupervisedWorld,
    supervised,
)

if TYPE_CHECKING:
    from backplane.message import Receipt

pytestmark = pytest.mark.anyio

RULE = History(max_messages=1000)
UNKNOWN = PublishOutcomeUnknownError("the link ended before the answer")


def payloads(made: SupervisedWorld) -> list[bytes]:
    """Return what the broker accepted, in order."""
    return [payload for _, payload in made.adapter.published]


async def publish_after_the_loss(made: SupervisedWorld, *, later: int) -> list[asyncio.Task[Receipt]]:
    """Publish 0 on a link that is lost before it accepts it, and call others before the error of 0 arrives."""
    gate = Gate()
    gate.close()
    made.adapter.publish_gates.append(gate)
    publishing = [asyncio.create_task(made.publisher.publish("a", b"0"))]
    await made.adapter.until(lambda: "publish" in made.adapter.verbs)
    await made.degrade()
    publishing += [asyncio.create_task(made.publisher.publish("a", b"%d" % number)) for number in range(1, later + 1)]
    await until_idle()
    made.adapter.publish_errors["a"] = BrokerUnavailableError("the link ended")
    gate.open()
    await until_idle()
    del made.adapter.publish_errors["a"]
    return publishing


async def test_publish_that_a_lost_link_did_not_accept_keeps_its_place() -> None:
    """A message that a lost link did not accept is published before those of later calls that wait for a link."""
    async with supervised() as made:
        publishing = await publish_after_the_loss(made, later=3)
        made.adapter.start_gate.open()
        await asyncio.wait_for(asyncio.gather(*publishing), WAIT_SECONDS)
        assert payloads(made) == [b"0", b"1", b"2", b"3"]


async def test_cancelled_publish_delays_no_other() -> None:
    """A publish that is cancelled while it waits for the link, first in the queue or not, affects no other."""
    async with supervised() as made:
        publishing = await publish_after_the_loss(made, later=4)
        for number in (0, 2, 1):
            publishing[number].cancel()
            await until_idle()
        made.adapter.start_gate.open()
        await asyncio.wait_for(asyncio.wait(publishing), WAIT_SECONDS)
        assert payloads(made) == [b"3", b"4"]


async def test_buffer_waits_for_no_other_publish() -> None:
    """A publish that may be kept returns at once while the link is down, however many others wait for it."""
    async with supervised() as made:
        publishing = await publish_after_the_loss(made, later=3)
        buffer = PublishBuffer(made.supervisor.attempts, max_bytes=1024, max_messages=1)
        await asyncio.wait_for(buffer.publish("a", b"4"), WAIT_SECONDS)
        assert len(buffer) == 1
        made.adapter.start_gate.open()
        await asyncio.wait_for(asyncio.gather(*publishing), WAIT_SECONDS)
        await made.adapter.until(lambda: len(made.adapter.published) == 5)
        await asyncio.wait_for(buffer.stop(WAIT_SECONDS), WAIT_SECONDS)


async def test_publish_while_degraded_is_sent_on_the_next_link() -> None:
    """A publish waits while the link is being rebuilt, and is sent once."""
    async with supervised() as made:
        await made.degrade()
        publishing = asyncio.create_task(made.publisher.publish("a", b"patient"))
        await until_idle()
        assert "publish" not in made.adapter.verbs
        made.adapter.start_gate.open()
        await asyncio.wait_for(publishing, WAIT_SECONDS)
        assert made.adapter.published == [("a", b"patient")]


async def test_publish_right_after_the_loss_waits() -> None:
    """A publish that is called right after the adapter has reported the loss waits for the next link as well."""
    async with supervised() as made:
        made.adapter.publish_errors["a"] = BrokerUnavailableError("the link is gone")
        made.adapter.start_gate.close()
        made.adapter.cut()
        publishing = asyncio.create_task(made.publisher.publish("a", b"patient"))
        await made.adapter.until(lambda: made.adapter.verbs.count("start") == 2)
        made.adapter.publish_errors.clear()
        made.adapter.start_gate.open()
        await asyncio.wait_for(publishing, WAIT_SECONDS)
        assert made.adapter.published == [("a", b"patient")]


async def test_publish_times_out_while_the_link_is_down() -> None:
    """After the publish timeout it raises BrokerUnavailableError, and the message is not sent later."""
    async with supervised(settings=replace(SETTINGS, publish_timeout_seconds=0.05)) as made:
        await made.degrade()
        with pytest.raises(
            BrokerUnavailableError, match=r"controlled:// has been unavailable for 0\.05 s; not published$"
        ):
            await asyncio.wait_for(made.publisher.publish("a", b"too late"), WAIT_SECONDS)
        made.adapter.start_gate.open()
        await made.reaches("live", generation=2)
        await until_idle()
        assert "publish" not in made.adapter.verbs


async def test_publish_cancelled_while_it_waits_is_not_sent() -> None:
    """A publish that is cancelled while it waits for the link is not sent."""
    async with supervised() as made:
        await made.degrade()
        publishing = asyncio.create_task(made.publisher.publish("a", b"never"))
        await until_idle()
        publishing.cancel()
        await asyncio.wait([publishing])
        made.adapter.start_gate.open()
        await made.reaches("live", generation=2)
        await until_idle()
        assert "publish" not in made.adapter.verbs


async def test_publish_in_a_passing_state_of_the_broker_raises_at_once() -> None:
    """The message was not published, the link stays live, and the error is retriable."""
    async with supervised(Adapter(brokered=True)) as made:
        made.adapter.publish_errors["a"] = BrokerUnavailableError("BUSY a script runs")
        with pytest.raises(BrokerUnavailableError, match="BUSY") as caught:
            await made.publisher.publish("a", b"x")
        assert caught.value.retriable
        assert (made.supervisor.state, made.adapter.verbs.count("publish")) == ("live", 1)


@pytest.mark.parametrize("error", [PublishError("refused"), PublishOutcomeUnknownError("cut")], ids=repr)
async def test_publish_raises_what_the_adapter_raises(error: PublishError) -> None:
    """A refusal is raised unchanged, and the message is not sent again."""
    async with supervised() as made:
        made.adapter.publish_errors["a"] = error
        with pytest.raises(PublishError) as caught:
            await made.publisher.publish("a", b"no")
        assert caught.value is error
        assert made.adapter.verbs.count("publish") == 1


async def test_stop_ends_publishes_that_wait() -> None:
    """A publish that waits for the link at the stop raises then, without waiting for its timeout."""
    async with supervised() as made:
        await made.degrade()
        publishing = asyncio.create_task(made.publisher.publish("a", b"never"))
        await until_idle()
        await made.supervisor.stop()
        await until_idle()
        assert publishing.done()
        assert publishing.exception() is not None


def kept(adapter: ControlledHistoryAdapter, channel: str = "a") -> list[bytes]:
    """Return what the broker keeps of a channel, in order."""
    return [item.payload for item in adapter.log(channel).items]


def keyed(made: SupervisedWorld, payload: bytes, key: bytes | None = None) -> asyncio.Task[Receipt]:
    """Publish with a key, which is the payload if no other is given."""
    return asyncio.create_task(made.publisher.publish("a", payload, Keep(RULE, key or payload)))


@pytest.mark.parametrize(("gate", "duplicate"), [("keep_gate", False), ("reply_gate", True)])
async def test_keyed_publish_whose_answer_is_lost_is_sent_again_and_is_there_once(gate: str, duplicate: bool) -> None:
    """Whether or not the lost link had taken it, a message with a key is there once, and has its position."""
    adapter = ControlledHistoryAdapter()
    async with supervised(adapter) as made:
        getattr(adapter, gate).close()
        publishing = keyed(made, b"1")
        await adapter.until(lambda: len(adapter.kept) == 1)
        await made.degrade()
        getattr(adapter, gate).open()
        await until_idle()
        assert not publishing.done()
        adapter.start_gate.open()
        receipt = await asyncio.wait_for(publishing, WAIT_SECONDS)
        assert (receipt.position, receipt.duplicate) == (adapter.log("a").top, duplicate)
        assert adapter.kept == [("a", b"1", b"1")] * 2
        assert kept(adapter) == [b"1"]


async def test_publish_without_a_key_is_never_sent_again() -> None:
    """A message that is kept without a key raises what the lost link left open, and is sent once."""
    adapter = ControlledHistoryAdapter()
    async with supervised(adapter) as made:
        adapter.reply_gate.close()
        publishing = asyncio.create_task(made.publisher.publish("a", b"1", Keep(RULE)))
        await adapter.until(lambda: len(adapter.kept) == 1)
        await made.degrade()
        adapter.reply_gate.open()
        with pytest.raises(PublishOutcomeUnknownError):
            await asyncio.wait_for(publishing, WAIT_SECONDS)
        adapter.start_gate.open()
        await made.reaches("live", generation=2)
        await until_idle()
        assert len(adapter.kept) == 1


async def test_keyed_publish_in_a_passing_state_is_tried_until_it_is_accepted() -> None:
    """Where the broker accepts nothing for the moment, a message with a key is tried again on the same link."""
    adapter = ControlledHistoryAdapter(brokered=True)
    async with supervised(adapter) as made:
        adapter.keep_errors = [BrokerUnavailableError("BUSY"), UNKNOWN, PublishError("queue", retriable=True), None]
        receipt = await asyncio.wait_for(keyed(made, b"1"), WAIT_SECONDS)
        assert (receipt.position, receipt.duplicate) == (adapter.log("a").top, False)
        assert (len(adapter.kept), kept(adapter)) == (4, [b"1"])
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


async def test_keyed_publish_that_is_refused_raises_at_once() -> None:
    """A refusal is final, and raised unchanged where no attempt before it is in doubt."""
    adapter, refused = ControlledHistoryAdapter(), PublishError("no permission")
    async with supervised(adapter) as made:
        adapter.keep_errors = [refused]
        with pytest.raises(PublishError) as caught:
            await made.publisher.publish("a", b"1", Keep(RULE, b"k"))
        assert caught.value is refused
        assert len(adapter.kept) == 1


async def test_keyed_publish_that_is_refused_after_an_unknown_outcome_may_have_been_published() -> None:
    """A refusal of the second attempt does not show that the first one published nothing."""
    adapter, refused = ControlledHistoryAdapter(), PublishError("no permission")
    async with supervised(adapter) as made:
        adapter.reply_errors = [UNKNOWN]
        adapter.keep_errors = [None, refused]
        with pytest.raises(PublishOutcomeUnknownError, match="may have been published; then: no permission") as caught:
            await made.publisher.publish("a", b"1", Keep(RULE, b"k"))
        assert caught.value.__cause__ is refused
        assert kept(adapter) == [b"1"]


async def test_keyed_publish_that_ends_the_link_each_time_is_given_up() -> None:
    """A message that ends every link which it is sent on does so five times at most."""
    adapter = ControlledHistoryAdapter()
    async with supervised(adapter) as made:
        adapter.reply_gate.close()
        publishing = keyed(made, b"poison")
        for attempt in range(1, 6):
            await adapter.until(lambda attempt=attempt: len(adapter.kept) == attempt)  # type: ignore[misc]
            await made.recover()
        with pytest.raises(PublishOutcomeUnknownError):
            await asyncio.wait_for(publishing, WAIT_SECONDS)
        adapter.reply_gate.open()
        assert len(adapter.kept) == 5


async def test_keyed_publish_times_out_in_a_passing_state() -> None:
    """Where the broker accepts nothing until time is up, it was not published; the cause is the last error."""
    adapter = ControlledHistoryAdapter()
    async with supervised(adapter, replace(SETTINGS, publish_timeout_seconds=0.05)) as made:
        adapter.keep_errors = [BrokerUnavailableError("BUSY")] * 1000
        with pytest.raises(BrokerUnavailableError, match=r"has been unavailable for 0\.05 s; not published$") as caught:
            await asyncio.wait_for(keyed(made, b"1"), WAIT_SECONDS)
        assert str(caught.value.__cause__) == "BUSY"


async def test_keyed_publish_in_doubt_times_out_while_the_link_is_down() -> None:
    """Where the link does not come back in time after an attempt without an answer, the outcome is unknown."""
    adapter = ControlledHistoryAdapter()
    async with supervised(adapter, replace(SETTINGS, publish_timeout_seconds=0.3)) as made:
        adapter.reply_gate.close()
        publishing = keyed(made, b"1")
        await adapter.until(lambda: len(adapter.kept) == 1)
        await made.degrade()
        with pytest.raises(
            PublishOutcomeUnknownError, match=r"may have been published; then: .* unavailable"
        ) as caught:
            await asyncio.wait_for(publishing, WAIT_SECONDS)
        assert isinstance(caught.value.__cause__, PublishOutcomeUnknownError)
        adapter.reply_gate.open()
        adapter.start_gate.open()
        await made.reaches("live", generation=2)
        await until_idle()
        assert len(adapter.kept) == 1


async def test_keyed_publish_without_an_answer_has_an_unknown_outcome() -> None:
    """A link that is live and answers nothing leaves the outcome open when time is up."""
    adapter = ControlledHistoryAdapter()
    async with supervised(adapter, replace(SETTINGS, publish_timeout_seconds=0.05)) as made:
        adapter.reply_gate.close()
        with pytest.raises(PublishOutcomeUnknownError, match=r"^no answer within 0\.05 s"):
            await asyncio.wait_for(keyed(made, b"1"), WAIT_SECONDS)
        adapter.reply_gate.open()


async def test_keyed_publishes_keep_their_order_through_a_loss() -> None:
    """What was in flight with a key on a lost link is sent in the order of the calls, before what was called later."""
    adapter = ControlledHistoryAdapter()
    async with supervised(adapter) as made:
        adapter.keep_gate.close()
        publishing = [keyed(made, b"%d" % number) for number in range(5)]
        await adapter.until(lambda: len(adapter.kept) == 5)
        adapter.start_gate.close()
        adapter.cut()
        publishing += [keyed(made, b"%d" % number) for number in range(5, 10)]
        publishing.append(asyncio.create_task(made.publisher.publish("a", b"10", Keep(RULE))))
        await adapter.until(lambda: adapter.verbs.count("start") == 2)
        adapter.keep_gate.open()
        adapter.start_gate.open()
        await asyncio.wait_for(asyncio.gather(*publishing), WAIT_SECONDS)
        assert kept(adapter) == [b"%d" % number for number in range(11)]


async def test_keyed_publish_cancelled_while_it_waits_for_the_link_is_not_sent_again() -> None:
    """A cancellation between two attempts ends the publish, and delays no other."""
    adapter = ControlledHistoryAdapter()
    async with supervised(adapter) as made:
        adapter.keep_gate.close()
        publishing = [keyed(made, b"%d" % number) for number in range(3)]
        await adapter.until(lambda: len(adapter.kept) == 3)
        await made.degrade()
        adapter.keep_gate.open()
        await until_idle()
        publishing[0].cancel()
        publishing[1].cancel()
        await asyncio.wait(publishing[:2])
        adapter.start_gate.open()
        await asyncio.wait_for(publishing[2], WAIT_SECONDS)
        assert kept(adapter) == [b"2"]
        assert [task.cancelled() for task in publishing] == [True, True, False]


async def test_keyed_publish_cancelled_in_a_passing_state_is_not_sent_again() -> None:
    """A cancellation while it pauses on a live link ends the publish."""
    adapter = ControlledHistoryAdapter()
    async with supervised(adapter) as made:
        adapter.keep_errors = [BrokerUnavailableError("BUSY")] * 1000
        publishing = keyed(made, b"1")
        await adapter.until(lambda: len(adapter.kept) == 1)
        publishing.cancel()
        await asyncio.wait([publishing])
        sent = len(adapter.kept)
        adapter.keep_errors.clear()
        await asyncio.wait_for(keyed(made, b"2"), WAIT_SECONDS)
        await until_idle()
        assert (len(adapter.kept), kept(adapter)) == (sent + 1, [b"2"])


@pytest.mark.parametrize("in_doubt", [False, True])
async def test_stop_ends_keyed_publishes_that_wait(in_doubt: bool) -> None:
    """At the stop it was certainly not published, or that is open where an attempt got no answer."""
    adapter = ControlledHistoryAdapter()
    async with supervised(adapter) as made:
        if in_doubt:
            adapter.reply_gate.close()
            publishing = keyed(made, b"1")
            await adapter.until(lambda: len(adapter.kept) == 1)
            await made.degrade()
            adapter.reply_gate.open()
        else:
            await made.degrade()
            publishing = keyed(made, b"1")
        await until_idle()
        await made.supervisor.stop()
        with pytest.raises(PublishOutcomeUnknownError if in_doubt else ClosedError) as caught:
            await asyncio.wait_for(publishing, WAIT_SECONDS)
        assert isinstance(caught.value.__cause__, ClosedError) is in_doubt


@pytest.mark.parametrize("seed", range(10))
async def test_keyed_publishes_in_a_storm_are_there_once(seed: int) -> None:
    """Over links that are lost at any moment, with answers that are swallowed, each message is there exactly once."""
    chance = random.Random(seed)
    adapter = ControlledHistoryAdapter()
    async with supervised(adapter) as made:
        publishing: list[asyncio.Task[Receipt]] = []
        for number in range(60):
            gate = chance.choice([adapter.keep_gate, adapter.reply_gate])
            if chance.random() < 0.3:
                gate.close()
            publishing.append(keyed(made, b"%d" % number))
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            if chance.random() < 0.1:
                adapter.cut()
            if chance.random() < 0.1:
                publishing[chance.randrange(len(publishing))].cancel()
            if chance.random() < 0.5:
                adapter.keep_gate.open()
                adapter.reply_gate.open()
        adapter.keep_gate.open()
        adapter.reply_gate.open()
        await asyncio.wait_for(asyncio.wait(publishing), WAIT_SECONDS)
        there = kept(adapter)
        done = [number for number, task in enumerate(publishing) if not task.cancelled() and not task.exception()]
        assert len(set(there)) == len(there)
        assert {b"%d" % number for number in done} <= set(there)
        assert len(done) > 20
