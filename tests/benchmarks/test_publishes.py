"""The scenario `publishes`: it has every figure on each adapter, and finds messages that were not received."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.choice import Choice, measure_choice
from benchmarks.harness.brokers import NAMES, Brokers
from benchmarks.harness.candidate import Serving, backplane
from benchmarks.harness.run import Options
from benchmarks.harness.server import Server, listeners, serving
from benchmarks.scenarios import publishes
from benchmarks.scenarios.catalog import SCENARIOS

if TYPE_CHECKING:
    from benchmarks.harness.run import Run

pytestmark = pytest.mark.timeout(180)

SMALL = Options(payload=221, seconds=0.1, warm_up_seconds=0.0)
APP = SCENARIOS["publishes"].app
FAULTS = ("lost", "duplicates", "gaps")


def _ignore(_name: str, _repetition: int, _found: Run | None) -> None:
    """Show no progress."""


@pytest.mark.parametrize("name", ["ipc", *(pytest.param(name, marks=pytest.mark.full) for name in NAMES[2:])])
def test_a_run_has_every_column_of_the_table(name: str) -> None:
    """All workers in the process receive every message, and the broker's processes are found by its URL."""
    with Brokers() as brokers:
        url = brokers.url(name)
        if reason := brokers.missing.get(name):
            pytest.skip(reason)
        assert bool(listeners(url)) == (name != "ipc")
        with serving(backplane(url, Serving(), app=APP)) as server:
            run = publishes.run(server, SMALL)
    assert [run.figures[column] > 0 for column in SCENARIOS["publishes"].columns] == [True] * len(publishes.COLUMNS)
    assert [run.figures[fault] for fault in FAULTS] == [0] * len(FAULTS)


def test_messages_that_are_not_received_are_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory there is one worker; what the application has missed is in the figures."""
    ask = Server.ask

    def missing(server: Server, path: str, **arguments: object) -> Any:
        found = ask(server, path, **arguments)
        return found | {"lost": 3} if path == "flood" else found

    monkeypatch.setattr(Server, "ask", missing)
    with serving(backplane("memory://", Serving(), app=APP)) as server:
        run = publishes.run(server, SMALL)
    assert run.figures["lost"] == 3
    assert "publishes_per_second_8" not in run.figures
    assert run.notes == ["one worker: memory:// reaches no other"]


def test_what_does_not_publish_by_itself_takes_no_part() -> None:
    """A floor and a server with two workers are reported with the reason."""
    choice = Choice(urls=("ipc",), floors=True, serving=Serving(workers=2))
    with Brokers() as brokers:
        section = measure_choice("publishes", choice, brokers, _ignore)
    reasons = {outcome.kind: outcome.failed for outcome in section.outcomes}
    assert reasons == {
        "floor": "it has no publishes of the application itself",
        "backplane": "what is measured is one process",
    }
