"""What is particular to `nats://` and needs no server: its URL, and the subjects of channels."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backplane import Backplane, ConfigurationError
from backplane.adapters.nats import encode_channel
from backplane.channels import MAX_CHANNEL_BYTES

channels = st.text(min_size=1, max_size=MAX_CHANNEL_BYTES).filter(
    lambda name: (
        len(name.encode(errors="surrogatepass")) <= MAX_CHANNEL_BYTES and not re.search("[\ud800-\udfff]", name)
    )
)


@given(channels)
@example(">")
@example("*")
@example("a.*")
@example("$SYS.>")
@example("_INBOX.x")
@example("cr\r\nlf\0")
@example("😀" * 63)
def test_a_channel_is_one_plain_token(channel: str) -> None:
    """Whatever the name, its subject is one token without wildcard, blank or dot, far below the server's limit."""
    subject = encode_channel("shop.", channel)
    assert re.fullmatch(rb"shop\.[A-Za-z0-9_=-]+", subject)
    assert len(subject) <= len("shop.") + 3 * MAX_CHANNEL_BYTES


@given(channels, channels)
@example("=3E", ">")
@example("a=2Eb", "a.b")
@example("=3e", "=3E")
def test_two_channels_never_share_a_subject(one: str, other: str) -> None:
    """The encoding is injective."""
    assert (encode_channel("", one) == encode_channel("", other)) == (one == other)


@pytest.mark.parametrize(
    ("channel", "subject"),
    [("chat", b"chat"), ("Room_1-a", b"Room_1-a"), ("orders:42", b"orders=3A42"), ("ü", b"=C3=BC")],
)
def test_subject_of_a_channel(channel: str, subject: bytes) -> None:
    """Plain names stay as they are, so that the broker's own tools can publish to them."""
    assert encode_channel("", channel) == subject


def test_a_token_is_masked() -> None:
    """A lone user name is a token, and a secret like a password."""
    backplane = Backplane("nats://s3cr3t@localhost")
    assert "s3cr3t" not in repr(backplane)
    assert backplane.url == "nats://:***@localhost"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nats://localhost:notaport", "host:port"),
        ("nats://one,two:99999", "host:port"),
        ("nats://localhost/shop", "no path"),
        ("nats://localhost?prefix=shop", "ended by a dot"),
        ("nats://localhost?prefix=>.", "ended by a dot"),
    ],
)
def test_a_url_that_makes_no_sense_is_refused(url: str, words: str) -> None:
    """A port that is none, a path, and a prefix that is no tokens are refused before anything is opened."""
    with pytest.raises(ConfigurationError, match=words):
        Backplane(url)
