"""Settings, callbacks and counters that all connections of an application share."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, cast

from backplane.connection.keepalive import KeepaliveScheduler
from backplane.connection.limits import Limits
from backplane.connection.turns import Turns
from backplane.errors import (
    AuthorizeTimeoutError,
    BackplaneError,
    BrokerError,
    ClosedError,
    ConfigurationError,
    JoinRefusedError,
    TooManyChannelsError,
)
from backplane.journal.events import CLIENT_REFUSED, HOOK_FAILED
from backplane.journal.journal import Journal
from backplane.message import Gap
from backplane.statistics import Counters

if TYPE_CHECKING:
    from backplane.connection.connection import Connection
    from backplane.fanout.subscriber import Named

__all__ = ["Authorize", "Client", "ConnectionPolicy", "OnGap", "OnSlow", "SlowConsumer"]

logger: Final = logging.getLogger("backplane.connection.policy")

OnGap = Literal["close"] | Callable[[Gap], object]
"""How a client is notified that messages may be missing.

- `close`: its connection is closed with code 4000, "reconnect and reload"; of many clients one after the other.
- a function: called with the `Gap`; what it returns is sent to the client, as `Connection.send` would, in its place
  between the messages; `None` sends nothing. It must not block. If it raises, that is logged and the client is closed.
  It is called in the connection's Context: it has the variables of the client's handler, as they were at `connect`.
"""


def check_policy_options(on_gap: object, limits: object) -> None:
    """Check `on_gap` and `limits` at once: they are used only when something happens.

    Raises:
        ConfigurationError: One of them cannot be used.
    """
    if on_gap != "close" and not callable(on_gap):
        raise ConfigurationError(f"on_gap must be 'close' or a function, not {on_gap!r:.100}")
    if not isinstance(limits, Limits):
        raise ConfigurationError(f"limits must be a Limits(...), not {limits!r:.100}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowConsumer:
    """A client for which more messages wait than its backlog allows.

    Attributes:
        connection: The client.
        channel: The channel of the message for which there was no room.
        action: What was done: the client was `closed`, or a message was `dropped_oldest`, `dropped_newest`, `replaced`.
        waiting_messages: Messages that wait for it.
        waiting_bytes: Their size.
    """

    connection: Connection
    channel: str
    action: str
    waiting_messages: int
    waiting_bytes: int


OnSlow = Callable[[SlowConsumer], object]
"""Called when a client begins to be too slow, once for each such stretch, in its Context. Must not block."""


class Client(Protocol):
    """A client that wants to join a channel: a `Connection`, or an event stream (`Backplane.sse`)."""

    @property
    def kind(self) -> str:
        """`connection` or `event stream`."""
        ...

    @property
    def id(self) -> str:
        """Random name of it, unique among all workers."""
        ...

    @property
    def channels(self) -> Collection[str]:
        """The channels it has joined."""
        ...

    @property
    def context(self) -> Any:
        """What `connect(context=...)` or `sse(context=...)` was given."""
        ...


Authorize = (
    Callable[[Client, str], bool | Awaitable[bool]]
    | Callable[["Connection", str], bool | Awaitable[bool]]  # right where there are no event streams
)
"""Asked at every join whether this client may receive this channel.

It runs in the task and Context that joins. Where that may be another than the client's handler, identify the client by
`client.context`.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionPolicy:
    """Settings, callbacks and counters that connections share; one object for all that have the same.

    Attributes:
        on_gap: How a client is notified of a gap.
        limits: What it may do, and how it is kept alive.
        handler_grace_seconds: How long its handler may stay in the block after it has ended.
        authorize: Decides which client may join which channel; with `None` each may join any.
        authorize_pattern: Decides which client may join which pattern; with `None` none may join any.
        authorize_timeout_seconds: How long each of them may take to answer.
        on_slow: Called for each slow client.
        reload_delay: Draws after how long one of many clients is closed, at a gap or because the broker failed.
        close_seconds: How long the flush before a close frame may take, and the close frame itself.
        keepalive: The timer of all connections.
        turns: The closes that wait for their turn.
        statistics: Where what happens is counted.
        journal: How what can concern many connections at once is logged.
    """

    on_gap: OnGap = "close"
    limits: Limits = field(default_factory=Limits)
    handler_grace_seconds: float = 10.0
    authorize: Authorize | None = None
    authorize_pattern: Authorize | None = None
    authorize_timeout_seconds: float = 5.0
    on_slow: OnSlow | None = None
    reload_delay: Callable[[], float] = float
    close_seconds: float = 1.0
    keepalive: KeepaliveScheduler = field(default_factory=KeepaliveScheduler)
    turns: Turns = field(default_factory=Turns)
    statistics: Counters = field(default_factory=Counters)
    journal: Journal = field(default_factory=Journal)
    _last: list[ConnectionPolicy] = field(
        default_factory=list["ConnectionPolicy"], init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        check_policy_options(self.on_gap, self.limits)

    def with_options(self, limits: Limits | None, on_gap: OnGap | None) -> ConnectionPolicy:
        """Return the policy of a connection that is given options of its own; this one where it is given none.

        Connections that are given the same object as `limits` share one.

        Raises:
            ConfigurationError: One of them cannot be used.
        """
        if on_gap is not None:  # it can be made for one client, and is not kept
            return replace(self, limits=limits or self.limits, on_gap=on_gap)
        if limits is None:
            return self
        if not self._last or self._last[0].limits is not limits:
            self._last[:] = [replace(self, limits=limits)]
        return self._last[0]

    def check_channels(self, count: int) -> None:
        """Check that a client may join so many channels.

        Raises:
            TooManyChannelsError: It may not.
        """
        most = self.limits.max_channels
        if most is not None and count > most:
            self.statistics.refused_channels += 1
            raise TooManyChannelsError(f"a client may join {most:,} channels: Limits(max_channels=...)")

    async def check_authorized(self, client: Client, channel: str) -> None:
        """Ask the application whether a client may join `channel`.

        Raises:
            JoinRefusedError: It may not.
            AuthorizeTimeoutError: There was no answer in time.
        """
        if self.authorize is None:
            return
        if not await self._asked(self.authorize, client, channel):
            self.statistics.refused_joins += 1
            raise JoinRefusedError(f"this client may not join channel {channel!r}")

    async def check_pattern_authorized(self, client: Client, pattern: str) -> None:
        """Ask the application whether a client may join `pattern`; without its `authorize_pattern` none may.

        Raises:
            JoinRefusedError: It may not.
            AuthorizeTimeoutError: There was no answer in time.
        """
        if self.authorize_pattern is None:
            self.statistics.refused_joins += 1
            raise JoinRefusedError(
                f"no client may join pattern {pattern!r}: set @backplane.authorize_pattern, which decides that"
            )
        if not await self._asked(self.authorize_pattern, client, pattern):
            self.statistics.refused_joins += 1
            raise JoinRefusedError(f"this client may not join pattern {pattern!r}")

    async def _asked(self, authorize: Authorize, client: Client, name: str) -> bool:
        answer = authorize(cast("Any", client), name)
        return bool(await self._in_time(answer) if inspect.isawaitable(answer) else answer)

    def join_failed(self, channel: str, error: Exception, subscriber: Named) -> None:
        """Log and keep that a join was refused to a client, or could not be made: by whom, and why."""
        seconds, level = None, logging.DEBUG
        match error:
            case ClosedError():  # it has ended meanwhile: nothing was refused
                return
            case TooManyChannelsError():
                what, reason, level = "channel", str(error), logging.WARNING
                words = "%(kind)s %(connection)s: %(reason)s"
            case JoinRefusedError():
                what, reason, level = "join", "authorize", logging.WARNING
                words = "authorize refused %(channel)r to %(kind)s %(connection)s"
            case AuthorizeTimeoutError():
                what, reason, level = "join", "authorize did not answer", logging.WARNING
                seconds = self.authorize_timeout_seconds
                words = "authorize did not answer for %(channel)r within %(seconds)g s"
            case BrokerError():  # the hub, or the link, has a line of it for all clients together
                what, reason = "broker", str(error)
                words = "%(kind)s %(connection)s could not join %(channel)r: %(reason)s"
            case _:  # what the application itself raised can hold anything in its text
                what, reason = "join", str(error) if isinstance(error, BackplaneError) else type(error).__name__
                words = "%(channel)r was refused to %(kind)s %(connection)s: %(reason)s"
        self.journal.log(
            logger,
            CLIENT_REFUSED,
            words,
            level=level,
            what=what,
            channel=channel,
            reason=reason,
            seconds=seconds,
            **subscriber.named,
        )

    async def _in_time(self, answer: Awaitable[bool]) -> bool:
        deadline = asyncio.timeout(self.authorize_timeout_seconds)
        try:
            async with deadline:
                return await answer
        except TimeoutError:
            if not deadline.expired():  # the application's own
                raise
        raise AuthorizeTimeoutError("whether this client may join was not decided in time: try again later")

    def notify_slow(self, slow: SlowConsumer) -> None:
        """Call the application's `on_slow`, if there is one; what it raises is logged."""
        if self.on_slow is None:
            return
        try:
            self.on_slow(slow)
        except Exception as error:
            words = "%(hook)s failed for connection %(connection)s"
            connection = slow.connection
            names: dict[str, Any] = {"connection": connection.id, "client_key": connection.user}
            self.journal.log(logger, HOOK_FAILED, words, hook="on_slow", exc_info=error, **names)
