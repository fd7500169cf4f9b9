"""What a connection may send before its peer is known."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backplane.adapters.ipc import wire
from tests.unit.adapters.ipc.processes import Worker, folder_of, sockets

if TYPE_CHECKING:
    from contextlib import AsyncExitStack
    from pathlib import Path

pytestmark = pytest.mark.anyio


GARBAGE = {
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "an unknown version": wire.frame(wire.HELLO, b"1-00000000.sock", b"backplane ipc 999"),
    "no hello": wire.frame(wire.MESSAGE, b"a", b"payload"),
    "a path": wire.hello_frame("../../1-00000000.sock"),
    "too large": wire.hello_frame("1-00000000.sock") + b"\x03\x00\x00\xff\xff\xff\xff",
    "a cut subscription": wire.hello_frame("1-00000000.sock") + wire.frame(wire.SUBSCRIPTIONS, payload=b"\1\0\5abc"),
    "the wrong way": wire.hello_frame("1-00000000.sock") + wire.frame(wire.MESSAGE, b"a", b"payload"),
}


@pytest.mark.parametrize("garbage", list(GARBAGE))
async def test_garbage_costs_only_its_connection(
    url: str, directory: Path, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture, garbage: str
) -> None:
    """A connection that does not speak the protocol is dropped, several with few warnings, and no other is affected."""
    worker = await stack.enter_async_context(Worker(url))
    (name,) = sockets(directory)
    twin = await stack.enter_async_context(Worker(url))
    await worker.adapter.subscribe(["a"])
    for _ in range(3):
        reader, writer = await asyncio.open_unix_connection(folder_of(directory) / name)
        writer.write(GARBAGE[garbage])
        await reader.read()  # dropped
        writer.close()
    await worker.received_all_of(twin, "a")
    assert [record.levelname for record in caplog.records if "payload" not in record.getMessage()] == ["WARNING"] * 3
    assert worker.sink.delivered == [("a", b"barrier")]
    assert worker.sink.gaps == []
