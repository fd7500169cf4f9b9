"""Connecting to what listens in the folder."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.unit.adapters.ipc.processes import Worker, folder_of

if TYPE_CHECKING:
    from contextlib import AsyncExitStack
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def test_a_socket_that_answers_garbage_is_ignored(
    url: str, directory: Path, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """A foreign listener, or a peer of another version, neither delays the start nor is connected to for ever."""
    connections = 0

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.write(b"220 hello\r\n")
        writer.close()

    server = await asyncio.start_unix_server(answer, folder_of(directory) / "1-00000000.sock")
    stack.push_async_callback(server.wait_closed)
    stack.callback(server.close)
    worker = await stack.enter_async_context(Worker(url))
    twin = await stack.enter_async_context(Worker(url))
    await worker.adapter.subscribe(["a"])
    await worker.received_all_of(twin, "a")
    assert connections == 2  # one from each
    assert len(caplog.records) == 4
