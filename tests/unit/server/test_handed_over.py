"""A WebSocket that was handed over: the same messages, bytes and end as with Uvicorn's own protocol."""

from __future__ import annotations

import asyncio
from typing import Any, cast
from weakref import ref
from zlib import Z_SYNC_FLUSH, compressobj

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.frames import Opcode

from backplane.errors import LifecycleError
from backplane.server.handed_over import HandedOverProtocol
from backplane.server.uvicorn import DirectLaneProtocol, SharedCompressionProtocol
from tests.unit.server.session import MAX_BYTES, Session, collections_off, frame

TEXTS = st.sampled_from(
    [b"", b"text", "ä€𝄞".encode(), b"x" * (MAX_BYTES - 1), b"x" * MAX_BYTES, b"x" * (MAX_BYTES + 1)]
)


def close_frame(code: int, reason: bytes) -> bytes:
    """Return a close frame of a client."""
    return frame(Opcode.CLOSE, code.to_bytes(2) + reason)


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
        close_frame,
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


def test_no_collection_is_needed() -> None:
    """Neither the protocol that was replaced nor a parser that is dropped is in a reference cycle."""

    async def run() -> None:
        session = Session(hand_over=True)
        await session.open()
        former, parser = ref(session.first), ref(session.first.conn)
        session.asgi_send = None
        del session.first
        assert (former(), parser()) == (None, None)
        protocol: Any = session.transport.protocol
        await session.feed(frame(Opcode.TEXT, b"half", fin=False))
        parser = ref(protocol._incoming.conn)
        await session.feed(frame(Opcode.CONT, b"whole"))
        assert parser() is None
        await session.end()
        del protocol
        ended = ref(session.transport)
        del session
        assert ended() is None

    with collections_off():
        asyncio.run(run())


def test_what_a_lane_that_was_handed_over_refuses() -> None:
    """Another writer and another hand-over; a higher limit than before changes nothing, a lower one applies at once."""

    async def run() -> None:
        session = Session(hand_over=True)
        await session.open()
        lane = session.receiver.lane
        assert isinstance(lane, HandedOverProtocol)
        with pytest.raises(LifecycleError):
            lane.attach(session.writer)
        assert lane.hand_over(session.receiver) is None
        assert lane.transport.owner is lane
        lane.limit_messages(MAX_BYTES + 1)
        lane.limit_messages(10)
        message = frame(Opcode.TEXT, b"0123456789")
        await session.feed(message[:8])
        lane.limit_messages(9)
        await session.feed(message[8:])
        assert (session.messages, lane.close_code) == (["0123456789"], None)  # its head was read before
        await session.feed(message)
        assert (session.messages, lane.close_code) == (["0123456789"], 1009)
        await session.end()

    asyncio.run(run())


def test_a_close_frame_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The transport is closed after some seconds, at once with the answer, and the timer ends with the connection."""
    monkeypatch.setattr("backplane.server.handed_over.ANSWER_SECONDS", 0.001)

    async def run() -> None:
        session, closed = Session(hand_over=True), asyncio.Event()
        await session.open()
        monkeypatch.setattr(session.transport, "close", closed.set)
        protocol: Any = session.transport.protocol
        protocol.close_with(4000, "bye")
        assert not closed.is_set()
        await asyncio.wait_for(closed.wait(), 30)
        gone: list[int] = []
        protocol.when_gone(lambda: gone.append(1))
        await session.end()
        protocol.when_gone(lambda: gone.append(2))
        assert gone == [1, 2]

    asyncio.run(run())


def test_a_pong_that_waits_is_kept() -> None:
    """Also where the message beside its ping was taken at once; after a close frame it is not written."""

    async def run(*, closes: bool) -> list[bytes]:
        session = Session(hand_over=True)
        await session.open()
        protocol: Any = session.transport.protocol
        protocol.pause_writing()
        await session.feed(frame(Opcode.TEXT, b"1") + frame(Opcode.PING, b"2") + frame(Opcode.TEXT, b"3"))
        assert session.messages == ["1", "3"]
        if closes:
            protocol.close_with(4000, "")
        protocol.resume_writing()
        written = session.transport.written
        await session.end()
        return written

    assert asyncio.run(run(closes=False)) == [b"\x8a\x012"]
    assert asyncio.run(run(closes=True)) == [b"\x88\x02\x0f\xa0"]
