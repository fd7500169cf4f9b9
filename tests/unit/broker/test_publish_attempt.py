"""`backplane.broker.publish_attempt`: how long a publish waits for its answer, and when a link is taken for silent."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from backplane.broker.keep import Keep
from backplane.broker.publish_attempt import NO_POSITION
from backplane.errors import (
    PublishOutcomeUnknownError,
)
from backplane.history_rules import History
from backplane.message import Gap
from tests.unit.controlled_adapter import Adapter, ControlledHistoryAdapter
from tests.unit.doubles import Gate, until_idle
from tests.unit.kit import (
    SETTINGS,
    WAIT_SECONDS,
    SupervisedWorld,
    supervised,
)

pytestmark = pytest.mark.anyio

QUICK_PUBLISH = replace(SETTINGS, publish_timeout_seconds=0.05)


async def unanswered(made: SupervisedWorld) -> None:
    """Publish a message that gets no answer."""
    with pytest.raises(PublishOutcomeUnknownError):
        await made.publisher.publish("a", b"x")


async def test_publish_without_an_answer_has_an_unknown_outcome() -> None:
    """A broker that does not answer may have published it."""
    async with supervised(settings=replace(SETTINGS, publish_timeout_seconds=0.05)) as made:
        made.adapter.publish_gate.close()
        with pytest.raises(PublishOutcomeUnknownError, match=r"^no answer within 0\.05 s; it may have been published$"):
            await asyncio.wait_for(made.publisher.publish("a", b"who knows"), WAIT_SECONDS)
        assert made.supervisor.state == "live"


async def test_two_publishes_without_an_answer_rebuild_a_link_that_still_receives() -> None:
    """Where only the publish path is dead, two publishes without an answer end the link."""
    async with supervised(Adapter(brokered=True), QUICK_PUBLISH) as made:
        subscriber = await made.joined("a")
        made.adapter.publish_gate.close()
        made.adapter.links[-1].deliver("a", b"the way in carries")
        await unanswered(made)
        await until_idle()
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)
        made.adapter.links[-1].deliver("a", b"still")
        await unanswered(made)
        await made.reaches("live", generation=2)
        assert [type(item) for item in await subscriber.receives(3)] == [str, str, Gap]
        made.adapter.publish_gate.open()


async def test_answer_between_two_publishes_without_one_keeps_the_link() -> None:
    """Only publishes in a row without an answer end a link."""
    async with supervised(Adapter(brokered=True), QUICK_PUBLISH) as made:
        for _ in range(3):
            made.adapter.publish_gate.close()
            await unanswered(made)
            made.adapter.publish_gate.open()
            await made.publisher.publish("a", b"answered")
        await until_idle()
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


async def test_unanswered_publishes_do_not_end_a_link_without_a_broker() -> None:
    """Without a broker no answer is awaited, so a slow worker does not end its own link."""
    async with supervised(Adapter(brokered=False), QUICK_PUBLISH) as made:
        subscriber = await made.joined("a")
        made.adapter.publish_gate.close()
        for _ in range(3):
            await unanswered(made)
        await until_idle()
        assert (made.supervisor.state, made.supervisor.generation, subscriber.received) == ("live", 1, [])
        made.adapter.publish_gate.open()


async def test_unanswered_publishes_do_not_end_a_link_of_parts() -> None:
    """Only the part that these messages went to can be silent, and the adapter finds that itself."""
    async with supervised(Adapter(brokered=True, parts=True), QUICK_PUBLISH) as made:
        subscriber = await made.joined("a")
        made.adapter.publish_gate.close()
        for _ in range(3):
            await unanswered(made)
        await until_idle()
        assert (made.supervisor.state, made.supervisor.generation, subscriber.received) == ("live", 1, [])
        made.adapter.publish_gate.open()


async def test_long_queue_is_no_silence() -> None:
    """A burst that the broker processes for longer than the publish timeout is answered completely; no link ends."""
    adapter = Adapter(brokered=True)
    async with supervised(adapter, replace(SETTINGS, publish_timeout_seconds=1)) as made:
        adapter.publish_gates = [Gate() for _ in range(8)]
        for gate in adapter.publish_gates:
            gate.close()
        publishing = [asyncio.create_task(made.publisher.publish("a", b"%d" % number)) for number in range(8)]
        for gate in list(adapter.publish_gates):
            await asyncio.sleep(0.15)
            gate.open()
        await asyncio.gather(*publishing)
        assert adapter.published == [("a", b"%d" % number) for number in range(8)]
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


async def test_pause_of_the_process_does_not_expire_publishes() -> None:
    """Publishes in progress while the process is paused are answered, and the link stays live."""
    adapter = Adapter(brokered=True)
    async with supervised(adapter, replace(SETTINGS, publish_timeout_seconds=0.3)) as made:
        subscriber = await made.joined("a")
        adapter.publish_gate.close()
        publishing = [asyncio.create_task(made.publisher.publish("a", b"%d" % number)) for number in range(5)]
        await adapter.until(lambda: adapter.verbs.count("publish") == 5)
        asyncio.get_running_loop().call_later(0.05, adapter.publish_gate.open)  # an answer that is read after the pause
        time.sleep(1)
        await asyncio.gather(*publishing)
        assert await subscriber.receives(5) == [str(number) for number in range(5)]
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


async def test_unanswered_publishes_of_an_old_link_do_not_end_the_new_one() -> None:
    """Publishes without an answer on a lost link are not counted on the next one."""
    async with supervised(Adapter(brokered=True), QUICK_PUBLISH) as made:
        made.adapter.publish_gate.close()
        async with asyncio.TaskGroup() as publishing:
            for _ in range(3):
                publishing.create_task(unanswered(made))
            await made.adapter.until(lambda: made.adapter.verbs.count("publish") == 3)
            await made.recover()
        await until_idle()
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 2)
        made.adapter.publish_gate.open()


async def test_stop_waits_for_publishes_in_flight() -> None:
    """A publish that waits for the broker's answer gets it before the link is closed."""
    async with supervised() as made:
        made.adapter.publish_gate.close()
        publishing = asyncio.create_task(made.publisher.publish("a", b"last words"))
        await made.adapter.until(lambda: "publish" in made.adapter.verbs)
        stopping = asyncio.create_task(made.supervisor.stop())
        await until_idle()
        assert (made.supervisor.state, stopping.done()) == ("live", False)
        made.adapter.publish_gate.open()
        await asyncio.wait_for(publishing, WAIT_SECONDS)
        await asyncio.wait_for(stopping, WAIT_SECONDS)
        assert made.adapter.published == [("a", b"last words")]


async def test_stop_is_bounded_by_a_publish_that_gets_no_answer() -> None:
    """A broker that never answers delays the stop no longer than the publish timeout."""
    async with supervised(Adapter(brokered=True), QUICK_PUBLISH) as made:
        made.adapter.publish_gate.close()
        publishing = asyncio.create_task(unanswered(made))
        await made.adapter.until(lambda: "publish" in made.adapter.verbs)
        await asyncio.wait_for(made.supervisor.stop(), WAIT_SECONDS)
        await publishing
        made.adapter.publish_gate.open()


async def test_a_publish_without_a_rule_is_published_and_gets_the_shared_receipt() -> None:
    """Without a rule the adapter that keeps messages is asked to publish, once, and no receipt is made."""
    adapter = ControlledHistoryAdapter()
    async with supervised(adapter) as made:
        session = made.supervisor.status.session
        assert await made.supervisor.attempts.attempt(session, "a", b"x", None) is NO_POSITION
        assert await made.supervisor.attempts.attempt_in_time(session, "a", b"x", None) is NO_POSITION
        assert (NO_POSITION.position, NO_POSITION.duplicate) == (None, False)
        assert adapter.verbs == ["start", "publish", "publish"]


async def test_a_publish_with_a_rule_is_kept_and_gets_its_position() -> None:
    """With a rule the adapter keeps the message with rule and key, and its answer proves the link as a publish does."""
    adapter = ControlledHistoryAdapter(brokered=True)
    async with supervised(adapter, QUICK_PUBLISH) as made:
        session, rule = made.supervisor.status.session, History(max_messages=1)
        session.unanswered_publishes = 1
        for key in (None, b"k"):
            receipt = await made.supervisor.attempts.attempt_in_time(session, "a", b"x", Keep(rule, key))
            assert receipt.position == adapter.log("a").top
        for number in range(3):
            await made.supervisor.attempts.attempt(session, "a", b"%d" % number, Keep(rule))
        assert adapter.kept[:2] == [("a", b"x", None), ("a", b"x", b"k")]
        assert session.unanswered_publishes == 0
        assert [item.payload for item in adapter.log("a").items] == [b"1", b"2"]
        assert adapter.verbs.count("publish") == 0


async def test_keeps_without_an_answer_end_the_link() -> None:
    """A kept message that gets no answer counts as a publish without one."""
    adapter = ControlledHistoryAdapter(brokered=True)
    async with supervised(adapter, QUICK_PUBLISH) as made:
        adapter.reply_gate.close()
        for _ in range(2):
            with pytest.raises(PublishOutcomeUnknownError):
                await made.publisher.publish("a", b"x", Keep(History()))
        await made.reaches("live", generation=2)
        adapter.reply_gate.open()
