"""The scenario `history`: it has every figure, and finds what is wrong."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from benchmarks.choice import Choice, measure_choice
from benchmarks.harness.brokers import Brokers
from benchmarks.harness.candidate import Serving, backplane, floors
from benchmarks.harness.run import Options
from benchmarks.harness.server import Server, serving
from benchmarks.scenarios import history
from benchmarks.scenarios.catalog import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Generator

    from benchmarks.harness.run import Run

pytestmark = pytest.mark.timeout(120)

SMALL = Options(connections=20, channels=4, seconds=0.1, repaired=50, stalls=True)
APP = SCENARIOS["history"].app
FAULTS = ("lost", "duplicates", "reordered", "astray", "closed", "gaps")


def _ignore(_name: str, _repetition: int, _found: Run | None) -> None:
    """Show no progress."""


@contextmanager
def app_without_a_broker(**environment: str) -> Generator[Server]:
    """The application of the scenario, in one process."""
    candidate = backplane("memory://", Serving(), app=APP)
    with serving(replace(candidate, environment={**candidate.environment, **environment}), stalls=True) as server:
        yield server


@pytest.mark.parametrize("name", ["redis", "nats"])
def test_a_run_with_a_broker_has_every_column_of_the_table(name: str) -> None:
    """Cost, storm and repair are measured, each message is given back once, and clients that resume share reads."""
    with Brokers() as brokers:
        url = brokers.url(name)
        with serving(backplane(url, Serving(), app=APP), stalls=True) as server:
            run = history.run(server, SMALL)
    assert {column for column in SCENARIOS["history"].columns if column not in run.figures} == set()
    assert [run.figures[fault] for fault in FAULTS] == [0] * len(FAULTS)
    assert 1 <= run.figures["storm_reads"] <= 2 * SMALL.channels


def test_a_run_in_one_process_has_no_receiver_and_no_repair() -> None:
    """What does not exist in memory is left out with its reason."""
    with app_without_a_broker() as server:
        run = history.run(server, SMALL)
    assert run.figures["publish_times"] > 0
    assert [run.figures[fault] for fault in FAULTS] == [0] * len(FAULTS)
    assert not {figure for figure in run.figures if figure.startswith(("receive", "repair", "broker"))}
    assert any("no link that could be lost" in note for note in run.notes)


def test_clients_that_get_other_messages_than_they_missed_are_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where clients pass a position that is older than the one they are taken to have, what they get twice is found."""
    ask = Server.ask

    def older(server: Server, path: str, **arguments: object) -> object:
        return ask(server, path, **arguments | ({"after": 29} if path == "fill" else {}))

    monkeypatch.setattr(Server, "ask", older)
    with app_without_a_broker() as server:
        run = history.run(server, SMALL)
    assert run.figures["astray"] == SMALL.connections


def test_what_has_no_history_takes_no_part() -> None:
    """A floor and a server with two workers are reported with the reason."""
    assert floors()
    with Brokers() as brokers:
        section = measure_choice(
            "history", Choice(urls=("ipc",), floors=True, serving=Serving(workers=2)), brokers, _ignore
        )
    reasons = {outcome.kind: outcome.failed for outcome in section.outcomes}
    assert reasons == {"floor": "it has no history", "backplane": "what is measured is one process"}
