"""One WebSocket on Uvicorn's protocol, over a transport that keeps what is written."""

from __future__ import annotations

import asyncio
import gc
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.server import ServerState
from websockets.frames import Frame, Opcode

from backplane.lane import EXTENSION
from backplane.server.uvicorn import DirectLaneProtocol

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from backplane.lane import HandedOverLane

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s\r\n"
)
MAX_BYTES = 200


class Transport(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closing = False
        self.reads = True
        self.protocol: asyncio.BaseProtocol | None = None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As every transport."""
        return default

    def write(self, data: Any) -> None:
        """As every transport."""
        self.written.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        """As every transport."""
        return 0

    def is_closing(self) -> bool:
        """As every transport."""
        return self.closing

    def is_reading(self) -> bool:
        """As every transport."""
        return self.reads

    def pause_reading(self) -> None:
        """As every transport."""
        self.reads = False

    def resume_reading(self) -> None:
        """As every transport."""
        self.reads = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """As every transport."""
        self.protocol = protocol

    def close(self) -> None:
        """As every transport."""
        self.closing = True

    def abort(self) -> None:
        """As every transport."""
        self.closing = True


class Writer:
    """A `LaneWriter` that counts."""

    def __init__(self) -> None:
        self.closed = 0
        self.reports: list[bool] = []

    def lane_writable(self, writable: bool, /) -> None:
        """As its protocol."""
        self.reports.append(writable)

    def lane_closed(self) -> None:
        """As its protocol."""
        self.closed += 1


class Receiver:
    """A `LaneReceiver` that takes each message at once, unless it holds."""

    def __init__(self) -> None:
        self.messages: list[str | bytes] = []
        self.ended = 0
        self.holds = False
        self.lane: HandedOverLane | None = None

    def message_arrived(self) -> None:
        """As its protocol."""
        assert not self.ended
        if not self.holds:
            self.take()

    def take(self) -> None:
        """As its protocol."""
        assert self.lane is not None
        while (message := self.lane.take()) is not None:
            self.messages.append(message)

    def receiving_ended(self) -> None:
        """As its protocol."""
        self.ended += 1


class Session:
    """One accepted WebSocket, resident or handed over; of another application where one is given."""

    def __init__(
        self, *, hand_over: bool, protocol: type[DirectLaneProtocol] = DirectLaneProtocol, application: Any = None
    ) -> None:
        self.hand_over = hand_over
        self.application = application
        self.transport, self.writer, self.receiver = Transport(), Writer(), Receiver()
        self.protocol_class = protocol
        self.events: list[Any] = []
        self.state = ServerState()
        self.released = asyncio.Event()
        self.asgi_send: Any = None

    async def open(self, extensions: bytes = b"") -> None:
        """Do the handshake."""
        accepted = self.accepted = asyncio.Event()

        async def application(scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
            await receive()
            lane = scope["extensions"][EXTENSION]
            lane.limit_messages(MAX_BYTES)
            await send({"type": "websocket.accept"})
            lane.attach(self.writer)
            if self.hand_over:
                self.receiver.lane = lane.hand_over(self.receiver)
                assert self.receiver.lane is not None
            self.asgi_send = send
            accepted.set()
            event: Any = {"type": ""}
            while not self.hand_over and event["type"] != "websocket.disconnect":
                event = await receive()
                self.events.append(event)
            if not self.hand_over:
                await self.released.wait()

        config = Config(
            self.application or application,
            ws=self.protocol_class,
            ws_per_message_deflate=bool(extensions),
            lifespan="off",
        )
        config.load()
        self.first = self.protocol_class(config, self.state, {}, asyncio.get_running_loop())
        self.transport.protocol = self.first
        self.first.connection_made(self.transport)
        self.first.data_received(REQUEST % extensions)
        await accepted.wait()
        self.transport.written.clear()
        await self.settle()

    async def settle(self) -> None:
        """Let the application receive what has arrived."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def feed(self, data: bytes) -> None:
        """Receive bytes, unless the connection is closing."""
        if not self.transport.closing:
            protocol: Any = self.transport.protocol
            protocol.data_received(data)
            await self.settle()

    async def close(self, code: int) -> None:
        """Close from the server."""
        if self.receiver.lane is not None:
            self.receiver.lane.close_with(code, "bye")
        else:
            with suppress(Exception):  # of a client that has closed before
                await self.asgi_send({"type": "websocket.close", "code": code, "reason": "bye"})
        await self.settle()

    async def end(self) -> None:
        """Lose the connection."""
        protocol: Any = self.transport.protocol
        self.transport.protocol = None  # as every transport
        protocol.connection_lost(None)
        await self.settle()
        self.released.set()
        await self.settle()

    @property
    def messages(self) -> list[str | bytes]:
        """What the application has received."""
        if self.hand_over:
            return self.receiver.messages
        return [
            event["bytes"] if event.get("text") is None else event["text"]
            for event in self.events
            if event["type"] == "websocket.receive"
        ]


def frame(opcode: Opcode, data: bytes, *, fin: bool = True, mask: bool = True, rsv1: bool = False) -> bytes:
    """Return a frame of a client."""
    serialized = Frame(opcode, data, fin=fin).serialize(mask=mask)
    return bytes([serialized[0] | 0x40]) + serialized[1:] if rsv1 else serialized


@contextmanager
def collections_off() -> Generator[None]:
    """Run without garbage collections: only what is in no reference cycle is freed."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
