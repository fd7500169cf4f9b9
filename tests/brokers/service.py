"""An address whose server changes, as behind a load balancer or a Kubernetes service."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self

__all__ = ["MovingService"]


class MovingService:
    """Forwards each new connection to the next of its `ports`, in turn; existing connections are kept.

    Attributes:
        ports: Loopback ports, which a test may change.
        accepted: Number of accepted connections.
    """

    def __init__(self, *ports: int) -> None:
        self.ports = list(ports)
        self.accepted = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Its URL for Redis."""
        assert self._server is not None, "enter it first"
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        port = self.ports[self.accepted % len(self.ports)]
        self.accepted += 1
        with suppress(OSError, asyncio.CancelledError):
            there, onward = await asyncio.open_connection("127.0.0.1", port)
            copies = [asyncio.create_task(_copy(reader, onward)), asyncio.create_task(_copy(there, writer))]
            try:
                await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for copy in copies:
                    copy.cancel()
                await asyncio.wait(copies)
                onward.transport.abort()
        writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
