"""`backplane.channels`: which names are legal."""

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backplane.channels import MAX_CHANNEL_BYTES, RESERVED_PREFIX, validate_channel
from backplane.errors import InvalidChannelError


@pytest.mark.parametrize(
    "channel",
    [
        "chat",
        " ",
        "a b",
        "*",
        ">",
        "a.*.b",
        "$SYS",
        "{tag}",
        "\r\nPUBLISH x",
        "\0",
        "çà",
        "😀",
        "$backplane",
        "x$backplane/",
        "a" * 255,
        "é" * 127 + "a",
    ],
    ids=ascii,
)
def test_any_text_is_legal(channel: str) -> None:
    """Wildcards, blanks, control characters, braces and Unicode are plain characters, up to 255 bytes of UTF-8."""
    assert validate_channel(channel) is channel


@given(st.text(min_size=1))
def test_text_of_1_to_255_bytes_is_legal(channel: str) -> None:
    """Exactly the texts of 1 to 255 bytes in UTF-8 outside the reserved prefix are legal."""
    assume(not channel.startswith("$backplane/"))
    if len(channel.encode()) <= 255:
        assert validate_channel(channel) == channel
    else:
        with pytest.raises(InvalidChannelError, match="at most 255 bytes"):
            validate_channel(channel)


@pytest.mark.parametrize(
    ("channel", "words"),
    [
        ("", "a channel name cannot be empty"),
        ("a" * 256, "at most 255 bytes in UTF-8 and this one 256"),
        ("é" * 128, "at most 255 bytes in UTF-8 and this one 256"),
        ("a\ud800", r"cannot hold a lone surrogate \(position 1\): 'a\\ud800'"),
        ("$backplane/", r"channels starting with '\$backplane/' are reserved: '\$backplane/'"),
        ("$backplane/probe/00", r"channels starting with '\$backplane/' are reserved"),
        (b"chat", "a channel is a str, not bytes"),
        (None, "a channel is a str, not NoneType"),
        (7, "a channel is a str, not int"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_refused(channel: Any, words: str) -> None:
    """What is no legal name is refused with the reason."""
    with pytest.raises(InvalidChannelError, match=words):
        validate_channel(channel)


def test_refusal_is_a_value_error() -> None:
    """Code that knows nothing of this package can catch the refusal as a `ValueError`."""
    with pytest.raises(ValueError, match="empty"):
        validate_channel("")


@pytest.mark.parametrize("character", ["a", "é", "\ud800"], ids=ascii)
def test_refusal_is_short(character: str) -> None:
    """A megabyte that came in as a channel name does not go out in the error's words."""
    with pytest.raises(InvalidChannelError) as caught:
        validate_channel(character * 1_000_000)
    assert len(str(caught.value)) < 250


def test_constants() -> None:
    """The bound and the reserved prefix are part of the contract with adapters."""
    assert (MAX_CHANNEL_BYTES, RESERVED_PREFIX) == (255, "$backplane/")
