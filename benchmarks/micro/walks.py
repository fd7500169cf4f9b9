"""How often a walk through the code changes the file: one join, one message, one lost link, one drain.

A measure of structure, not of time. Each call of a function of the package is recorded in order; a coroutine counts
where it is entered, not where it is resumed. The fewer changes, the less a reader jumps between files.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.websockets import WebSocket

import backplane
from backplane import Backplane, Connection, Settings
from backplane.testing import FaultProxy

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

__all__ = ["Walk", "walks"]

_ENTERED_ONCE = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_SETTINGS = Settings(probe_interval_seconds=60, max_backoff_seconds=0.05, drain_seconds=0.05, linger_seconds=60)
_SETTLE_SECONDS = 0.2  # for what an earlier walk has begun: nothing reports its end
_SCOPE: dict[str, Any] = {
    "type": "websocket",
    "path": "/",
    "headers": [],
    "query_string": b"",
    "client": ("127.0.0.1", 1),
    "subprotocols": [],
}


class Walk:
    """The files through which one operation went.

    Attributes:
        name: What was done.
        files: The files in the order of the calls, without immediate repetitions.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.files: list[str] = []
        self._entered: list[FrameType] = []

    @property
    def changes(self) -> int:
        """How often the file changed."""
        return max(0, len(self.files) - 1)

    @contextmanager
    def recorded(self) -> Generator[None]:
        """Record the calls of this thread within the block."""
        sys.setprofile(self._record)
        try:
            yield
        finally:
            sys.setprofile(None)
            self._entered.clear()

    def _record(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call" or (file := _file_of(frame)) is None:
            return
        if frame.f_code.co_flags & _ENTERED_ONCE:
            if any(frame is entered for entered in self._entered):
                return
            self._entered.append(frame)
        if self.files[-1:] != [file]:
            self.files.append(file)


class _Client:
    """The ASGI side of a client that sends nothing and receives everything."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[str] = asyncio.Queue()
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._inbox.put_nowait({"type": "websocket.connect"})

    async def receive(self) -> Any:
        return await self._inbox.get()

    async def send(self, event: Any) -> None:
        self.sent.put_nowait(event["type"])

    async def until_sent(self, kind: str) -> None:
        while await self.sent.get() != kind:
            pass


async def walks(url: str) -> list[Walk]:
    """Walk through the code with a broker at `url`, over a proxy that cuts the link."""
    join, message, link, drain = (Walk(name) for name in ("one join", "one message", "one lost link", "one drain"))
    async with FaultProxy(url) as proxy, Backplane(proxy.url, settings=_SETTINGS) as worker:
        client = _Client()
        connection, handler = await _connected(worker, client)
        with join.recorded():
            await connection.join("room")
        await asyncio.sleep(_SETTLE_SECONDS)
        with message.recorded():
            await worker.publish("room", "x")
            await client.until_sent("websocket.send")
        await asyncio.sleep(_SETTLE_SECONDS)
        with link.recorded():
            proxy.cut()
            await worker.wait_for_state("degraded")
            await worker.wait_for_state("live")
        await _ended(handler)
        _, handler = await _connected(worker, _Client())
        with drain.recorded():
            await worker.drain()
        await _ended(handler)
    return [join, message, link, drain]


async def _connected(worker: Backplane, client: _Client) -> tuple[Connection, asyncio.Task[None]]:
    entered: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    async def handle() -> None:
        async with worker.connect(WebSocket(_SCOPE | {"extensions": {}}, client.receive, client.send), "first") as it:
            entered.set_result(it)
            async for _ in it:
                pass

    handler = asyncio.create_task(handle())
    connection = await entered
    await asyncio.sleep(_SETTLE_SECONDS)
    return connection, handler


async def _ended(handler: asyncio.Task[None]) -> None:
    handler.cancel()
    with suppress(asyncio.CancelledError):
        await handler
    await asyncio.sleep(_SETTLE_SECONDS)


def _file_of(frame: FrameType) -> str | None:
    path = Path(frame.f_code.co_filename)
    for folder in _FOLDERS:
        if path.is_relative_to(folder) and not frame.f_code.co_name.startswith("<"):
            within = path.relative_to(folder.parent)
            return None if "testing" in within.parts else str(within)
    return None


_PACKAGE = Path(backplane.__file__).resolve().parent
_FOLDERS = (_PACKAGE, (_PACKAGE / "adapters").resolve())
