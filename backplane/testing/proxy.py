"""A TCP proxy that breaks links in the ways networks do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit, urlunsplit

from backplane.testing.proxied_connection import Faults, PassingWay, ProxiedConnection, Way

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FaultProxy", "PassingWay", "Way"]


class FaultProxy:
    """Stands between an adapter and its broker, in the event loop of the test.

        async with FaultProxy("redis://localhost:6379") as proxy:
            backplane = Backplane(proxy.url)

    Args:
        url: Where the broker is; host and port must stand in it.
        port: Where to listen. Defaults to any free port; a broker that announces its address to clients, as Kafka
            does, must announce this one.

    Raises:
        ValueError: No port stands in the URL.
    """

    def __init__(self, url: str, port: int = 0) -> None:
        self._port = port
        self._target = urlsplit(url)
        self._address = _address(url)
        self._server: asyncio.Server | None = None
        self._connections: set[ProxiedConnection] = set()
        self._faults = Faults()

    @property
    def url(self) -> str:
        """The broker's URL with this proxy's address in it."""
        assert self._server is not None, "enter the proxy first"
        port = self._server.sockets[0].getsockname()[1]
        userinfo, at, _ = self._target.netloc.rpartition("@")
        return urlunsplit(self._target._replace(netloc=f"{userinfo}{at}127.0.0.1:{port}"))

    @property
    def links(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def cut(self) -> None:
        """End every connection at once, with RST."""
        for connection in list(self._connections):
            connection.abort()

    def finish(self) -> None:
        """End every connection with FIN, as a server does that shuts down."""
        for connection in list(self._connections):
            connection.finish()

    def cut_after(self, size_bytes: int) -> None:
        """End each open connection once the broker has sent `size_bytes` more: in the middle of a frame.

        The client receives the bytes before that, then FIN.
        """
        for connection in self._connections:
            connection.bytes_left = size_bytes

    def refuse(self) -> None:
        """End every connection, and each new one as soon as it is made."""
        self._faults.refusing = True
        self.cut()

    def cut_on(self, picks: Callable[[bytes], bool]) -> None:
        """End, with RST, each connection on which the client sends something for which `picks` returns true.

        A broker that closes the connection because of a command does this. The bytes do not reach it.
        """
        self._faults.cut_trigger = picks

    def lead_to(self, url: str) -> None:
        """Lead new connections to the broker at `url`, as after a failover that keeps the name; `heal` leaves it so.

        Open connections stay with the old one.
        """
        self._address = _address(url)

    def rewrite(self, change: Callable[[PassingWay, bytes], bytes]) -> None:
        """Replace each piece of bytes by `change(way, data)`, as an attacker between client and broker could."""
        self._faults.change = change

    def record(self) -> None:
        """Record what passes from now on, for `recorded`; an earlier record is dropped."""
        self._faults.recorded = {"to_broker": bytearray(), "to_client": bytearray()}

    def recorded(self, way: PassingWay) -> bytes:
        """Return what has passed one way, over all connections, since `record`."""
        return bytes(self._faults.recorded[way])

    def silence(self, way: Way = "both", *, after: Callable[[bytes], bool] | None = None) -> None:
        """Swallow everything from now on, on new connections too: half open, as a dead middlebox does.

        After a `cut` too: each new connection is accepted and then silent.

        Args:
            way: Which bytes are swallowed.
            after: Picks connections: only those on which the client sends something for which this returns true, from
                these bytes on. Without it, all. `silence("to_client", after=lambda sent: b"PUBLISH" in sent)` swallows
                the replies of a Redis to publishes, and leaves its subscribers alone.
        """
        self._faults.silence(way, after)
        if after is None:
            for connection in self._connections:
                connection.silenced = True

    async def swallowed(self) -> None:
        """Wait until a silenced link has swallowed something."""
        await self._faults.swallowed.wait()

    def slow(self, *, latency_seconds: float = 0.0, bytes_per_second: float = float("inf")) -> None:
        """Let bytes pass later, or no faster, each way of each connection for itself."""
        self._faults.latency_seconds = latency_seconds
        self._faults.bytes_per_second = bytes_per_second

    def stall(self) -> None:
        """Stop reading from the broker on the open connections, so that its output buffers fill.

        In time the broker cuts such a client, which is not notified.
        """
        for connection in self._connections:
            connection.broker.hold("stall")

    def heal(self) -> None:
        """End every fault. Connections that were silenced have lost bytes and end; the others go on."""
        self._faults.reset()
        for connection in list(self._connections):
            connection.heal()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, "127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        while self._connections:
            await next(iter(self._connections)).ended.wait()
        await self._server.wait_closed()

    def _accept(self) -> asyncio.Protocol:
        connection = ProxiedConnection(self._faults, self._connections.discard)
        self._connections.add(connection)
        if self._faults.refusing:
            asyncio.get_running_loop().call_soon(connection.abort)
        else:
            connection.connect(*self._address)
        return connection.client


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.port is None:
        raise ValueError("a FaultProxy needs host and port in the URL: it knows no broker's default")
    return parts.hostname or "127.0.0.1", parts.port
