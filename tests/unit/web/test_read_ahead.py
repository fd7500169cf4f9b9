"""`backplane.web.read_ahead`: messages that are received for a handler before it asks for them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from backplane.web.read_ahead import ReadAhead
from tests.unit.doubles import until_idle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0
END = {"type": "websocket.disconnect", "code": 1001}


def text(data: str) -> dict[str, Any]:
    """Return a message of the client."""
    return {"type": "websocket.receive", "text": data}


class Client:
    """A server's `receive`, and what was noticed of its client's end.

    Attributes:
        queue: What the client sends; an error is raised.
        times: When a message was noticed.
        ends: How often the end was noticed.
    """

    def __init__(self) -> None:
        self.queue: asyncio.Queue[dict[str, Any] | Exception] = asyncio.Queue()
        self.times: list[float] = []
        self.ends = 0
        self.ahead = ReadAhead(self._receive, self.times.append, self._ended)

    async def _receive(self) -> dict[str, Any]:
        message = await self.queue.get()
        if isinstance(message, Exception):
            raise message
        return message

    def _ended(self) -> None:
        self.ends += 1

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[asyncio.Task[None]]:
        """Read ahead."""
        reading = asyncio.create_task(self.ahead.run())
        await until_idle()
        yield reading
        reading.cancel()
        await asyncio.wait([reading])


async def test_end_is_noticed_and_the_messages_before_it_are_kept() -> None:
    """A handler that receives only later gets every message in order, the end too."""
    client = Client()
    for message in (text("1"), text("2"), END):
        client.queue.put_nowait(message)
    async with client.read():
        assert (len(client.times), client.ends) == (2, 1)
        assert [await client.ahead.receive() for _ in range(3)] == [text("1"), text("2"), END]


async def test_handler_that_begins_to_receive_takes_over() -> None:
    """It gets the next message, and the one after that comes to it without the task in between."""
    client = Client()
    async with client.read() as reading:
        received = asyncio.create_task(client.ahead.receive())
        await until_idle()
        client.queue.put_nowait(text("1"))
        assert await asyncio.wait_for(received, WAIT_SECONDS) == text("1")
        assert reading.done()
        client.queue.put_nowait(text("2"))
        assert await client.ahead.receive() == text("2")


async def test_receive_that_is_cancelled_loses_nothing() -> None:
    """The next receive gets what came meanwhile."""
    client = Client()
    async with client.read():
        received = asyncio.create_task(client.ahead.receive())
        await until_idle()
        received.cancel()
        await asyncio.wait([received])
        client.queue.put_nowait(text("1"))
        assert await asyncio.wait_for(client.ahead.receive(), WAIT_SECONDS) == text("1")


async def test_reading_that_is_cancelled_leaves_the_rest_to_the_handler() -> None:
    """A handler that waits goes on receiving by itself."""
    client = Client()
    async with client.read():
        received = asyncio.create_task(client.ahead.receive())
        await until_idle()
    client.queue.put_nowait(text("1"))
    assert await asyncio.wait_for(received, WAIT_SECONDS) == text("1")


async def test_unreceived_messages_are_bounded() -> None:
    """A client whose messages are not received is read up to 64 KiB; then backpressure acts as before."""
    client = Client()
    for _ in range(10):
        client.queue.put_nowait(text("x" * 16 * 1024))
    async with client.read() as reading:
        assert (reading.done(), client.queue.qsize()) == (True, 6)


async def test_error_of_receive_is_the_end() -> None:
    """Some servers raise where the application has taken the client's end by itself."""
    client = Client()
    client.queue.put_nowait(RuntimeError("after the end"))
    async with client.read():
        assert client.ends == 1
        assert (await client.ahead.receive())["type"] == "websocket.disconnect"
