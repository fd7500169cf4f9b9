"""A TCP proxy that breaks links in the ways networks do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self, cast
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FaultProxy"]


class FaultProxy:
    """Stands between an adapter and its broker, in the event loop of the test.

        async with FaultProxy("redis://localhost:6379") as proxy:
            backplane = Backplane(proxy.url)

    Args:
        url: Where the broker is; host and port must stand in it.
        port: Where to listen. Defaults to any free port; a broker that tells its clients where it is, as Kafka does,
            must tell them this one.

    Raises:
        ValueError: No port stands in the URL.
    """

    def __init__(self, url: str, port: int = 0) -> None:
        self._port = port
        self._target = urlsplit(url)
        if self._target.port is None:
            raise ValueError("a FaultProxy needs host and port in the URL: it knows no broker's default")
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._silent = False
        self._swallowed = asyncio.Event()
        self._refusing = False

    @property
    def url(self) -> str:
        """The broker's URL with this proxy's address in it."""
        assert self._server is not None, "enter the proxy first"
        port = self._server.sockets[0].getsockname()[1]
        userinfo, at, _ = self._target.netloc.rpartition("@")
        return urlunsplit(self._target._replace(netloc=f"{userinfo}{at}127.0.0.1:{port}"))

    @property
    def links(self) -> int:
        """How many connections stand."""
        return len(self._pairs)

    def cut(self) -> None:
        """End every connection at once, with RST where the system sends one."""
        for pair in list(self._pairs):
            pair.abort()

    def refuse(self) -> None:
        """End every connection, and each new one as soon as it is made."""
        self._refusing = True
        self.cut()

    def silence(self) -> None:
        """Swallow everything both ways from now on, on new connections too: half open, as behind a dead middlebox."""
        self._silent = True
        self._swallowed.clear()

    async def swallowed(self) -> None:
        """Wait until a silenced link has swallowed something."""
        await self._swallowed.wait()

    def heal(self) -> None:
        """Let new connections through; those that were silenced have lost bytes and end."""
        was_silent, self._silent, self._refusing = self._silent, False, False
        if was_silent:
            self.cut()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, "127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        while self._pairs:
            await next(iter(self._pairs)).ended.wait()
        await self._server.wait_closed()

    def _accept(self) -> _End:
        pair = _Pair(self._swallows, self._pairs.discard)
        self._pairs.add(pair)
        if self._refusing:
            asyncio.get_running_loop().call_soon(pair.abort)
        else:
            pair.connect(self._target.hostname or "127.0.0.1", self._target.port or 0)
        return pair.client

    def _swallows(self) -> bool:
        if self._silent:
            self._swallowed.set()
        return self._silent


class _Pair:
    """One connection through the proxy: the client's end and the broker's."""

    def __init__(self, swallows: Callable[[], bool], on_end: Callable[[_Pair], None]) -> None:
        self.swallows = swallows
        self.client = _End(self)
        self.broker = _End(self)
        self.ended = asyncio.Event()
        self.aborted = False
        self._on_end = on_end
        self._connecting: asyncio.Task[None] | None = None

    def connect(self, host: str, port: int) -> None:
        self._connecting = asyncio.create_task(self._connect(host, port))

    def other(self, end: _End) -> _End:
        return self.broker if end is self.client else self.client

    def abort(self) -> None:
        """End both ends; one that is still being made ends as soon as it is."""
        if self.aborted:
            return
        self.aborted = True
        for end in (self.client, self.broker):
            if end.transport is not None:
                end.transport.abort()
        self.check_ended()

    def check_ended(self) -> None:
        if self.aborted and self._connecting is None and self.client.is_closed and self.broker.is_closed:
            self._on_end(self)
            self.ended.set()

    async def _connect(self, host: str, port: int) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.broker, host, port)
        except OSError:
            self.abort()
        finally:
            self._connecting = None
            self.check_ended()


class _End(asyncio.Protocol):
    """One of the two ends; what it receives goes out at the other."""

    def __init__(self, pair: _Pair) -> None:
        self.transport: asyncio.Transport | None = None
        self.is_closed = True
        self._pair = pair
        self._early = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.is_closed = False
        if self._pair.aborted:
            self.transport.abort()
            return
        other = self._pair.other(self)
        self.transport.write(other.take_early())

    def take_early(self) -> bytes:
        """Return what came before the other end was there."""
        early, self._early = bytes(self._early), bytearray()
        return early

    def data_received(self, data: bytes) -> None:
        if self._pair.swallows():
            return
        other = self._pair.other(self)
        if other.transport is None:
            self._early += data
        else:
            other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        self._pair.abort()
        self._pair.check_ended()
