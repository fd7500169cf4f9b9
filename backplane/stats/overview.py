"""The figures of all workers at one moment, merged: `Overview`."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backplane.stats.snapshot import ChannelFigures, WorkerSnapshot

__all__ = [
    "ChannelOverview",
    "Overview",
    "Problem",
    "WorkerOverview",
    "channel_overviews",
    "percentile",
    "worker_name",
    "worker_overview",
]

_DROPS: Final = ("dropped_oldest", "dropped_newest", "replaced", "overrun", "discarded")
_FAILURES: Final = ("publishes_unavailable", "publishes_unknown", "publishes_refused")
_P99: Final = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that is wrong, with what to do about it.

    Attributes:
        kind: Names it, for programs.
        severity: `error` where clients miss messages now or the picture is not whole, else `warning`.
        worker: The name of the worker that it is about; `None` for all.
        text: What is wrong, in one sentence.
        cure: What to do.
    """

    kind: str
    severity: Literal["error", "warning"]
    worker: str | None
    text: str
    cure: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOverview:
    """One worker.

    Attributes:
        worker: Host, pid and the begin of its id, such as `web-1/31-9f2c`.
        id: Its id, another one after each start.
        host: Name of its host.
        pid: Id of its process.
        version: The version of this package that it runs.
        state: How its link to the broker is: `live` where all is well.
        since: Since when it is so, in seconds since the epoch, by the clock of this host.
        started_at: When the worker was started, by its own clock.
        draining: It is about to end.
        generation: How many links to the broker it has tried to open so far.
        connections: Clients, WebSockets and event streams.
        channels: Channels with a subscriber.
        subscriptions: Subscriptions of the application.
        slow: Subscribers for which something waits.
        waiting_bytes: What waits for all of them.
        gaps: Gaps that its subscribers were notified of since its start.
        rates: By second, between the last two snapshots: `deliveries` (what each subscriber was offered), `publishes`,
            `failures` (of publishes) and `dropped`. `None` until there are two.
        lag_p99: Within which time 99 of 100 messages were delivered lately, in seconds from their publish; the upper
            bound of a bucket. `None` where there was none, or where that is not known.
        loop_lag: For how long its event loop made no pass at most, within the last half minute, in seconds.
        cpu: How much of one core it used between the last two snapshots; `None` until there are two.
        resident_bytes: Memory that its process uses; `None` where that is not known.
        clock_offset: How much its clock is ahead of this host's, in seconds, to half a round trip; `None` where it was
            not measured yet.
        control_received: Messages on the channels that every worker receives, heartbeats and commands, since its start.
        age_seconds: How old this is.
    """

    worker: str
    id: str
    host: str
    pid: int
    version: str
    state: str
    since: float
    started_at: float
    draining: bool
    generation: int
    connections: int
    channels: int
    subscriptions: int
    slow: int
    waiting_bytes: int
    gaps: int
    rates: dict[str, float] | None
    lag_p99: float | None
    loop_lag: float
    cpu: float | None
    resident_bytes: int | None
    clock_offset: float | None
    control_received: int
    age_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelOverview:
    """One channel, over the workers that named it among their first twenty.

    Attributes:
        name: The channel.
        subscribers: How many have joined it at these workers.
        workers: How many workers named it.
        messages_per_second: Messages published to it: the most that one worker received.
        bytes_per_second: Their size.
    """

    name: str
    subscribers: int
    workers: int
    messages_per_second: float
    bytes_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """All workers at one moment.

    Attributes:
        at: When, in seconds since the epoch.
        asked: How many workers are alive, by their heartbeats.
        answered: How many of them have sent their figures lately.
        missing: The names of the others: what they have is in no figure here.
        verdict: The state of all in one sentence: what is wrong, the worst first, or that nothing is.
        problems: All that is wrong, the worst first.
        workers: The workers that answered, by name.
        channels: Those with the most subscribers, each with what the workers that named it have of it.
    """

    at: float
    asked: int
    answered: int
    missing: tuple[str, ...]
    verdict: str
    problems: tuple[Problem, ...]
    workers: tuple[WorkerOverview, ...]
    channels: tuple[ChannelOverview, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as what `json.dumps` takes."""
        return asdict(self)


def worker_name(host: str, pid: int, worker_id: str) -> str:
    """Return the name of a worker for people: `web-1/31-9f2c`."""
    return f"{host or '?'}/{pid or '?'}-{worker_id[:4]}"


def worker_overview(
    snapshots: Sequence[WorkerSnapshot], *, now: float, age_seconds: float, clock_offset: float | None
) -> WorkerOverview:
    """Return what the snapshots of one worker, oldest first, show of it.

    Args:
        snapshots: At least one.
        now: The time by the clock of this host.
        age_seconds: How long ago the last one was received.
        clock_offset: See `WorkerOverview`.
    """
    last = snapshots[-1]
    before = snapshots[-2] if len(snapshots) > 1 else None
    return WorkerOverview(
        worker=worker_name(last.host, last.pid, last.worker),
        id=last.worker,
        host=last.host,
        pid=last.pid,
        version=last.version,
        state=last.state,
        since=now - age_seconds - last.state_seconds,
        started_at=last.started_at,
        draining=bool(last.health.get("draining")),
        generation=int(last.figure("generation")),
        connections=int(last.figure("connections")),
        channels=int(last.figure("channels")),
        subscriptions=int(last.figure("subscriptions")),
        slow=int(last.figure("slow_subscribers")),
        waiting_bytes=int(last.figure("waiting_bytes")),
        gaps=int(last.figure("gaps")),
        rates=None if before is None else _rates(before, last),
        lag_p99=_lag(snapshots[0], last),
        loop_lag=last.figure("longest_stall_seconds"),
        cpu=None if before is None else _per_second(last.cpu_seconds - before.cpu_seconds, before, last),
        resident_bytes=last.resident_bytes,
        clock_offset=clock_offset,
        control_received=last.control_received,
        age_seconds=age_seconds,
    )


def channel_overviews(
    pairs: Iterable[tuple[WorkerSnapshot | None, WorkerSnapshot]], limit: int
) -> tuple[ChannelOverview, ...]:
    """Return the channels with the most subscribers, then with the most messages.

    Args:
        pairs: Of each worker the snapshot before the last one, if there is one, and the last one.
        limit: Most channels.
    """
    found: defaultdict[str, list[tuple[int, float, float]]] = defaultdict(list)
    for before, last in pairs:
        earlier = {} if before is None else {channel.name: channel for channel in before.channels}
        for channel in last.channels:
            found[channel.name].append(
                (channel.subscribers, *_channel_rates(earlier.get(channel.name), channel, before, last))
            )
    merged = (
        ChannelOverview(
            name=name,
            subscribers=sum(subscribers for subscribers, _, _ in rows),
            workers=len(rows),
            messages_per_second=max(messages for _, messages, _ in rows),
            bytes_per_second=max(size for _, _, size in rows),
        )
        for name, rows in found.items()
    )
    order = sorted(merged, key=lambda channel: (-channel.subscribers, -channel.messages_per_second, channel.name))
    return tuple(order[:limit])


def percentile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """Return the upper bound of the bucket in which a share of all values ends; `None` without a value.

    The last bucket has no bound: for it the largest one is returned.
    """
    total = sum(counts)
    if total <= 0 or not bounds:
        return None
    seen = 0
    for bound, count in zip(bounds, counts, strict=False):
        seen += count
        if seen >= share * total:
            return bound
    return bounds[-1]


def _per_second(difference: float, before: WorkerSnapshot, last: WorkerSnapshot) -> float:
    seconds = last.clock - before.clock
    return max(0.0, difference) / seconds if seconds > 0 else 0.0


def _rates(before: WorkerSnapshot, last: WorkerSnapshot) -> dict[str, float]:
    def rate(*names: str) -> float:
        difference = sum(last.statistics.get(name, 0) - before.statistics.get(name, 0) for name in names)
        return _per_second(difference, before, last)

    return {
        "deliveries": rate("offered"),
        "publishes": rate("published"),
        "failures": rate(*_FAILURES),
        "dropped": rate(*_DROPS),
    }


def _lag(first: WorkerSnapshot, last: WorkerSnapshot) -> float | None:
    """Return the lag of the messages between two snapshots; of all so far where the first one is the last."""
    counts = last.lag_counts
    if first is not last and len(first.lag_counts) == len(counts):
        counts = tuple(now - then for now, then in zip(counts, first.lag_counts, strict=True))
    return percentile(last.lag_bounds, counts, _P99)


def _channel_rates(
    earlier: ChannelFigures | None, now: ChannelFigures, before: WorkerSnapshot | None, last: WorkerSnapshot
) -> tuple[float, float]:
    """Return the messages and the bytes a second; 0 where the channel was not named before."""
    if earlier is None or before is None:
        return 0.0, 0.0
    return (
        _per_second(now.messages - earlier.messages, before, last),
        _per_second(now.size_bytes - earlier.size_bytes, before, last),
    )
