"""Where frames end: the same as websockets' parser finds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from backplane.server.frame_boundary import FrameBoundary, is_whole_pong

PAYLOADS = st.one_of(
    st.binary(max_size=10),
    st.integers(120, 130).map(lambda size: b"x" * size),
    st.integers(65530, 65540).map(lambda size: b"x" * size),
)
CONTROL = st.builds(Frame, st.sampled_from([Opcode.PING, Opcode.PONG]), st.binary(max_size=125))


@st.composite
def messages(draw: st.DrawFn) -> list[Frame]:
    """Draw a message in one or several fragments, with control frames between them."""
    parts = draw(st.lists(PAYLOADS, min_size=1, max_size=3))
    opcodes = [draw(st.sampled_from([Opcode.TEXT, Opcode.BINARY])), *[Opcode.CONT] * (len(parts) - 1)]
    frames: list[Frame] = []
    for number, (opcode, part) in enumerate(zip(opcodes, parts, strict=True), 1):
        frames += draw(st.lists(CONTROL, max_size=1))
        frames.append(Frame(opcode, part, fin=number == len(parts)))
    return frames


@given(st.lists(messages(), max_size=4), st.data())
def test_boundary_is_where_the_parser_has_nothing_left(drawn: list[list[Frame]], data: st.DataObject) -> None:
    """After any chunk the boundary is reached exactly where as many bytes were fed as whole messages have."""
    frames = [frame for message in drawn for frame in message]
    stream = b"".join(frame.serialize(mask=True) for frame in frames)
    ends, position, in_message = {0}, 0, False
    for frame in frames:
        position += len(frame.serialize(mask=True))
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            in_message = not frame.fin
        if not in_message:
            ends.add(position)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    boundary, conn, fed = FrameBoundary(), ServerProtocol(state=State.OPEN, max_size=None), 0
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        boundary.feed(stream[begin:end])
        conn.receive_data(stream[begin:end])
        fed = end
        assert boundary.is_reached is (fed in ends)
    assert conn.parser_exc is None
    assert len(conn.events_received()) == len(frames)


@given(st.binary(max_size=140))
def test_any_bytes(data: bytes) -> None:
    """What is no frame does no harm, and one byte at a time comes to the same as all at once."""
    whole, single = FrameBoundary(), FrameBoundary()
    whole.feed(data)
    for position in range(len(data)):
        single.feed(data[position : position + 1])
    assert whole.is_reached is single.is_reached


@given(CONTROL | st.builds(Frame, st.just(Opcode.TEXT), PAYLOADS), st.integers(-3, 3), st.booleans())
def test_whole_pong(frame: Frame, more: int, mask: bool) -> None:
    """Only one masked pong, whole and alone, is one: then the parser has nothing to answer and nothing to keep."""
    data = frame.serialize(mask=mask)
    data = data[:more] if more < 0 else data + bytes(more)
    assert is_whole_pong(data) is (frame.opcode is Opcode.PONG and mask and more == 0)


@pytest.mark.parametrize("data", [b"", b"\x8a", b"\x8a\x80", b"\x8a\xfe\x00\x01"])
def test_part_of_a_pong(data: bytes) -> None:
    """A part is none, nor is one whose length no control frame may have."""
    assert not is_whole_pong(data)
