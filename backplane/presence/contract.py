"""What the presence protocol takes and returns."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["INBOX", "WORKERS", "Head", "Outgoing", "Present", "Rule", "Shared", "Topic", "View", "ViewEvent", "Worker"]


class Shared(Enum):
    """The topics that are no channel's."""

    WORKERS = "workers"
    INBOX = "inbox"


WORKERS: Final = Shared.WORKERS
"""The topic of heartbeats: every worker is subscribed to it."""

INBOX: Final = Shared.INBOX
"""The topic of one worker, with answers to its requests: of this worker where it is received from, and of
`Outgoing.worker` where it is published to."""

Topic = Shared | str
"""`WORKERS`, `INBOX`, or the presence topic of a channel, by the channel's name."""


class Rule(Protocol):
    """What the protocol needs to know of a channel's `Presence` rule.

    Attributes:
        grace_seconds: How long a user without a connection stays in the channel.
        max_entries: With more connections than this, on all workers, a channel has only counts.
    """

    @property
    def grace_seconds(self) -> float: ...  # noqa: D102
    @property
    def max_entries(self) -> int: ...  # noqa: D102


class Outgoing(NamedTuple):
    """A message to publish.

    Attributes:
        topic: Where to.
        text: The payload.
        worker: Whose inbox, for `INBOX`.
    """

    topic: Topic
    text: str
    worker: str = ""


class Present(NamedTuple):
    """A user in a channel.

    Attributes:
        user: The user.
        info: What a connection of the user has stated of itself last, as JSON.
        since: When it did, in seconds since the epoch by the clock of its worker.
        connections: How many connections the user has; 0 during the grace.
    """

    user: str
    info: str
    since: float
    connections: int


class View(NamedTuple):
    """A channel as this worker knows it.

    Attributes:
        id: Random; another one wherever changes do not lead from the former state to this one.
        version: How many changes there were since `id` began.
        users: By user, or `None` if the channel has only counts.
        connections: How many connections there are.
        sure: Nothing is known to be missing, and the last request was answered.
        stale: Not sure, or the link is away.
    """

    id: str
    version: int
    users: dict[str, Present] | None
    connections: int
    sure: bool
    stale: bool


class Head(NamedTuple):
    """A channel as this worker knows it, without its users, of which there can be many.

    Attributes:
        id, version, connections, stale: As of `View`.
        pending: What the clients of this worker did is not in the view yet: it is not flushed.
    """

    id: str
    version: int
    connections: int
    stale: bool
    pending: bool


class ViewEvent(NamedTuple):
    """What happened to a view.

    Attributes:
        kind: `change`: users joined, left, or have another info. `count`: there are only counts, and another number of
            connections. `reset`: changes do not lead on from here: take `PresenceProtocol.view` anew (the channel
            turned to counts, or back). `stale`, `fresh`: as `View.stale`.
        version: `View.version` after it.
        joined: The users that joined.
        left: The users that left.
        updated: The users whose info is another one.
        id: `View.id`. A change with the id of a state that was taken, and a version that is not larger, is in that
            state already.
    """

    kind: Literal["change", "count", "reset", "stale", "fresh"]
    version: int
    joined: tuple[Present, ...] = ()
    left: tuple[str, ...] = ()
    updated: tuple[Present, ...] = ()
    id: str = ""


class Worker(NamedTuple):
    """A worker, as its last heartbeat describes it.

    Attributes:
        origin: Its id, another one at each start.
        alive: Whether its heartbeats arrive. Workers that are dead are listed for as long as they are remembered.
        heartbeat_age_seconds: How long ago the last heartbeat was received.
        down_after_seconds: It is dead after this long without one.
        info: What its `describe` returned: `host`, `pid`, `started`, `connections`, `package`. Empty before its first
            heartbeat.
    """

    origin: str
    alive: bool
    heartbeat_age_seconds: float
    down_after_seconds: float
    info: Mapping[str, object]
