"""Frames of AMQP 0-9-1."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.frame import marshal, unmarshal
from pamqp.header import ContentHeader

from backplane.adapters.amqp.errors import (
    WireError,
    connect_error,
    outcome_unknown,
    publish_error,
    refusal,
    unavailable,
)
from backplane.adapters.amqp.wire import (
    BODY,
    CHANNEL,
    HEADER,
    HEARTBEAT,
    HEARTBEAT_FRAME,
    METHOD,
    Content,
    FrameReader,
    encode_message,
    read_confirmation,
    read_content,
    read_routing_key,
)
from backplane.errors import BrokerAuthenticationError

_CONTENT = Content(10, b"worker", 7, 2, 5, 1.5, 1_700_000_000)


def encoded(payload: bytes, frame_bytes: int = 4096) -> bytes:
    """Return the frames of a message."""
    content = _CONTENT._replace(size=len(payload))
    return encode_message(b"backplane", "röom", payload, content, frame_bytes=frame_bytes)


def test_a_message_is_what_others_read() -> None:
    """Another library reads method, properties and body."""
    data = encoded(b"0123456789", frame_bytes=16)
    frames: list[object] = []
    while data:
        size, channel, frame = unmarshal(data)
        assert channel == CHANNEL
        frames.append(frame)
        data = data[size:]
    method, header, *bodies = frames
    assert isinstance(method, commands.Basic.Publish)
    assert (method.exchange, method.routing_key, method.mandatory) == ("backplane", "röom", False)
    assert isinstance(header, ContentHeader)
    assert (header.body_size, header.properties.message_id, header.properties.app_id) == (10, "7 1501 2 5", "worker")
    assert [body.value for body in bodies if isinstance(body, ContentBody)] == [b"01234567", b"89"]


@given(st.lists(st.integers(1, 40), max_size=40), st.binary(max_size=60))
def test_frames_are_read_however_they_are_divided(cuts: list[int], payload: bytes) -> None:
    """Each frame comes once, whole and in order."""
    data = HEARTBEAT_FRAME + encoded(payload, frame_bytes=30)
    whole = list(FrameReader().read(data))
    reader = FrameReader()
    frames: list[tuple[int, int, bytes]] = []
    for cut in cuts:
        frames += list(reader.read(data[:cut]))
        data = data[cut:]
    frames += list(reader.read(data))
    assert frames == whole
    kinds = [kind for kind, _, _ in whole]
    assert kinds[:3] == [HEARTBEAT, METHOD, HEADER]
    assert b"".join(body for kind, _, body in whole if kind == BODY) == payload


def test_numbers_are_read_back() -> None:
    """What a worker writes, another one reads, up to a millisecond."""
    _, header, _ = FrameReader().read(encoded(b"0123456789"))
    assert read_content(header[2]) == _CONTENT._replace(age_seconds=1.501)


@pytest.mark.parametrize(
    "properties",
    [
        commands.Basic.Properties(),
        commands.Basic.Properties(app_id="x", message_id="y"),
        commands.Basic.Properties(
            content_type="a", headers={"k": "v"}, delivery_mode=1, app_id="x", message_id="1 2 3"
        ),
        commands.Basic.Properties(app_id="x", message_id="1" * 100, priority=3),
    ],
)
def test_messages_of_others_have_no_number(properties: commands.Basic.Properties) -> None:
    """Whatever properties they have."""
    payload = marshal(ContentHeader(body_size=5, properties=properties), CHANNEL)[7:-1]
    assert read_content(payload) == Content(5)


def test_all_properties_are_passed_over() -> None:
    """The number is found after every other property."""
    _, header, _ = FrameReader().read(encoded(b"0123456789"))
    mine = ContentHeader()
    mine.unmarshal(header[2])
    for name, value in (
        ("content_type", "a"),
        ("content_encoding", "b"),
        ("headers", {"k": [1, "v"]}),
        ("delivery_mode", 2),
        ("priority", 1),
        ("correlation_id", "c"),
        ("reply_to", "d"),
        ("expiration", "5"),
        ("message_type", "e"),
        ("user_id", "f"),
    ):
        setattr(mine.properties, name, value)
    assert read_content(marshal(mine, CHANNEL)[7:-1])[1:3] == (b"worker", 7)


@pytest.mark.parametrize(
    "data",
    [b"AMQP\0\0\x09\x01", b"HTTP/1.1 400", b"\1\0\0\xff\xff\xff\xff\0", b"\1\0\0\0\0\0\1xx"],
)
def test_what_is_no_frame_is_an_error(data: bytes) -> None:
    """Another protocol, a size without bound, a frame without its end."""
    with pytest.raises(WireError):
        list(FrameReader().read(data))


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_an_error(data: bytes) -> None:
    """Nothing else is raised, however a server mangles what it sends."""
    for read in (read_content, read_routing_key, read_confirmation):
        try:
            read(data)
        except WireError:
            continue


@given(st.integers(0, 60))
def test_a_header_that_is_cut_short(size: int) -> None:
    """It is an error, or its whole."""
    _, header, _ = FrameReader().read(encoded(b"0123456789"))
    if size < len(header[2]) and size < 30:
        with pytest.raises(WireError):
            read_content(header[2][:size])


def test_errors_state_what_helps() -> None:
    """A refused login, a missing virtual host, one that is down, and what passes."""
    assert isinstance(refusal(403, "ACCESS_REFUSED"), BrokerAuthenticationError)
    assert not refusal(530, "NOT_ALLOWED - vhost x not found").retriable
    assert refusal(530, "NOT_ALLOWED - vhost x is down").retriable
    assert refusal(320, "CONNECTION_FORCED").retriable
    assert "cannot reach amqp://x" in str(connect_error(OSError("refused"), "amqp://x"))
    assert isinstance(connect_error(refusal(403, "no"), "amqp://x"), BrokerAuthenticationError)
    assert not connect_error(refusal(406, "no"), "amqp://x").retriable
    assert "TimeoutError" in str(connect_error(TimeoutError(), "x"))
    assert publish_error("x", retriable=True).retriable
    assert "may have been published" in str(outcome_unknown("x"))
    assert unavailable("x").retriable
