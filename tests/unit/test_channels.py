"""`backplane.channels`: which names are valid."""

import logging
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backplane.channels import MAX_CHANNEL_BYTES, RESERVED_PREFIX, validate_channel, warn_if_pattern
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
        "__main__",
        "a" * 255,
        "é" * 127 + "a",
    ],
    ids=ascii,
)
def test_any_text_is_valid(channel: str) -> None:
    """Wildcards, blanks, control characters, braces and Unicode are plain characters, up to 255 bytes of UTF-8."""
    assert validate_channel(channel) is channel


@given(st.text(min_size=1))
def test_text_of_1_to_255_bytes_is_valid(channel: str) -> None:
    """Exactly the texts of 1 to 255 bytes in UTF-8 outside the reserved prefixes are valid."""
    assume(not channel.startswith(("$backplane/", "__")))
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
        ("__keyevent@0__:set", "channels starting with '__keyevent@' are reserved"),
        ("__keyspace@0__:session:1", "channels starting with '__keyspace@' are reserved"),
        ("__sentinel__:hello", "channels starting with '__sentinel__:' are reserved"),
        ("__redis__:invalidate", "channels starting with '__redis__:' are reserved"),
        (b"chat", "a channel is a str, not bytes"),
        (None, "a channel is a str, not NoneType"),
        (7, "a channel is a str, not int"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_refused(channel: Any, words: str) -> None:
    """An invalid name is refused with the reason."""
    with pytest.raises(InvalidChannelError, match=words):
        validate_channel(channel)


def test_refusal_is_a_value_error() -> None:
    """Code that does not import this package can catch the error as a `ValueError`."""
    with pytest.raises(ValueError, match="empty"):
        validate_channel("")


@pytest.mark.parametrize("character", ["a", "é", "\ud800"], ids=ascii)
def test_refusal_is_short(character: str) -> None:
    """The error for a channel name of a megabyte does not repeat all of it."""
    with pytest.raises(InvalidChannelError) as caught:
        validate_channel(character * 1_000_000)
    assert len(str(caught.value)) < 250


def test_constants() -> None:
    """The bound and the reserved prefix are part of the contract of adapters."""
    assert (MAX_CHANNEL_BYTES, RESERVED_PREFIX) == (255, "$backplane/")


@pytest.fixture
def nothing_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without any warning, like a new process."""
    monkeypatch.setattr("backplane.channels._warned_about", set[str]())


@pytest.mark.usefixtures("nothing_warned_about")
@pytest.mark.parametrize("channel", ["prices.*", "*", "a.*.b", "news*", "prices.>", ">", "home/#", "logs.#"])
def test_pattern_is_warned_about_once(channel: str, caplog: pytest.LogCaptureFixture) -> None:
    """A name that would be a pattern for some broker is logged in one warning, however often it is joined."""
    for _ in range(3):
        warn_if_pattern(channel)
    assert [(record.levelno, repr(channel) in record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, True)
    ]
    assert "joined as a plain name" in caplog.text


@pytest.mark.usefixtures("nothing_warned_about")
@pytest.mark.parametrize("channel", ["prices", "a>b", "c#", "#general", "a -> b", "what?", "[a]", "user:1"])
def test_plain_name_is_not_warned_about(channel: str, caplog: pytest.LogCaptureFixture) -> None:
    """A name that has such a character elsewhere is not warned about."""
    warn_if_pattern(channel)
    assert caplog.messages == []


@pytest.mark.usefixtures("nothing_warned_about")
def test_warnings_of_patterns_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Clients that choose ever new names cannot fill the log or the memory."""
    for number in range(1000):
        warn_if_pattern(f"{number}*")
    assert len(caplog.records) == 100
