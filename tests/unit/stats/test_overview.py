"""`backplane.stats.overview`: rates are differences of two snapshots, and channels are merged over workers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backplane.stats.overview import (
    Overview,
    Problem,
    WorkerOverview,
    channel_overviews,
    percentile,
    worker_name,
    worker_overview,
)
from backplane.stats.snapshot import ChannelFigures, WorkerSnapshot
from tests.unit.stats.world import ADA, BOB, snapshot


def row(*snapshots: WorkerSnapshot) -> WorkerOverview:
    """Return what some snapshots of a worker show, the last one received a second ago."""
    return worker_overview(snapshots, now=2_000.0, age_seconds=1.0, clock_offset=0.5)


def test_one_snapshot_has_no_rates() -> None:
    """All else is known from the first one on."""
    one = row(
        snapshot(
            health={"connections": 3, "channels": 2, "gaps": 1, "draining": True, "generation": 4},
            statistics={"offered": 9},
            control_received=5,
        )
    )
    assert (one.worker, one.id, one.state, one.since) == ("web-1/31-aaaa", ADA, "live", 1_939.0)
    assert (one.connections, one.channels, one.gaps, one.draining, one.generation) == (3, 2, 1, True, 4)
    assert (one.rates, one.cpu, one.lag_p99, one.clock_offset, one.control_received) == (None, None, None, 0.5, 5)


def test_rates() -> None:
    """They are differences of the last two snapshots, by the clock of the worker that never jumps."""
    figures = [
        {"offered": 1, "published": 1},
        {"offered": 10, "published": 5},
        {"offered": 110, "published": 7, "dropped_oldest": 4, "replaced": 2, "publishes_refused": 2},
    ]
    last = row(
        *(snapshot(clock=100 + 2 * n, cpu_seconds=n, statistics=counts, at=0) for n, counts in enumerate(figures))
    )
    assert last.rates == {"deliveries": 50, "publishes": 1, "failures": 1, "dropped": 3}
    assert last.cpu == 0.5


@pytest.mark.parametrize(("clock", "count"), [(100, 5), (99, 5), (102, 1)])
def test_rates_of_what_cannot_be(clock: float, count: int) -> None:
    """A worker that sends nonsense has a rate of 0, not one below it, and raises nothing."""
    rates = row(snapshot(statistics={"offered": 3}), snapshot(clock=clock, statistics={"offered": count})).rates
    assert rates is not None
    assert rates["deliveries"] == 0


def test_lag() -> None:
    """It is that of the messages between the first snapshot that is kept and the last one."""
    first = snapshot(lag_bounds=(0.1, 1.0), lag_counts=(0, 500, 0))
    last = snapshot(clock=102, lag_bounds=(0.1, 1.0), lag_counts=(200, 500, 0))
    assert (row(first).lag_p99, row(first, last).lag_p99) == (1.0, 0.1)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((99, 1, 0), 0.1), ((98, 2, 0), 1.0), ((0, 0, 5), 1.0), ((0, 0, 0), None), ((), None), ((-5, 2, 1), None)],
)
def test_percentile(counts: tuple[int, ...], expected: float | None) -> None:
    """It is the bound of the bucket in which 99 of 100 values end; the last bucket has none of its own."""
    assert percentile((0.1, 1.0), counts, 0.99) == expected


def test_percentile_without_bounds() -> None:
    """A worker that sends counts alone has no lag."""
    assert percentile((), (1,), 0.99) is None


def figures(**channels: tuple[int, int, int]) -> tuple[ChannelFigures, ...]:
    """Return channels by name: subscribers, messages, bytes."""
    return tuple(
        ChannelFigures(name=name, subscribers=subscribers, messages=messages, size_bytes=size)
        for name, (subscribers, messages, size) in channels.items()
    )


def test_channels_are_merged() -> None:
    """Subscribers add up; every worker receives each message, so the rate is that of the one that received most."""
    pairs = [
        (
            snapshot(ADA, channels=figures(a=(1, 0, 0))),
            snapshot(ADA, clock=102, channels=figures(a=(1, 10, 400), b=(5, 7, 7))),
        ),
        (
            snapshot(BOB, channels=figures(a=(2, 100, 1000))),
            snapshot(BOB, clock=104, channels=figures(a=(2, 112, 1480))),
        ),
        (None, snapshot("cccc000000000000", channels=figures(c=(3, 9, 9)))),
    ]
    merged = channel_overviews(pairs, 2)
    assert [(each.name, each.subscribers, each.workers) for each in merged] == [("b", 5, 1), ("a", 3, 2)]
    assert [(each.messages_per_second, each.bytes_per_second) for each in merged] == [(0, 0), (5, 200)]


def test_channels_with_as_many_subscribers() -> None:
    """Those with more messages come first, then by name."""
    before = snapshot(channels=figures(a=(1, 0, 0), b=(1, 0, 0), c=(1, 0, 0)))
    last = snapshot(clock=102, channels=figures(c=(1, 0, 0), b=(1, 8, 0), a=(1, 0, 0)))
    assert [each.name for each in channel_overviews([(before, last)], 20)] == ["b", "a", "c"]


def test_json() -> None:
    """It is what the page and the command line have, in plain JSON."""
    problem = Problem(kind="gaps", severity="warning", worker=None, text="a", cure="b")
    overview = Overview(
        at=1.0,
        asked=1,
        answered=1,
        missing=(),
        verdict="a",
        problems=(problem,),
        workers=(row(snapshot()),),
        channels=channel_overviews([(None, snapshot(channels=figures(a=(1, 0, 0))))], 1),
    )
    decoded: dict[str, Any] = json.loads(json.dumps(overview.to_json()))
    assert decoded.keys() == {"at", "asked", "answered", "missing", "verdict", "problems", "workers", "channels"}
    assert decoded["problems"] == [{"kind": "gaps", "severity": "warning", "worker": None, "text": "a", "cure": "b"}]
    assert decoded["workers"][0]["worker"] == "web-1/31-aaaa"
    assert decoded["channels"][0]["name"] == "a"


def test_a_worker_of_which_little_is_known() -> None:
    """What is not known yet is shown as such."""
    assert worker_name("", 0, BOB) == "?/?-bbbb"
