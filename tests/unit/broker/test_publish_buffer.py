"""`backplane.broker.publish_buffer`: what is published while the broker is away, kept in order and in bounds."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import pytest

from backplane.broker.publish_buffer import PublishBuffer
from backplane.errors import BrokerUnavailableError, PublishError, PublishOutcomeUnknownError
from backplane.log_bursts import LogBursts
from tests.unit.doubles import Gate, run_passes, until_idle
from tests.unit.supervised import WAIT_SECONDS, supervised, warnings_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.unit.supervised import World

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def buffered(
    *, max_bytes: int = 1024, max_messages: int = 100, bursts: LogBursts | None = None
) -> AsyncGenerator[tuple[World, PublishBuffer]]:
    """Run a buffer over a supervisor; nothing of it is left behind."""
    async with supervised() as made:
        buffer = PublishBuffer(made.supervisor, max_bytes=max_bytes, max_messages=max_messages, bursts=bursts)
        yield made, buffer
        await asyncio.wait_for(buffer.stop(WAIT_SECONDS), WAIT_SECONDS)


async def publish(buffer: PublishBuffer, *payloads: bytes) -> None:
    """Publish one behind the other."""
    for payload in payloads:
        await asyncio.wait_for(buffer.publish("a", payload), WAIT_SECONDS)


async def come_back(made: World, published: int) -> None:
    """Let the broker return, and wait until it has so many messages."""
    made.adapter.start_gate.open()
    await made.adapter.until(lambda: len(made.adapter.published) >= published)
    await until_idle()


def payloads(made: World) -> list[bytes]:
    """Return what the broker took, in order."""
    return [payload for _, payload in made.adapter.published]


def senders() -> int:
    """Return how many tasks send what waits."""
    return [task.get_name() for task in asyncio.all_tasks()].count("backplane-outage-buffer")


async def test_live_link_is_published_on_at_once() -> None:
    """While the broker is there nothing waits, and no task exists."""
    async with buffered() as (made, buffer):
        await publish(buffer, b"1", b"2")
        assert (payloads(made), len(buffer), senders()) == ([b"1", b"2"], 0, 0)


async def test_what_is_published_meanwhile_is_sent_in_order() -> None:
    """`publish` returns at once; everything goes out once, in order, when the broker is back, and no task is left."""
    async with buffered() as (made, buffer):
        await made.degrade()
        numbers = [str(number).encode() for number in range(20)]
        await publish(buffer, *numbers)
        assert (payloads(made), len(buffer), senders()) == ([], 20, 1)
        await come_back(made, 20)
        assert (payloads(made), len(buffer), buffer.dropped) == (numbers, 0, 0)
        assert senders() == 0


async def test_sending_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is sent with the variables of the start, for one publisher's are not those of all."""
    user: ContextVar[str] = ContextVar("user", default="nobody")
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
    assert seen == ["nobody"]


async def test_publishes_while_it_drains_go_behind() -> None:
    """What is published while the first ones are on their way does not overtake them."""
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
async def test_what_comes_back_from_a_lost_link_goes_first(moment: str) -> None:
    """A message that a lost link did not take is kept before those of later calls, one that is being sent included."""
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
    """Over either bound `publish` raises that nothing was published, which stays true."""
    async with buffered(max_bytes=max_bytes, max_messages=max_messages) as (made, buffer):
        await made.degrade()
        await publish(buffer, b"11", b"22")
        with pytest.raises(BrokerUnavailableError, match="holds all it may: 2 messages, 4 bytes; not published"):
            await publish(buffer, b"3")
        assert len(buffer) == 2
        await come_back(made, 2)
        assert payloads(made) == [b"11", b"22"]
        await made.degrade()
        await publish(buffer, b"44", b"55")  # what was sent takes no room any more
        await come_back(made, 4)
        assert payloads(made) == [b"11", b"22", b"44", b"55"]


async def test_link_lost_while_sending_keeps_the_place() -> None:
    """A message that certainly did not go out is sent on the next link, still before the others, and once."""
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
async def test_adapter_that_refuses_while_its_link_stands_is_asked_again(error: Exception) -> None:
    """An adapter that says it is away, on a link that is live, loses nothing and is not asked without a pause."""
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
    """What was refused, or may have been published, is told in the log alone; what waits behind it goes on."""
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


async def test_channel_that_the_broker_cannot_serve_holds_up_no_other() -> None:
    """A passing state of one channel keeps its messages in their order, and the other channels are sent meanwhile."""
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


async def test_message_over_which_the_link_ends_is_not_sent_again() -> None:
    """One whose sending ended the link has an unknown outcome: it is dropped, and the others go out on the next one."""
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
    """A broker that refuses all that was kept writes one line for the first and one for the rest."""
    bursts = LogBursts()
    async with buffered(bursts=bursts) as (made, buffer):
        await made.degrade()
        made.adapter.publish_errors["bad"] = PublishError("not yours")
        for _ in range(50):
            await buffer.publish("bad", b"lost")
        await publish(buffer, b"last")
        caplog.clear()
        await come_back(made, 1)
        bursts.flush()
        assert buffer.dropped == 50
        assert warnings_of(caplog, logging.ERROR) == [
            "a message that was kept for channel 'bad' is lost: not yours",
            "49 more within 10 s, the last one: a message that was kept for channel 'bad' is lost: not yours",
        ]


@pytest.mark.parametrize("error", [PublishOutcomeUnknownError("cut"), PublishError("too large")])
async def test_errors_of_a_live_link_are_raised(error: PublishError) -> None:
    """While the broker is there, its word reaches whoever published, and nothing is kept."""
    async with buffered() as (made, buffer):
        made.adapter.publish_errors["a"] = error
        with pytest.raises(type(error), match=str(error)):
            await publish(buffer, b"1")
        assert (len(buffer), buffer.dropped) == (0, 0)


async def test_stop_while_degraded_says_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    """A stop without the broker does not wait for it: the number of lost messages is in the log."""
    async with buffered() as (made, buffer):
        await made.degrade()
        await publish(buffer, b"1", b"2", b"3")
        caplog.clear()
        await asyncio.wait_for(buffer.stop(60), WAIT_SECONDS)
        assert (len(buffer), buffer.dropped) == (0, 3)
        assert warnings_of(caplog, logging.ERROR) == [
            "3 messages were never published: the broker was away until the end"
        ]


async def test_stop_while_live_sends_the_rest() -> None:
    """Where the broker is there, a stop sends what waits before it returns."""
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
    """A broker that does not answer holds the stop no longer than it is given; what waited is counted."""
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


async def test_link_lost_behind_the_stop_keeps_nothing() -> None:
    """A publish that fails after the stop raises: what was kept now would be lost without a word."""
    async with buffered() as (made, buffer):
        await buffer.stop(1)
        await made.degrade()
        with pytest.raises(BrokerUnavailableError):
            await publish(buffer, b"1")
        assert len(buffer) == 0
