"""`backplane.message`: the values that travel."""

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
    """A foreign publish has a channel and data, and nothing else is known of it."""
    message = Message(channel="chat", data="hello")
    assert (message.origin, message.published_at, message.excluded, message.position) == (None, None, None, None)


@pytest.mark.parametrize(
    ("data", "size_bytes"), [("", 0), (b"", 0), ("abc", 3), (b"\x00\xff", 2), ("é😀", 2)], ids=ascii
)
def test_size(data: str | bytes, size_bytes: int) -> None:
    """The size is the bytes of binary and the characters of text."""
    assert Message(channel="chat", data=data).size_bytes == size_bytes


@pytest.mark.parametrize(("data", "value"), [('{"a": [1]}', {"a": [1]}), (b'"\xc3\xa9"', "é"), ("null", None)])
def test_json(data: str | bytes, value: object) -> None:
    """What was published as a value is that value again."""
    assert Message(channel="chat", data=data).json() == value


@pytest.mark.parametrize("data", ["", "no JSON", b"\xff", "[" * 100_000], ids=["empty", "text", "binary", "deep"])
def test_no_json(data: str | bytes) -> None:
    """Whatever is no JSON is a `ValueError`."""
    with pytest.raises(ValueError, match=r"."):
        Message(channel="chat", data=data).json()


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_are_frozen(value: Any) -> None:
    """Every subscriber of a worker shares one object, so none can change it; a `Message` pays for that in speed."""
    if not isinstance(value, Message):
        with pytest.raises(FrozenInstanceError):
            setattr(value, fields(value)[0].name, "other")
    assert not hasattr(value, "__dict__")


@pytest.mark.parametrize("value_class", [Message, Position, Gap])
def test_values_take_keywords_only(value_class: Any) -> None:
    """Fields are named where a value is made, so that a new one can stand anywhere."""
    with pytest.raises(TypeError, match="positional argument"):
        value_class("a", "b")


def test_equal_values_are_equal() -> None:
    """Values compare by what they hold."""
    assert Position(epoch="1", offset=2) == Position(epoch="1", offset=2)
    assert Gap(channel="a", reason="x") != Gap(channel="b", reason="x")


def test_all() -> None:
    """`ALL` tells itself by its type, and shows its name in a log."""
    assert isinstance(ALL, All)
    assert repr(ALL) == "ALL"
