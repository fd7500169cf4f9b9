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

    What there are many of is counted where it changes, so that no figure is added up from all clients.

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
        handed_over: Those of them that were handed over and have no task (`Backplane.hand_over`, on the direct lane).
        closing: WebSockets whose turn to be closed is still to come: after a gap or a failure of the broker, and, event
            streams included, in the drain. One that leaves before its turn in the drain counts until then, and one
            that waits in both counts twice.
        subscriptions: Subscriptions (`Backplane.subscribe`) of this worker.
        slow_subscribers: Clients and subscriptions for which something waits in this package, as they do not take it as
            fast as it is published.
        waiting_messages: What waits for all of them, within the `Backlog` of each. What the server and the system have
            buffered for their sockets is not in it.
        waiting_bytes: The size of that (of text: characters).
        fan_outs: Channels whose messages are being delivered in more than one pass of the event loop: many clients, or
            more messages than this worker delivers.
        resting_channels: Channels that collect for up to 2 ms after such a fan-out, so that what comes meanwhile is
            written together.
        longest_stall_seconds: For how long the event loop made no pass at most, within the last 30 to 60 seconds,
            whatever the reason: the application, a garbage collection, a machine without a free core. Measured by a
            timer every 0.05 s, so that a stall can have been longer by as much; shorter ones are found by chance.
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
    handed_over: int = 0
    closing: int = 0
    subscriptions: int = 0
    slow_subscribers: int = 0
    waiting_messages: int = 0
    waiting_bytes: int = 0
    fan_outs: int = 0
    resting_channels: int = 0
    longest_stall_seconds: float = 0.0
    buffered: int = 0
    channels_in_doubt: int = 0
    presence_lag_seconds: float = 0.0
