"""Messages that arrive for rooms of SDK clients beside those for a raw room of the same bytes, over the direct lane.

Starlette and Uvicorn as they are, in this process; every client is a TCP connection, emptied between the measurements.
The rooms take turns: first the raw one whose clients are handed over, as SDK clients are.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from backplane import Backplane, Limits
from backplane.centrifugal import Accepted, Centrifugal
from backplane.centrifugal.encoding import JSON, PROTOBUF
from backplane.fanout.codec import encode
from benchmarks.harness.websocket import PLAIN, SDK, SDK_PROTOBUF, client_frame
from benchmarks.micro.asgi import open_client
from benchmarks.micro.fanout import interleaved_over_sockets
from benchmarks.scenarios.sdk import text_bytes

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine

    from starlette.websockets import WebSocket

    from backplane import Connection
    from backplane.centrifugal import ConnectRequest
    from benchmarks.micro.figure import Figure

__all__ = ["run"]

_PAYLOAD: Final = 128
_FRAME_BYTES: Final = 4 + _PAYLOAD
_QUIET_SECONDS: Final = 3_600  # no ping is among what is measured


def run(count: int, rounds: int, messages: int) -> list[Figure]:
    """Return the figures per delivery of `messages` that arrive together; the floor is the raw room, handed over."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Rooms(count, messages).measure(rounds))


class _Rooms:
    """The rooms, each with `count` clients."""

    def __init__(self, count: int, messages: int) -> None:
        self._count = count
        self._messages = messages
        self._backplane = Backplane("memory://", limits=Limits(heartbeat_seconds=_QUIET_SECONDS))
        self._clients: list[socket.socket] = []
        self._centrifugal = Centrifugal(self._backplane, ping_seconds=_QUIET_SECONDS)
        self._centrifugal.on_connect(_subscribe)

    async def measure(self, rounds: int) -> list[Figure]:
        """Open the rooms, and deliver to them in turn."""
        app = Starlette(
            routes=[
                WebSocketRoute("/pppp", self._hand_over),
                WebSocketRoute("/with", self._connect),
                WebSocketRoute("/sdk/{channel}", self._serve),
            ]
        )
        config = uvicorn.Config(
            app,
            ws="backplane.server.uvicorn:DirectLaneProtocol",
            ws_per_message_deflate=False,
            log_config=None,
            lifespan="off",
        )
        config.load()
        json, protobuf = text_bytes(JSON, _PAYLOAD), text_bytes(PROTOBUF, _PAYLOAD)
        async with self._backplane:
            running = self._backplane._runtime  # pyright: ignore[reportPrivateUsage]
            assert running is not None
            self._hub = running.hub
            self._hub._most_rest_seconds = 0.0  # pyright: ignore[reportPrivateUsage]
            try:
                await self._open(config)
                candidates: dict[str, Callable[[], Coroutine[None, None, None]]] = {
                    "floor: raw room, handed over": partial(self._deliver, "pppp", _PAYLOAD),
                    "raw room, with handlers": partial(self._deliver, "with", _PAYLOAD),
                    "SDK room, JSON": partial(self._deliver, "json", json),
                    "SDK room, Protobuf": partial(self._deliver, "prot", protobuf),
                }
                return await interleaved_over_sockets(candidates, rounds, self._count * self._messages, self._empty)
            finally:
                for client in self._clients:
                    client.close()

    async def _open(self, config: uvicorn.Config) -> None:
        """Connect a client of each room in turn, so that none is better off by where in memory its clients are."""
        for _ in range(self._count):
            for path, dialect in (("/pppp", PLAIN), ("/with", PLAIN), ("json", SDK), ("prot", SDK_PROTOBUF)):
                listens = path if dialect is PLAIN else dialect.listen_path.format(channel=path)
                client = await open_client(config, listens)
                await _received(client, b"HTTP/1.1 101")
                if dialect.greeting:
                    client.send(client_frame(dialect.greeting, dialect.opcode))
                    await _received(client, b"")
                self._clients.append(client)

    async def _hand_over(self, websocket: WebSocket) -> None:
        await self._backplane.hand_over(websocket, "pppp")

    async def _connect(self, websocket: WebSocket) -> None:
        async with self._backplane.connect(websocket, "with") as connection:
            async for _ in connection:
                pass

    async def _serve(self, websocket: WebSocket) -> None:
        await self._centrifugal.serve(websocket, context=websocket.path_params["channel"])

    async def _deliver(self, channel: str, size: int) -> None:
        payload = encode("x" * size, origin=bytes(8), published_at=0.0)
        for _ in range(self._messages):
            self._hub.deliver(channel, payload)
        await asyncio.sleep(0)
        while self._hub.under_way:  # noqa: ASYNC110  # the fan-out is cut in slices
            await asyncio.sleep(0)

    def _empty(self) -> None:
        """Check that the clients of one room have received the messages, and no others."""
        sizes = [_read_all(client) for client in self._clients]
        if sorted(sizes) != [0] * 3 * self._count + [self._messages * _FRAME_BYTES] * self._count:
            raise AssertionError("a client did not get each message once, in as many bytes as in the raw room")


def _subscribe(connection: Connection, _: ConnectRequest) -> Accepted:
    return Accepted(channels=(connection.context,))


async def _received(client: socket.socket, start: bytes) -> None:
    while True:
        try:
            assert client.recv(4096).startswith(start)
        except BlockingIOError:
            await asyncio.sleep(0)
        else:
            return


def _read_all(client: socket.socket) -> int:
    try:
        return len(client.recv(65536))
    except BlockingIOError:
        return 0
