"""A toy broker for the example of docs/adapters/write-an-adapter.md: its protocol, and a server for a test.

Every request is answered, in order, by DONE or REFUSED. A published payload goes to every connection that subscribes to
its channel, the publisher's own included. What is published to `revoke` names a channel to which every subscription is
taken away.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from struct import Struct
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["DONE", "MESSAGE", "PUBLISH", "REFUSED", "REVOKED", "SUBSCRIBE", "UNSUBSCRIBE", "Frames", "example_broker"]

SUBSCRIBE, UNSUBSCRIBE, PUBLISH, MESSAGE, DONE, REFUSED, REVOKED = range(7)

_HEAD = Struct(">BHI")  # kind, bytes of the channel's name, bytes of the payload


class Frames(asyncio.Protocol):
    """One end of a connection: bytes to frames and back."""

    transport: asyncio.Transport | None = None

    def __init__(self) -> None:
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Cut what came into frames."""
        self._buffer += data
        while len(self._buffer) >= _HEAD.size:
            kind, name_size, payload_size = _HEAD.unpack_from(self._buffer)
            middle, end = _HEAD.size + name_size, _HEAD.size + name_size + payload_size
            if len(self._buffer) < end:
                return
            frame = bytes(self._buffer[:end])
            del self._buffer[:end]
            self.received(kind, frame[_HEAD.size : middle].decode(), frame[middle:])

    def send(self, kind: int, channel: str = "", payload: bytes = b"") -> None:
        """Send one frame."""
        assert self.transport is not None
        name = channel.encode()
        self.transport.write(_HEAD.pack(kind, len(name), len(payload)) + name + payload)

    def received(self, kind: int, channel: str, payload: bytes) -> None:
        """Take one frame."""
        raise NotImplementedError


@asynccontextmanager
async def example_broker() -> AsyncGenerator[str]:
    """Run a broker in this event loop; entered with its URL. It refuses the channel `forbidden`."""
    clients: set[_Client] = set()
    server = await asyncio.get_running_loop().create_server(lambda: _Client(clients), "127.0.0.1", 0)
    try:
        yield f"example://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for client in clients:
            assert client.transport is not None
            client.transport.abort()
        await server.wait_closed()


class _Client(Frames):
    """One client, as the broker sees it."""

    def __init__(self, clients: set[_Client]) -> None:
        super().__init__()
        self._clients = clients
        self._channels: set[str] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clients.discard(self)

    def received(self, kind: int, channel: str, payload: bytes) -> None:
        if kind == SUBSCRIBE and channel == "forbidden":
            return self.send(REFUSED)
        if kind == SUBSCRIBE:
            self._channels.add(channel)
        elif kind == UNSUBSCRIBE:
            self._channels.discard(channel)
        elif channel == "revoke":
            for client in self._clients:
                client.revoke(payload.decode())
        else:
            for client in self._clients:
                if channel in client._channels:
                    client.send(MESSAGE, channel, payload)
        return self.send(DONE)

    def revoke(self, channel: str) -> None:
        if channel in self._channels:
            self._channels.remove(channel)
            self.send(REVOKED, channel)
