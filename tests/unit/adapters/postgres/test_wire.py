"""Messages in notifications."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.adapters.postgres.wire import (
    MAX_NOTIFICATION_BYTES,
    NotificationReader,
    encode_message,
    statement_of_test,
)


class Reading:
    """A reader, and what it has passed on."""

    def __init__(self, *channels: str, max_payload_bytes: int = 1024 * 1024) -> None:
        self.delivered: list[tuple[str, bytes]] = []
        self.gaps: list[tuple[str, str]] = []
        self.reader = NotificationReader(
            lambda channel, payload: self.delivered.append((channel, payload)),
            lambda channel, reason: self.gaps.append((channel, reason)),
            max_payload_bytes,
        )
        self.reader.wanted.add(channels)

    def read(self, *notifications: str) -> None:
        """Read all."""
        for notification in notifications:
            self.reader.read(notification)


@given(st.text(min_size=1, max_size=255), st.binary(max_size=30_000))
def test_a_message_is_read_as_it_was_written(channel: str, payload: bytes) -> None:
    """Each notification is ASCII and short enough, and the parts are joined."""
    notifications = encode_message(channel, payload)
    assert all(text.isascii() and len(text) <= MAX_NOTIFICATION_BYTES for text in notifications)
    assert not [text for text in notifications if "\0" in text]
    reading = Reading(channel, "another")
    reading.read(*notifications)
    assert reading.delivered == [(channel, payload)]


def test_equal_messages_differ() -> None:
    """PostgreSQL delivers equal notifications of a transaction once, so even equal parts of a message differ."""
    notifications = [text for _ in range(2) for text in encode_message("room", bytes(100_000))]
    assert len(set(notifications)) == len(notifications) > 4


def test_a_channel_that_is_not_subscribed_is_not_delivered() -> None:
    """Neither before nor after it is; a message whose begin was not wanted is not delivered in part."""
    reading = Reading()
    first, *rest = encode_message("room", bytes(50_000))
    reading.read(first)
    reading.reader.wanted.add(["room"])
    reading.read(*rest, *encode_message("room", b"whole"))
    reading.reader.wanted.remove(["room"])
    reading.read(*encode_message("room", b"late"), "room\nforeign")
    assert reading.delivered == [("room", b"whole")]


def test_a_foreign_notification_is_text_of_a_channel() -> None:
    """The channel, the end of the line, and the text, which may have several lines and be empty."""
    reading = Reading("orders", "größe")
    reading.read('orders\n{"id": 1}', "größe\nä\nb", "orders\n", "orders", "other\nx", "", "\n")
    assert reading.delivered == [("orders", b'{"id": 1}'), ("größe", "ä\nb".encode()), ("orders", b"")]


def test_the_channel_of_a_foreign_notification_is_not_decoded() -> None:
    """An escaped name is another channel there."""
    reading = Reading("a%41", "aA")
    reading.read("a%41\nx")
    assert reading.delivered == [("a%41", b"x")]


def test_a_message_without_its_rest_is_a_gap() -> None:
    """Another message begins where a part should follow, which PostgreSQL excludes: a gap."""
    reading = Reading("room", "other")
    reading.read(encode_message("room", bytes(50_000))[0], *encode_message("other", b"x"))
    assert reading.gaps == [("room", "the rest of a message is missing")]
    assert reading.delivered == [("other", b"x")]


@pytest.mark.parametrize("channel", ["room", "raum ü"])
def test_a_message_over_the_limit_is_a_gap(channel: str) -> None:
    """It is not held, and its rest is not delivered."""
    reading = Reading(channel, max_payload_bytes=20_000)
    reading.read(*encode_message(channel, bytes(50_000)), *encode_message(channel, b"x"))
    assert reading.gaps == [(channel, "a message is too large")]
    assert reading.delivered == [(channel, b"x")]


@given(st.text(max_size=60))
def test_whatever_another_program_sends_is_no_fault(text: str) -> None:
    """It is a message, a gap, or nothing."""
    reading = Reading("room")
    reading.read(text, f"\1{text}", f"\2{text}", f"\1 room\n{text}", f"\3{text}")


def test_a_malformed_message_is_a_gap() -> None:
    """It looks like one of this package, and is none."""
    reading = Reading("room")
    reading.read("\0010 room\nabc")
    assert reading.gaps == [("room", "a notification is malformed")]


def test_a_test_is_noted() -> None:
    """And is no message."""
    reading = Reading("room")
    assert statement_of_test("shop", "word") == "SELECT pg_notify('shop', chr(3) || 'word')"
    reading.read("\3word")
    assert reading.reader.tests_received == {"word"}
    assert reading.reader.test_received.is_set()
    assert reading.delivered == []
