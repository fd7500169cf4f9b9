"""Peers that leave and peers that die."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.unit.adapters.ipc.processes import MEBIBYTE, Process, Worker, impatient, sockets, wait_until

if TYPE_CHECKING:
    from contextlib import AsyncExitStack
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def test_a_peer_that_stops_leaves_no_gap(url: str, directory: Path, stack: AsyncExitStack) -> None:
    """A peer that stops removes its socket, and the others report no gap."""
    staying = await stack.enter_async_context(Worker(url))
    other = await stack.enter_async_context(Worker(url))
    await staying.adapter.subscribe(["a"])
    for _ in range(10):
        async with Worker(url) as leaving:
            await leaving.adapter.subscribe(["a"])
            await leaving.adapter.publish("a", b"last message")
    for _ in range(3):  # BYE arrives on another connection, a few passes of the event loop later
        await staying.received_all_of(other, "a")
    assert len(sockets(directory)) == 2
    assert staying.sink.payloads("a").count(b"last message") == 10
    assert staying.sink.gaps == []


async def test_messages_of_a_killed_publisher_are_received(url: str, stack: AsyncExitStack) -> None:
    """Everything that a process published before it was killed is received, without a gap."""
    process = await stack.enter_async_context(await Process.spawn(url))
    await process.run("start")
    worker = await stack.enter_async_context(Worker(url))
    await worker.adapter.subscribe(["a"])
    process.command("publish_and_die", "a", 100)
    await worker.sink.until(lambda: len(worker.sink.delivered) == 100)
    assert worker.sink.payloads("a") == [b"%d" % number for number in range(100)]
    await process.ended()
    assert worker.sink.gaps == []


async def test_a_child_does_not_keep_its_parent_alive(url: str, stack: AsyncExitStack) -> None:
    """A killed process is gone for its peers, even if a child that it forked is alive."""
    process = await stack.enter_async_context(await Process.spawn(url))
    await process.run("start")
    worker = await stack.enter_async_context(Worker(url))
    await process.run("fork")
    (child,) = [report[1] for report in process.reports if report[0] == "forked"]
    stack.callback(os.kill, child, signal.SIGKILL)
    await process.run("subscribe", "a")
    await worker.adapter.publish("a", b"the parent still receives")
    await process.received({("a", "the parent still receives")})
    assert await worker.adapter.describe() == "Unix sockets, 1 other process"
    process.signal(signal.SIGKILL)
    async with asyncio.timeout(30):
        while await worker.adapter.describe() != "Unix sockets, 0 other processes":
            await asyncio.sleep(0.005)
    os.kill(child, 0)  # it lives


async def test_a_process_that_dies_idle_leaves_no_gap_and_no_socket(
    url: str, directory: Path, stack: AsyncExitStack
) -> None:
    """A peer removes the socket of a killed process, and reports no gap if nothing was lost."""
    process = await stack.enter_async_context(await Process.spawn(url))
    await process.run("start")
    worker = await stack.enter_async_context(Worker(url))
    await worker.adapter.subscribe(["a"])
    assert len(sockets(directory)) == 2
    await process.kill()
    await wait_until(lambda: len(sockets(directory)) == 1)
    await worker.adapter.subscribe(["b"])
    assert worker.sink.gaps == []


async def test_a_publisher_that_dies_with_bytes_in_memory_leaves_a_gap(url: str, stack: AsyncExitStack) -> None:
    """Messages in the memory of a killed publisher are lost, and the peer reports a gap."""
    publisher, listener = [await stack.enter_async_context(await Process.spawn(url)) for _ in range(2)]
    await publisher.run("start")
    await listener.run("start")
    await listener.run("subscribe", "a")
    await listener.freeze()
    await publisher.run("publish", "a", "big", MEBIBYTE // 8, 40)
    await publisher.kill()
    listener.thaw()
    await listener.until(lambda: bool(listener.gaps))
    assert listener.gaps == [None]
    assert 0 < len(listener.delivered) < 40


async def test_a_late_peer_that_dies_leaves_a_gap(url: str, stack: AsyncExitStack) -> None:
    """A peer that died before it confirmed a subscription may have published: a gap is reported at its death."""
    url = impatient(url, 0.2)
    process = await stack.enter_async_context(await Process.spawn(url))
    await process.run("start")
    worker = await stack.enter_async_context(Worker(url))
    await process.freeze()
    await worker.adapter.subscribe(["late"])
    assert worker.sink.gaps == []
    await process.kill()
    await worker.sink.until(lambda: bool(worker.sink.gaps))
    assert len(worker.sink.gaps) == 1
