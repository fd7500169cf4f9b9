"""The scenario `presence`: it has every figure, and finds what is wrong; a result gets sections that are added."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import typer

from benchmarks import __main__ as command
from benchmarks.choice import Choice, measure_choice
from benchmarks.harness.brokers import Brokers
from benchmarks.harness.candidate import Serving, backplane
from benchmarks.harness.machine import description
from benchmarks.harness.result import Report, Section
from benchmarks.harness.run import Options, Run
from benchmarks.harness.server import Server, serving
from benchmarks.micro import presence as micro
from benchmarks.scenarios import presence
from benchmarks.scenarios.catalog import SCENARIOS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(180)

SMALL = Options(connections=80, channels=4, seconds=1.0, warm_up_seconds=0.1)
APP = SCENARIOS["presence"].app


def _ignore(_name: str, _repetition: int, _found: Run | None) -> None:
    """Show no progress."""


def test_a_run_has_every_figure_and_finds_users_that_do_not_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """All users of the killed worker leave in time, and no others; one that the worker is taken to have is missed."""
    ask = Server.ask

    def counted(server: Server, path: str, **arguments: object) -> object:
        found = ask(server, path, **arguments)
        if path == "noted":
            found["connections"] += 1
        return found

    monkeypatch.setattr(presence, "LIFETIME_SECONDS", 10.0)
    monkeypatch.setattr(presence, "_LEFT_SECONDS", 18.0)
    monkeypatch.setattr(Server, "ask", counted)
    with Brokers() as brokers, serving(backplane(brokers.url("redis"), Serving(), app=APP)) as server:
        run = presence.run(server, SMALL)
    figures = run.figures
    assert {column for column in SCENARIOS["presence"].columns if column not in figures} == set()
    assert (figures["astray"], figures["lost"]) == (0, presence.WORKERS - 1)
    assert 5 < figures["left_seconds"] < 16
    assert figures["presence_delta_per_second"] > figures["joins_per_second"] > 0
    assert figures["present_watched_ms"] < figures["present_unwatched_ms"]


def test_what_has_no_presence_takes_no_part() -> None:
    """A floor, a server with two workers and one that reaches no other process are reported with the reason."""
    with Brokers() as brokers:
        two = Choice(urls=("ipc",), floors=True, serving=Serving(workers=2))
        sections = [measure_choice("presence", each, brokers, _ignore) for each in (two, Choice(urls=("memory",)))]
    reasons = [{outcome.kind: outcome.failed for outcome in section.outcomes} for section in sections]
    assert reasons == [
        {"floor": "it has no presence", "backplane": "its 4 workers are started one by one, to be measured apart"},
        {"backplane": "memory:// reaches one worker only"},
    ]


def test_a_change_is_measured_with_and_without_a_view() -> None:
    """Each figure has a value for each round, and what does more takes longer."""
    figures = {figure.name: figure for figure in micro.run(3)}
    assert {len(figure.microseconds) for figure in figures.values()} == {3}
    names = ("floor: json.loads", "decode", "decode and apply, room not watched", "decode and apply, room watched")
    medians = [min(figures[name].microseconds) for name in names]
    assert medians == sorted(medians)


def test_the_memory_of_entries_counts_all_of_them() -> None:
    """An info of its own makes each entry larger by that."""
    with_info, without = (micro.entries(10, 400, info=info) for info in (True, False))
    assert (with_info.entries, without.entries) == (400, 400)
    assert 40 < with_info.bytes_per_entry - without.bytes_per_entry < 100


def test_sections_are_added_to_a_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those of a scenario that is measured again are replaced, the others stay; each new one has its machine."""

    def measured(name: str, *_: object) -> Section:
        return Section(scenario=name, title="new", settings={}, outcomes=[])

    monkeypatch.setattr(command, "measure_choice", measured)
    old = [Section(scenario=name, title="old", settings={}, outcomes=[]) for name in ("presence", "slow")]
    result = tmp_path / "0.9.0.json"
    Report(machine=description(), sections=old).save(result)
    command.add(["history", "presence"], result)
    found = Report.load(result)
    assert [(each.scenario, each.title) for each in found.sections] == [
        ("slow", "old"),
        ("history", "new"),
        ("presence", "new"),
    ]
    assert [bool(each.machine) for each in found.sections] == [False, True, True]
    assert "<h2>new</h2>" in result.with_suffix(".html").read_text()
    with pytest.raises(typer.BadParameter, match="`full` has no weather"):
        command.add(["weather"], result)
