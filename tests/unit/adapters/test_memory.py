"""`backplane.adapters.memory`: one bus for each name in a process; the contract is in tests/conformance."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from backplane import Backplane, Gap
from backplane.adapters.memory import MemoryBroadcaster, MemoryOptions
from backplane.broadcaster import BrokerUrl
from backplane.sync import SyncBackplane
from backplane.testing import RecordingSink

if TYPE_CHECKING:
    from backplane import Subscription

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20.0


async def received(messages: Subscription, count: int) -> list[object]:
    """Return what is received next: data, and the reason of a gap."""
    async with asyncio.timeout(WAIT_SECONDS):
        items = [await anext(messages) for _ in range(count)]
    return [item.reason if isinstance(item, Gap) else item.data for item in items]


async def test_one_bus_for_each_name() -> None:
    """All `memory://` of one name in one process receive each other, and no other name's."""
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


async def test_after_the_stop() -> None:
    """Who has stopped receives nothing more, and the others go on."""
    gone = Backplane("memory://stop")
    async with Backplane("memory://stop") as backplane, backplane.subscribe("a") as messages:
        async with gone, gone.subscribe("a"):
            pass
        await backplane.publish("a", "x")
        assert await received(messages, 1) == ["x"]


async def test_from_another_event_loop() -> None:
    """What another thread's event loop publishes is received, in order; so is what a `SyncBackplane` publishes."""

    async def publish() -> None:
        async with Backplane("memory://loops") as outside:
            for number in range(100):
                await outside.publish("a", str(number))

    async with Backplane("memory://loops") as backplane, backplane.subscribe("a") as messages:
        await asyncio.to_thread(asyncio.run, publish())
        with SyncBackplane("memory://loops") as outside:
            await asyncio.to_thread(outside.publish, "a", "in the end")
        assert await received(messages, 101) == [*map(str, range(100)), "in the end"]


async def test_more_than_an_event_loop_takes() -> None:
    """What waits for an event loop that is blocked is bounded, and what was dropped is a gap in its place."""
    mebibyte = b"x" * 2**20

    async def publish() -> None:
        async with Backplane("memory://blocked") as outside:
            for _ in range(70):
                await outside.publish("a", mebibyte)

    async with (
        Backplane("memory://blocked") as backplane,
        backplane.subscribe("a", max_outbox_bytes=2**30) as messages,
    ):
        thread = threading.Thread(target=asyncio.run, args=(publish(),))
        thread.start()
        thread.join(WAIT_SECONDS)  # blocks this event loop
        got = await received(messages, 64)
        assert got[:63] == [mebibyte] * 63
        assert "more waited than may" in str(got[63])
        await backplane.publish("a", "after it")
        assert await received(messages, 1) == ["after it"]


async def test_an_event_loop_that_ended_without_stop() -> None:
    """One that is forgotten in an event loop that has ended disturbs nobody."""

    async def forget() -> None:
        left = Backplane("memory://forgotten")
        await left.start()
        await left.subscribe("a").__aenter__()

    await asyncio.to_thread(asyncio.run, forget())
    async with Backplane("memory://forgotten") as backplane, backplane.subscribe("a") as messages:
        await backplane.publish("a", "x")
        assert await received(messages, 1) == ["x"]


async def test_what_came_too_late_for_an_earlier_start() -> None:
    """What still waited when an event loop ended is dropped, and holds up nothing of the next start."""
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


def test_a_forked_child() -> None:
    """A child has a bus of its own: what it publishes waits for no event loop of its parent."""
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
