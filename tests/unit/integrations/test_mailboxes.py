"""`backplane.integrations.mailboxes`: what waits for a consumer, in one event loop and in several threads."""

# msgpack has no types:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, Any

import msgpack  # type: ignore[import-untyped]
import pytest

from backplane import Backplane, Gap, LifecycleError, SubscribeError
from backplane.integrations.mailboxes import Mailbox, Mailboxes, wake
from tests.unit.controlled_adapter import Adapter

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio


class Msgpack:
    """Writes messages as channels_redis does."""

    def serialize(self, message: Any) -> bytes:
        """Return a message as bytes."""
        return bytes(msgpack.packb(message) or b"")

    def deserialize(self, message: bytes) -> Any:
        """Return the message of bytes."""
        return msgpack.unpackb(message)


class World:
    """The mailboxes of one process, on an adapter that a test controls."""

    def __init__(self, gap_type: str | None = "gap") -> None:
        self.adapter = Adapter()
        self.backplane = Backplane(self.adapter)
        self.gaps: list[Gap] = []
        self.mailboxes = Mailboxes(
            self.backplane,
            "asgi",
            lambda channel: Mailbox(channel, 2, 60),
            Msgpack(),
            gap_type=gap_type,
            on_gap=self.gaps.append,
        )

    async def received(self, channel: str) -> Any:
        """Return the next message of a channel."""
        async with asyncio.timeout(10):
            return msgpack.unpackb(await self.mailboxes.boxes[channel].take())


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    """Mailboxes that are started."""
    made = World()
    await made.mailboxes.start()
    yield made
    await made.mailboxes.stop()


async def test_channels_and_groups(world: World) -> None:
    """A message reaches one consumer, each member of a group, or what waits on a channel without a `!`."""
    mailboxes = world.mailboxes
    one, other = await mailboxes.new_channel("specific."), await mailboxes.new_channel("specific.")
    await mailboxes.send(one, {"type": "a"})
    await mailboxes.send(other, {"type": "b"})
    assert [await world.received(one), await world.received(other)] == [{"type": "a"}, {"type": "b"}]
    await mailboxes.add("g", one)
    await mailboxes.add("g", other)
    await mailboxes.send_to_group("g", {"type": "c", "bytes": b"\xff"})
    assert [await world.received(channel) for channel in (one, other)] == [{"type": "c", "bytes": b"\xff"}] * 2
    await mailboxes.discard("g", one)
    await mailboxes.discard("g", one)
    await mailboxes.send_to_group("g", {"type": "d"})
    await mailboxes.send(one, {"type": "e"})
    assert [await world.received(one), await world.received(other)] == [{"type": "e"}, {"type": "d"}]
    await mailboxes.open("general")
    await mailboxes.send("general", {"type": "f"})
    assert await world.received("general") == {"type": "f"}
    assert world.adapter.channels >= {f"asgi__process__{mailboxes.process}", "asgi__group__g", "asgigeneral"}


async def test_end_of_a_channel(world: World) -> None:
    """A channel that ends leaves its groups, and the last member of a group the broker's channel too."""
    mailboxes = world.mailboxes
    one, other = await mailboxes.new_channel("s."), await mailboxes.new_channel("s.")
    for channel in (one, other):
        await mailboxes.add("g", channel)
    await mailboxes.open("general")
    await mailboxes.close(one)
    await mailboxes.close(one)
    await mailboxes.send_to_group("g", {"type": "a"})
    assert await world.received(other) == {"type": "a"}
    assert world.mailboxes.boxes.keys() == {other, "general"}
    await mailboxes.close_all()
    await world.adapter.until(lambda: world.adapter.channels == {f"asgi__process__{mailboxes.process}"})
    with pytest.raises(LifecycleError, match="group_add needs a channel of this process"):
        await mailboxes.add("g", one)


async def test_group_that_the_broker_refuses(world: World) -> None:
    """The consumer is not in it, and can be added later; one that is discarded meanwhile is not added."""
    channel = await world.mailboxes.new_channel("s.")
    world.adapter.refusals = {"asgi__group__g": "no rights"}
    with pytest.raises(SubscribeError):
        await world.mailboxes.add("g", channel)
    world.adapter.refusals = {}
    world.adapter.subscribe_gate.close()
    adding = asyncio.create_task(world.mailboxes.add("g", channel))
    await world.adapter.until(lambda: world.adapter.calls.count(("subscribe", ("asgi__group__g",))) == 2)
    await world.mailboxes.discard("g", channel)
    world.adapter.subscribe_gate.open()
    await adding
    await world.adapter.until(lambda: "asgi__group__g" not in world.adapter.channels)
    await world.mailboxes.add("g", channel)
    await world.mailboxes.send_to_group("g", {"type": "a"})
    assert await world.received(channel) == {"type": "a"}


async def test_gap(world: World) -> None:
    """After a lost link each consumer gets a message for its own channel and one for each of its groups."""
    channel = await world.mailboxes.new_channel("s.")
    await world.mailboxes.add("g", channel)
    world.adapter.cut()
    await world.backplane.wait_for_state("degraded")
    await world.backplane.wait_for_state("live")
    groups = {(await world.received(channel))["group"] for _ in range(2)}
    assert groups == {None, "g"}
    assert len(world.gaps) == 2


async def test_without_a_type_for_gaps() -> None:
    """A consumer gets no message of a gap that it may have no method for."""
    world = World(gap_type=None)
    await world.mailboxes.start()
    channel = await world.mailboxes.new_channel("s.")
    world.adapter.cut()
    await world.backplane.wait_for_state("degraded")
    await world.backplane.wait_for_state("live")
    for number in range(3):
        await world.mailboxes.send(channel, {"type": str(number)})
    await world.backplane.publish("other", "")
    assert [(await world.received(channel))["type"] for _ in range(2)] == ["0", "1"]
    await world.mailboxes.send(channel, {"type": "last"})
    assert (await world.received(channel))["type"] == "last"
    assert len(world.gaps) == 1
    await world.mailboxes.stop()


async def test_capacity(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What does not fit is dropped and logged, and in its place there is a gap."""
    channel = await world.mailboxes.new_channel("s.")
    for number in range(4):
        await world.mailboxes.send(channel, {"type": str(number)})
    await world.backplane.publish("other", "")
    assert [(await world.received(channel))["type"] for _ in range(2)] == ["0", "1"]
    await world.mailboxes.send(channel, {"type": "last"})
    assert [(await world.received(channel))["type"] for _ in range(2)] == ["gap", "last"]
    assert sum("reached its capacity" in text for text in caplog.messages) == 2


@pytest.mark.parametrize("payload", ["text", b"\xc1", b""], ids=["text", "bytes", "nothing"])
async def test_foreign_payload(world: World, payload: str | bytes, caplog: pytest.LogCaptureFixture) -> None:
    """What is no message is dropped and logged: a consumer that received it would end."""
    channel = await world.mailboxes.new_channel("s.")
    await world.mailboxes.add("g", channel)
    process = f"asgi__process__{world.mailboxes.process}"
    for name in ("asgi__group__g", process):
        await world.backplane.publish(name, payload if name != process else channel.encode() + b"\0" + b"\xc1")
    await world.mailboxes.send_to_group("g", {"type": "a"})
    assert await world.received(channel) == {"type": "a"}
    assert sum("no message of a channel layer" in text for text in caplog.messages) == 2


async def test_failure_of_a_delivery(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the messages after it are delivered."""
    channel = await world.mailboxes.new_channel("s.")
    put = world.mailboxes._put  # pyright: ignore[reportPrivateUsage]

    def fails(*_: object) -> None:
        monkeypatch.setattr(world.mailboxes, "_put", put)
        raise ValueError("a fault")

    monkeypatch.setattr(world.mailboxes, "_put", fails)
    await world.mailboxes.send(channel, {"type": "a"})
    await world.mailboxes.send(channel, {"type": "b"})
    assert await world.received(channel) == {"type": "b"}
    assert any(record.levelno == logging.ERROR for record in caplog.records)


async def test_expiry() -> None:
    """A message that waited for too long is not received."""
    box = Mailbox("a", 10, 0.0)
    assert box.put(b"old")
    box._expiry_seconds = 60  # pyright: ignore[reportPrivateUsage]
    assert box.put(b"new")
    assert await box.take() == b"new"


async def test_receiver_that_is_cancelled() -> None:
    """A message for which a cancelled receiver was woken goes to another one that waits."""
    box = Mailbox("a", 10, 60)
    first, second = (asyncio.create_task(box.take()) for _ in range(2))
    await asyncio.sleep(0)
    assert box.put(b"1")
    wake([box.to_wake()])
    first.cancel()
    assert await second == b"1"
    with pytest.raises(asyncio.CancelledError):
        await first
    assert box.to_wake() is None


async def test_event_loop_that_has_ended() -> None:
    """A receiver whose event loop was closed is passed over, and the next one gets the message."""
    box = Mailbox("a", 10, 60)

    async def begin() -> asyncio.Task[bytes]:
        task = asyncio.create_task(box.take())
        await asyncio.sleep(0)
        return task

    loop = asyncio.new_event_loop()
    task: Any = await asyncio.to_thread(loop.run_until_complete, begin())
    loop.close()
    task._log_destroy_pending = False
    assert box.put(b"1")
    wake([box.to_wake()])
    assert await box.take() == b"1"


async def test_many_threads() -> None:
    """Filled in one thread and emptied in four others, each message is received once, and none is left."""
    box = Mailbox("a", 10_000, 60)
    received: list[bytes] = []

    async def receive() -> None:
        while (payload := await box.take()) != b"end":
            received.append(payload)

    threads = [Thread(target=asyncio.run, args=(receive(),)) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for number in range(2_000):
            box.put(str(number).encode())
            wake([box.to_wake()])
            if not number % 50:
                await asyncio.sleep(0)
        for _ in threads:
            box.put(b"end")
            wake([box.to_wake()])
        for thread in threads:
            await asyncio.to_thread(thread.join, 20)
    finally:
        sys.setswitchinterval(interval)
    assert sorted(received, key=int) == [str(number).encode() for number in range(2_000)]
    with suppress(TimeoutError):
        async with asyncio.timeout(0):
            await box.take()
