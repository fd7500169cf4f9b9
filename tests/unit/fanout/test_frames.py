"""`backplane.fanout.frames`: what the `websockets` library's own parser reads of the frames."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from backplane.fanout.frames import compress_frame, encode_frame

data = st.text() | st.binary()
window_bits = st.integers(9, 15)

# RFC 6455 section 5.2: the first and the last length of each of the three forms.
LENGTHS = [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10), (1_000_000, 10)]


def read(wire: bytes, *, deflate: PerMessageDeflate | None = None) -> list[str | bytes]:
    """Return what a client of `websockets` reads of `wire`, message by message."""
    client = ClientProtocol(parse_uri("ws://localhost"), state=State.OPEN, max_size=None)
    client.extensions = [deflate] if deflate else []
    client.receive_data(wire)
    assert client.parser_exc is None, client.parser_exc
    return [_message(event) for event in client.events_received()]


def _message(frame: object) -> str | bytes:
    assert isinstance(frame, Frame)
    assert frame.fin
    return bytes(frame.data) if frame.opcode is Opcode.BINARY else bytes(frame.data).decode()


def negotiated(*, bits: int, server_no_context_takeover: bool = True) -> PerMessageDeflate:
    """Return the client's side of permessage-deflate, as negotiated with a server's window of `bits`."""
    return PerMessageDeflate(
        remote_no_context_takeover=server_no_context_takeover,
        local_no_context_takeover=False,
        remote_max_window_bits=bits,
        local_max_window_bits=15,
    )


@given(st.lists(data))
def test_frames_are_read_back(messages: list[str | bytes]) -> None:
    """Text comes back as text and bytes as bytes, one frame behind the other."""
    assert read(b"".join(map(encode_frame, messages))) == messages


@given(st.lists(data), window_bits, st.booleans())
def test_plain_frames_where_deflate_is_negotiated(messages: list[str | bytes], bits: int, alone: bool) -> None:
    """A plain frame is legal on a connection that negotiated permessage-deflate, with context takeover or without."""
    deflate = negotiated(bits=bits, server_no_context_takeover=alone)
    assert read(b"".join(map(encode_frame, messages)), deflate=deflate) == messages


@given(st.lists(data | data.map(lambda part: part * 500)), window_bits)
def test_compressed_frames_are_read_back(messages: list[str | bytes], bits: int) -> None:
    """Each compressed frame is read without regard to what came before it."""
    wire = b"".join(compress_frame(message, bits) for message in messages)
    assert read(wire, deflate=negotiated(bits=bits)) == messages


@given(data | data.map(lambda part: part * 500), window_bits)
def test_compressing_never_makes_longer(message: str | bytes, bits: int) -> None:
    """What does not shrink goes as it is."""
    assert len(compress_frame(message, bits)) <= len(encode_frame(message))


def test_bytes_of_a_frame() -> None:
    """The examples of RFC 6455 section 5.7: `Hello` as unmasked text, and 256 bytes."""
    assert encode_frame("Hello") == b"\x81\x05Hello"
    assert encode_frame(bytes(256)) == b"\x82\x7e\x01\x00" + bytes(256)


@pytest.mark.parametrize(("length", "head"), LENGTHS)
def test_forms_of_the_length(length: int, head: int) -> None:
    """The length takes the shortest form that holds it."""
    wire = encode_frame(bytes(length))
    assert len(wire) == head + length
    assert read(wire) == [bytes(length)]


def test_window_is_kept() -> None:
    """A repetition further back than the window is not referred to, so that a client with that window can read it."""
    message = zlib.compress(bytes(range(256)) * 4)[:400] + bytes(600) + "".join(map(str, range(3000))).encode()
    wire = compress_frame(message * 3, 9)
    assert wire[0] == 0xC2
    assert read(wire, deflate=negotiated(bits=9)) == [message * 3]


def test_lone_surrogate() -> None:
    """What is no text raises, rather than reach a client as what it must refuse."""
    with pytest.raises(UnicodeEncodeError):
        encode_frame("\ud800")
