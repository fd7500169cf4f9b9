"""The scenarios `idle` and `memory`: they have every figure, with clients that are handed over and that are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.choice import Choice, measure_choice
from benchmarks.harness.brokers import Brokers
from benchmarks.harness.candidate import Serving, backplane
from benchmarks.harness.run import Options
from benchmarks.harness.server import serving
from benchmarks.scenarios import idle
from benchmarks.scenarios.catalog import SCENARIOS

if TYPE_CHECKING:
    from benchmarks.harness.run import Run

pytestmark = pytest.mark.timeout(120)

SMALL = (
    ("connections", 50),
    ("in_memory", 20),
    ("addresses", 3),
    ("clients", 2),
    ("heartbeat", 0.8),
    ("drain", 0.5),
    ("seconds", 0.1),
    ("warm_up_seconds", 0.0),
)


def _ignore(_name: str, _repetition: int, _found: Run | None) -> None:
    """Show no progress."""


def test_idle_clients_are_measured_and_drained() -> None:
    """With every figure: each client answers pings and is closed with 1012; only a handed-over one has no task."""
    choice = Choice(urls=("memory",), only_lane=True, handed_over=True, floors=True, repetitions=1, options=SMALL)
    with Brokers() as brokers:
        section = measure_choice("idle", choice, brokers, _ignore)
    outcomes = {each.name: each for each in section.outcomes if each.kind == "backplane"}
    assert {each.failed for each in section.outcomes if each.kind == "floor"} == {
        "what is measured is the heartbeats and the drain of backplane"
    }
    assert {name: each.failed for name, each in outcomes.items()} == dict.fromkeys(outcomes, "")
    for name, tasks in (("backplane memory lane", 1), ("backplane memory handed over", 0)):
        (run,) = outcomes[name].runs
        assert {column for column in SCENARIOS["idle"].columns if column not in run.figures} == set()
        assert (run.figures["tasks_per_connection"], run.figures["closed"], run.notes) == (tasks, 0, [])
        assert run.figures["pings_per_client"] > 0
        assert run.figures["drain_seconds"] < run.figures["ended_seconds"]


def test_clients_that_are_closed_otherwise_are_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another code is expected, every client of the run counts, with the codes that there were."""
    monkeypatch.setattr(idle, "_DRAINED", 1001)
    options = Options(connections=20, heartbeat=0.3, drain=0.1, seconds=0.1, warm_up_seconds=0.0)
    with serving(backplane("memory://", Serving(), handed_over=True)) as server:
        run = idle.run(server, options)
    assert run.figures["closed"] == 120
    assert run.notes == ["of 120 clients were closed: 120 by 1012; 0 are open"]
    assert "stall_ms" not in run.figures


def test_the_memory_of_each_client_is_taken() -> None:
    """A handed-over client takes less than one whose handler stays."""
    choice = Choice(
        urls=("memory",),
        only_lane=True,
        handed_over=True,
        repetitions=1,
        options=(("connections", 500), ("addresses", 2)),
    )
    with Brokers() as brokers:
        section = measure_choice("memory", choice, brokers, _ignore)
    lane, handed_over = section.outcomes
    figures = [each.runs[0].figures for each in (lane, handed_over)]
    assert figures[1]["kib_per_connection"] < figures[0]["kib_per_connection"] / 2
    assert [each["tasks_per_connection"] for each in figures] == [1, 0]
    assert [each["closed"] for each in figures] == [0, 0]
