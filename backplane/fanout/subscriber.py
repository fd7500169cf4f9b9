"""What every local subscriber has in common: it joins channels, leaves them, and ends."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextvars import copy_context
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from backplane.channels import validate_channel, warn_if_pattern
from backplane.errors import ClosedError, InvalidChannelError, TooManyChannelsError
from backplane.fanout.subscriber_options import SubscriberOptions, check_rewind, position_in
from backplane.patterns import WILDCARD

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from contextvars import Context

    from backplane.fanout.batch import Batch
    from backplane.fanout.hub import Hub
    from backplane.fanout.subscriber_options import ChannelPresence, Since
    from backplane.message import Gap, Joined

__all__ = ["BaseSubscriber", "JoinRules", "Named"]


class JoinRules(Protocol):
    """The rules that each join of a client is checked against."""

    def check_channels(self, count: int, /) -> None:
        """Check that a client may join `count` channels; raises `TooManyChannelsError`."""

    async def check_authorized(self, client: Any, channel: str, /) -> None:
        """Check that `client` may join `channel`; raises `JoinRefusedError` or `AuthorizeTimeoutError`."""

    async def check_pattern_authorized(self, client: Any, pattern: str, /) -> None:
        """Check that `client` may join `pattern`; raises `JoinRefusedError` or `AuthorizeTimeoutError`."""

    def join_failed(self, channel: str, error: Exception, subscriber: Named, /) -> None:
        """Take note that a join was refused to a client, or could not be made; `subscriber` serves the client."""


class Named(Protocol):
    """What has names in the log."""

    @property
    def named(self) -> Mapping[str, Any]:
        """The fields that name it in each log line about it."""
        ...


class BaseSubscriber(ABC):
    """A subscriber of the hub, of any number of channels.

    Args:
        hub: The hub.
        rules: The rules for joins of a client; `None` for the application itself, which may join any channel. There is
            no default, so that each new kind of subscriber has to decide which of the two it is.
        context: See below.
        options: What only some subscribers are given.

    Attributes:
        context: Any object of the application, such as the user.
        client_key: Whose client it is, where the application has named that; `None` otherwise.
        token: Random bytes that name the subscriber; see `id`.
    """

    __slots__ = (
        "_channels",
        "_context",
        "_detached",
        "_ended",
        "_hub",
        "_options",
        "_patterns",
        "_rules",
        "client_key",
        "context",
        "token",
    )

    def __init__(
        self, hub: Hub, rules: JoinRules | None, *, context: Any = None, options: SubscriberOptions | None = None
    ) -> None:
        self._hub = hub
        self._rules = rules
        self._options: SubscriberOptions | None = options
        self.context: Any = context
        self.client_key: str | None = None
        self._channels: dict[str, None] = {}
        self._patterns: dict[str, None] | None = None  # few subscribers have any
        self._detached = False  # it has left every channel, and ends or has ended
        self._ended = False
        self.token: bytes = os.urandom(8)
        # Copied from the code that made it, a handler in general. Callbacks for it run in this Context, wherever they
        # are called from.
        self._context: Context = copy_context()

    @property
    @abstractmethod
    def kind(self) -> str:
        """What kind of subscriber it is, for logs and errors."""

    @property
    def id(self) -> str:
        """Random name, unique among all workers. That of a connection can be passed to `publish(exclude=...)`."""
        return self.token.hex()

    @property
    def named(self) -> Mapping[str, Any]:
        """The fields that name it in each log line about it: `kind`, `connection` (its id), `client_key`."""
        return {"kind": self.kind, "connection": self.id, "client_key": self.user or self.client_key}

    @property
    def _client(self) -> object:
        """The object that the rules, and by them the application, are asked about."""
        return self

    @property
    def channels(self) -> Collection[str]:
        """The channels it has joined."""
        return self._channels.keys()

    @property
    def patterns(self) -> Collection[str]:
        """The patterns it has joined, which are not among `channels`."""
        return () if self._patterns is None else self._patterns.keys()

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or is about to: nothing more is delivered to it."""
        return self._detached

    @property
    def user(self) -> str | None:
        """The user of it, for presence and for commands to all connections of a user; `None` where it has none."""
        return None if self._presence is None else self._presence.user

    @property
    def _presence(self) -> ChannelPresence | None:
        return None if self._options is None else self._options.presence

    @property
    def _is_admitted(self) -> bool:
        """Whether its handshake is done: one that may still be refused is present nowhere."""
        return True

    @property
    def resumed(self) -> bool:
        """Whether a join passed a position, and each that did was resumed: exactly what was missed is given back.

        `False` at a first visit. Joins of channels of which only the newest message counts (`History(latest=True)`) are
        counted where they are resumed; they miss nothing in any case.
        """
        return self._options is not None and self._options.resumed is True

    @property
    def withheld(self) -> int:
        """How many messages it was not sent because its `envelope` returned `None` for them."""
        return 0 if self._options is None else self._options.withheld

    async def join(self, channel: str, *, since: Since = None, rewind: int = 0) -> None:
        """Receive what is published to `channel`; once this returns, no later publish is missed without a gap.

        Joining a channel twice changes nothing. After a cancellation the channel is not joined.

        Args:
            channel: What to receive.
            since: Where it was before: what was published after this position comes first, in order and once, or the
                notice of a gap. A text that is no position of the channel counts as one that is not found. `None` or ""
                at a first visit.
            rewind: How many of the newest messages come first at a first visit, and after such a gap.

        Raises:
            ConfigurationError: `since` or `rewind` is of another type, or no channel has a history to rewind.
            InvalidChannelError: The name is not valid.
            InvalidPositionError: `rewind` is negative.
            JoinRefusedError: The application's `authorize` refused the channel to a client.
            TooManyChannelsError: A client has joined as many channels as are allowed.
            SubscribeError: The broker refused the channel.
            BrokerUnavailableError: The broker did not confirm in time.
            ClosedError: The subscriber has ended.
        """
        await self._join(channel, since, rewind, is_permitted=False)

    async def _join(self, channel: str, since: Since, rewind: int, *, is_permitted: bool) -> None:
        """Join, without asking the application where it has permitted that already."""
        self._hub.affinity.check()
        validate_channel(channel)
        position = position_in(since, channel)
        check_rewind(rewind, self._hub.rules)
        self._check_attached()
        try:
            await self._enter(channel, position, rewind, is_permitted)
        except Exception as error:
            if self._rules is not None:
                self._rules.join_failed(channel, error, self)
            raise

    async def _enter(self, channel: str, position: str | None, rewind: int, is_permitted: bool) -> None:
        if self._rules is not None:
            self._rules.check_channels(self._count() + (channel not in self._channels))
            if not is_permitted:
                await self._rules.check_authorized(self._client, channel)
                self._check_attached()  # it can have ended while `authorize` ran
        if channel in self._channels:
            return
        if self._rules is not None or WILDCARD not in channel:  # `exact` was passed for that
            warn_if_pattern(channel)
        await self._hub.join(channel, self, since=position, rewind=rewind)
        if self._detached:  # it has ended while the broker confirmed
            self._hub.leave(channel, self)
            self._check_attached()
        self._channels[channel] = None
        if self._rules is not None:
            try:
                self._rules.check_channels(self._count())  # others can have joined meanwhile
            except TooManyChannelsError:
                await self.leave(channel)
                raise
        if self._is_admitted and (presence := self._presence) is not None:
            presence.entered(self, channel)

    async def join_pattern(self, pattern: str) -> None:
        """Receive what is published to every channel that `pattern` matches; in several ways wanted, once.

        Presence does not count it, and it has no position. Joining twice changes nothing. After a cancellation the
        pattern is not joined.

        Args:
            pattern: `*` is any run of characters, also none; every other character is itself.

        Raises:
            ConfigurationError: The adapter cannot deliver channels by prefix.
            InvalidChannelError: It is no valid name, or has no `*`.
            JoinRefusedError: The application does not allow it to a client.
            TooManyChannelsError: A client has joined as many channels and patterns as are allowed.
            SubscribeError: The broker refused it.
            BrokerUnavailableError: The broker did not confirm in time.
            ClosedError: The subscriber has ended.
        """
        self._hub.affinity.check()
        validate_channel(pattern)
        if WILDCARD not in pattern:
            raise InvalidChannelError(f"{pattern!r} has no {WILDCARD}: it is a channel, not a pattern")
        self._check_attached()
        try:
            await self._enter_pattern(pattern)
        except Exception as error:
            if self._rules is not None:
                self._rules.join_failed(pattern, error, self)
            raise

    async def _enter_pattern(self, pattern: str) -> None:
        if self._rules is not None:
            self._rules.check_channels(self._count() + (pattern not in self.patterns))
            await self._rules.check_pattern_authorized(self._client, pattern)
            self._check_attached()  # it can have ended while the application was asked
        if pattern in self.patterns:
            return
        await self._hub.patterns.join(pattern, self)
        if self._detached:  # it has ended while the broker confirmed
            self._hub.patterns.leave(pattern, self)
            self._check_attached()
        if self._patterns is None:
            self._patterns = {}
        self._patterns[pattern] = None
        if self._rules is not None:
            try:
                self._rules.check_channels(self._count())  # others can have joined meanwhile
            except TooManyChannelsError:
                await self.leave_pattern(pattern)
                raise

    async def leave_pattern(self, pattern: str) -> None:
        """Receive nothing more because of `pattern`, except what waits. Leaving it twice changes nothing."""
        self._hub.affinity.check()
        if self._patterns is not None and pattern in self._patterns:
            del self._patterns[pattern]
            self._hub.patterns.leave(pattern, self)

    def _count(self) -> int:
        """Return how many channels and patterns it has joined."""
        return len(self._channels) + len(self.patterns)

    async def leave(self, channel: str) -> None:
        """Receive nothing more of `channel`, except what is in the outbox. Leaving a channel twice changes nothing."""
        self._hub.affinity.check()
        self.leave_now(channel)

    def leave_now(self, channel: str) -> bool:
        """Leave a channel; return whether it was joined."""
        if channel not in self._channels:
            return False
        del self._channels[channel]
        self._hub.leave(channel, self)
        if (presence := self._presence) is not None:
            presence.left(self, channel)
        return True

    def joined(self, joined: Joined) -> None:
        """Take the notice of a join. Called by the hub."""
        if self._detached or joined.channel in self._channels:
            return
        if joined.gap is not None:  # it continues where it begins, which is before what `rewind` gives back
            joined = replace(joined, gap=replace(joined.gap, position=joined.position))
        if joined.resumed or joined.gap is not None:
            if self._options is None:
                self._options = SubscriberOptions()
            self._options.note(joined)
        self._take_joined(joined)

    @abstractmethod
    def _take_joined(self, joined: Joined) -> None:
        """Take the notice of a join, with the gap where its `since` could not be served."""

    @abstractmethod
    def offer_missed(self, batch: Batch, /) -> None:
        """Take what a join gives back of one channel, in order. Called by the hub."""

    @abstractmethod
    def offer(self, batch: Batch, /) -> None:
        """Take messages of one channel, in order. Called by the hub."""

    @abstractmethod
    def gap(self, gap: Gap) -> None:
        """Take the notice that messages may be missing. Called by the hub."""

    def _enter_channels(self) -> None:
        """Be present in the channels that were joined before: the handshake is done, or the user is known."""
        if (presence := self._presence) is not None:
            for channel in self._channels:
                presence.entered(self, channel)

    def _leave_all(self) -> None:
        """End: nothing is delivered any more, and no channel can be joined."""
        self._ended = True
        self._detach()

    def _detach(self) -> None:
        """Leave every channel, and refuse joins from now on."""
        self._detached = True
        for pattern in self.patterns:
            self._hub.patterns.leave(pattern, self)
        self._patterns = None
        presence = self._presence
        for channel in self._channels:
            self._hub.leave(channel, self)
            if presence is not None:
                presence.left(self, channel)
        self._channels.clear()

    def _check_attached(self) -> None:
        if self._detached:
            raise ClosedError(f"{self.kind} {self.id} has ended, or is about to")

    def _check_not_ended(self) -> None:
        if self._ended:
            raise ClosedError(f"{self.kind} {self.id} has ended")
