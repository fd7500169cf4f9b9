"""`backplane.message`: the values that subscribers receive."""

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from backplane.message import ALL, All, Gap, Message, Position

VALUES = [
    Message(channel="chat", data="hello"),
    Position(epoch="1", offset=2),
    Gap(channel="chat", reason="the link was lost"),
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
    """Gaps and positions are immutable, since every subscriber of a worker shares them."""
    if not isinstance(value, Message):
        with pytest.raises(FrozenInstanceError):
            setattr(value, fields(value)[0].name, "other")
    assert not hasattr(value, "__dict__")


@pytest.mark.parametrize("value_class", [Message, Position, Gap])
def test_values_take_keywords_only(value_class: Any) -> None:
    """Fields are given by keyword, so that a new one can be added at any place."""
    with pytest.raises(TypeError, match="positional argument"):
        value_class("a", "b")


def test_equal_values_are_equal() -> None:
    """Values are equal if their fields are."""
    assert Position(epoch="1", offset=2) == Position(epoch="1", offset=2)
    assert Gap(channel="a", reason="x") != Gap(channel="b", reason="x")


def test_all() -> None:
    """`ALL` can be recognized by its type, and is shown by its name in a log."""
    assert isinstance(ALL, All)
    assert repr(ALL) == "ALL"
