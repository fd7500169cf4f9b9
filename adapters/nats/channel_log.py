"""The place of a message that a stream has republished, and what is known of the newest message of each channel.

A server that republishes adds the number of the message in its stream, and that of the message before it on the same
subject: https://docs.nats.io/nats-concepts/jetstream/streams#republish. It does not add when the stream was created.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from backplane.adapters.nats.subjects import encode_channel
from backplane.message import UncheckedPlace

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.adapters.nats.link import NatsLink
    from backplane.history_rules import History, HistoryRules
    from backplane.message import Place, Position

__all__ = ["ChannelLog", "ChannelLogs", "Session", "Stream", "stream_name", "subject_of_streams"]

_STREAM_HEADER: Final = b"\r\nNats-Stream: "
_LAST_HEADER: Final = b"\r\nNats-Last-Sequence: "
_MAX_DIGITS: Final = 19  # an offset takes 8 bytes in a position
_MAX_NAME_CHARACTERS: Final = 40


class Stream:
    """The stream of one pattern, as it is known to this process.

    Args:
        pattern: The pattern of channels.
        rule: Its rule.
        prefix: That of every subject.

    Attributes:
        name: Its name.
        created: When it was created, in the server's words; empty as long as that is not known.
        seen: Number of the newest message that was received live.
        reached: Number of the newest message that it had when it was asked for the last time.
        max_per_subject: How many messages of one channel it keeps.
        max_age_seconds: How long it keeps a message; infinity for ever.
        replicas: How many servers keep it.
        allows_direct: Whether each of them may answer a read.
    """

    __slots__ = (
        "_prefix",
        "_subjects",
        "allows_direct",
        "created",
        "max_age_seconds",
        "max_per_subject",
        "name",
        "pattern",
        "reached",
        "replicas",
        "rule",
        "seen",
    )

    def __init__(self, pattern: str, rule: History, prefix: str) -> None:
        self._prefix = prefix
        self._subjects = subject_of_streams(prefix, pattern)
        self.pattern: str = pattern
        self.rule: History = rule
        self.name: str = stream_name(prefix, pattern)
        self.created: str = ""
        self.seen: int = 0
        self.reached: int = 0
        self.max_per_subject: int = rule.max_messages + 1
        self.max_age_seconds: float = rule.max_age_seconds
        self.replicas: int = 1
        self.allows_direct: bool = True

    @property
    def subjects(self) -> str:
        """The wildcard of all its subjects."""
        return f"{self._subjects}*"

    @property
    def republished_to(self) -> str:
        """Where the server republishes, with its function for the token of the channel: the channel's plain subject."""
        return f"{self._prefix}{{{{wildcard(1)}}}}"

    def subject_of(self, channel: str) -> bytes:
        """Return the subject to which a message of `channel` is published to be kept."""
        return self._subjects.encode() + encode_channel("", channel)

    def epoch_of(self, subject: bytes) -> bytes:
        """Return the epoch of a channel, by its subject. Another channel has another one."""
        return blake2b(f"{self.name}\n{self.created}\n".encode() + subject, digest_size=8).digest()


class Session:
    """One generation of the link.

    Args:
        link: The link.

    Attributes:
        link: The link.
        reached: Number of the newest message that a stream is known to have had in it, by the name of the stream; set
            at its end.
    """

    __slots__ = ("link", "reached")

    def __init__(self, link: NatsLink) -> None:
        self.link: NatsLink = link
        self.reached: dict[str, int] = {}


class ChannelLog:
    """One subscribed channel that has a history.

    Args:
        logs: Those of all channels.
        stream: The stream that keeps it.
        channel: The channel.

    Attributes:
        stream: The stream that keeps it.
        subject: Its subject in that stream.
        newest: Position of the newest message of the channel in `session`, where it is known; the one after which there
            was no message where it was found without any.
        session: Until when: as long as this generation of the link is open, and in sync with the server.
        subscribed_in: The last session in which it was subscribed to.
    """

    __slots__ = ("_created", "_epoch", "_headers", "_logs", "newest", "session", "stream", "subject", "subscribed_in")

    def __init__(self, logs: ChannelLogs, stream: Stream, channel: str) -> None:
        self._logs = logs
        self.subject: bytes = stream.subject_of(channel)
        self._created: str = ""
        self._epoch: bytes = b""
        self._headers = b"%b%b\r\nNats-Subject: %b\r\nNats-Sequence: " % (
            _STREAM_HEADER,
            stream.name.encode(),
            self.subject,
        )
        self.stream: Stream = stream
        self.newest: Position | None = None
        self.session: Session | None = None
        self.subscribed_in: Session | None = None

    def place_of(self, headers: bytes, payload: bytes) -> Place | None:
        """Return the place of a message with these headers; `None` for one that its stream has not republished.

        A number that is not higher than all before it is one of a stream that was deleted and created again, or that
        has lost its newest messages: the place then has an epoch of no history, and the server is asked.
        """
        # The server's headers follow those of the publisher, which may contain anything, so they are the last ones.
        start = headers.rfind(_STREAM_HEADER)
        if not headers.startswith(self._headers, start):
            return None
        head, _, before_number = headers[start + len(self._headers) : -4].rpartition(_LAST_HEADER)
        number = head.partition(b"\r")[0]
        if not (number.isdigit() and before_number.isdigit() and len(number) <= _MAX_DIGITS >= len(before_number)):
            return None
        offset, before, stream = int(number), int(before_number), self.stream
        if offset <= stream.seen:
            self.newest = None
            self._logs.on_doubt(stream)
            return UncheckedPlace(os.urandom(8), offset, payload, before)
        stream.seen = offset
        if self._created is not stream.created:
            self._renew()
        session = self._logs.session
        if not before and self.newest is not None and self.session is session:
            before = self.newest.offset  # it has expired, and the server does not know it any more
        place = self.newest = UncheckedPlace(self._epoch, offset, payload, before)
        self.session = session
        return place

    def recalled(self, top: Position) -> None:
        """Take the newest position that was read while subscribed, unless a message was received live since."""
        newest, session = self.newest, self._logs.session
        # Of two positions without a message, the hub goes on with the one that was read last.
        if self.session is not session or newest is None or not (newest.check or top.check):
            self.newest, self.session = top, session

    def known_newest(self, *, first: int, last: int, now: float) -> Position | None:
        """Return the newest message that there ever was, of a channel of which the server has none any more.

        It is known of a channel that is subscribed to: nothing of it was published since its newest message was
        received, until the link was in sync for the last time. What was published after that has not expired yet, and
        cannot have been dropped otherwise, or it is not known.

        Args:
            first: Number of the oldest message of the stream.
            last: Number of the newest message that the stream ever had.
            now: By the monotonic clock.
        """
        newest, session, stream = self.newest, self.session, self.stream
        if newest is None or session is None or newest.offset > last or newest.epoch != stream.epoch_of(self.subject):
            return None
        if now - session.link.synced_at >= stream.max_age_seconds:
            return None
        if session is self._logs.session:
            return newest
        # Over a lost link: age alone may have dropped the newest message, and nothing may have dropped a later one.
        is_whole = (not newest.check or newest.offset < first) and first <= session.reached.get(stream.name, 0) + 1
        return newest if is_whole else None

    def _renew(self) -> None:
        """Follow the stream, which was created again."""
        self._created = self.stream.created
        epoch = self.stream.epoch_of(self.subject)
        if epoch != self._epoch:
            self._epoch, self.newest = epoch, None


class ChannelLogs:
    """The streams of all patterns, and the subscribed channels that have a history.

    Args:
        on_doubt: Called with a stream that may have been created again, or may have lost its newest messages.

    Attributes:
        on_doubt: As above.
        session: The present generation of the link; `None` while there is none.
    """

    def __init__(self, on_doubt: Callable[[Stream], None]) -> None:
        self._channels: dict[str, ChannelLog] = {}
        self._ended: Session | None = None
        self._rules: HistoryRules | None = None
        self._streams: dict[str, Stream] = {}
        self.on_doubt = on_doubt
        self.session: Session | None = None

    def begin(self, rules: HistoryRules, streams: dict[str, Stream], session: Session) -> None:
        """Begin a session with these streams, each by its pattern."""
        self.end()
        self._channels = {name: log for name, log in self._channels.items() if log.subscribed_in is self._ended}
        self._rules, self._streams, self.session = rules, streams, session

    def end(self) -> None:
        """End the session, before anything is asked on the next link."""
        if self.session is not None:
            self.session.reached = {stream.name: max(stream.seen, stream.reached) for stream in self._streams.values()}
            self._ended, self.session = self.session, None

    def stream_of(self, channel: str) -> Stream | None:
        """Return the stream that keeps `channel`, if any does."""
        pattern = None if self._rules is None else self._rules.pattern_of(channel)
        return None if pattern is None else self._streams.get(pattern)

    def get(self, channel: str) -> ChannelLog | None:
        """Return the log of a channel that is subscribed to on the present link, or was on the last one."""
        return self._channels.get(channel)

    def received(self, stream: Stream) -> dict[bytes, int]:
        """Return the subjects of the subscribed channels of a stream, each with the number of its newest message."""
        logs = (log for log in self._channels.values() if log.stream is stream)
        return {log.subject: log.newest.offset for log in logs if log.newest is not None}

    def reached_before(self, stream: Stream) -> int | None:
        """Return the number of the newest message that a stream had on the last link, as far as it is known."""
        return None if self._ended is None else self._ended.reached.get(stream.name)

    def subscribed(self, channel: str) -> ChannelLog | None:
        """Return the log of a channel that is subscribed to from now on, if it has a history."""
        stream = self.stream_of(channel)
        if stream is None:
            return None
        log = self._channels.get(channel)
        if log is None or log.stream is not stream:
            log = self._channels[channel] = ChannelLog(self, stream, channel)
        log.subscribed_in = self.session
        return log

    def passing(self, channel: str) -> ChannelLog | None:
        """Return a log of a channel that is received by a wildcard alone, for the places of its messages."""
        stream = self.stream_of(channel)
        return None if stream is None else ChannelLog(self, stream, channel)

    def unsubscribed(self, channel: str) -> None:
        """Forget a channel that is not subscribed to any more."""
        self._channels.pop(channel, None)

    def forget_newest(self, stream: Stream) -> None:
        """Forget the newest messages of the channels of a stream, which may have lost them."""
        for log in self._channels.values():
            if log.stream is stream:
                log.newest = None


def stream_name(prefix: str, pattern: str) -> str:
    """Return the name of the stream of a pattern: the prefix, as far as a name may contain it, and a hash of both."""
    readable = prefix.replace(".", "_")[:_MAX_NAME_CHARACTERS]
    return f"BACKPLANE_{readable}{_hash(prefix, pattern)}"


def subject_of_streams(prefix: str, pattern: str) -> str:
    """Return what the subjects of a stream have in front of the token of the channel."""
    return f"{prefix}bp-in.{_hash(prefix, pattern)}."


def _hash(prefix: str, pattern: str) -> str:
    return blake2b(f"{prefix}\n{pattern}".encode(), digest_size=8).hexdigest()
