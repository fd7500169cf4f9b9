"""What `make bench` and `make bench-full` run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from benchmarks.choice import Choice
from benchmarks.harness.brokers import NAMES
from benchmarks.harness.candidate import Serving

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FULL", "SHORT"]

_ALL: Final = NAMES

_BESIDE: Final = Choice(
    urls=("redis",),
    lane=True,
    floors=True,
    competitors=("broadcaster",),
    options=(("connections", 500), ("seconds", 2.0)),
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
    ("history", Choice(urls=("redis",), repetitions=1, options=(("connections", 1000), ("seconds", 2.0)))),
    (
        "presence",
        Choice(
            urls=("redis",),
            repetitions=1,
            options=(("connections", 1000), ("channels", 50), ("seconds", 5.0), ("warm_up_seconds", 1.0)),
        ),
    ),
    ("publishes", Choice(urls=_ALL, repetitions=1, options=(("seconds", 1.0), ("warm_up_seconds", 0.5)))),
)
"""About eight minutes on two cores: a run takes its seconds, one of warm-up, and about two to start and to end.

That makes 225 s for 24 runs of fan-out and 21 of saturation, and 230 s for the others, of which 40 s are the start of
brokers. A competitor that is not installed is reported with the reason.
"""

_REDIS: Final = Choice(urls=("redis",), lane=True, floors=True, options=(("seconds", 3.0),))
_EVERY: Final = Choice(urls=_ALL, lane=True, floors=True, competitors=("all",))
# Without the competitors that take minutes where backplane takes a second.
_ONCE: Final = replace(_EVERY, floors=False, competitors=("tutorial", "broadcaster", "node"), repetitions=1)
# What 450 sockets get in a flood of 1.5 GB/s beside 50 that never read: two minutes each.
_FLOOD: Final = Choice(
    urls=("ipc", "redis"),
    lane=True,
    repetitions=1,
    options=(("connections", 450), ("stalled", 50), ("payload", 65_536), ("rate", 50.0), ("seconds", 60.0)),
)
# Beside the competitors whose memory is compared.
_MEMORY: Final = Choice(
    urls=("redis",),
    lane=True,
    handed_over=True,
    sdk=True,
    floors=True,
    competitors=("tutorial", "broadcaster", "node", "ws", "centrifuge"),
    repetitions=1,
)
# 50,000 sockets where a process may have 20,000 files: on four workers, from three processes and four addresses.
_CROWDED: Final = Choice(
    urls=("redis",),
    only_lane=True,
    handed_over=True,
    competitors=("node", "ws"),
    serving=Serving(workers=4),
    repetitions=1,
    options=(("connections", 50_000), ("clients", 3), ("addresses", 4)),
)
# One worker with as many clients, of which only so many have sockets.
_IDLE: Final = Choice(
    urls=("redis",), only_lane=True, handed_over=True, repetitions=1, options=(("in_memory", 32_000),)
)


def _with(choice: Choice, **options: float) -> Choice:
    return replace(choice, options=tuple((dict(choice.options) | options).items()))


FULL: Final[Sequence[tuple[str, Choice]]] = (
    *((name, _EVERY) for name in ("fanout", "saturation")),
    *(("fanout", _with(_REDIS, rate=float(rate))) for rate in (5, 50, 100)),
    *(("saturation", _with(_REDIS, connections=count)) for count in (10, 100, 5000)),
    ("fanout", _with(_REDIS, connections=10_000, rate=2.0, clients=2, stalls=True)),
    ("fanout", replace(_REDIS, competitors=("broadcaster",), serving=Serving(workers=2))),
    ("slow", Choice(lane=True, options=(("connections", 999), ("stalled", 1), ("rate", 40.0)))),
    ("slow", _FLOOD),
    ("fanout", replace(_ONCE, urls=_ALL[1:], serving=Serving(workers=4))),
    ("saturation", Choice(urls=("redis",), lane=True, serving=Serving(workers=2))),
    ("sdk", Choice(urls=("redis",), only_lane=True, handed_over=True)),
    *(("memory", each) for each in (_MEMORY, _CROWDED)),
    ("idle", _IDLE),
    *((name, _ONCE) for name in ("slow", "channels", "churn", "storm")),
    # Kafka's client may take ten seconds to find its way back, and RabbitMQ as long to start.
    ("failover", _with(_ONCE, seconds=40.0)),
    ("restart", _ONCE),
    ("history", Choice(urls=_ALL)),
    ("presence", Choice(urls=_ALL[1:], repetitions=1)),
    ("publishes", Choice(urls=_ALL)),
)
"""All scenarios on all adapters, in two hours: what ratios are taken of three times, the rest once."""
