"""`backplane.adapters.memory`: one bus for each name in a process; the contract is in tests/conformance."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from backplane import Backlog, Backplane, Gap
from backplane.adapters import memory
from backplane.adapters.memory import MemoryBroadcaster, MemoryOptions
from backplane.broadcaster import BrokerUrl, Recalled
from backplane.broker.registry import broadcaster_from_url
from backplane.history_rules import History
from backplane.sync import SyncBackplane
from backplane.testing import RecordingSink

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane import Subscription
    from backplane.message import Position

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0


async def received(messages: Subscription, count: int) -> list[object]:
    """Return the next items: the data of a message, the reason of a gap."""
    async with asyncio.timeout(WAIT_SECONDS):
        items = [await anext(messages) for _ in range(count)]
    return [item.reason if isinstance(item, Gap) else item.data for item in items]


async def test_each_name_is_a_bus_of_its_own() -> None:
    """Adapters with the same name in one process receive each other's messages, and no others."""
    async with (
        Backplane("memory://") as one,
        Backplane("memory://?max_payload_bytes=1000") as two,
        Backplane("memory://elsewhere") as other,
        two.subscribe("a") as messages,
        other.subscribe("a") as others,
    ):
        await one.publish("a", "from one")
        await other.publish("a", "from the other")
        await two.publish("a", "from two")
        assert await received(messages, 2) == ["from one", "from two"]
        assert await received(others, 1) == ["from the other"]


async def test_an_adapter_that_was_stopped_receives_nothing() -> None:
    """An adapter that was stopped receives nothing more; the others still do."""
    gone = Backplane("memory://stop")
    async with Backplane("memory://stop") as backplane, backplane.subscribe("a") as messages:
        async with gone, gone.subscribe("a"):
            pass
        await backplane.publish("a", "x")
        assert await received(messages, 1) == ["x"]


async def test_messages_from_another_event_loop_are_received() -> None:
    """Messages from another thread's event loop are received, in order, and those of a `SyncBackplane` too."""

    async def publish() -> None:
        async with Backplane("memory://loops") as outside:
            for number in range(100):
                await outside.publish("a", str(number))

    async with Backplane("memory://loops") as backplane, backplane.subscribe("a") as messages:
        await asyncio.to_thread(asyncio.run, publish())
        with SyncBackplane("memory://loops") as outside:
            await asyncio.to_thread(outside.publish, "a", "last")
        assert await received(messages, 101) == [*map(str, range(100)), "last"]


async def test_messages_above_the_limit_of_a_blocked_event_loop_are_a_gap() -> None:
    """The messages that wait for a blocked event loop are bounded; dropped ones are a gap in their place."""
    mebibyte = b"x" * 2**20

    async def publish() -> None:
        async with Backplane("memory://blocked") as outside:
            for _ in range(70):
                await outside.publish("a", mebibyte)

    async with (
        Backplane("memory://blocked") as backplane,
        backplane.subscribe("a", backlog=Backlog(max_bytes=2**30)) as messages,
    ):
        thread = threading.Thread(target=asyncio.run, args=(publish(),))
        thread.start()
        thread.join(WAIT_SECONDS)  # blocks this event loop
        items = await received(messages, 64)
        assert items[:63] == [mebibyte] * 63
        assert "more messages waited than the limit" in str(items[63])
        await backplane.publish("a", "after it")
        assert await received(messages, 1) == ["after it"]


async def test_an_event_loop_that_ended_without_stop_affects_no_other() -> None:
    """An adapter that was not stopped before its event loop ended does not affect the others."""

    async def forget() -> None:
        left = Backplane("memory://forgotten")
        await left.start()
        await left.subscribe("a").__aenter__()

    await asyncio.to_thread(asyncio.run, forget())
    async with Backplane("memory://forgotten") as backplane, backplane.subscribe("a") as messages:
        await backplane.publish("a", "x")
        assert await received(messages, 1) == ["x"]


async def test_messages_for_an_earlier_start_are_dropped() -> None:
    """Messages that waited when an event loop ended are dropped, and do not delay those of the next start."""
    adapter, sink = MemoryBroadcaster(BrokerUrl(scheme="memory", netloc="late"), MemoryOptions()), RecordingSink()
    earlier = asyncio.new_event_loop()
    await asyncio.to_thread(earlier.run_until_complete, adapter.start(sink))
    await asyncio.to_thread(earlier.run_until_complete, adapter.subscribe(["a"]))
    with SyncBackplane("memory://late?wire_format=plain") as outside:
        await asyncio.to_thread(outside.publish, "a", "too late")
        earlier.close()
        await adapter.stop()
        await adapter.start(sink)
        await adapter.subscribe(["a"])
        await asyncio.to_thread(outside.publish, "a", "in time")
        await sink.until(lambda: bool(sink.delivered))
    assert sink.payloads("a") == [b"in time"]
    await adapter.stop()


def test_a_forked_child_has_a_bus_of_its_own() -> None:
    """What a forked child publishes does not wait for an event loop of its parent."""
    child_code = """
import asyncio, os, sys
from backplane import Backplane

async def publish():
    async with Backplane("memory://fork") as backplane, backplane.subscribe("a") as messages:
        await backplane.publish("a", "x")
        return (await anext(messages)).data

async def main():
    async with Backplane("memory://fork") as backplane, backplane.subscribe("a") as messages:
        if not (pid := os.fork()):
            asyncio.events._set_running_loop(None)
            os._exit(0 if asyncio.run(publish()) == "x" else 1)
        _, status = os.waitpid(pid, 0)
        await backplane.publish("a", "parent")
        assert (await anext(messages)).data == "parent"
        sys.exit(os.waitstatus_to_exitcode(status))

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", child_code], timeout=60, check=False)
    assert done.returncode == 0


# -- history -----------------------------------------------------------------------------------------------------------

RULE = History(max_messages=1000, max_age_seconds=60)


class Clock:
    """The clock of the adapter, moved by the test."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock of the adapter."""
    clock = Clock()
    monkeypatch.setattr("backplane.adapters.memory._now", clock)
    return clock


@asynccontextmanager
async def adapter(url: str) -> AsyncGenerator[MemoryBroadcaster]:
    """Start an adapter for as long as the block."""
    broadcaster = broadcaster_from_url(url)
    assert isinstance(broadcaster, MemoryBroadcaster)
    await broadcaster.start(RecordingSink())
    try:
        yield broadcaster
    finally:
        await broadcaster.stop()


async def keep(broadcaster: MemoryBroadcaster, channel: str, payload: bytes, rule: History = RULE) -> Position:
    """Keep a message, and return its position."""
    receipt = await broadcaster.keep(channel, payload, rule)
    assert receipt.position is not None
    return receipt.position


async def read(broadcaster: MemoryBroadcaster, channel: str, after: Position | None = None) -> Recalled:
    """Read everything."""
    return await broadcaster.recall(channel, RULE, after=after, limit=10_000, max_bytes=1 << 30)


def payloads(recalled: Recalled) -> list[bytes]:
    """Return what was read."""
    return [item.payload for item in recalled.items]


async def test_each_name_has_histories_of_its_own() -> None:
    """What is kept under one name is not in the history of another one."""
    async with adapter("memory://history-a") as one, adapter("memory://history-b") as other:
        position = await keep(one, "room", b"x")
        assert payloads(await read(one, "room")) == [b"x"]
        assert (await read(other, "room")).items == []
        assert not (await read(other, "room", position)).found


async def test_a_history_is_gone_with_the_last_adapter_of_its_name() -> None:
    """While one adapter of a name is started its history lasts; after the last stop it begins anew."""
    async with adapter("memory://history-c") as one:
        async with adapter("memory://history-c") as other:
            position = await keep(other, "room", b"x")
        assert (await read(one, "room", position)).found
    async with adapter("memory://history-c") as one:
        recalled = await read(one, "room", position)
        assert (recalled.found, recalled.top.offset) == (False, 0)
        assert recalled.top.epoch != position.epoch


def test_a_history_is_gone_when_its_event_loop_has_ended_without_stop() -> None:
    """An adapter whose event loop has ended without `stop` does not keep a history alive."""

    async def first() -> Position:
        broadcaster = broadcaster_from_url("memory://history-d")
        assert isinstance(broadcaster, MemoryBroadcaster)
        await broadcaster.start(RecordingSink())
        return await keep(broadcaster, "room", b"x")

    async def second() -> bool:
        async with adapter("memory://history-d") as broadcaster:
            return (await read(broadcaster, "room", position)).found

    position = asyncio.run(first())
    assert not asyncio.run(second())


async def test_event_loops_share_one_order() -> None:
    """What several threads keep at once has one order: of each thread's deliveries, and of the history."""
    url, threads, each = "memory://history-e", 3, 300
    orders: list[list[bytes]] = []
    barrier = threading.Barrier(threads)

    async def live(name: int) -> None:
        async with adapter(url) as broadcaster:
            sink = broadcaster._sink  # pyright: ignore[reportPrivateUsage]
            assert isinstance(sink, RecordingSink)
            await broadcaster.subscribe(["room"])
            barrier.wait()
            for number in range(each):
                await keep(broadcaster, "room", b"%d %d" % (name, number))
            await sink.until(lambda: len(sink.delivered) == threads * each, timeout_seconds=WAIT_SECONDS)
            orders.append(sink.payloads("room"))
            chain = [item.place for item in sink.kept("room")]
            assert [place.before for place in chain[1:]] == [place.offset for place in chain[:-1]]

    async with adapter(url) as broadcaster:
        running = [threading.Thread(target=asyncio.run, args=(live(name),)) for name in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            await asyncio.to_thread(thread.join, WAIT_SECONDS)
        order = payloads(await read(broadcaster, "room"))
    assert orders == [order] * threads
    for name in range(threads):
        own = [payload for payload in order if payload.startswith(b"%d " % name)]
        assert own == [b"%d %d" % (name, number) for number in range(each)]


async def test_a_message_is_kept_for_its_age(clock: Clock) -> None:
    """After `max_age_seconds` a message is gone, the newest position is not; then the channel is forgotten."""
    async with adapter("memory://history-f") as broadcaster:
        first = await keep(broadcaster, "room", b"1")
        clock.seconds += 40
        second = await keep(broadcaster, "room", b"2")
        clock.seconds += 40
        assert payloads(await read(broadcaster, "room")) == [b"2"]
        assert payloads(await read(broadcaster, "room", first)) == [b"2"]  # its successor names it
        clock.seconds += 40
        assert (await read(broadcaster, "room")).items == []
        assert not (await read(broadcaster, "room", first)).found
        assert (await read(broadcaster, "room", second)).found
        clock.seconds += 10 * RULE.max_age_seconds + 1
        await keep(broadcaster, "other", b"")
        recalled = await read(broadcaster, "room", second)
        assert (recalled.found, recalled.top.offset) == (False, 0)


async def test_a_key_is_known_for_300_seconds(clock: Clock) -> None:
    """A key is known for 300 seconds, also where a message is kept for less."""
    rule = History(max_age_seconds=1)
    async with adapter("memory://history-g") as broadcaster:
        first = await broadcaster.keep("room", b"1", rule, key=b"key")
        clock.seconds += 299
        again = await broadcaster.keep("room", b"2", rule, key=b"key")
        assert (again.duplicate, again.position) == (True, first.position)
        clock.seconds += 2
        later = await broadcaster.keep("room", b"3", rule, key=b"key")
        assert (later.duplicate, later.position == first.position) == (False, False)


async def test_the_histories_of_a_name_are_bounded() -> None:
    """Above `max_history_bytes` the oldest messages go of the channel that was least recently published to."""
    async with adapter("memory://history-h?max_history_bytes=13200") as broadcaster:
        for number in range(9):
            await keep(broadcaster, "old", b"%d" % number)
        begin = await keep(broadcaster, "new", b"-")
        for number in range(20):
            await keep(broadcaster, "new", b"%d" % number)
        old, new = await read(broadcaster, "old"), await read(broadcaster, "new", begin)
        assert payloads(new) == [b"%d" % number for number in range(20)]
        assert payloads(old) == [b"%d" % number for number in range(2, 9)]
        await keep(broadcaster, "new", bytes(8000))
        assert (await read(broadcaster, "old")).items == []
        assert payloads(await read(broadcaster, "new")) == [b"16", b"17", b"18", b"19", bytes(8000)]
        await keep(broadcaster, "new", bytes(20_000))  # larger than the limit: delivered, and in no history
        recalled = await read(broadcaster, "new")
        assert (recalled.items, recalled.top.offset) == ([], 23)
        archive = memory._archives["history-h"]  # pyright: ignore[reportPrivateUsage]
        assert archive._size_bytes == 1600  # pyright: ignore[reportPrivateUsage]


async def test_the_keys_of_a_name_are_bounded(clock: Clock) -> None:
    """Keys count in `max_history_bytes`: above it the oldest go, and with a channel its keys."""
    rule = History(max_messages=1)
    async with adapter("memory://history-l?max_history_bytes=20000") as broadcaster:
        archive = memory._archives["history-l"]  # pyright: ignore[reportPrivateUsage]
        for number in range(1000):
            await broadcaster.keep("room", b"%d" % number, rule, key=b"%d" % number)
            assert archive._size_bytes <= 20_000  # pyright: ignore[reportPrivateUsage]
        assert not (await broadcaster.keep("room", b"again", rule, key=b"900")).duplicate
        assert (await broadcaster.keep("room", b"again", rule, key=b"990")).duplicate
        assert payloads(await broadcaster.recall("room", rule, after=None, limit=9, max_bytes=999)) == [
            b"999",
            b"again",
        ]
        clock.seconds += 301
        await broadcaster.keep("room", b"", rule)
        assert archive._size_bytes == 1600 + 2 * 350 + len(b"again")  # pyright: ignore[reportPrivateUsage]
        await broadcaster.keep("room", b"", rule, key=b"key")
        for number in range(20):
            await broadcaster.keep(f"other-{number}", b"x", rule)
        assert not (await broadcaster.keep("room", b"", rule, key=b"key")).duplicate
        archive._make_room(0)  # pyright: ignore[reportPrivateUsage]
        assert (len(archive._logs), archive._size_bytes) == (1, 1600)  # pyright: ignore[reportPrivateUsage]
        assert not archive._holding  # pyright: ignore[reportPrivateUsage]


async def test_channels_that_clients_made_up_are_bounded() -> None:
    """The channels themselves count, those without a message too: the ones that were used least recently go."""
    async with adapter("memory://history-k?max_history_bytes=100000") as broadcaster:
        archive = memory._archives["history-k"]  # pyright: ignore[reportPrivateUsage]
        begin = await keep(broadcaster, "room", b"1")
        for number in range(1000):
            await keep(broadcaster, f"published-{number}", b"x")
            if not number % 20:
                await keep(broadcaster, "room", b"2")
        assert len(archive._logs) < 100000 / 1600  # pyright: ignore[reportPrivateUsage]
        assert (await read(broadcaster, "room", begin)).found
        for number in range(1000):
            await read(broadcaster, f"read-{number}")
        assert len(archive._logs) <= 100000 / 1600  # pyright: ignore[reportPrivateUsage]
        assert archive._size_bytes <= 100_000  # pyright: ignore[reportPrivateUsage]
        assert not (await read(broadcaster, "room", begin)).found
        archive._make_room(0)  # pyright: ignore[reportPrivateUsage]
        assert (len(archive._logs), archive._size_bytes) == (1, 1600)  # pyright: ignore[reportPrivateUsage]


async def test_unused_channels_take_no_memory(clock: Clock) -> None:
    """Channels that clients made up are forgotten when they are not used."""
    async with adapter("memory://history-i") as broadcaster:
        for number in range(1000):
            await keep(broadcaster, f"room-{number}", b"x")
        clock.seconds += 10 * RULE.max_age_seconds + 1
        await keep(broadcaster, "room", b"x")
        archive = memory._archives["history-i"]  # pyright: ignore[reportPrivateUsage]
        assert list(archive._logs) == ["room"]  # pyright: ignore[reportPrivateUsage]
        assert len(archive._holding) == 1  # pyright: ignore[reportPrivateUsage]


def test_a_forked_process_begins_anew() -> None:
    """A forked process has no history of its parent, even if a thread of the parent was using it."""
    script = """
import asyncio, os
from backplane.adapters import memory
from backplane.broker.registry import broadcaster_from_url
from backplane.history_rules import History
from backplane.testing import RecordingSink

async def live():
    adapter = broadcaster_from_url("memory://fork")
    await adapter.start(RecordingSink())
    await adapter.keep("room", b"x", History())
    recalled = await adapter.recall("room", History(), after=None, limit=9, max_bytes=9)
    print(len(recalled.items), flush=True)

asyncio.run(live())
memory._archives_lock.acquire()
if os.fork() == 0:
    asyncio.run(live())
    os._exit(0)
os.wait()
"""
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert output.stdout.split() == ["1", "1"]
