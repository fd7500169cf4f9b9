"""`backplane.broker.publish_buffer`: what is published during an outage is kept, in order and in bounds."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from backplane.broker.keep import Keep
from backplane.broker.publish_attempt import NO_POSITION
from backplane.broker.publish_buffer import PublishBuffer
from backplane.errors import BrokerUnavailableError, ClosedError, PublishError, PublishOutcomeUnknownError
from backplane.history_rules import History
from backplane.journal.journal import Journal
from tests.unit.controlled_adapter import ControlledHistoryAdapter
from tests.unit.doubles import Gate, run_passes, until_idle
from tests.unit.kit import SETTINGS, WAIT_SECONDS, supervised, warnings_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.message import Receipt
    from tests.unit.kit import SupervisedWorld

pytestmark = pytest.mark.anyio

RULE = History(max_messages=1000)
UNKNOWN = PublishOutcomeUnknownError("the link ended before the answer")


@asynccontextmanager
async def buffered(
    *, max_bytes: int = 1024, max_messages: int = 100, journal: Journal | None = None
) -> AsyncGenerator[tuple[SupervisedWorld, PublishBuffer]]:
    """Run a buffer over a supervisor, and stop both."""
    async with supervised() as made:
        buffer = PublishBuffer(
            made.supervisor.attempts, max_bytes=max_bytes, max_messages=max_messages, journal=journal
        )
        yield made, buffer
        await asyncio.wait_for(buffer.stop(WAIT_SECONDS), WAIT_SECONDS)


@asynccontextmanager
async def keeping(
    *, max_messages: int = 100, publish_timeout_seconds: float = 60
) -> AsyncGenerator[tuple[SupervisedWorld, PublishBuffer, ControlledHistoryAdapter]]:
    """Run a buffer over an adapter that keeps messages."""
    adapter = ControlledHistoryAdapter()
    async with supervised(adapter, replace(SETTINGS, publish_timeout_seconds=publish_timeout_seconds)) as made:
        buffer = PublishBuffer(made.supervisor.attempts, max_bytes=1024, max_messages=max_messages)
        yield made, buffer, adapter
        await asyncio.wait_for(buffer.stop(WAIT_SECONDS), WAIT_SECONDS)


def kept(adapter: ControlledHistoryAdapter) -> list[bytes]:
    """Return what the broker keeps, in order."""
    return [item.payload for item in adapter.log("a").items]


async def until_empty(buffer: PublishBuffer) -> None:
    """Wait until nothing is kept for later."""
    async with asyncio.timeout(WAIT_SECONDS):
        while len(buffer):
            await asyncio.sleep(0.001)  # what ends it is no event of the adapter


async def publish(buffer: PublishBuffer, *payloads: bytes) -> None:
    """Publish one after the other."""
    for payload in payloads:
        await asyncio.wait_for(buffer.publish("a", payload), WAIT_SECONDS)


async def come_back(made: SupervisedWorld, published: int) -> None:
    """Let the link come back, and wait until the broker has `published` messages."""
    made.adapter.start_gate.open()
    await made.adapter.until(lambda: len(made.adapter.published) >= published)
    await until_idle()


def payloads(made: SupervisedWorld) -> list[bytes]:
    """Return what the broker accepted, in order."""
    return [payload for _, payload in made.adapter.published]


def senders() -> int:
    """Return how many tasks send what is kept."""
    return [task.get_name() for task in asyncio.all_tasks()].count("backplane-outage-buffer")


async def test_live_link_is_published_on_at_once() -> None:
    """While the link is live nothing is kept, and no task exists."""
    async with buffered() as (made, buffer):
        await publish(buffer, b"1", b"2")
        assert (payloads(made), len(buffer), senders()) == ([b"1", b"2"], 0, 0)


async def test_what_is_published_during_an_outage_is_sent_in_order() -> None:
    """`publish` returns at once; each message is sent once, in order, when the link is live again; no task is left."""
    async with buffered() as (made, buffer):
        await made.degrade()
        numbers = [str(number).encode() for number in range(20)]
        await publish(buffer, *numbers)
        assert (payloads(made), len(buffer), senders()) == ([], 20, 1)
        await come_back(made, 20)
        assert (payloads(made), len(buffer), buffer.dropped) == (numbers, 0, 0)
        assert senders() == 0


async def test_sender_has_no_publishers_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is sent with the context variables of the start, not with those of one publisher."""
    user: ContextVar[str] = ContextVar("user", default="no user")
    seen: list[str] = []
    async with buffered() as (made, buffer):
        await made.degrade()
        user.set("alice")
        accept = made.adapter.publish

        async def publish_and_see(channel: str, payload: bytes) -> None:
            seen.append(user.get())
            await accept(channel, payload)

        monkeypatch.setattr(made.adapter, "publish", publish_and_see)
        await publish(buffer, b"1")
        await come_back(made, 1)
    assert seen == ["no user"]


async def test_publishes_during_the_sending_keep_the_order() -> None:
    """What is published while kept messages are being sent does not overtake them."""
    async with buffered() as (made, buffer):
        await made.degrade()
        await publish(buffer, b"1", b"2")
        made.adapter.publish_gate.close()
        made.adapter.start_gate.open()
        await made.adapter.until(lambda: "publish" in made.adapter.verbs)
        await asyncio.gather(publish(buffer, b"3"), publish(buffer, b"4"))
        made.adapter.publish_gate.open()
        await come_back(made, 4)
        await publish(buffer, b"5")
        assert payloads(made) == [b"1", b"2", b"3", b"4", b"5"]


@pytest.mark.parametrize("moment", ["waiting", "being sent"])
async def test_publish_that_a_lost_link_did_not_accept_goes_first(moment: str) -> None:
    """A message that a lost link did not accept is kept before those of later calls, even one that is being sent."""
    async with buffered() as (made, buffer):
        gate, sending = Gate(), Gate()
        gate.close()
        sending.close()
        made.adapter.publish_gates += [gate, sending]
        first = asyncio.create_task(buffer.publish("a", b"1"))
        await made.adapter.until(lambda: "publish" in made.adapter.verbs)
        await made.degrade()
        await publish(buffer, b"2", b"3")
        if moment == "being sent":
            made.adapter.start_gate.open()
            await made.adapter.until(lambda: made.adapter.verbs.count("publish") == 2)
        made.adapter.publish_errors["a"] = BrokerUnavailableError("the link ended")
        gate.open()
        await asyncio.wait_for(first, WAIT_SECONDS)
        if moment == "being sent":
            await made.degrade()
        sending.open()
        await until_idle()
        del made.adapter.publish_errors["a"]
        await come_back(made, 3)
        assert (payloads(made), len(buffer)) == ([b"1", b"2", b"3"], 0)


@pytest.mark.parametrize(("max_bytes", "max_messages"), [(4, 100), (1024, 2)])
async def test_full_buffer_refuses_and_keeps_nothing(max_bytes: int, max_messages: int) -> None:
    """Above either bound `publish` raises, and the message is not published later."""
    async with buffered(max_bytes=max_bytes, max_messages=max_messages) as (made, buffer):
        await made.degrade()
        await publish(buffer, b"11", b"22")
        with pytest.raises(BrokerUnavailableError, match="buffer is full: 2 messages, 4 bytes; not published"):
            await publish(buffer, b"3")
        assert len(buffer) == 2
        await come_back(made, 2)
        assert payloads(made) == [b"11", b"22"]
        await made.degrade()
        await publish(buffer, b"44", b"55")  # what was sent is not counted any more
        await come_back(made, 4)
        assert payloads(made) == [b"11", b"22", b"44", b"55"]


async def test_link_lost_while_sending_keeps_the_place() -> None:
    """A message that was certainly not published is sent on the next link, before the others, and once."""
    async with buffered() as (made, buffer):
        await made.degrade()
        await publish(buffer, b"1", b"2")
        made.adapter.publish_gate.close()
        made.adapter.start_gate.open()
        await made.adapter.until(lambda: "publish" in made.adapter.verbs)
        made.adapter.publish_errors["a"] = BrokerUnavailableError("cut")
        await made.degrade()
        made.adapter.publish_gate.open()
        await until_idle()
        del made.adapter.publish_errors["a"]
        assert (payloads(made), len(buffer)) == ([], 2)
        await come_back(made, 2)
        assert payloads(made) == [b"1", b"2"]


@pytest.mark.parametrize(
    "error",
    [BrokerUnavailableError("queue full"), PublishError("BUSY", retriable=True)],
    ids=lambda error: type(error).__name__,
)
async def test_retriable_error_on_a_live_link_is_retried(error: Exception) -> None:
    """A message that gets a retriable error on a live link is kept, and sent again after a pause."""
    async with buffered() as (made, buffer):
        made.adapter.publish_errors["a"] = error
        await publish(buffer, b"1")
        await made.adapter.until(lambda: made.adapter.verbs.count("publish") == 3)
        await run_passes(100)
        assert made.adapter.verbs.count("publish") == 3
        del made.adapter.publish_errors["a"]
        await come_back(made, 1)
        assert (payloads(made), buffer.dropped) == ([b"1"], 0)


@pytest.mark.parametrize(
    "error",
    [PublishOutcomeUnknownError("cut"), PublishError("too large"), RuntimeError("a fault")],
    ids=lambda error: type(error).__name__,
)
async def test_lost_message_is_logged_counted_and_never_sent_again(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """A kept message that is refused, or may have been published, is dropped and logged; later ones are sent."""
    async with buffered() as (made, buffer):
        await made.degrade()
        made.adapter.publish_errors["bad"] = error
        await buffer.publish("bad", b"lost")
        await publish(buffer, b"2", b"3")
        caplog.clear()
        await come_back(made, 2)
        assert (payloads(made), buffer.dropped, len(buffer)) == ([b"2", b"3"], 1, 0)
        assert made.adapter.calls.count(("publish", ("bad",))) == 1
        (line,) = warnings_of(caplog, logging.ERROR)
        assert line.startswith("a message that was kept for channel 'bad' is lost")


async def test_channel_that_the_broker_cannot_serve_delays_no_other() -> None:
    """During a passing state of one channel its messages are kept in order, and other channels are sent."""
    async with buffered() as (made, buffer):
        await made.degrade()
        made.adapter.publish_errors["moving"] = BrokerUnavailableError("its shard fails over")
        for number in range(3):
            await buffer.publish("moving", b"m%d" % number)
            await publish(buffer, b"a%d" % number)
        await come_back(made, 3)
        await buffer.publish("moving", b"m3")
        await publish(buffer, b"a3")
        assert (payloads(made), len(buffer)) == ([b"a0", b"a1", b"a2", b"a3"], 4)
        del made.adapter.publish_errors["moving"]
        await come_back(made, 8)
        assert payloads(made)[4:] == [b"m0", b"m1", b"m2", b"m3"]
        assert (len(buffer), buffer.dropped, senders()) == (0, 0, 0)


async def test_message_that_ends_the_link_is_not_sent_again() -> None:
    """A message with an unknown outcome is dropped, and the others are sent on the next link."""
    async with buffered() as (made, buffer):
        await made.degrade()
        await buffer.publish("deadly", b"x")
        await publish(buffer, b"1", b"2")
        made.adapter.publish_errors["deadly"] = PublishOutcomeUnknownError("the connection ended")
        made.adapter.publish_gates = [Gate()]
        made.adapter.publish_gates[0].close()
        (gate,) = made.adapter.publish_gates
        made.adapter.start_gate.open()
        await made.adapter.until(lambda: "publish" in made.adapter.verbs)
        made.adapter.cut()
        gate.open()
        await come_back(made, 2)
        assert (payloads(made), buffer.dropped) == ([b"1", b"2"], 1)
        assert made.adapter.calls.count(("publish", ("deadly",))) == 1


async def test_many_lost_messages_are_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Many kept messages that are refused are one line for the first and one for the rest."""
    journal = Journal(burst=1)
    async with buffered(journal=journal) as (made, buffer):
        await made.degrade()
        made.adapter.publish_errors["bad"] = PublishError("not yours")
        for _ in range(50):
            await buffer.publish("bad", b"lost")
        await publish(buffer, b"last")
        caplog.clear()
        await come_back(made, 1)
        journal.flush()
        assert buffer.dropped == 50
        assert warnings_of(caplog, logging.ERROR) == [
            "a message that was kept for channel 'bad' is lost: not yours",
            "49 more within 10 s, the last one: a message that was kept for channel 'bad' is lost: not yours",
        ]


@pytest.mark.parametrize("error", [PublishOutcomeUnknownError("cut"), PublishError("too large")])
async def test_errors_of_a_live_link_are_raised(error: PublishError) -> None:
    """While the link is live, the broker's error is raised to the publisher, and nothing is kept."""
    async with buffered() as (made, buffer):
        made.adapter.publish_errors["a"] = error
        with pytest.raises(type(error), match=str(error)):
            await publish(buffer, b"1")
        assert (len(buffer), buffer.dropped) == (0, 0)


async def test_stop_while_degraded_logs_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    """A stop while the link is down does not wait, and logs the number of lost messages."""
    async with buffered() as (made, buffer):
        await made.degrade()
        await publish(buffer, b"1", b"2", b"3")
        caplog.clear()
        await asyncio.wait_for(buffer.stop(60), WAIT_SECONDS)
        assert (len(buffer), buffer.dropped) == (0, 3)
        assert warnings_of(caplog, logging.ERROR) == [
            "3 messages were never published: the broker was unavailable until the end"
        ]


async def test_stop_while_live_sends_the_rest() -> None:
    """While the link is live, a stop sends what is kept before it returns."""
    async with buffered() as (made, buffer):
        await made.degrade()
        await publish(buffer, b"1", b"2")
        made.adapter.publish_gate.close()
        made.adapter.start_gate.open()
        await made.adapter.until(lambda: "publish" in made.adapter.verbs)
        stopping = asyncio.create_task(buffer.stop(WAIT_SECONDS))
        await until_idle()
        assert not stopping.done()
        made.adapter.publish_gate.open()
        await asyncio.wait_for(stopping, WAIT_SECONDS)
        assert (payloads(made), buffer.dropped) == ([b"1", b"2"], 0)


async def test_stop_while_live_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A broker that does not answer delays the stop by its timeout at most; what was kept is counted as dropped."""
    async with buffered() as (made, buffer):
        await made.degrade()
        await publish(buffer, b"1", b"2")
        made.adapter.publish_gate.close()
        made.adapter.start_gate.open()
        await made.adapter.until(lambda: "publish" in made.adapter.verbs)
        await asyncio.wait_for(buffer.stop(0.01), WAIT_SECONDS)
        assert (len(buffer), buffer.dropped) == (0, 2)
        assert any("2 messages were never published" in line for line in warnings_of(caplog, logging.ERROR))
        made.adapter.publish_gate.open()


async def test_message_in_flight_is_accepted_before_one_that_is_kept() -> None:
    """A message that the broker refuses for the moment is published after one that was in flight with it."""
    first, second = Gate(), Gate()
    first.close()
    second.close()
    async with buffered() as (made, buffer):
        made.adapter.publish_gates += [first, second]
        publishing = [asyncio.create_task(publish(buffer, payload)) for payload in (b"1", b"2")]
        await made.adapter.until(lambda: made.adapter.verbs.count("publish") == 2)
        made.adapter.publish_errors["a"] = PublishError("BUSY", retriable=True)
        first.open()
        await publishing[0]
        del made.adapter.publish_errors["a"]
        second.open()
        await asyncio.gather(*publishing)
        await made.adapter.until(lambda: len(made.adapter.published) == 2)
        assert payloads(made) == [b"2", b"1"]


async def test_publish_while_the_stop_gives_up_starts_no_sender(caplog: pytest.LogCaptureFixture) -> None:
    """A message that is kept while the stop ends the sender is dropped and counted: nothing is sent after the stop."""
    late: list[asyncio.Task[Receipt]] = []

    class PublishedWhenCancelled(Gate):
        async def passage(self) -> None:
            try:
                await super().passage()
            finally:
                late.append(asyncio.create_task(buffer.publish("a", b"3")))

    async with buffered() as (made, buffer):
        await made.degrade()
        await publish(buffer, b"1", b"2")
        gate = PublishedWhenCancelled()
        gate.close()
        made.adapter.publish_gates.append(gate)
        made.adapter.start_gate.open()
        await made.adapter.until(lambda: "publish" in made.adapter.verbs)
        await asyncio.wait_for(buffer.stop(0.01), WAIT_SECONDS)
        await asyncio.gather(*late)
        await until_idle()
        assert (payloads(made), len(buffer), buffer.dropped, senders()) == ([], 0, 3, 0)
        assert warnings_of(caplog, logging.ERROR) == [
            "3 messages were never published: the broker was unavailable until the end"
        ]


async def test_link_lost_after_the_stop_keeps_nothing() -> None:
    """A publish that fails after the stop raises: a message kept then would be lost without an error."""
    async with buffered() as (made, buffer):
        await buffer.stop(1)
        await made.degrade()
        with pytest.raises(BrokerUnavailableError):
            await publish(buffer, b"1")
        assert len(buffer) == 0


async def test_publish_without_an_answer_is_not_kept() -> None:
    """A publish that gets no answer in time raises that its outcome is unknown, and is not sent again."""
    async with supervised(settings=replace(SETTINGS, publish_timeout_seconds=0.05)) as made:
        buffer = PublishBuffer(made.supervisor.attempts, max_bytes=1024, max_messages=10)
        made.adapter.publish_gate.close()
        with pytest.raises(PublishOutcomeUnknownError, match=r"no answer within 0\.05 s; it may have been published"):
            await publish(buffer, b"1")
        made.adapter.publish_gate.open()
        assert (len(buffer), payloads(made)) == (0, [])


async def test_publish_after_the_stop_of_the_supervisor() -> None:
    """After the stop of the link a publish raises ClosedError, and is not kept."""
    async with buffered() as (made, buffer):
        await made.supervisor.stop()
        with pytest.raises(ClosedError):
            await publish(buffer, b"1")
        assert len(buffer) == 0


async def test_sender_ends_with_the_link() -> None:
    """Where the link is closed while messages are kept, the task that sends them ends."""
    async with buffered() as (made, buffer):
        await made.degrade()
        await publish(buffer, b"1")
        assert senders() == 1
        made.adapter.start_gate.open()
        await made.supervisor.stop()
        await until_idle()
        assert (len(buffer), senders()) == (1, 0)


async def test_what_has_a_rule_is_kept_for_later_with_its_rule_and_key() -> None:
    """During an outage the receipt has no position; what is sent later is kept by its rule, with its key, in order."""
    async with keeping() as (made, buffer, adapter):
        live = await buffer.publish("a", b"1", Keep(RULE, b"k"))
        assert live.position == adapter.log("a").top
        await made.degrade()
        later = [Keep(RULE, b"k"), Keep(History(max_messages=1)), Keep(RULE, b"m")]
        for number, keep in enumerate(later, 2):
            assert await buffer.publish("a", b"%d" % number, keep) is NO_POSITION
        assert await buffer.publish("a", b"5") is NO_POSITION
        adapter.start_gate.open()
        await until_empty(buffer)
        assert adapter.kept == [("a", b"1", b"k"), ("a", b"2", b"k"), ("a", b"3", None), ("a", b"4", b"m")]
        assert payloads(made) == [b"1", b"3", b"4", b"5"]  # 2 has the key of 1
        assert kept(adapter) == [b"1", b"3", b"4"]
        assert buffer.dropped == 0


@pytest.mark.parametrize("gate", ["keep_gate", "reply_gate"])
async def test_keyed_publish_whose_answer_is_lost_is_kept_and_sent_again(gate: str) -> None:
    """With a key a message of unknown outcome is kept in its place, and is there once."""
    async with keeping() as (_, buffer, adapter):
        getattr(adapter, gate).close()
        first = asyncio.create_task(buffer.publish("a", b"1", Keep(RULE, b"k")))
        await adapter.until(lambda: len(adapter.kept) == 1)
        adapter.start_gate.close()
        adapter.cut()
        assert await buffer.publish("a", b"2", Keep(RULE)) is NO_POSITION
        await adapter.until(lambda: adapter.verbs.count("start") == 2)
        assert await asyncio.wait_for(first, WAIT_SECONDS) is NO_POSITION
        assert len(buffer) == 2
        getattr(adapter, gate).open()
        adapter.start_gate.open()
        await until_empty(buffer)
        assert (kept(adapter), buffer.dropped) == ([b"1", b"2"], 0)


async def test_keyed_publish_without_an_answer_in_time_is_kept_and_sent_again() -> None:
    """The caller of a message with a key does not wait for longer than the timeout, and the message is there once."""
    async with keeping(publish_timeout_seconds=0.05) as (_, buffer, adapter):
        adapter.reply_gate.close()
        assert await buffer.publish("a", b"1", Keep(RULE, b"k")) is NO_POSITION
        assert len(buffer) == 1
        adapter.reply_gate.open()
        await until_empty(buffer)
        assert (kept(adapter), len(adapter.kept), buffer.dropped) == ([b"1"], 2, 0)


async def test_publish_without_a_key_whose_answer_is_lost_is_not_kept() -> None:
    """A message with a rule and without a key is never sent again after an unknown outcome, now or later."""
    async with keeping() as (made, buffer, adapter):
        adapter.reply_errors = [UNKNOWN, UNKNOWN]
        with pytest.raises(PublishOutcomeUnknownError):
            await buffer.publish("a", b"1", Keep(RULE))
        await made.degrade()
        await buffer.publish("a", b"2", Keep(RULE))
        adapter.start_gate.open()
        await until_empty(buffer)
        assert (kept(adapter), len(adapter.kept), buffer.dropped) == ([b"1", b"2"], 2, 1)


async def test_full_buffer_leaves_the_outcome_of_a_keyed_publish_unknown() -> None:
    """Where there is no room for a message that may have been published, its caller does not get that it was not."""
    async with keeping(max_messages=1) as (_, buffer, adapter):
        adapter.reply_gate.close()
        first = asyncio.create_task(buffer.publish("a", b"1", Keep(RULE, b"k")))
        await adapter.until(lambda: len(adapter.kept) == 1)
        adapter.start_gate.close()
        adapter.cut()
        await buffer.publish("b", b"2", Keep(RULE, b"k"))
        with pytest.raises(BrokerUnavailableError, match="the buffer is full"):
            await buffer.publish("b", b"3", Keep(RULE, b"m"))
        with pytest.raises(PublishOutcomeUnknownError, match=r"may have been published; then: .* the buffer is full"):
            await asyncio.wait_for(first, WAIT_SECONDS)
        adapter.reply_gate.open()
        adapter.start_gate.open()
        await until_empty(buffer)


async def test_keyed_publish_that_is_refused_after_an_unknown_outcome_is_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is refused in the end is dropped, and the log states that an attempt before may have published it."""
    async with keeping() as (_, buffer, adapter):
        adapter.reply_errors = [UNKNOWN]
        adapter.keep_errors = [None, PublishError("no permission")]
        await buffer.publish("a", b"1", Keep(RULE, b"k"))
        await until_empty(buffer)
        assert (kept(adapter), buffer.dropped) == ([b"1"], 1)
        assert warnings_of(caplog) == [
            "a message that was kept for channel 'a' is lost: an attempt got no answer, so it may have been published; "
            "then: no permission"
        ]


async def test_keyed_publish_that_never_gets_an_answer_is_given_up() -> None:
    """A message that may be what ends the link is sent five times at most, and then makes room for the others."""
    async with keeping() as (_, buffer, adapter):
        adapter.reply_errors = [UNKNOWN] * 5
        await buffer.publish("a", b"1", Keep(RULE, b"k"))
        await buffer.publish("a", b"2", Keep(RULE, b"m"))
        await until_empty(buffer)
        assert (kept(adapter), len(adapter.kept), buffer.dropped) == ([b"1", b"2"], 6, 1)


async def test_keyed_publish_of_unknown_outcome_is_not_sent_again_after_a_long_outage(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once the broker may have forgotten the key it is dropped; one that was never sent is sent, however old it is."""
    async with keeping() as (made, buffer, adapter):
        adapter.reply_gate.close()
        first = asyncio.create_task(buffer.publish("a", b"1", Keep(RULE, b"k")))
        await adapter.until(lambda: len(adapter.kept) == 1)
        await made.degrade()
        await first
        await buffer.publish("a", b"2", Keep(RULE, b"m"))
        now = time.time()
        monkeypatch.setattr("backplane.broker.keep.time", lambda: now + 241)
        adapter.reply_gate.open()
        adapter.start_gate.open()
        await until_empty(buffer)
        assert (kept(adapter), len(adapter.kept), buffer.dropped) == ([b"1", b"2"], 2, 1)
        assert "after 240 s the broker may have forgotten the key" in warnings_of(caplog, logging.ERROR)[0]


async def test_keyed_publish_of_unknown_outcome_after_the_stop_raises() -> None:
    """After the stop of the buffer nothing is kept, so its caller gets that the outcome is unknown."""
    async with keeping() as (_, buffer, adapter):
        await buffer.stop(1)
        adapter.reply_errors = [UNKNOWN]
        with pytest.raises(PublishOutcomeUnknownError):
            await buffer.publish("a", b"1", Keep(RULE, b"k"))
        assert (len(buffer), kept(adapter)) == (0, [b"1"])


@pytest.mark.parametrize("seed", range(10))
async def test_keyed_publishes_in_a_storm_are_there_once(seed: int) -> None:
    """Over links that are lost at any moment, what was kept or published is there once; what was dropped is counted."""
    chance = random.Random(seed)
    async with keeping() as (_, buffer, adapter):
        publishing: list[asyncio.Task[Receipt]] = []
        for number in range(60):
            if chance.random() < 0.3:
                chance.choice([adapter.keep_gate, adapter.reply_gate]).close()
            payload = b"%d" % number
            key = payload if chance.random() < 0.7 else None
            publishing.append(asyncio.create_task(buffer.publish("a", payload, Keep(RULE, key))))
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            if chance.random() < 0.1:
                adapter.cut()
            if chance.random() < 0.5:
                adapter.keep_gate.open()
                adapter.reply_gate.open()
        adapter.keep_gate.open()
        adapter.reply_gate.open()
        outcomes = await asyncio.wait_for(asyncio.gather(*publishing, return_exceptions=True), WAIT_SECONDS)
        await until_empty(buffer)
        there = kept(adapter)
        assert len(set(there)) == len(there)
        done = {b"%d" % number for number, outcome in enumerate(outcomes) if not isinstance(outcome, Exception)}
        assert len(done - set(there)) <= buffer.dropped
        assert len(done) > 20
