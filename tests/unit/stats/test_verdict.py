"""`backplane.stats.verdict`: each fault is named with its worker and a cure, the worst first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backplane.stats.overview import WorkerOverview, worker_overview
from backplane.stats.verdict import Evidence, problems_of, verdict_of
from tests.unit.stats.world import ADA, BOB, EVE, snapshot

NAMES = {ADA: "a/1-aaaa", BOB: "b/2-bbbb", EVE: "e/3-eeee"}
A, B, E = NAMES.values()


def worker(id: str, **changes: Any) -> WorkerOverview:  # noqa: A002
    """Return a worker that is well, with some changes."""
    return replace(
        worker_overview([snapshot(id)], now=0, age_seconds=0, clock_offset=0.001), worker=NAMES[id], **changes
    )


WELL = Evidence(
    is_live=True,
    url="redis://host",
    rejected=0,
    workers=(worker(ADA), worker(BOB), worker(EVE)),
    missing=(),
    silent={},
    refusing={},
    vanished={},
    settings=dict.fromkeys(NAMES.values(), "s"),
    adapters=dict.fromkeys(NAMES.values(), "redis"),
    control=dict.fromkeys(NAMES.values(), 12),
    gaps=dict.fromkeys(NAMES.values(), 0),
)


def changed(**changes: Any) -> Evidence:
    """Return the evidence of workers of which one changed."""
    return replace(WELL, workers=(worker(ADA), worker(BOB, **changes), worker(EVE)))


def rates(**given: float) -> dict[str, float]:
    """Return rates of which most are 0."""
    return {"deliveries": 0, "publishes": 0, "failures": 0, "dropped": 0} | given


FAULTS: dict[str, tuple[Evidence, str, str | None, str]] = {
    "own link": (replace(WELL, is_live=False), "link_down", None, "The link of this process to redis://host is lost"),
    "no worker": (replace(WELL, workers=()), "no_worker", None, "No worker is seen at redis://host."),
    "receives nothing": (
        replace(WELL, workers=WELL.workers[:2], missing=(E,), silent={E: 1.4}),
        "receives_nothing",
        E,
        "Worker e/3-eeee does not answer, and sent a heartbeat 1 s ago",
    ),
    "receives less": (
        replace(WELL, control={A: 12, B: 12, E: 5}),
        "receives_less",
        E,
        "Worker e/3-eeee has received 5 messages of 12 that the others have received",
    ),
    "link down": (changed(state="degraded"), "link_down", B, "The link of worker b/2-bbbb is degraded"),
    "vanished": (
        replace(WELL, vanished={"x/9-cccc": 12.4}),
        "vanished",
        "x/9-cccc",
        "Worker x/9-cccc vanished 12 s ago, without a goodbye",
    ),
    "another version": (
        replace(WELL, missing=("x/9-cccc",), refusing={"x/9-cccc": "it does not know the command"}),
        "not_watchable",
        "x/9-cccc",
        "Worker x/9-cccc sends no figures: it does not know the command.",
    ),
    "one gap": (replace(WELL, gaps={A: 0, B: 1}), "gaps", B, "Worker b/2-bbbb reported 1 gap just now"),
    "gaps": (replace(WELL, gaps={B: 3}), "gaps", B, "Worker b/2-bbbb reported 3 gaps just now"),
    "failures": (
        changed(rates=rates(failures=1.5)),
        "publishes_fail",
        B,
        "Publishes of worker b/2-bbbb fail: 1.5 a second.",
    ),
    "versions": (
        changed(version="0.4"),
        "versions_mixed",
        None,
        "The workers have 2 different versions: 0.4 on b/2-bbbb differ from most.",
    ),
    "adapters": (
        replace(WELL, adapters={A: "redis", B: "redis", E: "rediss"}),
        "adapters_mixed",
        None,
        "The workers have 2 different kinds of broker URL: rediss on e/3-eeee differ from most.",
    ),
    "settings": (
        replace(WELL, settings={A: "x", B: "s", E: "s"}),
        "settings_mixed",
        None,
        "The workers have 2 different settings: a/1-aaaa differ from most.",
    ),
    "clock ahead": (changed(clock_offset=0.25), "clock", B, "The clock of worker b/2-bbbb is 0.25 s ahead of"),
    "clock late": (changed(clock_offset=-3.0), "clock", B, "The clock of worker b/2-bbbb is 3 s late against"),
    "blocked": (changed(loop_lag=1.25), "loop_blocked", B, "The event loop of worker b/2-bbbb stood still for 1.2 s."),
    "drops": (changed(rates=rates(dropped=2), slow=3), "dropped", B, "Worker b/2-bbbb drops 2 messages a second: 3 "),
}


def test_all_is_well() -> None:
    """There is no problem, and a sentence that states it."""
    assert (problems_of(WELL), verdict_of((), WELL)) == ((), "All 3 workers are live.")
    assert verdict_of((), replace(WELL, workers=WELL.workers[:1])) == "The worker is live."


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault(fault: str) -> None:
    """It is the only problem, names its worker and a cure, and is the verdict."""
    evidence, kind, name, words = FAULTS[fault]
    (problem,) = problems_of(evidence)
    assert (problem.kind, problem.worker) == (kind, name)
    assert problem.text.startswith(words)
    assert problem.text.endswith(".")
    assert problem.cure
    assert verdict_of([problem], evidence) == problem.text


def test_the_worst_first() -> None:
    """The verdict is that of the worst one, with how many others there are."""
    evidence = replace(changed(version="0.4", clock_offset=5.0), control={A: 12, B: 12, E: 0}, gaps={A: 1})
    problems = problems_of(evidence)
    assert [problem.kind for problem in problems] == ["receives_less", "gaps", "versions_mixed", "clock"]
    assert verdict_of(problems, evidence) == f"{problems[0].text} (3 more problems)"
    assert verdict_of(problems[2:], evidence) == f"{problems[2].text} (1 more problem)"


def test_workers_that_have_not_answered_yet() -> None:
    """One that has only just started is no problem, and no part of the figures either."""
    many = tuple(f"x/{number}-cccc" for number in range(8))
    evidence = replace(WELL, missing=many)
    assert problems_of(evidence) == ()
    assert verdict_of((), evidence) == (
        "3 of 11 workers have answered so far: x/0-cccc, x/1-cccc, x/2-cccc, x/3-cccc, x/4-cccc and 3 more not yet."
    )


def test_signed_by_another_secret() -> None:
    """Where no worker is seen, and messages were dropped for their signature, the cure names the secret."""
    (problem,) = problems_of(replace(WELL, workers=(), rejected=7))
    assert problem.cure == "7 messages were not signed as expected: pass the control_secret of the workers"


@pytest.mark.parametrize(
    "evidence",
    [
        replace(WELL, control={A: 3, B: 0, E: 3}),
        replace(WELL, control={A: 12, B: 7, E: 12}),
        replace(WELL, control={A: 5}),
        replace(WELL, control={}),
        changed(state="degraded", draining=True),
        changed(state="closed"),
        changed(clock_offset=None),
        changed(clock_offset=0.09),
        changed(loop_lag=0.2),
        replace(WELL, settings={A: "", B: "s"}),
    ],
)
def test_what_is_no_fault(evidence: Evidence) -> None:
    """A few messages, small offsets, the end of a worker, and what an older version does not state are ordinary."""
    assert problems_of(evidence) == ()
