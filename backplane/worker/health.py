"""How a worker is, for a load balancer and for whoever is on call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backplane.broker.supervisor import LinkState

__all__ = ["Health"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How this worker's backplane is. Holds no secret, no URL and no channel name.

    Attributes:
        live: Someone looks after the link; if not, only a new process helps. A broker that is away does not change it.
        ready: This worker should get clients: the link is live, and the worker is not about to end.
        state: How the link to the broker is.
        draining: The worker is about to end.
        generation: How many links were tried so far, the present one included.
        round_trip_seconds: What the last delivery probe took, through the broker and back.
        probed_seconds_ago: When the last delivery probe came back. A link with traffic both ways is not probed.
        gaps: How many times subscribers were told of a gap, one per channel and stretch.
        last_gap_seconds_ago: When the last of them was.
        last_gap_reason: Why.
        channels: Channels with a subscriber on this worker.
        connections: WebSocket clients of this worker.
        subscriptions: Consumers of `Backplane.subscribe` in this worker.
        buffered: Messages that wait for the broker's return, with `outage="buffer"`.
    """

    live: bool
    ready: bool
    state: LinkState
    draining: bool = False
    generation: int = 0
    round_trip_seconds: float | None = None
    probed_seconds_ago: float | None = None
    gaps: int = 0
    last_gap_seconds_ago: float | None = None
    last_gap_reason: str | None = None
    channels: int = 0
    connections: int = 0
    subscriptions: int = 0
    buffered: int = 0
