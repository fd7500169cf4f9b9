"""A presence protocol that a test drives by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from backplane.presence.protocol import PresenceProtocol
from backplane.presence.times import PresenceTimes
from backplane.presence.wire import Entry

if TYPE_CHECKING:
    from backplane.presence.contract import Topic, View, ViewEvent

__all__ = ["ME", "A", "B", "C", "Machine", "Rule", "entry"]

ME = "0" * 16
A, B, C = "a" * 16, "b" * 16, "c" * 16


@dataclass(frozen=True, slots=True)
class Rule:
    """The rule of a channel."""

    grace_seconds: float = 5.0
    max_entries: int = 1_000


def entry(connection: str, user: str = "u", info: str = "{}", since: float = 1.0) -> Entry:
    """Return an entry."""
    return Entry(connection, user, info, since)


class Machine:
    """A protocol and its time.

    Attributes:
        protocol: The protocol.
        now: The time.
        sent: What was published, decoded: the topic, the fields, and the inbox.
        events: What happened to views.
        subscriptions: What became of subscriptions.
    """

    def __init__(self, times: PresenceTimes | None = None, rule: Rule | None = None) -> None:
        self.protocol = PresenceProtocol(
            ME,
            times=times or PresenceTimes(),
            random=Random(7),
            describe=lambda: {"pid": 1},
            rule_of=lambda _: rule or Rule(),
        )
        self.now = 100.0
        self.sent: list[tuple[Topic, list[Any], str]] = []
        self.events: list[tuple[str, ViewEvent]] = []
        self.subscriptions: list[tuple[str, bool]] = []
        self.protocol.start(self.now)
        self.drain()

    def drain(self) -> None:
        """Take what the protocol has for its caller."""
        self.events += self.protocol.take_changes()
        self.subscriptions += self.protocol.take_subscriptions()
        self.sent += [(item.topic, json.loads(item.text), item.worker) for item in self.protocol.take_outgoing()]

    def receive(self, topic: Topic, *fields: object) -> None:
        """Receive a message."""
        self.protocol.received(topic, json.dumps(fields), self.now)
        self.drain()

    def pass_time(self, seconds: float) -> None:
        """Let time pass, with each timer at its time."""
        end = self.now + seconds
        while (due := self.protocol.next_due()) is not None and due <= end:
            self.now = max(self.now, due)
            self.protocol.run(self.now)
            self.drain()
        self.now = end

    def take(self, kind: str) -> list[list[Any]]:
        """Return the messages of a kind that were published since the last call, and forget all others."""
        taken = [fields for _, fields, _ in self.sent if fields[0] == kind]
        self.sent.clear()
        return taken

    def enter(self, channel: str, connection: str, user: str = "u", info: str = "{}") -> None:
        """Enter a connection."""
        self.protocol.enter(channel, connection, user, info, 1.0, self.now)
        self.subscribed(channel)

    def exit(self, channel: str, connection: str) -> None:
        """Take a connection out."""
        self.protocol.exit(channel, connection, self.now)
        self.drain()

    def watch(self, channel: str) -> None:
        """Watch, and let the request be answered by none."""
        self.protocol.watch(channel, self.now)
        self.subscribed(channel)

    def sure(self, channel: str) -> None:
        """Watch, until the view is sure."""
        self.watch(channel)
        self.pass_time(3)
        assert self.view(channel).sure
        self.events.clear()
        self.sent.clear()

    def subscribed(self, channel: str) -> None:
        """Confirm the subscription."""
        self.drain()
        self.protocol.subscribed(channel, self.now)
        self.drain()

    def view(self, channel: str) -> View:
        """Return a view."""
        view = self.protocol.view(channel)
        assert view is not None
        return view

    def users(self, channel: str) -> list[str]:
        """Return the users of a channel."""
        users = self.view(channel).users
        assert users is not None
        return sorted(users)

    def kinds(self) -> list[str]:
        """Return the kinds of the events since the last call."""
        kinds: list[str] = [event.kind for _, event in self.events]
        self.events.clear()
        return kinds
