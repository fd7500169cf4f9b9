"""The harness finds what is wrong: one delivery dropped, doubled, swapped or delayed on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.harness.candidate import Serving, backplane, faulty, floors
from benchmarks.harness.run import Options, Run
from benchmarks.harness.server import serving
from benchmarks.scenarios import fanout, saturation, slow

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness.server import Server

pytestmark = pytest.mark.timeout(60)

SMALL = Options(connections=20, rate=50, seconds=0.5, warm_up_seconds=0.0)
FAULTS = ("lost", "duplicates", "reordered")


def faults(run: Run) -> dict[str, float]:
    """Return what went wrong."""
    return {name: run.figures[name] for name in FAULTS if run.figures[name]}


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("drop", {"lost": 1}), ("double", {"duplicates": 1}), ("swap", {"reordered": 1}), ("delay", {})],
)
def test_one_planted_fault_is_found(fault: str, expected: dict[str, float]) -> None:
    """Of 500 deliveries one is wrong, and the result has the kind of fault."""
    with serving(faulty(fault)) as server:
        run = fanout.run(server, SMALL)
    assert run.figures["messages"] == 25
    assert run.figures["deliveries"] == 500 + expected.get("duplicates", 0) - expected.get("lost", 0)
    assert faults(run) == expected
    if fault == "delay":
        assert run.figures["latency_max_ms"] >= 50
        assert run.figures["last_max_ms"] >= 50


@pytest.mark.parametrize("scenario", [fanout.run, saturation.run])
def test_nothing_is_found_where_nothing_is_wrong(scenario: Callable[[Server, Options], Run]) -> None:
    """A run of backplane without a broker delivers everything once and in order."""
    with serving(backplane("memory://", Serving())) as server:
        run = scenario(server, SMALL)
    assert faults(run) == {}
    assert run.figures["deliveries"] == run.figures["messages"] * 20 > 0
    assert "latency_p99_ms" in run.figures


def test_a_stall_does_not_look_fast() -> None:
    """Where one stalled socket holds up all the others, what they never got counts as late, not as nothing."""
    bare = floors()[-1]
    assert bare.name == "floor: await send()"
    fills_every_buffer = Options(connections=3, stalled=1, rate=200, payload=60_000, seconds=1, warm_up_seconds=0.0)
    with serving(bare) as server:
        run = slow.run(server, fills_every_buffer)
    assert run.figures["lost"] > 0
    assert run.figures["latency_p99_ms"] >= 1000
    assert run.figures["last_p99_ms"] >= 1000
    # On a loaded machine the publisher may be late, which is no part of the claim.
    assert [reason for reason in run.invalid if "did not keep its rate" not in reason] == []
