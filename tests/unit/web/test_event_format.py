"""`backplane.web.event_format`: what an `EventSource` receives; `test_sse.py` reads it from a real server."""

from __future__ import annotations

import pytest

from backplane.message import Gap, Message, Position
from backplane.web.event_format import encode_event, encode_id, encode_retry


@pytest.mark.parametrize(
    ("data", "event"),
    [
        ("hello", b"data: hello\n\n"),
        ("", b"data: \n\n"),
        ("one\ntwo\r\nthree\rfour\n", b"data: one\ndata: two\ndata: three\ndata: four\ndata: \n\n"),
        ("x\n\nevent: gap", b"data: x\ndata: \ndata: event: gap\n\n"),
        (b"\x00\xff", b"event: binary\ndata: AP8=\n\n"),
        (b"", b"event: binary\ndata: \n\n"),
    ],
)
def test_message(data: str | bytes, event: bytes) -> None:
    """Each line of a text is a data line, so that no text can begin another field; binary is base64."""
    assert encode_event(Message(channel="a", data=data)) == event


def test_gap() -> None:
    """A gap names its channel, and not its reason, which may hold the broker's own text."""
    event = encode_event(Gap(channel='a"\n', reason="the broker's own text"))
    assert event == b'event: gap\ndata: {"channel": "a\\"\\n"}\n\n'


def test_retry() -> None:
    """Clients get different times around the given one, in milliseconds, and never zero."""
    times = {int(encode_retry(2).removeprefix(b"retry: ")) for _ in range(100)}
    assert 1000 <= min(times) < max(times) <= 3000
    assert encode_retry(0.00001) == b"retry: 1\n\n"


def test_ids() -> None:
    """An id is a line before the event, or a block of its own that fires nothing; without one there is no line."""
    event_id = f"{Position(b'an epoch', 1, 2)}.-"
    assert encode_event(Message(channel="a", data="x\ny"), event_id) == f"id: {event_id}\ndata: x\ndata: y\n\n".encode()
    assert encode_event(Message(channel="a", data=b"x"), "7") == b"id: 7\nevent: binary\ndata: eA==\n\n"
    assert encode_event(Gap(channel="a", reason="x"), "7") == b'id: 7\nevent: gap\ndata: {"channel": "a"}\n\n'
    assert (encode_id("7"), encode_id("")) == (b"id: 7\n\n", b"")
