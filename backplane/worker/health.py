"""The state of a worker, for a load balancer and for the operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backplane.broker.link_state import LinkState

__all__ = ["Health"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The state of this worker's backplane. Holds no secret, no URL and no channel name.

    Attributes:
        live: The supervisor of the link runs; if it does not, only a new process helps. An outage of the broker does
            not change this.
        ready: This worker should get clients: the link is live, and the worker does not drain.
        state: The state of the link to the broker.
        draining: The worker is about to end.
        generation: How many sessions of the link were tried so far, the present one included.
        round_trip_seconds: How long the last delivery probe took, through the broker and back; `None` before the first.
        probed_seconds_ago: How long ago it came back. A link with traffic in both directions is not probed.
        gaps: How many gaps subscribers were notified of, one per channel and loss.
        last_gap_seconds_ago: How long ago the last gap was; `None` where there was none.
        last_gap_reason: The reason of that gap, which may hold the broker's own text.
        channels: Channels with a subscriber on this worker.
        connections: Clients of this worker, WebSockets and event streams, until their transport is gone.
        subscriptions: Subscriptions (`Backplane.subscribe`) of this worker.
        buffered: Messages that wait for the broker to be available again, with `outage="buffer"`.
        channels_in_doubt: Kept channels that may miss messages which the broker has not given back yet.
        presence_lag_seconds: How old the change of presence is that waits longest to be sent: more than a second where
            this worker has more changes than it may send.
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
    channels_in_doubt: int = 0
    presence_lag_seconds: float = 0.0
