"""The workers of a cluster, and what they answered, as the application has them: `Worker` and `Answers`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Answers", "Worker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One worker: a process with a started `Backplane(cluster=True)`. Two are equal if their `id` is.

    Attributes:
        id: Random name, another one after each start.
        host: Name of its host; empty where only its id is known yet.
        pid: Id of its process; 0 where that is not known yet.
        started_at: When it was started, in seconds since the epoch by its own clock; 0 where that is not known yet.
        connections: How many clients it served when it sent its last heartbeat.
        version: The version of this package that it runs.
        last_seen_seconds_ago: How long ago its last heartbeat was received; 0 for the worker that is asked.
        is_alive: Its heartbeats arrive. `False` for one that has ended, which is listed for two minutes more.
    """

    id: str
    host: str = field(default="", compare=False)
    pid: int = field(default=0, compare=False)
    started_at: float = field(default=0.0, compare=False)
    connections: int = field(default=0, compare=False)
    version: str = field(default="", compare=False)
    last_seen_seconds_ago: float = field(default=0.0, compare=False)
    is_alive: bool = field(default=True, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the workers answered to a survey, or to a command that was to be confirmed.

    Attributes:
        by_worker: What each worker answered: the value of the handler of a survey, or to how many connections a command
            applied.
        errors: What went wrong at those that answered with an error, in words: the handler raised or took too long, or
            it has none for this survey.
        missing: The workers that did not answer in time, or ended meanwhile. They may have received it all the same.
        seconds: After how long the answer of each worker was received, sending included.
    """

    by_worker: dict[Worker, Any] = field(default_factory=dict[Worker, Any])
    errors: dict[Worker, str] = field(default_factory=dict[Worker, str])
    missing: list[Worker] = field(default_factory=list[Worker])
    seconds: dict[Worker, float] = field(default_factory=dict[Worker, float])

    @property
    def complete(self) -> bool:
        """Whether every worker answered, at least one did, and none with an error."""
        return bool(self.by_worker) and not self.errors and not self.missing
