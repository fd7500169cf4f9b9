"""Uvicorn in the event loop of the test, on a real socket: for tests that look into the served application."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvicorn

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["ServerInLoop", "serving_in_loop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInLoop:
    """A running server.

    Attributes:
        port: The port that it listens on; 0 for a Unix socket.
    """

    port: int
    server: uvicorn.Server

    @property
    def ws_url(self) -> str:
        """The URL of its WebSockets, without a path."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def http_url(self) -> str:
        """The URL of its pages, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Begin to shut down, as on SIGTERM."""
        self.server.should_exit = True


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.has_started = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.has_started.set()


@asynccontextmanager
async def serving_in_loop(app: Any, *, unix_path: str | None = None, **options: Any) -> AsyncGenerator[ServerInLoop]:
    """Serve `app` on a free port or a Unix socket, entered when it has started; shut down at the end.

    The options are those of `uvicorn.Config`.
    """
    if unix_path is None:
        listener = socket.create_server(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    else:
        listener, port = socket.socket(socket.AF_UNIX), 0
        listener.bind(unix_path)
    merged: dict[str, Any] = {"log_config": None, "lifespan": "on", **options}
    server = _Server(uvicorn.Config(app, **merged))
    running = asyncio.create_task(server.serve(sockets=[listener]))
    await server.has_started.wait()
    try:
        yield ServerInLoop(port=port, server=server)
    finally:
        server.should_exit = True
        await running
