"""`backplane.presence.protocol`: heartbeats, timers, what is received on which topic, and what is hostile."""

# pyright: reportPrivateUsage=false, reportUnknownArgumentType=false, reportUnknownLambdaType=false

from __future__ import annotations

import json
from random import Random

import pytest

from backplane.presence import protocol as module
from backplane.presence import roster
from backplane.presence.contract import INBOX, WORKERS
from backplane.presence.protocol import PresenceProtocol
from backplane.presence.times import PresenceTimes
from tests.unit.presence.kit import ME, A, B, C, Machine, Rule

ENTRY = ["u", "{}", 1.0]


def test_nothing_is_due_before_the_start_and_after_the_end() -> None:
    """Nothing is published then either."""
    protocol = PresenceProtocol(ME, times=PresenceTimes(), random=Random(1), describe=dict, rule_of=lambda _: Rule())
    assert protocol.next_due() is None
    protocol.link_live(0)
    protocol.stop(0)
    assert protocol.take_outgoing() == []
    protocol.start(0)
    protocol.enter("c", "1", "u", "{}", 1.0, 0)
    protocol.enter("d", "1", "u", "{}", 1.0, 0)
    protocol.subscribed("c", 0)
    protocol.stop(0)
    protocol.stop(0)
    kinds = [json.loads(item.text)[0] for item in protocol.take_outgoing()]
    assert kinds == ["beat", "delta", "bye"]
    assert protocol.next_due() is None
    protocol.run(100)
    assert protocol.take_outgoing() == []


def test_a_stop_while_the_link_is_away_publishes_nothing() -> None:
    """The others see it by its silence."""
    machine = Machine()
    machine.protocol.link_lost(machine.now)
    machine.sent.clear()
    machine.protocol.stop(machine.now)
    machine.drain()
    assert machine.sent == []


def test_heartbeats_are_numbered() -> None:
    """One every 3 s, drawn a little shorter; one at once when the link is back."""
    machine = Machine()
    assert machine.take("beat") == [["beat", ME, 1, {"pid": 1}]]
    machine.pass_time(30)
    numbers = [beat[2] for beat in machine.take("beat")]
    assert numbers == list(range(2, 2 + len(numbers)))
    assert 10 <= len(numbers) <= 12
    machine.protocol.link_lost(machine.now)
    machine.protocol.link_live(machine.now)
    machine.drain()
    assert len(machine.take("beat")) == 1


def test_a_worker_that_is_silent_is_dead_and_its_entries_go() -> None:
    """After 10 s; the grace begins then."""
    machine = Machine()
    machine.receive(WORKERS, "beat", A, 1, {"pid": 3})
    machine.sure("c")
    machine.receive("c", "delta", A, 0, 1, {"1": ENTRY}, [], None, 1)
    machine.pass_time(6.9)
    assert machine.view("c").connections == 1
    machine.pass_time(0.2)
    assert machine.view("c").connections == 0
    assert machine.users("c") == ["u"]
    machine.pass_time(5)
    assert machine.users("c") == []
    [worker] = machine.protocol.workers(machine.now)
    assert (worker.origin, worker.alive, worker.info) == (A, False, {"pid": 3})


def test_no_worker_is_dead_because_the_own_link_was_away() -> None:
    """Nor because this process did not run."""
    machine = Machine()
    machine.receive(WORKERS, "beat", A, 1, {})
    machine.protocol.link_lost(machine.now)
    machine.pass_time(60)
    machine.protocol.link_live(machine.now)
    machine.pass_time(9)
    machine.receive(WORKERS, "beat", A, 2, {})
    assert machine.protocol.workers(machine.now)[0].alive
    machine.now += 60
    machine.receive(WORKERS, "beat", B, 2, {})
    machine.pass_time(6)
    assert [worker.alive for worker in machine.protocol.workers(machine.now)] == [True, True]
    machine.pass_time(5)
    assert [worker.alive for worker in machine.protocol.workers(machine.now)] == [False, False]


def test_a_pause_is_seen_by_what_was_due_in_it() -> None:
    """However lately that was planned, and whatever is received first after it."""
    machine = Machine()
    machine.receive(WORKERS, "beat", A, 1, {})
    machine.enter("c", "1")  # due in 0.1 s
    machine.now += 2.5
    machine.receive("c", "beacon", A, 1, 0)
    machine.pass_time(9.8)
    assert machine.protocol.workers(machine.now)[0].alive
    machine.pass_time(0.2)
    assert not machine.protocol.workers(machine.now)[0].alive


def test_a_lost_answer_is_asked_for_again() -> None:
    """Where a view is not sure."""
    machine = Machine()
    machine.receive(WORKERS, "beat", A, 1, {})
    machine.sure("c")
    machine.watch("d")
    machine.pass_time(0.1)
    machine.sent.clear()
    machine.protocol.gap(INBOX, machine.now)
    machine.pass_time(3)
    assert {topic for topic, fields, _ in machine.sent if fields[0] == "ask"} == {"d"}


def test_messages_count_on_their_own_topic_alone() -> None:
    """One of this worker is ignored on each."""
    machine = Machine()
    machine.watch("c")
    for topic in (WORKERS, INBOX, "c"):
        machine.receive(topic, "beat", ME, 99, {})
        machine.receive(topic, "beat", A, 1, {})
        machine.receive(topic, "snap", A, 1, {})
        machine.receive(topic, "view", A, "c", {}, True, 0)
    assert machine.protocol.counters["in.invalid"] == 6
    assert machine.protocol.counters["in.heartbeat"] == 3
    assert machine.protocol.counters["in.unasked"] == 1
    machine.protocol.received("c", "{", machine.now)
    machine.protocol.received("c", '["later"]', machine.now)
    assert machine.protocol.counters["in.invalid"] == 7
    assert machine.protocol.counters["in.unknown"] == 1


def test_a_flood_of_workers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are known stay."""
    monkeypatch.setattr(roster, "MAX_WORKERS", 3)
    machine = Machine()
    machine.receive(WORKERS, "beat", A, 1, {})
    machine.watch("c")
    machine.pass_time(0.01)
    [ask] = machine.take("ask")
    for number in range(10):
        machine.receive(WORKERS, "beat", f"{number:016x}"[::-1], 1, {})
        machine.receive("c", "snap", f"{number:08x}" * 2, 1, {})
        machine.receive(INBOX, "view", f"{number:04x}" * 4, "c", {}, True, ask[5])
    machine.receive(INBOX, "view", A, "c", {"f" * 16: [1, {"1": ENTRY}, 0, 0]}, True, ask[5])
    assert len(machine.protocol.workers(machine.now)) == 3
    assert machine.protocol.counters["in.crowd"] > 20
    assert machine.view("c").connections == 0
    assert machine.view("c").sure


def test_a_worker_that_claims_a_million_entries_takes_no_memory() -> None:
    """Only their number is held."""
    machine = Machine()
    machine.sure("c")
    machine.receive("c", "snap", A, 1, {f"{number}": ENTRY for number in range(20_000)})
    assert machine.view("c").users is None
    held = machine.protocol._channels["c"]._view.held  # type: ignore[union-attr]
    assert (held[A].entries, held[A].count) == (None, 20_000)


def test_a_goodbye_of_an_unknown_worker_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is counted where there is no room for it."""
    machine = Machine()
    machine.receive(WORKERS, "bye", A, 1)
    assert [worker.alive for worker in machine.protocol.workers(machine.now)] == [False]
    monkeypatch.setattr(roster, "MAX_WORKERS", 1)
    machine.receive(WORKERS, "beat", A, 2, {})
    machine.receive(WORKERS, "bye", B, 1)
    assert machine.protocol.counters["in.crowd"] == 1


def test_channels_that_linger_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was left first is unsubscribed from."""
    monkeypatch.setattr(module, "_MAX_LINGERING", 2)
    machine = Machine()
    for channel in "abcd":
        machine.enter(channel, "1")
        machine.pass_time(1)
        machine.exit(channel, "1")
        machine.pass_time(1)
    assert [channel for channel, wanted in machine.subscriptions if not wanted] == ["a", "b"]
    machine.watch("c")
    machine.pass_time(1)
    machine.enter("e", "1")
    machine.pass_time(1)
    machine.exit("e", "1")
    machine.pass_time(1)
    assert [channel for channel, wanted in machine.subscriptions if not wanted] == ["a", "b"]
    machine.enter("d", "1")
    machine.pass_time(1)
    assert machine.protocol.view("unknown") is None


def test_calls_for_channels_that_are_not_there_do_nothing() -> None:
    """A caller can be late."""
    machine = Machine()
    machine.protocol.subscribed("x", machine.now)
    machine.protocol.unwatch("x", machine.now)
    machine.protocol.update("x", "1", "{}", 1.0, machine.now)
    machine.protocol.exit("x", "1", machine.now)
    machine.drain()
    assert machine.subscriptions == []


def test_a_worker_that_did_not_run_for_long_begins_anew() -> None:
    """The others have taken it for dead, and it knows nothing of those that were started meanwhile."""
    machine = Machine()
    machine.enter("c", "1")
    machine.sure("c")
    machine.now += 9
    machine.protocol.run(machine.now)
    machine.drain()
    assert not machine.view("c").stale
    machine.pass_time(3)
    machine.now += 20
    machine.protocol.run(machine.now)
    machine.drain()
    assert machine.view("c").stale
    machine.sent.clear()
    machine.pass_time(1.1)
    kinds = [fields[0] for _, fields, _ in machine.sent]
    assert kinds.count("beacon") == 1
    assert "ask" in kinds


@pytest.mark.parametrize("mentions", [0, 1])
def test_a_worker_that_is_met_late_has_stated_what_was_not_received(mentions: int) -> None:
    """One that has just been started has not, and right after the own start all are met."""
    machine = Machine()
    machine.sure("c")
    machine.receive(WORKERS, "beat", A, 7, {"pid": 2})
    machine.pass_time(10)
    machine.receive(WORKERS, "beat", B, 1, {"pid": 3})
    assert not machine.view("c").stale
    for _ in range(mentions):
        machine.receive("c", "beacon", C, 0, 0)
    machine.receive(WORKERS, "beat", C, 7, {"pid": 3})
    assert machine.view("c").stale
    machine.pass_time(1.1)
    assert machine.take("ask")


def test_what_asks_and_states_nothing_is_no_worker() -> None:
    """An observer that asks is answered, and is not taken for a worker that then ends."""
    machine = Machine()
    machine.enter("c", "1")
    machine.pass_time(1)
    machine.receive("c", "ask", B, {}, True, 0, 7)
    machine.drain()
    assert [state[0] for state in machine.take("view")] == ["view"]
    assert machine.protocol.workers(machine.now) == []


def test_a_worker_that_did_not_run_sends_its_heartbeat_first() -> None:
    """The others have taken it for dead: whatever else is due means nothing to them before."""
    machine = Machine()
    machine.sure("c")
    machine.enter("c", "1")
    machine.pass_time(0.05)
    machine.now += 20
    machine.protocol.run(machine.now)
    machine.drain()
    assert machine.view("c").stale
    machine.pass_time(0.1)
    assert [fields[0] for _, fields, _ in machine.sent][:2] == ["beat", "delta"]
    machine.exit("c", "1")
    machine.sent.clear()
    machine.now += 1.5
    machine.protocol.run(machine.now)
    machine.drain()
    assert [fields[0] for _, fields, _ in machine.sent] == ["delta"]


def test_a_worker_that_is_dead_elsewhere_is_dead_unless_more_is_known_of_it() -> None:
    """One that did not run, or was away, does not wait as long as the others have."""
    machine = Machine()
    machine.receive(WORKERS, "beat", A, 5, {})
    machine.sure("c")
    machine.receive("c", "snap", A, 1, {"1": ENTRY})
    machine.receive(INBOX, "bye", A, 4)
    machine.receive(INBOX, "bye", B, 4)
    machine.receive(INBOX, "bye", ME, 4)
    assert machine.view("c").connections == 1
    machine.receive(INBOX, "bye", A, 5)
    assert machine.view("c").connections == 0
    machine.receive(INBOX, "bye", A, 5)
    assert [worker.alive for worker in machine.protocol.workers(machine.now)] == [False]
    machine.receive(WORKERS, "beat", A, 6, {})
    assert [worker.alive for worker in machine.protocol.workers(machine.now)] == [True]


def test_the_dead_are_named_to_one_that_has_entries_of_them() -> None:
    """By those that answer it."""
    machine = Machine()
    machine.receive(WORKERS, "beat", A, 7, {})
    machine.watch("c")
    machine.pass_time(11)
    machine.receive(WORKERS, "beat", B, 1, {})
    machine.sent.clear()
    machine.receive("c", "ask", B, {A: 3, C: 1}, True, 0, 9)
    assert machine.take("bye") == []
    machine.enter("c", "1")
    machine.pass_time(1)
    for everyone in (True, False):
        machine.sent.clear()
        machine.receive("c", "ask", B, {A: 3, C: 1}, everyone, 0, 9)
        assert (INBOX, ["bye", A, 7], B) in machine.sent
        assert len(machine.take("bye")) == 1


def test_no_grace_ends_before_the_messages_are_read_that_waited() -> None:
    """A worker that did not run may have little left of it, and its user may be back."""
    machine = Machine()
    machine.sure("c")
    machine.receive("c", "delta", A, 0, 1, {"1": ENTRY}, [], None, 1)
    machine.receive("c", "delta", A, 1, 2, {}, ["1"], None, 0)
    machine.pass_time(4.9)
    machine.now += 8
    machine.protocol.run(machine.now)
    machine.drain()
    machine.pass_time(1)
    assert machine.users("c") == ["u"]
    machine.receive("c", "delta", A, 2, 3, {"2": ENTRY}, [], None, 1)
    assert [event.left for _, event in machine.events if event.left] == []


def test_an_owner_that_did_not_run_names_its_version() -> None:
    """Those that asked meanwhile are complete without it, and have answered others so."""
    machine = Machine()
    machine.enter("c", "1")
    machine.pass_time(5)
    machine.sent.clear()
    machine.now += 6
    machine.protocol.run(machine.now)
    machine.drain()
    machine.pass_time(1)
    assert machine.take("beacon") == [["beacon", ME, 1, 1]]


def test_one_that_did_not_run_answers_for_itself_alone_at_first() -> None:
    """Messages of others that wait may be read later than a request."""
    machine = Machine()
    machine.receive(WORKERS, "beat", A, 1, {})
    machine.enter("c", "1")
    machine.sure("c")
    machine.now += 4
    for whole in (False, True):
        machine.receive("c", "ask", B, {}, False, 0, 9)
        assert [state[4] for state in machine.take("view")] == [whole]
        machine.pass_time(2)
