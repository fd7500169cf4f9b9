"""Reading from and writing to a socket whose other side is gone."""

from __future__ import annotations

import asyncio
import os
import select
from typing import TYPE_CHECKING

import pytest

from tests.unit.adapters.ipc.processes import Process, Worker

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

pytestmark = pytest.mark.anyio


async def test_writing_to_a_dead_publisher_loses_nothing_of_what_it_sent(url: str, stack: AsyncExitStack) -> None:
    """Subscribing after the death of a peer, before its last messages are read, does not drop them."""
    process = await stack.enter_async_context(await Process.spawn(url))
    await process.run("start")
    worker = await stack.enter_async_context(Worker(url))
    await worker.adapter.subscribe(["a"])
    death = os.pidfd_open(process.pid)
    process.command("publish_and_die", "a", 3)
    await asyncio.sleep(0)  # uvloop sends the command only now
    select.select([death], [], [], 10)  # block this event loop until the process is dead
    os.close(death)
    await worker.adapter.subscribe(["b"])
    await worker.adapter.publish("x", b"")
    await worker.sink.until(lambda: len(worker.sink.delivered) == 3)
    assert worker.sink.gaps == []
