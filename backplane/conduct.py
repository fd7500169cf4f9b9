"""What an application has said about all its connections, and what is counted of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from backplane.limits import Limits
from backplane.message import Gap
from backplane.watch import Watch

if TYPE_CHECKING:
    from backplane.connection import Connection

__all__ = ["Authorize", "Conduct", "OnGap", "OnSlow", "SlowConsumer"]

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
        authorize: Who may join what; `None` lets everybody.
        on_slow: Who hears of slow clients.
        reload_seconds: Draws after how long one of many clients is told to reload.
        watch: The timer of all connections.
        counts: What happened, by name; see `Backplane.statistics`.
    """

    on_gap: OnGap = "close"
    limits: Limits = field(default_factory=Limits)
    authorize: Authorize | None = None
    on_slow: OnSlow | None = None
    reload_seconds: Callable[[], float] = float
    watch: Watch = field(default_factory=Watch)
    counts: Counter[str] = field(default_factory=Counter[str])
