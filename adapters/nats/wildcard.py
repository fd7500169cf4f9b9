"""The subscription of one link to the subjects of all channels, for the prefixes that are wanted.

A channel is one token of a subject, and a wildcard stands for a whole token. So one wildcard receives every channel,
and what begins with no wanted prefix is dropped here.

A server sends a message once for each subscription that its subject matches. It does not show when it has begun to do
so: what it was about to send when a subscription was confirmed can follow the confirmation. So the order in which
copies arrive does not show of which messages there are two, and two rules make it certain:

- A channel that was subscribed before the wildcard is received by its own subscription, and the copies of the wildcard
  are dropped. Unsubscribed while a prefix still wants it, it keeps that subscription: it lingers.
- A channel that is subscribed while there is the wildcard shares a queue group with it, which no other connection has.
  The server gives a message to one member of a group, so there is one copy, whichever of the two receives it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from backplane.patterns import Prefixes

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.adapters.nats.channel_log import ChannelLog, ChannelLogs

__all__ = ["Wildcard"]

_MAX_LOGS: Final = 10_000


class Wildcard:
    """What a link knows of its wildcard. No I/O.

    Args:
        prefix: That of every subject.
        logs: Which channels have a history, where any has.
        drop: Called with the id of a subscription of which it is unknown whether the server has it: drops it there.

    Attributes:
        subject: The wildcard.
        group: The queue group that it is in.
        number: Id of the subscription; `None` without one.
        failure: Why there is none, where the server did not accept it, and whether that is a refusal.
        prefixes: The prefixes that are wanted.
        lingering: Ids of subscriptions to channels that only prefixes want.
        leaving: Ids of members of the group that were dropped here, and that the server can still choose.
    """

    def __init__(self, prefix: str, logs: ChannelLogs | None, drop: Callable[[bytes], None]) -> None:
        self._logs = logs
        self._drop = drop
        self._passing: dict[str, ChannelLog | None] = {}
        self.subject: bytes = prefix.encode() + b"*"
        self.group: bytes = b"bp-" + os.urandom(8).hex().encode()
        self.number: bytes | None = None
        self.failure: tuple[str, bool] = ("", False)
        self.prefixes: Prefixes[str] = Prefixes()
        self.lingering: dict[str, bytes] = {}
        self.leaving: set[bytes] = set()

    def log_of(self, channel: str) -> ChannelLog | None:
        """Return the log of a channel that is received by the wildcard alone, if it has a history."""
        if self._logs is None:
            return None
        if channel not in self._passing:
            if len(self._passing) >= _MAX_LOGS:
                self._passing.clear()
            self._passing[channel] = self._logs.passing(channel)
        return self._passing[channel]

    def end_unwanted(self) -> list[bytes]:
        """Return the commands that drop it at the server, if no prefix is wanted any more."""
        if self.number is None or self.prefixes:
            return []
        number, self.number = self.number, None
        self.leaving.add(number)
        return [b"UNSUB %b\r\n" % number]

    # -- what it waits for, as `SubscribeAnswers` --------------------------------------------------------------------

    def refused(self, number: bytes, /, reason: str) -> None:
        """Note that the server refused it."""
        if number == self.number:
            self.number, self.failure = None, (reason, True)

    def unconfirmed(self, number: bytes, /, reason: str) -> None:
        """Drop it: the server sent an error of which it is unknown whether it is a final refusal."""
        if number == self.number:
            self.number, self.failure = None, (reason, False)
            self.leaving.add(number)
            self._drop(number)
