"""What is particular to `nats://` and needs no server: its URL, and the subjects of channels."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backplane import Backplane, ConfigurationError
from backplane.adapters.nats.broadcaster import encode_channel
from backplane.channels import MAX_CHANNEL_BYTES, RESERVED_PREFIX

channels = st.text(min_size=1, max_size=MAX_CHANNEL_BYTES).filter(
    lambda name: (
        len(name.encode(errors="surrogatepass")) <= MAX_CHANNEL_BYTES and not re.search("[\ud800-\udfff]", name)
    )
)

reserved = channels.map(lambda name: RESERVED_PREFIX + name)


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


@given(reserved)
@example("$backplane/")
@example("$backplane//x")
@example("$backplane/>/*")
def test_one_wildcard_fits_every_reserved_channel(channel: str) -> None:
    """A channel of the package itself has a token per part, the first of which no other channel has."""
    subject = encode_channel("shop.", channel)
    assert re.fullmatch(rb"shop\.=24backplane(\.[A-Za-z0-9_=-]+)+", subject)
    assert len(subject) <= len("shop.") + 3 * len(channel.encode())


def test_subject_of_the_probe() -> None:
    """The random end of the probe's channel is a token of its own, so that a permission can name the rest."""
    assert encode_channel("", "$backplane/probe/0123abcd") == b"=24backplane.probe.0123abcd"


@given(channels | reserved, channels | reserved)
@example("=3E", ">")
@example("a=2Eb", "a.b")
@example("=3e", "=3E")
@example("$backplane/a.b", "$backplane/a/b")
@example("$backplane//", "$backplane/=")
@example("$backplane.a", "$backplane/a")
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


@pytest.mark.parametrize("url", ["ws://localhost", "wss://localhost"])
def test_websockets_of_nats_are_refused(url: str) -> None:
    """NATS over WebSockets is no scheme of this package, and the error names those that are."""
    with pytest.raises(ConfigurationError, match=r"unknown scheme 'wss?'.*nats.*tls"):
        Backplane(url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nats://localhost:notaport", "host:port"),
        ("nats://one,two:99999", "host:port"),
        ("nats://localhost/shop", "no path"),
        ("nats://one,tls://two", "nats://one:4222,two:4222"),
        ("nats://alice:x@one,nats://bob:y@two", "share one user"),
        ("nats://one,nats://bob:y@two", "share one user"),
        ("nats://one?tls_keyfile=key.pem", "tls_certfile"),
        ("nats://localhost?prefix=shop", "ended by a dot"),
        ("nats://localhost?prefix=>.", "ended by a dot"),
    ],
)
def test_a_url_that_makes_no_sense_is_refused(url: str, words: str) -> None:
    """A port that is none, a path, and a prefix that is no tokens are refused before anything is opened."""
    with pytest.raises(ConfigurationError, match=words):
        Backplane(url)
