"""What `make bench` and `make bench-full` run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.choice import Choice
from benchmarks.harness.candidate import Serving

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FULL", "SHORT"]

_ALL = ("memory", "ipc", "redis", "nats", "kafka")

_BESIDE: Final = Choice(
    urls=("redis",), lane=True, floors=True, peers=("broadcaster",), options=(("connections", 500), ("seconds", 2.0))
)

SHORT: Final[Sequence[tuple[str, Choice]]] = (
    ("fanout", _BESIDE),
    ("saturation", _BESIDE),
    ("memory", Choice(urls=("redis",), lane=True, repetitions=1, options=(("connections", 1000),))),
    ("slow", Choice(urls=("redis",), lane=True, repetitions=1, options=(("connections", 100), ("seconds", 6.0)))),
    (
        "channels",
        Choice(urls=("redis",), repetitions=1, options=(("connections", 400), ("channels", 200), ("seconds", 3.0))),
    ),
    ("churn", Choice(urls=("redis",), repetitions=1, options=(("seconds", 3.0),))),
    ("storm", Choice(urls=("redis",), repetitions=1, options=(("connections", 500),))),
    ("failover", Choice(urls=("redis",), repetitions=1)),
    ("restart", Choice(urls=("redis",), repetitions=1)),
)
"""About five minutes on two cores: a run takes its seconds, one of warm-up, and about two to start and to end.

That makes 225 s for 24 runs of fan-out and 21 of saturation, and 80 s for the others. A peer that is not installed
says so.
"""

_EVERY: Final = Choice(urls=_ALL, lane=True, floors=True, peers=("all",), repetitions=5)
_FOUR: Final = Choice(urls=("ipc", "redis", "nats", "kafka"), lane=True, peers=("all",), serving=Serving(workers=4))

FULL: Final[Sequence[tuple[str, Choice]]] = (
    *((name, _EVERY) for name in ("fanout", "saturation")),
    *(
        ("fanout", Choice(urls=("redis",), lane=True, floors=True, options=(("rate", float(rate)),)))
        for rate in (5, 50, 100, 200)
    ),
    *(
        ("saturation", Choice(urls=("redis",), lane=True, floors=True, options=(("connections", count),)))
        for count in (10, 100, 5000)
    ),
    (
        "fanout",
        Choice(
            urls=("redis",),
            lane=True,
            floors=True,
            options=(("connections", 10_000), ("rate", 2.0), ("clients", 2)),
        ),
    ),
    *((name, _FOUR) for name in ("fanout", "saturation")),
    *(
        (name, Choice(urls=_ALL, lane=True, floors=True, peers=("all",)))
        for name in ("memory", "slow", "channels", "churn", "storm")
    ),
    # Kafka's client may take ten seconds to find its way back.
    ("failover", Choice(urls=_ALL, lane=True, peers=("all",), options=(("seconds", 20.0),))),
    ("restart", Choice(urls=("ipc", "redis", "nats", "kafka"), lane=True, peers=("all",))),
)
"""All scenarios on all adapters."""
