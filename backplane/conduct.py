"""What an application has said about all its connections, and what is counted of them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from backplane.errors import JoinRefusedError, TooManyChannelsError
from backplane.limits import Limits
from backplane.log_burst import LogBursts
from backplane.message import Gap
from backplane.statistics import Statistics
from backplane.watch import Watch

if TYPE_CHECKING:
    from backplane.connection import Connection

__all__ = ["Authorize", "Conduct", "OnGap", "OnSlow", "SlowConsumer"]

logger = logging.getLogger("backplane.conduct")

OnGap = Literal["close"] | Callable[[Gap], object]
"""What a client is told when messages may be missing.

- `close`: its connection ends with code 4000, which says "reconnect and reload"; many of them one after the other.
- a function: called with the `Gap`; what it returns is sent to the client, as `Connection.send` would, in its place
  between the messages; `None` sends nothing. It must not block. If it raises, that is logged and the client is closed.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowConsumer:
    """A client that is further behind than its outbox allows.

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
"""Called once for each stretch in which a client is too slow, at its beginning. Must not block."""

Authorize = Callable[["Connection", str], bool | Awaitable[bool]]
"""Asked at every join whether this connection may hear this channel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How connections behave; one object for all that behave alike.

    Attributes:
        on_gap: What a client is told of a gap.
        limits: What it may do, and how it is kept alive.
        handler_grace_seconds: How long its handler may stay in the block after it has ended.
        authorize: Who may join what; `None` lets everybody.
        on_slow: Who hears of slow clients.
        reload_seconds: Draws after how long one of many clients is closed, at a gap or because the broker failed.
        watch: The timer of all connections.
        statistics: Where what happens is counted.
        bursts: How what can concern many connections at once is logged.
    """

    on_gap: OnGap = "close"
    limits: Limits = field(default_factory=Limits)
    handler_grace_seconds: float = 10.0
    authorize: Authorize | None = None
    on_slow: OnSlow | None = None
    reload_seconds: Callable[[], float] = float
    watch: Watch = field(default_factory=Watch)
    statistics: Statistics = field(default_factory=Statistics)
    bursts: LogBursts = field(default_factory=LogBursts)

    def check_channels(self, connection: Connection, count: int) -> None:
        """Check that a connection may join so many channels.

        Raises:
            TooManyChannelsError: It may not.
        """
        most = self.limits.max_channels
        if most is not None and count > most:
            self.statistics.refused_channels += 1
            words = f"a connection may join {most:,} channels: Limits(max_channels=...)"
            self.bursts.log(logger, logging.WARNING, "connection %s: %s", connection.id, words)
            raise TooManyChannelsError(words)

    async def check_authorized(self, connection: Connection, channel: str) -> None:
        """Ask the application whether a connection may join `channel`.

        Raises:
            JoinRefusedError: It may not.
        """
        if self.authorize is None:
            return
        answer = self.authorize(connection, channel)
        if inspect.isawaitable(answer):
            answer = await answer
        if not answer:
            self.statistics.refused_joins += 1
            self.bursts.log(logger, logging.WARNING, "authorize refused %r to connection %s", channel, connection.id)
            raise JoinRefusedError(f"this connection may not join channel {channel!r}")

    def notify_slow(self, slow: SlowConsumer) -> None:
        """Call the application's `on_slow`, if there is one; what it raises is logged."""
        if self.on_slow is None:
            return
        try:
            self.on_slow(slow)
        except Exception as error:
            self.bursts.log(
                logger, logging.ERROR, "on_slow failed for connection %s", slow.connection.id, exc_info=error
            )
