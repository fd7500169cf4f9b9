"""benchmarks/simulation/: no client is lost, the tables of the page are what the program computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from backplane import Settings
from benchmarks.harness.candidate import ROOT
from benchmarks.simulation.__main__ import app
from benchmarks.simulation.cases import CASES, simulate
from benchmarks.simulation.fleet import STEPS_PER_SECOND, Balance, Fleet, Setup
from benchmarks.simulation.tables import PAGE, recommended, rewritten

SMALL = Setup(clients=5_000, workers=5)
BALANCES: tuple[Balance, ...] = ("even", "least")


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("case", CASES)
def test_clients_are_conserved_in_every_step(case: str, balance: Balance) -> None:
    """At any time each client has a worker, pauses, or waits for its handshake, whatever is refused or abandoned."""
    setup = replace(SMALL, balance=balance, handshakes_per_second=150.0, patience_seconds=3.0)
    fleet = Fleet(setup)
    CASES[case][1](fleet)
    while fleet.is_busy and fleet.now < 5_000:
        fleet.step()
        assert fleet.connected() + fleet.away() == setup.clients
        for worker in fleet.workers:
            assert worker.connected >= 0
            assert worker.load == worker.connected + sum(each.clients for each in worker.waiting)
    assert not fleet.is_busy


def test_clients_that_wait_at_a_worker_that_drains_try_elsewhere() -> None:
    """A worker that refuses has no queue any more, and its clients come back to the others."""
    fleet = Fleet(replace(SMALL, handshakes_per_second=50.0))
    CASES["all"][1](fleet)
    for _ in range(20):
        fleet.step()
    worker = fleet.workers[0]
    waiting = sum(each.clients for each in worker.waiting)
    assert waiting > 0
    fleet.refuse(worker)
    served = worker.connected
    fleet.run()
    assert fleet.outcome.refused >= waiting
    assert worker.connected == served
    assert fleet.connected() == SMALL.clients


@pytest.mark.parametrize("case", CASES)
def test_times_may_be_zero(case: str) -> None:
    """A fleet without a drain, a start or a delay of the balancer ends as any other does."""
    fleet = Fleet(replace(SMALL, drain_seconds=0.0, notice_seconds=0.0, start_seconds=0.0, first_pause_seconds=0.0))
    CASES[case][1](fleet)
    assert fleet.run(most_seconds=60.0).steps is not None
    assert fleet.connected() == SMALL.clients
    assert fleet.outcome.refused == 0


def test_workers_replaced_at_once_shorten_a_deployment() -> None:
    """Five at a time are done in a fifth of the rounds, and ask more of the others."""
    setup = replace(SMALL, workers=10)
    one, five = (simulate("rolling", replace(setup, replaced_at_once=number)) for number in (1, 5))
    assert one.steps is not None
    assert five.steps is not None
    assert five.steps < one.steps / 4
    assert five.busiest > 2 * one.busiest


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("case", CASES)
def test_every_client_comes_back(case: str, balance: Balance) -> None:
    """At the end all are connected, and each that lost its worker is counted once as back."""
    fleet = Fleet(replace(SMALL, balance=balance))
    CASES[case][1](fleet)
    outcome = fleet.run()
    assert fleet.connected() == SMALL.clients
    closed = {"rolling": SMALL.clients, "killed": SMALL.clients // SMALL.workers}.get(case, SMALL.clients)
    assert outcome.returns.total() >= closed
    assert outcome.returns.total() == closed or (case, balance) == ("rolling", "even")  # some move more than once
    assert outcome.tries == outcome.returns.total() + outcome.refused + outcome.abandoned


@pytest.mark.parametrize("case", CASES)
def test_same_seed_is_the_same_outcome(case: str) -> None:
    """Two runs of the same setup are equal."""
    assert simulate(case, SMALL) == simulate(case, SMALL)


def test_seed_decides_what_is_random() -> None:
    """Another seed puts other clients into the steps and workers that get one more."""
    assert simulate("killed", SMALL) != simulate("killed", replace(SMALL, seed=1))


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("case", ["rolling", "gap"])
def test_longer_drain_asks_less_of_a_worker(case: str, balance: Balance) -> None:
    """With `drain_seconds` the busiest second and the longest wait only fall."""
    setup = replace(SMALL, clients=50_000, balance=balance)
    found = [simulate(case, replace(setup, drain_seconds=seconds)) for seconds in (2.5, 5.0, 10.0, 20.0, 40.0)]
    busiest = [outcome.busiest for outcome in found]
    waits = [outcome.longest_wait_steps for outcome in found]
    assert busiest == sorted(busiest, reverse=True)
    assert busiest[0] > 4 * busiest[-1]
    assert waits == sorted(waits, reverse=True)


def test_worker_takes_no_more_than_it_can() -> None:
    """A storm takes as long as the workers need for its handshakes, and not much longer."""
    outcome = simulate("all", replace(SMALL, handshakes_per_second=100.0))
    assert outcome.busiest == 1000
    assert outcome.steps is not None
    assert 10.0 <= outcome.steps / STEPS_PER_SECOND <= 11.0


def test_patience_shorter_than_the_queue_makes_handshakes_in_vain() -> None:
    """Where all wait longer than a proxy permits, the storm takes longer than the handshakes alone."""
    patient = simulate("all", replace(SMALL, handshakes_per_second=50.0))
    impatient = simulate("all", replace(SMALL, handshakes_per_second=50.0, patience_seconds=10.0))
    assert patient.abandoned == 0
    assert impatient.abandoned > SMALL.clients // 2
    assert patient.steps is not None
    assert impatient.steps is not None
    assert impatient.steps > 2 * patient.steps


def test_storm_that_never_ends_is_reported() -> None:
    """Where every handshake is in vain, the simulation ends all the same, and no share is reported as back."""
    setup = replace(SMALL, handshakes_per_second=20.0, patience_seconds=1.0, longest_pause_seconds=1.0)
    fleet = Fleet(setup)
    CASES["all"][1](fleet)
    outcome = fleet.run(most_seconds=60.0)
    assert (outcome.steps, outcome.back_seconds(0.99)) == (None, None)


def test_worker_that_is_gone_refuses_until_the_balancer_notices() -> None:
    """With fewest connections first, the killed worker gets every try until the balancer leaves it."""
    least = simulate("killed", replace(SMALL, balance="least"))
    even = simulate("killed", replace(SMALL, balance="even"))
    prompt = simulate("killed", replace(SMALL, balance="least", notice_seconds=0.0))
    assert least.refused > even.refused > prompt.refused == 0


@pytest.mark.parametrize("loads", [[0, 0, 0], [5, 0, 3], [7, 7, 1], [100, 2, 2]])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 31])
def test_fewest_first_is_what_one_after_the_other_would_be(loads: list[int], count: int) -> None:
    """Clients in one step get to the workers as if each had gone to the one with the fewest in its turn."""
    expected = loads[:]
    for _ in range(count):
        expected[expected.index(min(expected))] += 1
    shares = Fleet(SMALL).level(count, loads)
    assert sorted(load + share for load, share in zip(loads, shares, strict=True)) == sorted(expected)


def test_recommended_drain_keeps_a_worker_half_busy() -> None:
    """The clients of one worker over the recommended time are at most half of what another one takes."""
    for clients, workers in ((1_000, 4), (10_000, 4), (1_000_000, 50)):
        setup = recommended(Setup(clients=clients, workers=workers))
        assert clients / workers / setup.drain_seconds <= setup.handshakes_per_second / 2


def test_defaults_are_those_of_the_package_and_of_its_script() -> None:
    """The model drains as `Settings` does, and pauses as the script that browsers are given."""
    setup = Setup(clients=1, workers=1)
    assert setup.drain_seconds == Settings().drain_seconds
    first, longest = setup.first_pause_seconds, setup.longest_pause_seconds
    script = f"Math.random() * Math.min({longest * 1000:_.0f}, {first * 1000:.0f} * 2 ** this.#tries++)"
    assert script in (ROOT / "backplane" / "web" / "client.js").read_text(encoding="utf-8")
    assert setup.lost_pause_seconds == first


def test_page_has_the_tables_of_the_program() -> None:
    """docs/operations/scale.md shows what the simulation computes."""
    page = PAGE.read_text(encoding="utf-8")
    assert rewritten(page) == page, "run: python -m benchmarks.simulation --write"


def test_page_without_a_place_for_a_table_is_an_error() -> None:
    """A table that is on no page is noticed."""
    with pytest.raises(ValueError, match="brokers, storms, variants"):
        rewritten("no block")


def test_command_describes_one_case() -> None:
    """`python -m benchmarks.simulation CASE` prints the outcome of the setup that its options give."""
    runner = CliRunner()
    done = runner.invoke(app, ["gap", "--clients", "5000", "--workers", "5", "--drain-seconds", "10"])
    assert done.exit_code == 0, done.output
    assert "clients back                                  5,000\n" in done.output
    assert runner.invoke(app, ["gap", "--balance", "odd"]).exit_code == 2
    assert runner.invoke(app, ["flood"]).exit_code == 2
