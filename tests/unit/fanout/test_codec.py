"""`backplane.fanout.codec`: round trips, foreign and malformed payloads, and the bytes on the broker."""

import json
import math
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from backplane.errors import ConfigurationError, InvalidDataError
from backplane.fanout.codec import JsonText, decode, encode, encode_path_test, reason_of_drop, to_client_data
from backplane.header import pack
from backplane.message import ExtendedMessage, Message, Position

ORIGIN = b"ORIGIN_8"
EXCLUDED = b"EXCLUDED"
# Half a second past: exact in binary, so the microseconds are too.
PUBLISHED_AT = 1_700_000_000.5
NEW_YEAR = datetime(2030, 1, 1, tzinfo=UTC)

TEXT_HELLO = b"\xbfBP\x01\x00ORIGIN_8\x00\x06\x0a\x24\x18\x25\xe1\x20hello"
BINARY_EXCLUDING = b"\xbfBP\x01\x03ORIGIN_8\x00\x06\x0a\x24\x18\x25\xe1\x20EXCLUDED\x00\xff"

ids = st.binary(min_size=8, max_size=8)
times = st.floats(min_value=0, max_value=4e9)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


class Colour(Enum):
    """A value class whose members are not text."""

    RED = "red"


class Word(str, Enum):  # noqa: UP042  # the older spelling is the one applications have
    """A value class whose members are text."""

    HELLO = "hello"


class Order(BaseModel):
    """A model as an application has it."""

    number: int
    placed_at: datetime = Field(alias="placedAt")


@dataclass
class Point:
    """A dataclass as an application has it."""

    x: int
    y: float


def encoded(data: object, excluded: bytes | None = None) -> bytes:
    """Return the payload of `data` with this file's origin and time."""
    return encode(data, origin=ORIGIN, published_at=PUBLISHED_AT, excluded=excluded)


def decoded(payload: bytes) -> Message:
    """Return the message of a payload that must not be malformed."""
    message = decode("chat", payload)
    assert message is not None
    return message


def test_layout_of_text() -> None:
    """The bytes of a text are the documented ones: magic, version, flags, origin, microseconds, data."""
    assert encoded("hello") == TEXT_HELLO
    assert decode("chat", TEXT_HELLO) == Message(
        channel="chat", data="hello", origin=b"ORIGIN_8", published_at=1_700_000_000.5, excluded=None, position=None
    )


def test_layout_of_binary_with_an_excluded_connection() -> None:
    """Flags 3 are binary data after the id of an excluded connection."""
    assert encoded(b"\x00\xff", excluded=b"EXCLUDED") == BINARY_EXCLUDING
    assert decode("chat", BINARY_EXCLUDING) == Message(
        channel="chat", data=b"\x00\xff", origin=b"ORIGIN_8", published_at=1_700_000_000.5, excluded=b"EXCLUDED"
    )


def test_header_size() -> None:
    """The header takes 21 bytes, and 29 with an excluded connection."""
    assert (len(encoded("")), len(encoded("", excluded=EXCLUDED))) == (21, 29)


def test_position_of_the_adapter() -> None:
    """The position is that of the adapter, for a payload with a header and for a foreign one."""
    position = Position(b"12345678", 2, 3)
    messages = [decode("chat", payload, position) for payload in (TEXT_HELLO, b"hello")]
    assert [message and message.position for message in messages] == [position, position]


@given(st.text() | st.binary(), ids, times, st.none() | ids)
def test_round_trip(data: str | bytes, origin: bytes, published_at: float, excluded: bytes | None) -> None:
    """Text and bytes come back as they were, with origin, excluded connection and the time to a microsecond."""
    message = decode("chat", encode(data, origin=origin, published_at=published_at, excluded=excluded))
    assert message is not None
    assert (message.channel, message.data, message.origin, message.excluded) == ("chat", data, origin, excluded)
    assert message.published_at == pytest.approx(published_at, abs=2e-6)


@given(json_values)
def test_round_trip_of_json(value: Any) -> None:
    """Anything JSON but a bare text, which stays as it is, comes back as JSON text of the same value."""
    assume(not isinstance(value, str))
    data = decoded(encoded(value)).data
    assert isinstance(data, str)
    assert json.loads(data) == value


@given(st.integers(-(2**53), 2**53), st.datetimes(timezones=st.just(UTC)))
def test_round_trip_of_a_model(number: int, placed_at: datetime) -> None:
    """A pydantic model comes back from its JSON, under the aliases that FastAPI uses in its responses."""
    order = Order(number=number, placedAt=placed_at)
    data = decoded(encoded(order)).data
    assert Order.model_validate_json(data) == order
    assert list(json.loads(data)) == ["number", "placedAt"]


@given(st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False))
def test_round_trip_of_a_dataclass(x: int, y: float) -> None:
    """A dataclass comes back as a JSON object of its fields."""
    assert json.loads(decoded(encoded(Point(x, y))).data) == {"x": x, "y": y}


@given(st.datetimes(timezones=st.just(UTC)))
def test_round_trip_of_a_datetime(moment: datetime) -> None:
    """A datetime comes back in ISO 8601."""
    text = json.loads(decoded(encoded(moment)).data)
    assert datetime.fromisoformat(text) == moment


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("hello", "hello"),
        ("", ""),
        (Word.HELLO, "hello"),
        (None, "null"),
        (True, "true"),
        (math.nan, "null"),
        (math.inf, "null"),
        ({"low": -math.inf, "values": [math.nan]}, '{"low":null,"values":[null]}'),
        (Point(1, math.nan), '{"x":1,"y":null}'),
        (Colour.RED, '"red"'),
        (("a", 1), '["a",1]'),
        ({1: 2}, '{"1":2}'),
        ("é", "é"),
        (["é"], '["é"]'),
        (datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC), '"2030-01-02T03:04:05Z"'),
        (date(2030, 1, 2), '"2030-01-02"'),
        (Decimal("1.10"), '"1.10"'),
        (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (Order(number=1, placedAt=NEW_YEAR), '{"number":1,"placedAt":"2030-01-01T00:00:00Z"}'),
        ([Order(number=1, placedAt=NEW_YEAR)], '[{"number":1,"placedAt":"2030-01-01T00:00:00Z"}]'),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_plain_text(value: object, text: str) -> None:
    """Text is written unchanged; anything else becomes compact JSON, in which infinities and NaN are `null`."""
    assert to_client_data(value) == text
    assert decoded(encoded(value)).data == text


@pytest.mark.parametrize("data", [b"a\x00\xff", bytearray(b"a\x00\xff"), memoryview(b"a\x00\xff")])
def test_anything_like_bytes_is_binary(data: object) -> None:
    """Bytes, a bytearray and a view of either arrive as bytes."""
    assert decoded(encoded(data)).data == to_client_data(data) == b"a\x00\xff"


def test_view_with_steps() -> None:
    """A view that is not contiguous is taken by its elements."""
    assert decoded(encoded(memoryview(b"abcdef")[::2])).data == b"ace"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a\ud800", r"text with a lone surrogate \(position 1\) cannot be sent: encode it first"),
        ({"a": "\ud800"}, "publish takes str, bytes or anything JSON, not dict: "),
        ({"a": b"\xff"}, "publish takes str, bytes or anything JSON, not dict: "),
        (object(), "publish takes str, bytes or anything JSON, not object: "),
        ([object()], "publish takes str, bytes or anything JSON, not list: "),
        ((1 / number for number in [0]), "publish takes str, bytes or anything JSON, not generator: "),
    ],
    ids=["surrogate", "nested-surrogate", "nested-bytes", "object", "nested-object", "broken-generator"],
)
def test_invalid_data(data: object, words: str) -> None:
    """What is neither text, nor bytes, nor JSON is refused by its type."""
    with pytest.raises(InvalidDataError, match=f"^{words}"):
        encoded(data)


@pytest.mark.parametrize("depth", [None, 5_000], ids=["circular", "deep"])
def test_endless_nesting(depth: int | None) -> None:
    """A list that holds itself, or thousands of others, is refused like any other value that is not JSON."""
    nested: list[Any] = []
    if depth is None:
        nested.append(nested)
    for _ in range(depth or 0):
        nested = [nested]
    with pytest.raises(InvalidDataError, match="not list"):
        encoded(nested)


@given(st.binary())
def test_foreign_payload(payload: bytes) -> None:
    """Bytes that do not start with the magic come out as they are, as text exactly where they are valid UTF-8."""
    assume(not payload.startswith(b"\xbfBP"))
    assert decode("chat", payload) == Message(channel="chat", data=_as_foreign(payload))


@given(st.text())
def test_foreign_text(text: str) -> None:
    """No text in UTF-8 is taken for a payload with a header."""
    assert decode("chat", text.encode()) == Message(channel="chat", data=text)


@pytest.mark.parametrize("payload", [b"\xbf", b"\xbfB", b"\xbfBp", b"\xbf\xbfBP"])
def test_almost_the_magic(payload: bytes) -> None:
    """Bytes that only resemble the magic are foreign binary."""
    assert decode("chat", payload) == Message(channel="chat", data=payload)


@pytest.mark.parametrize("payload", [TEXT_HELLO, BINARY_EXCLUDING], ids=["text", "excluding"])
def test_truncated(payload: bytes) -> None:
    """A payload that ends anywhere inside its header is malformed."""
    header_bytes = 29 if payload is BINARY_EXCLUDING else 21
    assert [size for size in range(3, header_bytes) if decode("chat", payload[:size]) is not None] == []
    assert decoded(payload[:header_bytes]).data in ("", b"")


@given(st.integers(0, 255), st.binary())
def test_unknown_version(version: int, data: bytes) -> None:
    """A version other than 1 and 2 is malformed, whatever follows."""
    assume(version not in (1, 2))
    assert decode("chat", b"\xbfBP" + bytes([version]) + TEXT_HELLO[4:] + data) is None


def test_unknown_flags() -> None:
    """A payload with an unknown flag is malformed."""
    known = [flags for flags in range(256) if decode("chat", b"\xbfBP\x01" + bytes([flags]) + BINARY_EXCLUDING[5:])]
    assert known == [1, 3]  # the data is no text


@given(st.binary())
def test_text_that_is_not_utf8(data: bytes) -> None:
    """Data that is declared as text and is not valid UTF-8 is malformed."""
    try:
        data.decode()
    except UnicodeDecodeError:
        assert decode("chat", TEXT_HELLO[:21] + data) is None
    else:
        assert decoded(TEXT_HELLO[:21] + data).data == data.decode()


@given(st.binary(max_size=64))
def test_any_bytes_after_the_magic(tail: bytes) -> None:
    """Any bytes after the magic are a message or malformed, and never an exception."""
    message = decode("chat", b"\xbfBP" + tail)
    assert message is None or (message.origin is not None and message.published_at is not None)


@pytest.mark.parametrize("microseconds", [253_402_300_799_000_001, 2**64 - 1], ids=["year 10000", "last"])
def test_time_outside_of_the_calendar(microseconds: int) -> None:
    """A publish time beyond the range of `datetime` is malformed."""
    assert decode("chat", TEXT_HELLO[:13] + microseconds.to_bytes(8) + b"hi") is None


def test_last_time_of_the_calendar() -> None:
    """The last publish time that is accepted is within the range of `datetime`."""
    published_at = decoded(TEXT_HELLO[:13] + (253_402_300_799_000_000).to_bytes(8)).published_at
    assert published_at is not None
    assert datetime.fromtimestamp(published_at, UTC).year == 9999


# --- wire_format=plain ------------------------------------------------------------------------------------------------


def written_plain(data: object, excluded: bytes | None = None) -> bytes:
    """Return the payload of `data` without a header."""
    return encode(data, origin=ORIGIN, published_at=PUBLISHED_AT, excluded=excluded, wire_format="plain")


@given(st.text() | st.binary())
def test_plain_payload(data: str | bytes) -> None:
    """Without a header the payload is the data alone, and is read like a foreign one."""
    assume(data[:3] != b"\xbfBP")
    payload = written_plain(data)
    assert payload == (data.encode() if isinstance(data, str) else data)
    assert decode("chat", payload) == Message(channel="chat", data=_as_foreign(payload))


def _as_foreign(payload: bytes) -> str | bytes:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return payload


def test_plain_json() -> None:
    """Without a header too, anything else becomes JSON text."""
    assert written_plain({"id": math.nan}) == b'{"id":null}'


def test_plain_cannot_exclude() -> None:
    """`exclude` is refused without a header, since the excluded connection would receive the message."""
    with pytest.raises(ConfigurationError, match=r"^exclude needs the header that wire_format=plain leaves out"):
        written_plain("hello", EXCLUDED)


def test_plain_bytes_that_look_like_a_header() -> None:
    """Bytes that would be read as a header are refused."""
    with pytest.raises(InvalidDataError, match="would be taken for a header"):
        written_plain(BINARY_EXCLUDING)


@pytest.mark.parametrize(
    ("data", "flags"),
    [
        ("{}", 0),
        (b"{}", 1),
        ({}, 4),
        (None, 4),
        (7, 4),
        (True, 4),
        (Point(1, 2), 4),
        (JsonText("{}"), 4),
        (Word.HELLO, 0),
    ],
)
def test_flag_of_json(data: object, flags: int) -> None:
    """The header states that a text is JSON, where the publisher passed something other than text and bytes."""
    stated = encode(data, origin=ORIGIN, published_at=PUBLISHED_AT, states_json=True)
    assert stated[4] == flags
    assert encode(data, origin=ORIGIN, published_at=PUBLISHED_AT, excluded=EXCLUDED, states_json=True)[4] == flags | 2
    assert decoded(stated).is_json is (flags == 4)
    assert encoded(data)[4] == flags & 1
    assert not decoded(encode(data, origin=ORIGIN, published_at=PUBLISHED_AT, wire_format="plain")).is_json


@pytest.mark.parametrize("flags", [5, 7, 8, 12, 0x84])
def test_flags_that_are_malformed(flags: int) -> None:
    """Binary JSON does not exist, and neither does any other flag."""
    payload = bytearray(encoded("{}", EXCLUDED))
    payload[4] = flags
    assert decode("chat", bytes(payload)) is None


def test_is_json_does_not_make_another_message() -> None:
    """Two messages that differ in nothing else are equal."""
    assert Message(channel="a", data="1", is_json=True) == Message(channel="a", data="1")


# --- version 2 --------------------------------------------------------------------------------------------------------

TRACE = b"\x01\x19\x01" + bytes(range(24))
TRACED_HELLO = b"\xbfBP\x02\x00ORIGIN_8\x00\x06\x0a\x24\x18\x25\xe1\x20\x00\x1b" + TRACE + b"hello"
TRACED_EXCLUDING = b"\xbfBP\x02\x03ORIGIN_8\x00\x06\x0a\x24\x18\x25\xe1\x20EXCLUDED\x00\x1b" + TRACE + b"\x00\xff"
TEST = b"\xbfBP\x02\x00ORIGIN_8\x00\x06\x0a\x24\x18\x25\xe1\x20\x00\x0a\x81\x08TEST_ID8"

skippable = st.lists(st.tuples(st.integers(0, 127), st.binary(max_size=200)), min_size=1, max_size=4)


def extended(extensions: bytes, data: bytes = b"hello", flags: int = 0) -> bytes:
    """Return a payload of version 2 with these extensions."""
    return b"\xbfBP\x02" + bytes([flags]) + TEXT_HELLO[5:21] + len(extensions).to_bytes(2) + extensions + data


def test_layout_with_a_trace_context() -> None:
    """With extensions the version is 2, and between header and data are their size and they themselves: 29 bytes."""
    assert encode("hello", origin=ORIGIN, published_at=PUBLISHED_AT, extensions=TRACE) == TRACED_HELLO
    assert len(TRACED_HELLO) == len(TEXT_HELLO) + 29
    message = decoded(TRACED_HELLO)
    assert isinstance(message, ExtendedMessage)
    assert (message.data, message.origin, message.published_at, message.extensions) == (
        "hello",
        ORIGIN,
        PUBLISHED_AT,
        TRACE,
    )


def test_layout_with_a_trace_context_and_an_excluded_connection() -> None:
    """The extensions follow the id of the excluded connection."""
    payload = encode(b"\x00\xff", origin=ORIGIN, published_at=PUBLISHED_AT, excluded=EXCLUDED, extensions=TRACE)
    assert payload == TRACED_EXCLUDING
    message = decoded(payload)
    assert isinstance(message, ExtendedMessage)
    assert (message.data, message.excluded, message.extensions) == (b"\x00\xff", EXCLUDED, TRACE)


def test_layout_of_a_path_test() -> None:
    """A path test has a header of version 2, the extension 81 with its id, and nothing else; it is no message."""
    assert encode_path_test(b"TEST_ID8", origin=ORIGIN, published_at=PUBLISHED_AT) == TEST
    assert (decode("chat", TEST), reason_of_drop(TEST)) == (None, "path test")


def test_version_2_without_extensions() -> None:
    """A header of version 2 without extensions is that of an ordinary message."""
    message = decoded(extended(b""))
    assert (type(message), message) == (Message, decoded(TEXT_HELLO))


@given(st.text() | st.binary(), skippable, st.none() | ids)
def test_round_trip_with_extensions(data: str | bytes, values: list[tuple[int, bytes]], excluded: bytes | None) -> None:
    """The message is the same with and without extensions, also those that this release does not know."""
    extensions = pack(values)
    options: Any = {"origin": ORIGIN, "published_at": PUBLISHED_AT, "excluded": excluded, "states_json": True}
    message, plain = decoded(encode(data, **options, extensions=extensions)), decoded(encode(data, **options))
    assert isinstance(message, ExtendedMessage)
    assert message.extensions == extensions
    assert [getattr(message, name) for name in Message.__slots__] == [
        getattr(plain, name) for name in Message.__slots__
    ]


def test_extensions_that_are_left_out() -> None:
    """More than 1,024 bytes of extensions are left out, and with `wire_format=plain` all are."""
    largest = pack([(9, bytes(1_016))])
    options: Any = {"origin": ORIGIN, "published_at": PUBLISHED_AT}
    assert len(largest) == 1_024
    assert isinstance(decoded(encode("hello", **options, extensions=largest)), ExtendedMessage)
    assert encode("hello", **options, extensions=largest + b"\x09\x00") == TEXT_HELLO
    assert encode("hello", **options, extensions=TRACE, wire_format="plain") == b"hello"


@pytest.mark.parametrize("payload", [TRACED_HELLO, TRACED_EXCLUDING, TEST], ids=["text", "excluding", "path test"])
def test_truncated_with_extensions(payload: bytes) -> None:
    """A payload that ends anywhere inside its header or its extensions is malformed."""
    header_bytes = len(payload) - {TRACED_HELLO: 5, TRACED_EXCLUDING: 2, TEST: 0}[payload]
    cut = [payload[:size] for size in range(3, header_bytes)]
    assert {(decode("chat", part), reason_of_drop(part)) for part in cut} == {(None, "malformed")}


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (extended(b"\x80\x00"), "unsupported"),
        (extended(TRACE + b"\xff\x01x"), "unsupported"),
        (extended(b"\x82\x00" + TEST[23:]), "unsupported"),
        (extended(TEST[23:], data=b"", flags=0), "path test"),
        (extended(TEST[23:]), "malformed"),
        (extended(TEST[23:] * 2, data=b""), "malformed"),
        (extended(b"\x81\x07TEST_ID", data=b""), "malformed"),
        (extended(b"\x80\x00", flags=8), "malformed"),
        (extended(b"\x80\x00", data=b"\xff"), "malformed"),
        (extended(b"\x80"), "malformed"),
        (extended(b"\x09\x05abc"), "malformed"),
        (extended(TRACE, flags=16), "malformed"),
        (extended(TRACE, data=b"\xff"), "malformed"),
        (extended(bytes(1_026)), "malformed"),
        (b"\xbfBP\x01", "malformed"),
    ],
)
def test_reason_of_drop(payload: bytes, reason: str) -> None:
    """A type from 80 on that is not known is unsupported, where all else is right; what is wrong is malformed."""
    assert (decode("chat", payload), reason_of_drop(payload)) == (None, reason)


@given(st.binary(max_size=80))
def test_any_bytes_of_version_2(tail: bytes) -> None:
    """Any bytes in a header of version 2 are a message or have a reason, and never an exception."""
    payload = b"\xbfBP\x02\x00" + TEXT_HELLO[5:21] + tail
    if decode("chat", payload) is None:
        assert reason_of_drop(payload) in ("malformed", "unsupported", "path test")


@given(st.integers(0, 60), st.integers(0, 255))
def test_one_damaged_byte(index: int, value: int) -> None:
    """A traced message with any byte changed is a message or has a reason, and never an exception."""
    payload = bytearray(TRACED_HELLO)
    payload[index % len(payload)] = value
    if decode("chat", bytes(payload)) is None:
        assert reason_of_drop(bytes(payload)) in ("malformed", "unsupported", "path test")
