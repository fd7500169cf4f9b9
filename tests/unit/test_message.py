"""`backplane.message`: the values that subscribers receive."""

# pyright: reportPrivateUsage=false

import re
from dataclasses import FrozenInstanceError, fields
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import InvalidPositionError
from backplane.message import ALL, All, Gap, Joined, Message, Place, Position, Receipt, ShortCheck, UncheckedPlace

checks = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 65_534, 65_535, 65_536, 131_070, 2**32 - 1])
offsets = st.integers(0, 2**37 - 1) | st.sampled_from([0, 1, 2**31, 2**32, 2**37 - 1])
epochs = st.binary(min_size=8, max_size=8)
positions = st.builds(Position, epochs, offsets, checks)

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


# -- positions with a short check --------------------------------------------------------------------------------------


@given(positions)
def test_a_compact_position_equals_its_own(position: Position) -> None:
    """It has 53 bits, is made from them again, and equals the position in both directions, with the same hash."""
    assert position.compact is not None
    assert 0 <= position.compact < 2**53
    compact = Position.from_compact(position.epoch, position.compact)
    assert compact == position
    assert position == compact
    assert not compact != position  # noqa: SIM202  # it is another method
    assert not position != compact  # noqa: SIM202
    assert hash(compact) == hash(position)
    assert compact in {position}
    assert position in {compact}
    assert compact.compact == position.compact
    assert (position.is_compact, compact.is_compact) == (False, position.check != 0)
    assert bool(compact.check) is bool(position.check)


@given(positions)
def test_a_compact_position_as_text(position: Position) -> None:
    """Its text is as long as any, is read as a compact position, and is that of the whole one only without a check."""
    assert position.compact is not None
    compact = Position.from_compact(position.epoch, position.compact)
    text = str(compact)
    assert re.fullmatch(r"[A-Za-z0-9_-]{28}", text)
    read = Position.parse(text)
    assert (read, str(read), read.is_compact) == (compact, text, compact.is_compact)
    assert (text == str(position)) is not compact.is_compact


@given(epochs, offsets, checks, checks)
def test_checks_that_differ_are_distinguished_but_for_equal_short_ones(
    epoch: bytes, offset: int, check: int, other: int
) -> None:
    """The compact form of a position equals another one exactly where the short forms of their checks are equal."""
    whole, compact = Position(epoch, offset, other), Position(epoch, offset, check).compact
    assert compact is not None
    expected = check == other == 0 or (check and other and (check - other) % 65_535 == 0)
    assert (Position.from_compact(epoch, compact) == whole) is bool(expected)
    assert (whole == Position.from_compact(epoch, compact)) is bool(expected)
    assert (compact == whole.compact) is bool(expected)


@given(positions, epochs)
def test_compact_positions_grow_with_the_offset(position: Position, epoch: bytes) -> None:
    """The number of a later message is greater, whatever its check is; another epoch or offset is another position."""
    assert position.compact is not None
    compact = Position.from_compact(position.epoch, position.compact)
    for check in (0, 1, 65_534, 2**32 - 1):
        later = Position(position.epoch, position.offset + 1, check)
        assert later.compact is None or later.compact > position.compact
        assert compact != later
    assert (compact == Position(epoch, position.offset, position.check)) is (epoch == position.epoch)


def test_where_no_compact_position_fits() -> None:
    """An offset of 2^37 or more has none; the highest that has one uses all 53 bits."""
    assert Position(b"12345678", 2**37 - 1, 65_534).compact == 2**53 - 1
    assert Position(b"12345678", 2**37, 1).compact is None
    assert Position(b"12345678", 0, 0).compact == 0


@pytest.mark.parametrize(
    ("epoch", "wire"),
    [(b"12345678", -1), (b"12345678", 2**53), (b"12345678", 10**5_000), (b"", 1), (b"1234567", 1), (b"123456789", 1)],
    ids=["negative", "large", "huge", "no epoch", "short epoch", "long epoch"],
)
def test_what_is_no_compact_position(epoch: bytes, wire: int) -> None:
    """A number that no position has, or an epoch of another length, is refused: a client can pass anything."""
    with pytest.raises(InvalidPositionError, match="this is no compact position"):
        Position.from_compact(epoch, wire)


def test_a_short_check_equals_numbers_alone() -> None:
    """It equals each check of its short form, on either side and in tuples, and has no hash: theirs differ."""
    short = ShortCheck.of(7)
    for check in (7, 7 + 65_535, short, ShortCheck.of(7 + 65_535)):
        assert (short == check, check == short, short != check, check != short) == (True, True, False, False)
        assert ((1, check) == (1, short)) is True
    for check in (8, 0, 7 + 65_536, ShortCheck.of(8)):
        assert (short == check, check == short, short != check, check != short) == (False, False, True, True)
    for other in (None, "8", b"8"):
        assert (short == other, other == short, short != other) == (False, False, True)
    assert ShortCheck.of(short) is short
    assert (int(ShortCheck.of(0)), int(ShortCheck.of(65_534)), int(ShortCheck.of(65_535))) == (0, 65_535, 1)
    with pytest.raises(TypeError, match="unhashable"):
        hash(short)


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
        "AwECAwQFBgcIAAAAAAAAAAIAAAAD",
        "AgECAwQFBgcIAAAAAAAAAAIAAAAA",
        "AgECAwQFBgcIAAAAAAAAAAIAAQAA",
        "AgECAwQFBgcIAAAAIAAAAAAAAAAD",
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
