"""`backplane.web.event_format`: what an `EventSource` receives; `test_sse.py` reads it from a real server."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from backplane.message import Gap, Message, Position
from backplane.web.event_format import HEARTBEAT, encode_event, encode_expired, encode_position, encode_retry

if TYPE_CHECKING:
    from collections.abc import Callable


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
    """An id is a line before each event, the first and the last one included; without one there is no line."""
    event_id = f"{Position(b'an epoch', 1, 2)}.-"
    assert encode_event(Message(channel="a", data="x\ny"), event_id) == f"id: {event_id}\ndata: x\ndata: y\n\n".encode()
    assert encode_event(Message(channel="a", data=b"x"), "7") == b"id: 7\nevent: binary\ndata: eA==\n\n"
    assert encode_event(Gap(channel="a", reason="x"), "7") == b'id: 7\nevent: gap\ndata: {"channel": "a"}\n\n'
    assert (encode_position("7"), encode_position("")) == (b"id: 7\nevent: position\ndata:\n\n", b"")
    assert encode_expired("7") == b"id: 7\nevent: expired\ndata: {}\n\n"
    assert encode_expired("") == b"event: expired\ndata: {}\n\n"


def with_events(text: str, *, takes_id_alone: bool) -> tuple[str, list[str]]:
    """Return the last id and the messages, as clients read them that know events.

    That is by the HTML Standard, or by a parser that takes an `id` only from an event with data: eventsource-parser
    before 4, launchdarkly-eventsource, event-source-polyfill, OkHttp, sseclient-py.
    """
    last_id, messages = "", list[str]()
    for block in text.split("\n\n"):
        fields = [line.split(":", 1) for line in block.split("\n") if line and not line.startswith(":")]
        values = {name: value.removeprefix(" ") for name, value in fields}
        if "id" in values and (takes_id_alone or "data" in values):
            last_id = values["id"]
        if "data" in values and "event" not in values:
            messages.append(values["data"])
    return last_id, messages


def by_lines(text: str) -> tuple[str, list[str]]:
    """Return the last id and the messages, as a program reads them that ignores what events are."""
    ids = [line.removeprefix("id: ") for line in text.split("\n") if line.startswith("id: ")]
    return ids[-1], [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]


@pytest.mark.parametrize(
    "read",
    [partial(with_events, takes_id_alone=True), partial(with_events, takes_id_alone=False), by_lines],
    ids=["id alone", "id with data", "lines"],
)
def test_kinds_of_parsers(read: Callable[[str], tuple[str, list[str]]]) -> None:
    """The start of a stream gives each kind of parser the first id, and no message."""
    start = encode_retry(1) + encode_position("6") + HEARTBEAT
    assert read(start.decode()) == ("6", [])
    assert read((start + encode_event(Message(channel="a", data="x"), "7")).decode()) == ("7", ["x"])
