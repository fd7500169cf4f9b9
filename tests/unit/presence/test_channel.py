"""`backplane.presence.channel`: what one channel publishes and when, and which answers it gives."""

# pyright: reportPrivateUsage=false, reportUnknownArgumentType=false, reportUnknownLambdaType=false

from __future__ import annotations

from math import inf
from typing import Any
from zlib import crc32

import pytest

from backplane.presence import channel as module
from backplane.presence.channel import Channel, Shared
from backplane.presence.contract import INBOX, WORKERS, Present
from backplane.presence.times import PresenceTimes
from tests.unit.presence.kit import ME, A, B, Machine, Rule

ENTRY = ["u", "{}", 1.0]


def chosen(asker: str) -> str:
    """Return a channel of which `ME` is the responder, not `A`, for an asker."""
    for number in range(100):
        salt = f"{asker}c{number}".encode()
        if crc32(salt, crc32(ME.encode())) > crc32(salt, crc32(A.encode())):
            return f"c{number}"
    raise AssertionError


@pytest.fixture
def machine() -> Machine:
    """Return a protocol that knows another worker."""
    machine = Machine()
    machine.receive(WORKERS, "beat", A, 1, {})
    machine.sent.clear()
    return machine


def keep_alive(machine: Machine, seconds: float) -> None:
    """Let time pass with heartbeats of the other worker."""
    for _ in range(round(seconds)):
        machine.receive(WORKERS, "beat", A, int(machine.now * 10), {})
        machine.pass_time(1)


# -- entering ----------------------------------------------------------------------------------------------------------


def test_changes_wait_for_others_and_are_published_together(machine: Machine) -> None:
    """A first change waits 0.1 s."""
    machine.enter("c", "1")
    machine.enter("c", "2")
    machine.pass_time(0.09)
    assert machine.take("delta") == []
    machine.pass_time(0.02)
    [delta] = machine.take("delta")
    assert delta == ["delta", ME, 0, 1, {"1": ENTRY, "2": ENTRY}, [], None, 2]
    machine.protocol.update("c", "1", "[]", 2.0, machine.now)
    machine.protocol.update("c", "3", "[]", 2.0, machine.now)
    machine.protocol.update("x", "3", "[]", 2.0, machine.now)
    machine.exit("x", "3")
    machine.pass_time(0.2)
    assert machine.take("delta") == [["delta", ME, 1, 2, {"1": ["u", "[]", 2.0]}, [], None, 2]]
    machine.enter("c", "3")
    machine.exit("c", "3")
    machine.pass_time(1)
    assert machine.sent == []
    assert machine.protocol.view("c") is None


def test_the_info_that_was_changed_last_is_shown(machine: Machine) -> None:
    """A user who types in the window that was opened first is shown as typing; the same info again is no change."""
    machine.watch("c")
    machine.protocol.enter("c", "first", "u", "1", 1.0, machine.now)
    machine.protocol.enter("c", "second", "u", "2", 2.0, machine.now)
    machine.pass_time(2)
    machine.take("delta")
    for info, since, shown in (("3", 3.0, "3"), ("3", 4.0, "3"), ("4", 1.0, "4")):
        machine.protocol.update("c", "first", info, since, machine.now)
        machine.pass_time(1)
        view = machine.protocol.view("c")
        assert view is not None
        assert view.users == {"u": Present("u", shown, 3.0, 2)}
    assert [delta[4] for delta in machine.take("delta")] == [{"first": ["u", "3", 3.0]}, {"first": ["u", "4", 3.0]}]


def test_nothing_is_published_before_the_subscription_is_confirmed() -> None:
    """A request about it would be missed."""
    machine = Machine()
    machine.protocol.enter("c", "1", "u", "{}", 1.0, machine.now)
    machine.drain()
    machine.pass_time(5)
    assert machine.take("delta") == []
    machine.subscribed("c")
    machine.subscribed("c")
    machine.subscribed("unknown")
    machine.pass_time(0.2)
    assert len(machine.take("delta")) == 1


def test_a_channel_with_many_workers_flushes_more_rarely(machine: Machine) -> None:
    """A channel costs a worker about 20 messages a second, however many workers there are."""
    for number in range(60):
        machine.receive(WORKERS, "beat", f"{number:016x}", 1, {})
    machine.enter("c", "1")
    for number in range(60):
        machine.receive("c", "delta", f"{number:016x}", 0, 1, {"1": ENTRY}, [], None, 1)
    machine.pass_time(0.2)
    assert len(machine.take("delta")) == 1
    machine.enter("c", "2")
    machine.pass_time(2.5)
    assert machine.take("delta") == []
    machine.pass_time(1)
    assert len(machine.take("delta")) == 1


def test_a_channel_that_is_left_before_the_flush_is_not_published(machine: Machine) -> None:
    """And is unsubscribed from at once."""
    machine.enter("c", "1")
    machine.exit("c", "1")
    machine.pass_time(0.2)
    assert machine.sent == []
    assert machine.subscriptions == [("c", True), ("c", False)]


def test_an_owner_lingers_for_three_beacons_and_never_uses_its_versions_again(machine: Machine) -> None:
    """Requests about the last change are answered meanwhile."""
    machine.enter("c", "1")
    machine.pass_time(1)
    machine.exit("c", "1")
    machine.pass_time(1)
    assert machine.take("delta")[-1] == ["delta", ME, 1, 2, {}, ["1"], None, 0]
    machine.pass_time(880)
    assert machine.subscriptions == [("c", True)]
    assert [beacon[2:] for beacon in machine.take("beacon")] == [[2, 0]] * 3
    machine.pass_time(30)
    assert machine.subscriptions == [("c", True), ("c", False)]
    machine.enter("c", "1")
    machine.pass_time(1)
    assert machine.take("delta")[-1] == ["delta", ME, 0, 3, {"1": ENTRY}, [], None, 1]


def test_an_owner_that_is_empty_and_watches_keeps_its_view(machine: Machine) -> None:
    """It forgets what it has published all the same."""
    machine.enter("c", "1")
    machine.watch("c")
    machine.pass_time(1)
    machine.exit("c", "1")
    machine.pass_time(1_000)
    assert machine.subscriptions == [("c", True)]
    assert machine.users("c") == []


def test_a_quiet_owner_names_its_version() -> None:
    """Every 240 to 300 s, and once more soon after each message where that is set."""
    machine = Machine(PresenceTimes(repeat=10))
    machine.enter("c", "1")
    machine.pass_time(9)
    assert machine.take("beacon") == []
    machine.pass_time(2)
    assert machine.take("beacon") == [["beacon", ME, 1, 1]]
    machine.pass_time(200)
    assert machine.take("beacon") == []
    machine.pass_time(110)
    assert machine.take("beacon") == [["beacon", ME, 1, 1]]


# -- failures ----------------------------------------------------------------------------------------------------------


def test_what_was_not_published_is_published_as_a_whole(machine: Machine) -> None:
    """Ever more rarely, and not what was never published."""
    machine.enter("c", "1")
    machine.protocol.publish_failed("c", machine.now)
    machine.protocol.publish_failed("x", machine.now)
    machine.protocol.publish_failed(WORKERS, machine.now)
    machine.pass_time(1)
    machine.take("delta")
    machine.protocol.publish_failed("c", machine.now)
    machine.pass_time(1.5)
    assert machine.take("snap") == [["snap", ME, 1, {"1": ENTRY}]]
    tries = 0
    for _ in range(200):
        machine.protocol.publish_failed("c", machine.now)
        machine.pass_time(1)
        tries += len(machine.take("snap"))
    assert 5 < tries < 20


def test_what_changes_while_the_link_is_away_is_published_when_it_is_back(machine: Machine) -> None:
    """The whole, where a message may not have been published; within a second."""
    machine.enter("c", "1")
    machine.enter("d", "1")
    machine.enter("e", "1")
    machine.pass_time(1)
    machine.protocol.link_lost(machine.now)
    machine.protocol.publish_failed("c", machine.now)
    machine.enter("d", "2")
    machine.sent.clear()
    machine.pass_time(60)
    assert machine.sent == []
    machine.protocol.link_live(machine.now)
    machine.drain()
    machine.pass_time(1.2)
    topics = {topic: fields for topic, fields, _ in machine.sent}
    assert topics["c"] == ["snap", ME, 1, {"1": ENTRY}]
    assert topics["d"] == ["delta", ME, 1, 2, {"2": ENTRY}, [], None, 2]
    assert topics["e"] == ["beacon", ME, 1, 1]


def test_an_owner_names_its_version_after_a_gap(machine: Machine) -> None:
    """A request may be missing: also of an owner that does not watch."""
    machine.enter("c", "1")
    machine.pass_time(1)
    machine.sent.clear()
    machine.protocol.gap("c", machine.now)
    machine.protocol.gap("x", machine.now)
    machine.protocol.gap(WORKERS, machine.now)
    machine.pass_time(1.1)
    assert machine.take("beacon") == [["beacon", ME, 1, 1]]


# -- views -------------------------------------------------------------------------------------------------------------


def test_a_watcher_asks_and_is_sure_once_it_has_an_answer_that_is_whole(machine: Machine) -> None:
    """One round trip."""
    machine.watch("c")
    machine.watch("c")
    machine.pass_time(0.01)
    [ask] = machine.take("ask")
    assert ask[:5] == ["ask", ME, {}, False, 0]
    assert machine.view("c").stale
    fact = [3, {"9": ENTRY}, 0.0, 0.0]
    machine.receive(INBOX, "view", A, "c", {B: fact, ME: [9, {}, 0, 0]}, True, ask[5])
    view = machine.view("c")
    assert (machine.users("c"), view.connections, view.sure, view.stale) == (["u"], 1, True, False)
    assert machine.kinds() == ["change", "fresh"]
    machine.receive(INBOX, "view", A, "c", {B: fact}, True, ask[5])
    assert machine.kinds() == []


def test_a_difference_carries_the_request_of_a_watcher_that_enters(machine: Machine) -> None:
    """One message in place of two; with everything else they are two."""
    machine.enter("c", "1")
    machine.watch("c")
    machine.pass_time(0.01)
    assert [fields[0] for _, fields, _ in machine.sent] == ["delta"]
    [delta] = machine.take("delta")
    assert delta[6][:2] == [{}, False]
    machine.pass_time(3)
    machine.protocol.publish_failed("c", machine.now)
    machine.enter("c", "2")
    machine.sent.clear()
    machine.protocol.gap("c", machine.now)
    machine.pass_time(2)
    assert {fields[0] for _, fields, _ in machine.sent} >= {"snap", "ask"}


def test_an_owner_that_begins_to_watch_knows_its_own(machine: Machine) -> None:
    """At once, though it is not sure of the others."""
    machine.enter("c", "1")
    machine.pass_time(1)
    machine.watch("c")
    assert machine.users("c") == ["u"]
    machine.pass_time(0.01)
    assert machine.take("ask")[0][4] == 1


def test_without_another_worker_a_view_is_sure_at_once() -> None:
    """Once heartbeats of others would have been received."""
    machine = Machine()
    machine.pass_time(5)
    machine.watch("c")
    machine.pass_time(0.01)
    assert machine.view("c").sure


def test_what_was_never_asked_for_is_counted(machine: Machine) -> None:
    """And is not used."""
    machine.watch("c")
    machine.enter("d", "1")
    for channel in ("c", "d", "x"):
        machine.receive(INBOX, "view", A, channel, {B: [1, {"1": ENTRY}, 0, 0]}, True, 1)
    machine.receive("x", "beacon", A, 1, 1)
    assert machine.protocol.counters["in.unasked"] == 4
    assert machine.users("c") == []


def test_a_version_that_is_missing_is_asked_for(machine: Machine) -> None:
    """Whichever message names it."""
    machine.sure("c")
    messages: tuple[tuple[int, list[Any]], ...] = (
        (1, ["beacon", A, 1, 1]),
        (2, ["ask", A, {}, True, 2, 7]),
        (3, ["ask", B, {A: 3, ME: 9, "d" * 16: 1}, True, 0, 7]),
        (9, ["delta", A, 8, 9, {}, [], None, 1]),
    )
    for version, message in messages:
        machine.receive("c", *message)
        machine.pass_time(0.5)
        assert machine.take("ask") != [], message
        machine.receive("c", "snap", A, version, {})
        keep_alive(machine, 4)
        machine.sent.clear()


def test_what_only_a_dead_worker_could_answer_is_not_asked_for(machine: Machine) -> None:
    """Its version is remembered, and asked for when it is back."""
    machine.sure("c")
    machine.receive("c", "snap", A, 1, {"1": ENTRY})
    assert machine.users("c") == ["u"]
    machine.receive(WORKERS, "bye", A, 9_000)
    assert machine.view("c").connections == 0
    machine.receive("c", "snap", A, 2, {"1": ENTRY})
    machine.enter("d", "1")
    machine.receive("d", "beacon", A, 2, 1)
    machine.pass_time(6)
    assert machine.take("ask") == []
    assert machine.users("c") == []
    machine.receive(WORKERS, "beat", A, 9_001, {})
    machine.pass_time(1.1)
    assert machine.take("ask")[0][2] == {}


def test_an_answer_names_what_the_dead_and_lost_messages_held(machine: Machine) -> None:
    """A fact without entries is a version to ask for."""
    machine.watch("c")
    machine.pass_time(0.01)
    number = machine.take("ask")[0][5]
    machine.receive(WORKERS, "bye", B, 5)
    facts = {A: [2, None, 0, 0], B: [1, {"1": ENTRY}, 0, 0]}
    machine.receive(INBOX, "view", A, "c", facts, True, number)
    assert (machine.users("c"), machine.view("c").sure) == ([], True)
    machine.pass_time(1.5)
    [ask] = machine.take("ask")[:1]
    assert ask[3] is True


def test_a_view_lasts_a_little_longer_than_its_watchers(machine: Machine) -> None:
    """The next one finds it sure; then the channel is unsubscribed from."""
    machine.sure("c")
    machine.protocol.unwatch("c", machine.now)
    machine.protocol.unwatch("x", machine.now)
    machine.pass_time(20)
    machine.watch("c")
    machine.pass_time(20)
    assert machine.view("c").sure
    machine.protocol.unwatch("c", machine.now)
    machine.pass_time(31)
    assert machine.protocol.view("c") is None
    assert machine.subscriptions == [("c", True), ("c", False)]


def test_an_owner_without_watchers_still_counts_the_workers(machine: Machine) -> None:
    """From what the view knew, and what it receives."""
    machine.enter("c", "1")
    machine.sure("c")
    machine.receive("c", "snap", A, 5, 3)
    machine.protocol.unwatch("c", machine.now)
    machine.protocol.unwatch("d", machine.now)
    keep_alive(machine, 32)
    machine.receive("c", "snap", A, 4, {})
    machine.protocol.unwatch("c", machine.now)
    machine.receive("c", "snap", A, 6, {"1": ENTRY})
    machine.receive("c", "ask", A, {}, False, 6, 7)
    assert len(machine.take("view")) == 1


def test_a_user_that_left_before_an_outage_is_not_reported_during_it(machine: Machine) -> None:
    """It may be back on another worker, or have been: its grace begins anew."""
    machine.sure("c")
    machine.receive("c", "delta", A, 0, 1, {"1": ENTRY}, [], None, 1)
    machine.receive("c", "delta", A, 1, 2, {}, ["1"], None, 0)
    assert machine.kinds() == ["change"]
    machine.protocol.link_lost(machine.now)
    machine.protocol.link_lost(machine.now)
    machine.drain()
    assert machine.kinds() == ["stale"]
    machine.pass_time(30)
    machine.protocol.link_live(machine.now)
    machine.protocol.link_live(machine.now)
    machine.pass_time(1)
    assert machine.kinds() == []
    machine.pass_time(3)
    assert machine.kinds() == ["fresh"]
    assert machine.users("c") == ["u"]
    machine.pass_time(5)
    assert machine.kinds() == ["change"]


def test_a_grace_ends_at_its_time(machine: Machine) -> None:
    """While the view is sure."""
    machine.sure("c")
    machine.receive("c", "delta", A, 0, 1, {"1": ENTRY}, [], None, 1)
    machine.receive("c", "delta", A, 1, 2, {}, ["1"], None, 0)
    machine.pass_time(4.9)
    assert machine.users("c") == ["u"]
    machine.pass_time(0.2)
    assert machine.users("c") == []


def test_an_owner_that_is_silent_for_two_and_a_half_beacons_has_no_entries(machine: Machine) -> None:
    """No ghost lasts longer, whatever was lost."""
    machine = Machine(PresenceTimes(beacon=10))
    machine.receive(WORKERS, "beat", A, 1, {})
    machine.sure("c")
    machine.receive("c", "snap", A, 1, {"1": ENTRY})
    keep_alive(machine, 20)
    assert machine.view("c").connections == 1
    keep_alive(machine, 11)
    assert machine.view("c").connections == 0


def test_a_dead_worker_that_is_forgotten_is_forgotten_in_views(machine: Machine) -> None:
    """After an hour, where no beacon would end it."""
    machine = Machine(PresenceTimes(beacon=inf))
    machine.sure("c")
    machine.enter("d", "1")
    machine.receive("c", "snap", A, 1, {"1": ENTRY})
    machine.receive(WORKERS, "bye", A, 5)
    machine.pass_time(3_700)
    assert machine.protocol.workers(machine.now) == []
    machine.receive("c", "snap", A, 1, {"1": ENTRY})
    assert machine.view("c").connections == 1


# -- answers -----------------------------------------------------------------------------------------------------------


def test_the_responder_sends_what_the_asker_does_not_hold(machine: Machine) -> None:
    """In one message to its inbox, that is whole."""
    channel = chosen(B)
    machine.enter(channel, "1")
    machine.sure(channel)
    machine.receive(channel, "snap", A, 4, {"9": ENTRY})
    machine.receive(channel, "snap", B, 4, {"8": ENTRY})
    machine.sent.clear()
    machine.receive(channel, "ask", B, {A: 4}, False, 4, 7)
    [(topic, fields, worker)] = machine.sent
    assert (topic, worker) == (INBOX, B)
    assert fields[:3] + fields[4:] == ["view", ME, channel, True, 7]
    assert {owner: fact[:2] for owner, fact in fields[3].items()} == {ME: [1, {"1": ENTRY}]}
    machine.sent.clear()
    machine.receive(channel, "ask", B, {ME: 1}, False, 4, 8)
    assert machine.take("view")[0][3][A][:2] == [4, {"9": ENTRY}]
    machine.receive(channel, "snap", A, 5, 900)
    machine.receive(channel, "ask", B, {ME: 1}, False, 4, 9)
    assert machine.take("view")[0][3][A][:2] == [5, 900]


def test_a_responder_that_is_not_sure_answers_for_itself(machine: Machine) -> None:
    """So does one that does not watch, or misses something."""
    channel = chosen(B)
    machine.enter(channel, "1")
    machine.pass_time(5)
    own = {ME: [1, {"1": ENTRY}, 0, 0]}
    machine.receive(channel, "ask", B, {}, False, 0, 7)
    assert [answer[3:] for answer in machine.take("view")] == [[own, False, 7]]
    machine.receive(channel, "ask", B, {ME: 1}, False, 0, 7)
    assert machine.take("view") == []
    machine.watch(channel)
    machine.receive(channel, "ask", B, {}, False, 0, 7)
    assert [answer[3:] for answer in machine.take("view")] == [[own, False, 7]]
    machine.pass_time(3)
    machine.receive(channel, "beacon", A, 3, 1)
    machine.receive(channel, "ask", B, {}, False, 0, 7)
    assert [answer[3:] for answer in machine.take("view")] == [[own, False, 7]]


def test_every_owner_answers_a_request_to_everyone(machine: Machine) -> None:
    """For itself; one without anything to state does not."""
    machine.enter("c", "1")
    machine.receive("c", "ask", B, {}, True, 0, 7)
    assert machine.take("view") == []
    machine.pass_time(5)
    machine.receive("c", "ask", B, {}, True, 0, 7)
    assert len(machine.take("view")) == 1


def test_who_is_not_the_responder_answers_only_if_it_has_just_published(machine: Machine) -> None:
    """The responder may not have received it yet."""
    channel = next(
        f"c{number}"
        for number in range(100)
        if crc32(f"{B}c{number}".encode(), crc32(ME.encode())) < crc32(f"{B}c{number}".encode(), crc32(A.encode()))
    )
    machine.enter(channel, "1")
    machine.sure(channel)
    machine.receive(channel, "snap", A, 4, {"9": ENTRY})
    machine.receive(channel, "ask", B, {}, False, 0, 7)
    assert machine.take("view") == []
    machine.enter(channel, "2")
    machine.pass_time(0.2)
    machine.sent.clear()
    machine.receive(channel, "ask", B, {}, False, 0, 7)
    assert [answer[4] for answer in machine.take("view")] == [False]


def test_a_worker_without_entries_does_not_answer(machine: Machine) -> None:
    """However sure it is: those that own some do."""
    machine.sure("c")
    machine.receive("c", "ask", B, {}, False, 0, 7)
    machine.receive("c", "ask", B, {}, True, 0, 7)
    assert machine.take("view") == []


def test_a_large_answer_is_several_messages(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one is whole, and names what the others hold."""
    monkeypatch.setattr(module, "_ANSWER_ENTRIES", 2)
    channel = chosen(B)
    machine.enter(channel, "1")
    machine.sure(channel)
    machine.receive(channel, "snap", A, 4, {"8": ENTRY, "9": ENTRY})
    machine.receive(channel, "ask", B, {}, False, 0, 7)
    first, last = machine.take("view")
    assert (first[4], last[4]) == (False, True)
    assert {owner: fact[1] is None for owner, fact in last[3].items()} == {ME: True, A: False}


# -- counts ------------------------------------------------------------------------------------------------------------


def test_a_channel_with_too_many_entries_publishes_numbers() -> None:
    """Until there is room again; each turn is another version."""
    machine = Machine(rule=Rule(max_entries=4))
    machine.receive(WORKERS, "beat", A, 1, {})
    for number in range(3):
        machine.enter("c", f"{number}")
    machine.sure("c")
    machine.receive("c", "snap", A, 1, dict.fromkeys("89", ENTRY))
    assert machine.view("c").users is None
    machine.pass_time(2)
    assert machine.take("snap") == [["snap", ME, 2, 3]]
    machine.receive("c", "snap", A, 2, {})
    machine.pass_time(4)
    assert machine.take("snap") == [["snap", ME, 3, dict.fromkeys("012", ENTRY)]]
    assert machine.users("c") == ["u"]
    machine.enter("c", "3")
    machine.enter("c", "4")
    machine.pass_time(2)
    assert machine.take("snap") == [["snap", ME, 4, 5]]
    view = machine.view("c")
    assert (view.users, view.connections, view.version) == (None, 5, 0)


def test_an_owner_without_a_view_turns_to_counts_too() -> None:
    """By the numbers that each message carries."""
    machine = Machine(rule=Rule(max_entries=4))
    machine.receive(WORKERS, "beat", A, 1, {})
    machine.enter("c", "1")
    machine.pass_time(1)
    machine.receive("c", "beacon", A, 1, 9)
    machine.pass_time(2)
    assert machine.take("snap") == [["snap", ME, 2, 1]]
    machine.protocol.link_lost(machine.now)
    machine.protocol.publish_failed("c", machine.now)


def test_views_ask_for_entries_once_there_is_room() -> None:
    """A worker that does not own any asks the others."""
    machine = Machine(rule=Rule(max_entries=4))
    machine.receive(WORKERS, "beat", A, 1, {})
    machine.receive(WORKERS, "beat", B, 1, {})
    machine.sure("c")
    machine.receive("c", "snap", A, 1, dict.fromkeys("123", ENTRY))
    machine.receive("c", "snap", B, 1, dict.fromkeys("45", ENTRY))
    assert machine.view("c").users is None
    machine.receive("c", "snap", A, 2, {})
    machine.pass_time(2)
    ask = machine.take("ask")[0]
    assert ask[2] == {A: 2}
    machine.receive(INBOX, "view", B, "c", {B: [1, dict.fromkeys("45", ENTRY), 0, 0]}, False, ask[5])
    assert machine.users("c") == ["u"]
    assert machine.kinds().count("reset") == 2


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_channels_take_turns_above_the_largest_number_of_messages() -> None:
    """News grow older: the lag is reported."""
    machine = Machine()
    for number in range(60):
        machine.receive(WORKERS, "beat", f"{number:016x}", 1, {})
    for channel in range(20):
        machine.enter(f"c{channel}", "1")
        for number in range(60):
            machine.receive(f"c{channel}", "beacon", f"{number:016x}", 1, 1)
    machine.pass_time(0.2)
    assert machine.protocol.lag_seconds(machine.now) > 0.5
    first = len(machine.take("delta"))
    machine.pass_time(2)
    assert first + len(machine.take("delta")) == 20
    assert first < 10
    assert machine.protocol.lag_seconds(machine.now) == 0


def test_a_flush_without_an_owner_does_nothing() -> None:
    """As at the end of a worker that only watches."""
    shared = Shared(ME, PresenceTimes(), Machine().protocol._random)
    channel = Channel("c", Rule(), shared)
    assert not channel.flush(0)
    assert not channel.needed
    channel.exit("1", 0)
    channel.update("1", "", 0, 0)
    channel.unwatch(0)
    channel.forget()
    channel.inbox_gap(0)
    channel.worker_back(0)
    assert channel.next_due() == inf


def test_questions_that_are_repeated_put_off_a_leave_for_some_seconds_only(machine: Machine) -> None:
    """Each makes the view stale for a moment, in which the user could have been back."""
    machine.receive(WORKERS, "beat", A, 1, {})
    machine.sure("c")
    machine.receive("c", "delta", A, 0, 1, {"1": ENTRY}, [], None, 1)
    machine.receive("c", "delta", A, 1, 2, {}, ["1"], None, 0)
    left_at = machine.now
    number = 1
    while machine.users("c"):
        assert machine.now - left_at < 13
        number += 1
        machine.receive(WORKERS, "beat", A, number, {})
        machine.protocol.gap("c", machine.now)
        machine.pass_time(2.9)
    assert machine.now - left_at > 5
