"""A WebSocket that was handed over: the same messages, bytes and end as with Uvicorn's own protocol."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast
from zlib import Z_SYNC_FLUSH, compressobj

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.config import Config
from uvicorn.server import ServerState
from websockets.frames import Frame, Opcode

from backplane.lane import EXTENSION
from backplane.server.handed_over import HandedOverProtocol
from backplane.server.uvicorn import DirectLaneProtocol, SharedCompressionProtocol

if TYPE_CHECKING:
    from collections.abc import Callable

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
    """One accepted WebSocket, resident or handed over."""

    def __init__(self, *, hand_over: bool, protocol: type[DirectLaneProtocol] = DirectLaneProtocol) -> None:
        self.hand_over = hand_over
        self.transport, self.writer, self.receiver = Transport(), Writer(), Receiver()
        self.protocol_class = protocol
        self.events: list[Any] = []
        self.state = ServerState()
        self.released = asyncio.Event()

    async def open(self, extensions: bytes = b"") -> None:
        """Do the handshake."""
        accepted = asyncio.Event()

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

        config = Config(application, ws=self.protocol_class, ws_per_message_deflate=bool(extensions), lifespan="off")
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


TEXTS = st.sampled_from(
    [b"", b"text", "ä€𝄞".encode(), b"x" * (MAX_BYTES - 1), b"x" * MAX_BYTES, b"x" * (MAX_BYTES + 1)]
)
FRAMES = st.one_of(
    st.builds(frame, st.sampled_from([Opcode.TEXT, Opcode.BINARY]), TEXTS),
    st.builds(frame, st.sampled_from([Opcode.TEXT, Opcode.BINARY]), TEXTS, fin=st.just(False)),  # pyright: ignore[reportArgumentType]
    st.builds(frame, st.just(Opcode.CONT), TEXTS, fin=st.booleans()),
    st.builds(frame, st.sampled_from([Opcode.PING, Opcode.PONG]), st.binary(max_size=125)),
    st.builds(frame, st.just(Opcode.TEXT), st.just(b"\xff\xfe")),
    st.builds(
        frame,
        st.just(Opcode.CLOSE),
        st.sampled_from([b"", b"\x03\xe8", b"\x03\xe8bye", b"\x03", b"\x0f\xa0", b"\x03\xed"]),
    ),
    st.builds(
        lambda code, reason: frame(Opcode.CLOSE, code.to_bytes(2) + reason),
        st.integers(0, 5100),
        st.sampled_from([b"", b"bye", b"\xff"]),
    ),
    st.builds(frame, st.just(Opcode.TEXT), st.just(b"unmasked"), mask=st.just(False)),
    st.builds(frame, st.just(Opcode.TEXT), st.just(b"reserved"), rsv1=st.just(True)),
    st.binary(max_size=20),
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(FRAMES, max_size=8), st.booleans(), st.data())
def test_the_same_as_with_a_handler(frames: list[bytes], eof: bool, data: st.DataObject) -> None:
    """Any bytes, in any pieces, with an end of file or not: the same messages, the same bytes written, the same end."""
    stream = b"".join(frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))

    async def run(*, hand_over: bool) -> tuple[Any, ...]:
        session = Session(hand_over=hand_over)
        await session.open()
        for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            if begin < end:
                await session.feed(stream[begin:end])
        if eof and not session.transport.closing:
            cast("asyncio.Protocol", session.transport.protocol).eof_received()
            await session.settle()
        written, closing = b"".join(session.transport.written), session.transport.closing
        closed = session.writer.closed
        await session.end()
        assert not session.state.connections
        assert session.writer.closed == 1
        return session.messages, written, closing, closed

    assert asyncio.run(run(hand_over=True)) == asyncio.run(run(hand_over=False))


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(FRAMES, max_size=4), st.lists(FRAMES, max_size=4), st.sampled_from([1000, 1012, 4001]))
def test_the_same_close_as_with_a_handler(before: list[bytes], after: list[bytes], code: int) -> None:
    """A close of the server among any bytes of the client: the same messages, the same bytes written."""

    async def run(*, hand_over: bool) -> tuple[Any, ...]:
        session = Session(hand_over=hand_over)
        await session.open()
        await session.feed(b"".join(before))
        await session.close(code)
        await session.feed(b"".join(after))
        written, closing = b"".join(session.transport.written), session.transport.closing
        await session.end()
        return session.messages, written, closing

    assert asyncio.run(run(hand_over=True)) == asyncio.run(run(hand_over=False))


def test_nothing_is_kept_while_nothing_is_half_read() -> None:
    """The parser is dropped at the end of a message, and kept in the middle of one."""

    async def run() -> None:
        session = Session(hand_over=True)
        await session.open()
        assert isinstance(session.transport.protocol, HandedOverProtocol)
        protocol = cast("Any", session.transport.protocol)
        whole = frame(Opcode.TEXT, b"hello")
        for size in range(1, len(whole)):
            await session.feed(whole[:size])
            assert protocol._incoming is not None
            await session.feed(whole[size:])
            assert protocol._incoming is None
        await session.feed(frame(Opcode.TEXT, b"a", fin=False))
        assert protocol._incoming is not None
        await session.feed(frame(Opcode.CONT, b"b"))
        assert protocol._incoming is None
        assert session.messages[-1] == "ab"
        await session.end()

    asyncio.run(run())


def test_a_client_that_does_not_read_gets_the_last_pong() -> None:
    """Of the pongs that wait only the last is written (RFC 6455, section 5.5.3); a close frame waits for nothing."""

    async def run() -> None:
        session = Session(hand_over=True)
        await session.open()
        protocol: Any = session.transport.protocol
        protocol.pause_writing()
        for number in range(3):
            await session.feed(frame(Opcode.PING, b"%d" % number))
        assert session.transport.written == []
        protocol.resume_writing()
        assert session.transport.written == [b"\x8a\x012"]
        assert session.writer.reports == [True, False, True]
        assert protocol._incoming is None
        await session.end()

    asyncio.run(run())


@pytest.mark.parametrize("answers", [True, False])
def test_shutdown(answers: bool) -> None:
    """Uvicorn's own end closes with 1012 and waits for no answer; after a close frame it only closes."""

    async def run() -> None:
        session = Session(hand_over=True)
        await session.open()
        protocol: Any = session.transport.protocol
        assert session.state.connections == {protocol}
        if not answers:
            protocol.close_with(4000, "bye")
        protocol.shutdown()
        code = b"\x0f\xa0bye" if not answers else b"\x03\xf4"
        assert session.transport.written == [b"\x88%c" % len(code) + code]
        assert (session.transport.closing, session.receiver.ended, session.writer.closed) == (True, 1, 1)
        await session.end()

    asyncio.run(run())


def test_an_end_of_file_closes() -> None:
    """A client that sends nothing more is gone."""

    async def run() -> None:
        session = Session(hand_over=True)
        await session.open()
        protocol: Any = session.transport.protocol
        assert protocol.eof_received() is None
        assert (session.transport.closing, session.receiver.ended, session.writer.closed) == (True, 1, 1)
        await session.end()

    asyncio.run(run())


def test_close_while_as_much_as_may_be_waits() -> None:
    """The answer to a close frame is read although nothing was taken of what waits."""

    async def run() -> None:
        session = Session(hand_over=True)
        await session.open()
        session.receiver.holds = True
        protocol: Any = session.transport.protocol
        for number in range(70):
            await session.feed(frame(Opcode.TEXT, b"%d" % number))
        assert not protocol.reading
        protocol.close_with(4000, "bye")
        assert protocol.reading
        await session.feed(frame(Opcode.CLOSE, b"\x0f\xa0"))
        assert (session.transport.closing, protocol.close_code) == (True, 4000)
        session.receiver.take()
        assert len(session.messages) == 64
        await session.end()

    asyncio.run(run())


@pytest.mark.parametrize("protocol", [DirectLaneProtocol, SharedCompressionProtocol])
def test_compressed_messages(protocol: type[DirectLaneProtocol]) -> None:
    """What a client compresses is received, with a context that goes on from message to message."""

    async def run(*, hand_over: bool) -> list[str | bytes]:
        session = Session(hand_over=hand_over, protocol=protocol)
        await session.open(b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n")
        compressor = compressobj(wbits=-12)
        for number in range(3):
            compressed = compressor.compress(b"again and again %d" % number) + compressor.flush(Z_SYNC_FLUSH)
            await session.feed(frame(Opcode.TEXT, compressed[:-4], rsv1=True))
        await session.end()
        return session.messages

    expected = [f"again and again {number}" for number in range(3)]
    assert asyncio.run(run(hand_over=True)) == asyncio.run(run(hand_over=False)) == expected
