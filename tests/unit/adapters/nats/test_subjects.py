"""`backplane.adapters.nats.subjects`: the subject of a channel."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backplane.adapters.nats.subjects import decode_channel, encode_channel, reserved_subjects
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
    """The subject of any name is one token without wildcard, space or dot, far below the server's limit."""
    subject = encode_channel("shop.", channel)
    assert re.fullmatch(rb"shop\.[A-Za-z0-9_=-]+", subject)
    assert len(subject) <= len("shop.") + 3 * MAX_CHANNEL_BYTES


@given(reserved)
@example("$backplane/")
@example("$backplane//x")
@example("$backplane/>/*")
def test_one_wildcard_matches_every_reserved_channel(channel: str) -> None:
    """A reserved channel has a token per part, the first of which no other channel has."""
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
    """Plain names are not changed, so that the broker's own tools can publish to them."""
    assert encode_channel("", channel) == subject


def test_wildcard_of_the_reserved_channels() -> None:
    """The wildcard to permit stands after the prefix."""
    assert reserved_subjects("shop.") == "shop.=24backplane.>"


@given(channels.filter(lambda name: not name.startswith(RESERVED_PREFIX)))
@example("=3E")
@example("a.b:*>")
def test_a_subject_leads_back_to_its_channel(channel: str) -> None:
    """The wildcard of all channels receives a subject alone, which names one channel."""
    assert decode_channel("shop.", encode_channel("shop.", channel)) == channel


@pytest.mark.parametrize("token", [b"", b"=3", b"=3e", b"=41", b"=FF", b"a:b", b"=", b"=24backplane=2Fx"])
def test_subjects_of_no_channel(token: bytes) -> None:
    """What another program publishes to a subject that no channel has is no message."""
    assert decode_channel("shop.", b"shop." + token) is None
