"""The plans, the page and the document know every scenario and every broker that has a name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.choice import Choice, measure_choice
from benchmarks.harness.brokers import NAMES, Brokers
from benchmarks.harness.candidate import ROOT, Serving, backplane
from benchmarks.plans import FULL, SHORT
from benchmarks.report.page import PLOTTED
from benchmarks.scenarios.catalog import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness.run import Run


def _ignore(_name: str, _repetition: int, _found: Run | None) -> None:
    """Show no progress."""


def test_every_scenario_is_planned_plotted_and_documented() -> None:
    """`full` runs each of them, the page has its plots, and the document a line of the table."""
    document = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert {name for name, _ in FULL} == set(PLOTTED) == set(SCENARIOS)
    assert [name for name in SCENARIOS if f"\n| `{name}` |" not in document] == []


@pytest.mark.parametrize("plan", [SHORT, FULL], ids=["short", "full"])
def test_every_broker_is_planned_and_documented(plan: Sequence[tuple[str, Choice]]) -> None:
    """Each name that `--url` takes is in both plans, and in the document."""
    document = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert {url for _, choice in plan for url in choice.urls} == set(NAMES)
    assert [name for name in NAMES if f"`{name}`" not in document] == []


def test_an_adapter_without_a_history_takes_no_part_in_its_scenario() -> None:
    """It is reported with the reason, and no broker is asked for it."""
    with Brokers() as brokers:
        section = measure_choice("history", Choice(urls=("postgres://localhost",)), brokers, _ignore)
    assert [outcome.failed for outcome in section.outcomes] == ["its adapter keeps no history"]


def test_a_durable_postgres_has_a_name_of_its_own() -> None:
    """Both modes can stand in one table."""
    urls = ("postgres://localhost", "postgres://localhost?durable=true")
    names = [backplane(url, Serving(), lane=lane).name for url in urls for lane in (False, True)]
    assert names == [f"backplane {name}" for name in ("postgres", "postgres lane", "postgres durable")] + [
        "backplane postgres durable lane"
    ]
