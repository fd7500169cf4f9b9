"""How often the presence protocol publishes, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PresenceTimes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceTimes:
    """The times of the presence protocol, in seconds.

    Attributes:
        heartbeat: Shortest interval of heartbeats. It grows with the workers, to `workers / 50`. Defaults to 3.
        down_after: A worker without a heartbeat for this long, and for at least 3.3 intervals, is dead. Defaults to 10.
        flush: A change of a channel waits this long for others, and at least `workers of the channel / 20`. Defaults
            to 0.1.
        beacon: How often an owner of entries names its version on a quiet channel; `inf` for never. What an owner
            publishes is dropped elsewhere after 2.5 of these without any message from it. Defaults to 300.
        repeat: How long after its last message an owner names its version once more, or `None`. For brokers that can
            lose a message without reporting a gap. Defaults to `None`.
        responder: How long a request waits for the responder until it is repeated to every owner. Defaults to 0.3.
        everyone: How long a request to every owner waits; after it the view is complete. It must exceed the time that a
            message and its answer take. Defaults to 1.
        spread: What all workers would do at once after an outage is spread over this long. Defaults to 1.
        present: How long a view is kept after the last watcher, so that the next one finds it complete. Defaults
            to 30.
    """

    heartbeat: float = 3.0
    down_after: float = 10.0
    flush: float = 0.1
    beacon: float = 300.0
    repeat: float | None = None
    responder: float = 0.3
    everyone: float = 1.0
    spread: float = 1.0
    present: float = 30.0
