"""`backplane.message`: the values that subscribers receive."""

# pyright: reportPrivateUsage=false

import re
from dataclasses import FrozenInstanceError, fields
from typing import Any
from zlib import crc32

import pytest

from backplane.errors import InvalidPositionError
from backplane.message import ALL, All, Gap, Joined, Message, Place, Position, Receipt, UncheckedPlace

VALUES = [
    Message(channel="chat", data="hello"),
    Position(b"12345678", 2, 3),
    Gap(channel="chat", reason="the link was lost"),
    Joined(channel="chat"),
    Receipt(),
]


def test_message_defaults() -> None:
    """A message of a foreign publish has a channel and data alone."""
    message = Message(channel="chat", data="hello")
    assert (message.origin, message.published_at, message.excluded, message.position) == (None, None, None, None)


@pytest.mark.parametrize(
    ("data", "size_bytes"), [("", 0), (b"", 0), ("abc", 3), (b"\x00\xff", 2), ("é😀", 2)], ids=ascii
)
def test_size(data: str | bytes, size_bytes: int) -> None:
    """The size is the number of bytes of binary data and of characters of text."""
    assert Message(channel="chat", data=data).size_bytes == size_bytes


@pytest.mark.parametrize(("data", "value"), [('{"a": [1]}', {"a": [1]}), (b'"\xc3\xa9"', "é"), ("null", None)])
def test_json(data: str | bytes, value: object) -> None:
    """`json` returns the value that was published."""
    assert Message(channel="chat", data=data).json() == value


@pytest.mark.parametrize("data", ["", "no JSON", b"\xff", "[" * 100_000], ids=["empty", "text", "binary", "deep"])
def test_no_json(data: str | bytes) -> None:
    """Data that is not JSON raises `ValueError`."""
    with pytest.raises(ValueError, match=r"."):
        Message(channel="chat", data=data).json()


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_are_frozen(value: Any) -> None:
    """Gaps and receipts are immutable, since every subscriber of a worker shares them."""
    if not isinstance(value, Message | Position):
        with pytest.raises(FrozenInstanceError):
            setattr(value, fields(value)[0].name, "other")
    assert not hasattr(value, "__dict__")


@pytest.mark.parametrize("value_class", [Message, Gap, Joined, Receipt])
def test_values_take_keywords_only(value_class: Any) -> None:
    """Fields are given by keyword, so that a new one can be added at any place."""
    with pytest.raises(TypeError, match="positional argument"):
        value_class("a", "b")


def test_equal_values_are_equal() -> None:
    """Values are equal if their fields are."""
    assert Position(b"12345678", 2, 3) == Position(b"12345678", 2, 3)
    assert Gap(channel="a", reason="x") != Gap(channel="b", reason="x")


@pytest.mark.parametrize(
    "position", [Position(b"\0" * 8, 0, 0), Position(b"\xff" * 8, 2**64 - 1, 2**32 - 1), Position(b"12345678", 2, 3)]
)
def test_position_as_text(position: Position) -> None:
    """The text of a position has 28 characters that are safe in URLs, and is read again."""
    text = str(position)
    assert re.fullmatch(r"[A-Za-z0-9_-]{28}", text)
    assert Position.parse(text) == position


def test_place_is_its_position() -> None:
    """A place equals the position of its message, and has the same text and hash."""
    place, position = Place(b"12345678", 2, 3, before=1, before_check=7), Position(b"12345678", 2, 3)
    assert (place, str(place), hash(place)) == (position, str(position), hash(position))
    assert place != Position(b"12345678", 2, 4)
    assert place != Position(b"12345678", 3, 3)
    assert place != Position(b"12345679", 2, 3)
    assert place != "12345678"


def test_position_shows_itself() -> None:
    """A position in a log shows its parts."""
    assert repr(Position(b"12345678", 2, 255)) == "Position(3132333435363738, 2, 0xff)"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a" * 28,
        "A" * 27,
        "A" * 29,
        "!" * 28,
        "é" * 28,
        "A" * 10_000,
        "AgECAwQFBgcIAAAAAAAAAAIAAAAD",
        None,
        7,
        b"A" * 28,
    ],
    ids=ascii,
)
def test_malformed_position(text: Any) -> None:
    """Text that is no position, or of another version, raises an error that shows its beginning."""
    with pytest.raises(InvalidPositionError, match="this is no position") as raised:
        Position.parse(text)
    assert len(str(raised.value)) < 100


def test_all() -> None:
    """`ALL` can be recognized by its type, and is shown by its name in a log."""
    assert isinstance(ALL, All)
    assert repr(ALL) == "ALL"


def test_an_unchecked_place_is_a_place() -> None:
    """Its check is that of the payload, which it keeps no longer than until that is read."""
    unchecked = UncheckedPlace(b"12345678", 2, b"payload", before=1)
    assert unchecked._payload == b"payload"
    assert unchecked == Place(b"12345678", 2, crc32(b"payload"))
    assert unchecked._payload is None
    assert hash(unchecked) == hash(Position(b"12345678", 2, crc32(b"payload")))
    assert (unchecked.check, unchecked.before, unchecked.before_check) == (crc32(b"payload"), 1, None)
    assert str(UncheckedPlace(b"12345678", 2, b"payload")) == str(unchecked)
