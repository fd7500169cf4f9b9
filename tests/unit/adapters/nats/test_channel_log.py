"""`backplane.adapters.nats.channel_log`: places from headers, names of streams, and what is known of quiet channels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast
from zlib import crc32

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backplane.adapters.nats.channel_log import ChannelLog, ChannelLogs, Session, Stream, stream_name
from backplane.history_rules import History, HistoryRules
from backplane.message import Position

if TYPE_CHECKING:
    from backplane.adapters.nats.link import NatsLink

RULES = HistoryRules({"room*": History()})


class Known:
    """A worker in a session.

    Attributes:
        logs: Its logs.
        stream: The stream of the rules.
        doubted: The streams that it has to ask for.
        synced_at: When its link was in sync.
    """

    def __init__(self) -> None:
        self.doubted: list[Stream] = []
        self.logs = ChannelLogs(self.doubted.append)
        self.stream = Stream("room*", History(), "")
        self.stream.created = "now"
        self.link = SimpleNamespace(synced_at=1000.0)
        self.begin()

    def begin(self) -> None:
        """Begin the next session."""
        self.link = SimpleNamespace(synced_at=1000.0)
        self.logs.begin(RULES, {"room*": self.stream}, Session(cast("NatsLink", self.link)))

    def subscribe(self, channel: str) -> ChannelLog:
        """Subscribe."""
        log = self.logs.subscribed(channel)
        assert log is not None
        return log

    def live(self, log: ChannelLog, channel: str, offset: int, before: int) -> Position:
        """Receive a message."""
        place = log.place_of(headers(self.stream, channel, offset, before), b"x")
        assert place is not None
        return place


def headers(stream: Stream, channel: str, offset: object, before: object, *, own: str = "") -> bytes:
    """Return the headers of a message as the server republishes it."""
    subject = stream.subject_of(channel).decode()
    return (
        f"NATS/1.0\r\n{own}Nats-Stream: {stream.name}\r\nNats-Subject: {subject}\r\nNats-Sequence: {offset}\r\n"
        f"Nats-Time-Stamp: 2026-11-27T23:00:44.915535609Z\r\nNats-Last-Sequence: {before}\r\n\r\n"
    ).encode()


@pytest.mark.parametrize("own", ["", "Nats-Msg-Id: a\r\n", "Nats-Sequence: 99\r\nNats-Last-Sequence: 98\r\n"])
def test_a_place_is_read_from_the_headers_of_the_server(own: str) -> None:
    """Headers of the publisher before those of the server are not read."""
    known = Known()
    log = known.subscribe("room")
    place = log.place_of(headers(known.stream, "room", 7, 3, own=own), b"payload")
    assert place == Position(known.stream.epoch_of(known.stream.subject_of("room")), 7, crc32(b"payload"))
    assert place is not None
    assert (place.before, place.before_check) == (3, None)


def test_headers_without_a_time_are_read() -> None:
    """Servers before 2.10 name no time between the two numbers."""
    known = Known()
    log = known.subscribe("room")
    before, _, after = headers(known.stream, "room", 7, 3).partition(b"Nats-Time-Stamp: ")
    place = log.place_of(before + after.partition(b"\r\n")[2], b"payload")
    assert place is not None
    assert (place.offset, place.before) == (7, 3)


def test_headers_without_the_number_before_are_no_place() -> None:
    """Without it nothing proves what precedes the message, so the message counts as one without a place."""
    known = Known()
    log = known.subscribe("room")
    whole = headers(known.stream, "room", 7, 3)
    assert log.place_of(whole.replace(b"Nats-Last-Sequence", b"Another"), b"payload") is None
    assert log.place_of(whole.partition(b"Nats-Time-Stamp")[0] + b"\r\n", b"payload") is None


@given(st.binary(max_size=200))
@example(b"")
@example(b"NATS/1.0\r\n\r\n")
def test_any_headers_are_read(given_headers: bytes) -> None:
    """Whatever the headers are, there is a place, which can be written, or none."""
    known = Known()
    log = known.subscribe("room")
    start = headers(known.stream, "room", 5, 4).partition(b"5\r\n")[0]
    for tried in (given_headers, start + given_headers, headers(known.stream, "room", 5, 4)[:-4] + given_headers):
        place = log.place_of(tried, b"x")
        assert place is None or len(str(place)) == 28


def test_a_channel_has_an_epoch_of_its_own() -> None:
    """Two channels, two streams and two creations of a stream have different epochs."""
    known = Known()
    epochs = {known.stream.epoch_of(known.stream.subject_of(channel)) for channel in ("room", "room-2")}
    known.stream.created = "later"
    epochs.add(known.stream.epoch_of(known.stream.subject_of("room")))
    other = Stream("*", History(), "")
    other.created = "later"
    epochs.add(other.epoch_of(other.subject_of("room")))
    assert len(epochs) == 4


def test_a_number_that_is_not_higher_is_doubted() -> None:
    """It is of a stream that was created again, or lost its newest messages: its epoch is no channel's."""
    known = Known()
    log, other = known.subscribe("room"), known.subscribe("room-2")
    known.live(other, "room-2", 9, 0)
    doubted = known.live(log, "room", 9, 0)
    assert known.doubted == [known.stream]
    assert doubted.epoch != known.stream.epoch_of(known.stream.subject_of("room"))
    known.stream.created, known.stream.seen = "later", 0
    again = known.live(log, "room", 10, 9)
    assert again.epoch == known.stream.epoch_of(known.stream.subject_of("room"))


def test_an_expired_predecessor_is_named() -> None:
    """Where the server does not know the message before any more, the worker that received it does."""
    known = Known()
    log = known.subscribe("room")
    known.live(log, "room", 5, 4)
    place = log.place_of(headers(known.stream, "room", 9, 0), b"x")
    assert place is not None
    assert place.before == 5
    known.begin()
    log = known.subscribe("room")
    place = log.place_of(headers(known.stream, "room", 12, 0), b"x")
    assert place is not None
    assert place.before == 0  # something can have been missed meanwhile


@pytest.mark.parametrize(
    ("first", "last", "now", "is_known"),
    [
        (7, 8, 1001, True),
        (9, 8, 1001, True),
        (5, 8, 1001, False),  # the message is not older than the oldest one, and is gone nevertheless
        (10, 10, 1001, False),  # the one after what was received is gone
        (7, 4, 1001, False),  # the stream ends before it
        (7, 8, 1600, False),  # what was published since can have expired
    ],
)
def test_what_is_known_over_a_lost_link(first: int, last: int, now: float, is_known: bool) -> None:
    """The newest message is known while what came after it would still be there."""
    known = Known()
    log, other = known.subscribe("room"), known.subscribe("room-2")
    newest = known.live(log, "room", 5, 0)
    known.live(other, "room-2", 8, 0)
    assert log.known_newest(first=6, last=8, now=1001) == newest
    assert log.known_newest(first=20, last=20, now=1001) == newest
    known.begin()
    found = log.known_newest(first=first, last=last, now=now)
    assert found == (newest if is_known else None)


def test_a_channel_that_is_not_subscribed_again_is_forgotten() -> None:
    """After a session without it, or after `unsubscribe`, nothing is known of it."""
    known = Known()
    known.subscribe("room")
    known.subscribe("room-2")
    known.logs.unsubscribed("room-2")
    assert (known.logs.get("room") is None, known.logs.get("room-2")) == (False, None)
    known.begin()
    known.begin()
    assert known.logs.get("room") is None
    assert known.logs.subscribed("other") is None


def test_names_differ_by_prefix_and_pattern() -> None:
    """A name is one that JetStream accepts, however long the prefix is; prefixes that read alike differ."""
    names = {stream_name(prefix, pattern) for prefix in ("", "a.b.", "a_b.", "x." * 300) for pattern in ("*", "a*")}
    assert len(names) == 8
    assert all(len(name) < 100 and set(name).isdisjoint(". *>/\\") for name in names)
