"""`backplane.adapters.redis.envelope`: what a message that is kept looks like on the broker."""

from __future__ import annotations

import pytest

from backplane.adapters.redis.envelope import ENVELOPE, ENVELOPE_BYTES, place_in
from backplane.fanout import codec
from backplane.message import Place


def test_envelope_is_read_byte_by_byte() -> None:
    """An envelope is magic, version 3, epoch, offset and two checks: of the message before, and of what follows."""
    wrapped = bytes.fromhex("bf425003 0102030405060708 000000000000000a deadbeef 0badcafe") + b"data"
    place = place_in(wrapped)
    assert wrapped[ENVELOPE_BYTES:] == b"data"
    assert place is not None
    assert place == Place(bytes(range(1, 9)), 10, 0x0BADCAFE)
    assert (place.before, place.before_check) == (9, 0xDEADBEEF)


def test_first_message_follows_no_other() -> None:
    """The first message of a history has the offset 1, and follows 0."""
    place = place_in(ENVELOPE + bytes(8) + (1).to_bytes(8) + bytes(8))
    assert place is not None
    assert (place.offset, place.before, place.before_check) == (1, 0, 0)


@pytest.mark.parametrize("size", range(4, 28))
def test_short_envelope_is_left_to_the_codec(size: int) -> None:
    """An envelope that is cut short has no place, and is malformed for the codec."""
    payload = (ENVELOPE + b"\1" * 24)[:size]
    assert place_in(payload) is None
    assert codec.decode("room", payload) is None


def test_offset_of_no_message_is_left_to_the_codec() -> None:
    """No message has the offset 0."""
    payload = ENVELOPE + bytes(24) + b"data"
    assert place_in(payload) is None
    assert codec.decode("room", payload) is None


def test_what_sorts_after_an_envelope_has_no_place() -> None:
    """Binary data of a foreign publish can begin with anything, and another version is none that is known."""
    assert place_in(b"\xff" * 40) is None
    assert place_in(b"\xbfBP\4" + b"\1" * 40) is None


def test_codec_of_an_older_release_takes_an_envelope_for_malformed() -> None:
    """The codec knows neither the version nor what follows: a worker without this module drops the message."""
    payload = codec.encode("hello", origin=b"12345678", published_at=1.0)
    assert codec.decode("room", ENVELOPE + b"\1" * 24 + payload) is None
