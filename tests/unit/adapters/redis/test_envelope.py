"""`backplane.adapters.redis.envelope`: what a message that is kept looks like on the broker."""

from __future__ import annotations

from zlib import crc32

import pytest

from backplane.adapters.redis.envelope import ENVELOPE, opened
from backplane.fanout import codec
from backplane.message import Place


def test_envelope_is_read_byte_by_byte() -> None:
    """An envelope is magic, version 3, epoch, offset and the check of the message before, then what was published."""
    wrapped = bytes.fromhex("bf425003 0102030405060708 000000000000000a deadbeef") + b"data"
    content, place = opened(wrapped)
    assert content == b"data"
    assert place is not None
    assert place == Place(bytes(range(1, 9)), 10, crc32(b"data"))
    assert (place.before, place.before_check) == (9, 0xDEADBEEF)


def test_first_message_follows_no_other() -> None:
    """The first message of a history has the offset 1, and follows 0."""
    content, place = opened(ENVELOPE + bytes(8) + (1).to_bytes(8) + bytes(4))
    assert (content, place is not None and (place.offset, place.before, place.before_check)) == (b"", (1, 0, 0))


@pytest.mark.parametrize("size", range(4, 24))
def test_short_envelope_is_left_to_the_codec(size: int) -> None:
    """An envelope that is cut short is passed on whole, and is malformed for the codec."""
    payload = (ENVELOPE + b"\1" * 20)[:size]
    assert opened(payload) == (payload, None)
    assert codec.decode("room", payload) is None


def test_offset_of_no_message_is_left_to_the_codec() -> None:
    """No message has the offset 0."""
    payload = ENVELOPE + bytes(20) + b"data"
    assert opened(payload) == (payload, None)
    assert codec.decode("room", payload) is None


def test_codec_of_an_older_release_takes_an_envelope_for_malformed() -> None:
    """The codec knows neither the version nor what follows: a worker without this module drops the message."""
    payload = codec.encode("hello", origin=b"12345678", published_at=1.0)
    assert codec.decode("room", ENVELOPE + b"\1" * 20 + payload) is None
