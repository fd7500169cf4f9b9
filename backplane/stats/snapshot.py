"""What a worker sends of itself while it is watched."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from backplane.cluster.topics import is_worker

__all__ = ["ChannelFigures", "WorkerSnapshot", "parse_snapshot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelFigures:
    """One channel at one worker.

    Attributes:
        name: The channel.
        subscribers: How many of this worker have joined it.
        messages: How many messages the worker has received on it since the first of them joined.
        size_bytes: Their size.
    """

    name: str
    subscribers: int = 0
    messages: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSnapshot:
    """One worker at one moment. What another version of this package sends beside is dropped, and what it lacks is 0.

    Attributes:
        worker: Its id, another one after each start.
        host: Name of its host.
        pid: Id of its process.
        version: The version of this package that it runs.
        started_at: When it was started, in seconds since the epoch by its own clock.
        at: When this was taken, by the same clock.
        clock: The same moment by a clock that never jumps: rates are differences by it.
        interval_seconds: After how long the next snapshot follows.
        adapter: The scheme of its broker's URL.
        state: How its link to the broker is.
        state_seconds: For how long it has been so.
        settings: A hash of what must be the same in every worker.
        health: What `Backplane.health` returns, as JSON.
        statistics: What `Backplane.statistics` returns.
        control_received: Messages on the channels that every worker receives, heartbeats and commands.
        lag_bounds, lag_counts: How many messages were delivered how long after their publish, by buckets.
        cpu_seconds: Processor time that its process has used.
        resident_bytes: Memory that its process uses; `None` where that is not known.
        channels: Those with the most subscribers and messages.
    """

    worker: str
    host: str = ""
    pid: int = 0
    version: str = ""
    started_at: float = 0.0
    at: float = 0.0
    clock: float = 0.0
    interval_seconds: float = 2.0
    adapter: str = ""
    state: str = ""
    state_seconds: float = 0.0
    settings: str = ""
    health: dict[str, float | str | bool | None] = field(default_factory=dict[str, float | str | bool | None])
    statistics: dict[str, int] = field(default_factory=dict[str, int])
    control_received: int = 0
    lag_bounds: tuple[float, ...] = ()
    lag_counts: tuple[int, ...] = ()
    cpu_seconds: float = 0.0
    resident_bytes: int | None = None
    channels: tuple[ChannelFigures, ...] = ()

    def encode(self) -> str:
        """Return it as text."""
        return to_json(self, inf_nan_mode="null").decode()

    def figure(self, name: str) -> float:
        """Return a figure of `health`; 0 where it is none, or of a version that has it not."""
        value = self.health.get(name)
        return value if isinstance(value, int | float) else 0


def parse_snapshot(text: str) -> WorkerSnapshot | None:
    """Return the snapshot of a text; `None` where it is none."""
    try:
        snapshot = _adapter().validate_json(text)
    except ValidationError:
        return None
    return snapshot if is_worker(snapshot.worker) else None


@cache  # made where a snapshot is first received: most processes never do
def _adapter() -> TypeAdapter[WorkerSnapshot]:
    return TypeAdapter(WorkerSnapshot)
