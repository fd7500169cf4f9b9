"""`backplane.history.track`: nothing missing between two messages of a channel, or one gap."""

from __future__ import annotations

import random
from itertools import pairwise
from zlib import crc32

import pytest

from backplane.broadcaster import KeptMessage, Recalled
from backplane.history.track import DELIVERED, DROPPED, HELD, PROVED, Mended, Track
from backplane.message import Place
from tests.unit.history.model import Broker, Faults, HoldingTrack, Run, run_many

EPOCH = b"epoch  1"
OTHER = b"epoch  2"


def place(number: int, *, epoch: bytes = EPOCH, branch: str = "", before_branch: str | None = None) -> Place:
    """Return the place of the message with this number; after a failover another `branch` uses the number again."""
    before = number - 1
    before_check = check(before, branch if before_branch is None else before_branch)
    return Place(epoch, number, check(number, branch), before, before_check)


def sparse(number: int, before: int | None, *, epoch: bytes = EPOCH, branch: str = "") -> Place:
    """Return a place that does not state the check of the message before."""
    return Place(epoch, number, check(number, branch), before)


def check(number: int, branch: str = "") -> int:
    """Return the check of the message with this number."""
    return crc32(payload(number, branch)) if number else 0


def payload(number: int, branch: str = "") -> bytes:
    """Return the payload of the message with this number."""
    return f"{number}{branch}".encode()


def kept(first: int, last: int, *, epoch: bytes = EPOCH, branch: str = "") -> list[KeptMessage]:
    """Return messages, as they are read."""
    numbers = range(first, last + 1)
    return [KeptMessage(payload(number, branch), place(number, epoch=epoch, branch=branch)) for number in numbers]


def joined(number: int, *, latest: bool = False, max_held: int = 100, max_held_bytes: int = 10_000) -> Track:
    """Return a track that begins after the message with this number."""
    track = Track(max_held, max_held_bytes, latest=latest)
    track.ask(10)
    assert plain(track.mend(Recalled(top=place(number)))) == plain(Mended())
    return track


def take(track: Track, *numbers: int) -> list[int]:
    """Let messages arrive, and return what `take` returns."""
    return [track.take(place(number), payload(number)) for number in numbers]


def plain(mended: Mended) -> Mended:
    """Return the same, to be compared."""
    return mended._replace(items=list(mended.items))


def numbers(mended: Mended) -> list[int]:
    """Return the numbers of the messages to deliver."""
    return [item.place.offset for item in mended.items]


# -- the model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [10_000, 11_000])
def test_random_runs(start: int) -> None:
    """Whatever broker and links do, nothing is missing without a gap, and where history suffices there is none."""
    assert run_many(1_000, start=start) == []


@pytest.mark.parametrize(
    "faults",
    [Faults(no_check=True), Faults(found_by_numbers=True), Faults(track=HoldingTrack)],
    ids=["no check", "found by numbers", "held over a lost link"],
)
def test_a_planted_fault_is_found(faults: Faults) -> None:
    """The model finds a position without a check, one that is guessed from numbers, and what outlives its link."""
    assert run_many(20_000, faults=faults, most=1)


def test_the_model_covers_what_it_should() -> None:
    """The runs have messages, gaps, proofs without a read, and channels of which only the newest message counts."""
    runs = [Run(seed) for seed in range(300)]
    for run in runs:
        run.play()
    assert sum(len(run.out) for run in runs) > 3_000
    assert sum(run.gaps for run in runs) > 100
    assert sum(run.proved for run in runs) > 0
    assert 0 < sum(run.latest for run in runs) < 100
    assert 0 < sum(run.suffices for run in runs) < 200


@pytest.mark.parametrize("sparse_offsets", [False, True])
def test_a_failover_that_loses_the_tail_is_always_reported(sparse_offsets: bool) -> None:
    """A thousand failovers lose messages that were delivered, and reuse their offsets: one gap each, then all new ones.

    New messages arrive before and after the worker has subscribed at the new primary, and any of them before the read.
    """
    choose = random.Random(5)
    for _ in range(1_000):
        broker = Broker(random=choose, kept=choose.choice((5, 101)), sparse=sparse_offsets)
        track = Track()
        track.ask(1000)
        track.mend(broker.recall(track.ask(1000)))
        for _ in range(choose.randint(1, 20)):
            message = broker.publish()
            assert track.take(message.place, message.payload) == DELIVERED
        track.lost("the primary is gone")
        delivered = track.last
        broker.lose_tail(20)
        for _ in range(choose.choice((0, 1, 3, 30))):
            broker.publish()
        live = [broker.publish() for _ in range(choose.randint(0, 10))]
        read_after = choose.randint(0, len(live))
        taken = [track.take(message.place, message.payload) for message in live[:read_after]]
        assert set(taken) <= {HELD}
        mended = track.mend(broker.recall(track.ask(1000)))
        assert mended.gap is not None
        assert (mended.again, track.doubt) == (False, None)
        received = list(mended.items)
        for message in live[read_after:]:
            taken.append(track.take(message.place, message.payload))
            if taken[-1] > 0:
                received.append(message)
        last = broker.publish()
        assert track.take(last.place, last.payload) == DELIVERED
        received.append(last)
        assert track.last == broker.newest != delivered
        for before, message in pairwise(received):
            assert broker.before[message.payload] == before.payload
        assert mended.position is not None
        assert broker.before[received[0].payload] == broker.payload_at(mended.position)


# -- what follows ------------------------------------------------------------------------------------------------------


def test_messages_that_follow_are_delivered() -> None:
    """Each message that names the last one as its predecessor is delivered, and is the last one then."""
    track = joined(0)
    assert take(track, 1, 2, 3) == [DELIVERED] * 3
    assert (track.last, track.doubt) == (place(3), None)
    assert track.take(sparse(7, 3), b"") == DELIVERED
    assert track.take(sparse(9, 7), b"") == DELIVERED


@pytest.mark.parametrize(
    "other",
    [
        place(7),
        sparse(7, 6),
        place(6, before_branch="other"),
        place(6, epoch=OTHER),
        place(5, branch="other"),
        place(4),
        place(4, branch="other"),
        place(1, epoch=OTHER),
    ],
    ids=repr,
)
def test_anything_else_is_held(other: Place) -> None:
    """A hole, another predecessor, another epoch, and an offset that comes again begin a doubt."""
    track = joined(4)
    take(track, 5)
    assert track.take(other, b"x") == HELD
    assert track.doubt is not None
    assert track.held == [KeptMessage(b"x", other)]
    assert track.last == place(5)


def test_a_repetition_is_dropped() -> None:
    """The last message, if it comes again, is dropped."""
    track = joined(4)
    assert take(track, 5, 5, 6) == [DELIVERED, DROPPED, DELIVERED]


def test_what_a_read_has_overtaken_is_dropped() -> None:
    """What is still on its way while a read has returned it is dropped, until the channel goes on."""
    track = joined(10)
    assert take(track, 8, 9, 10) == [DROPPED] * 3
    assert take(track, 9) == [HELD]  # the link had reached 10
    track = joined(10)
    assert take(track, 8, 11, 9) == [DROPPED, DELIVERED, HELD]


def test_an_adapter_that_reports_gaps_itself_is_trusted() -> None:
    """Without a predecessor a message is delivered, also in doubt, which it ends, unless a read was ahead of it."""
    track = Track()
    assert track.take(sparse(5, None), b"") == DELIVERED
    assert track.doubt is None
    assert track.take(sparse(9, None), b"") == DELIVERED
    assert track.take(sparse(9, None), b"") == DROPPED
    assert track.take(sparse(1, None, epoch=OTHER), b"") == DELIVERED
    track.lost("lost")
    track.gap_reason = "certain"
    assert track.take(sparse(2, None, epoch=OTHER), b"") == DELIVERED
    assert track.doubt == "lost"


# -- doubt -------------------------------------------------------------------------------------------------------------


def test_a_message_can_prove_that_nothing_is_missing() -> None:
    """After a lost link, the first message ends the doubt if it names the last one by its check."""
    track = joined(4)
    track.lost("the link was cut")
    assert take(track, 5, 6) == [PROVED, DELIVERED]
    assert track.doubt is None


@pytest.mark.parametrize("first", [sparse(5, 4), place(6), place(5, before_branch="other"), place(5, epoch=OTHER)])
def test_a_number_proves_nothing(first: Place) -> None:
    """In doubt a message is held if its predecessor is not named by check, or is another."""
    track = joined(4)
    track.lost("the link was cut")
    assert track.take(first, b"") == HELD
    assert take(track, 5) == [HELD]  # something is held


def test_a_certain_gap_is_reported_whatever_is_read() -> None:
    """With a certain gap no message proves anything, and the gap is reported once, before what is read."""
    track = joined(4)
    track.lost("the link was cut")
    track.gap_reason = "certain"
    assert take(track, 5) == [HELD]
    track.ask(10)
    mended = track.mend(Recalled(items=kept(5, 6), top=place(6)))
    assert (mended.gap, mended.position, numbers(mended)) == ("certain", place(4), [5, 6])
    assert track.gap_reason is None
    assert take(track, 7) == [DELIVERED]


def test_a_lost_link_drops_what_is_held() -> None:
    """What came by a lost link is dropped: the history that is read next can be another."""
    track = joined(4)
    take(track, 6, 7)
    track.lost("the link was cut")
    assert track.held == []
    assert track.ask(10) == (place(4), 10)


def test_an_answer_that_a_lost_link_has_overtaken_is_not_used() -> None:
    """An answer is used only if no link was lost since `ask`, and only while there is a doubt."""
    track = joined(4)
    track.lost("the link was cut")
    track.ask(10)
    track.lost("the link was cut again")
    assert plain(track.mend(Recalled(items=kept(5, 9), top=place(9)))) == plain(Mended(again=True))
    track.ask(10)
    assert take(track, 5) == [PROVED]
    assert plain(track.mend(Recalled(items=kept(5, 9), top=place(9)))) == plain(Mended())
    assert track.last == place(5)


def test_what_is_held_is_bounded() -> None:
    """More than the limits allow is dropped, to be read: by count or by bytes; one message is always held."""
    track = joined(4, max_held=3)
    take(track, 6, 7, 8)
    assert len(track.held) == 3
    take(track, 9)
    assert [item.place.offset for item in track.held] == [9]
    track = joined(4, max_held_bytes=10)
    for number, size in ((6, 5), (7, 5), (8, 1), (9, 100)):
        track.take(place(number), bytes(size))
    assert [item.place.offset for item in track.held] == [9]
    track.ask(10)
    assert numbers(track.mend(Recalled(items=kept(5, 9), top=place(9)))) == [5, 6, 7, 8, 9]


def test_what_is_dropped_during_a_read_is_read_again() -> None:
    """If more arrives during a read than is held, the read does not return it: there is another one."""
    track = joined(4, max_held=2)
    take(track, 6)
    track.ask(10)
    take(track, 7, 8, 9)
    mended = track.mend(Recalled(items=kept(5, 6), top=place(6)))
    assert (numbers(mended), mended.gap, mended.again) == ([5, 6], None, True)
    assert track.ask(10) == (place(6), 10)
    mended = track.mend(Recalled(items=kept(7, 9), top=place(9)))
    assert (numbers(mended), mended.gap, mended.again) == ([7, 8, 9], None, False)


# -- repair ------------------------------------------------------------------------------------------------------------


def test_the_first_read_takes_the_newest_position() -> None:
    """A new track asks for the newest position alone, and delivers what was held after it, without a gap."""
    track = Track()
    assert (track.doubt, track.last) == ("joining", None)
    assert take(track, 8, 9, 10, 11) == [HELD] * 4
    assert track.ask(10) == (None, 0)
    mended = track.mend(Recalled(top=place(9), more=True))
    assert (numbers(mended), mended.gap, mended.again) == ([10, 11], None, False)
    assert take(track, 12) == [DELIVERED]


def test_a_hole_after_the_first_read_is_read() -> None:
    """Where what is held does not follow the newest position, what lies between is read."""
    track = Track()
    track.ask(10)
    take(track, 12)
    assert plain(track.mend(Recalled(top=place(9)))) == plain(Mended(again=True))
    assert track.ask(10) == (place(9), 10)
    assert numbers(track.mend(Recalled(items=kept(10, 12), top=place(12)))) == [10, 11, 12]


def test_what_was_missed_is_delivered_without_a_gap() -> None:
    """What is read after the last message is delivered, then what is held after that; repetitions are dropped."""
    track = joined(4)
    track.lost("the link was cut")
    take(track, 3, 7, 8, 8, 9)
    track.ask(10)
    take(track, 10, 9)
    mended = track.mend(Recalled(items=kept(4, 8), top=place(8)))
    assert (numbers(mended), mended.gap, mended.again) == ([5, 6, 7, 8, 9, 10], None, False)
    assert (track.last, track.held) == (place(10), [])


def test_nothing_missed_is_nothing() -> None:
    """If nothing was missed nothing is delivered, and no gap is reported."""
    track = joined(4)
    track.lost("the link was cut")
    track.ask(10)
    assert plain(track.mend(Recalled(top=place(4)))) == plain(Mended())
    assert take(track, 5) == [DELIVERED]


@pytest.mark.parametrize(
    "recalled",
    [
        Recalled(top=place(9), found=False),
        Recalled(items=kept(5, 6), top=place(9), more=True),
        Recalled(items=kept(7, 9, epoch=OTHER), top=place(9, epoch=OTHER)),
    ],
    ids=["not found", "more", "another epoch"],
)
def test_what_cannot_be_read_is_a_gap(recalled: Recalled) -> None:
    """If the history does not lead from the last message to the newest, there is one gap, and the channel goes on."""
    track = joined(4)
    track.lost("the link was cut")
    track.ask(2)
    mended = track.mend(recalled)
    assert mended.gap is not None
    assert mended.gap.endswith("(the link was cut)")
    assert (mended.items, mended.position, mended.again) == ([], recalled.top, False)
    following = place(10, epoch=recalled.top.epoch)
    assert track.take(following, b"") == DELIVERED


def test_after_a_gap_what_is_held_goes_on() -> None:
    """After a gap the unbroken run of what is held is delivered that leads through the newest position."""
    track = joined(4)
    track.lost("the link was cut")
    take(track, 20, 22, 23, 24)
    track.ask(2)
    take(track, 25, 26, 24)
    mended = track.mend(Recalled(top=place(25), found=False))
    assert (numbers(mended), mended.position) == ([22, 23, 24, 25, 26], place(21))
    assert mended.gap is not None
    assert take(track, 27) == [DELIVERED]


def test_what_is_held_can_prove_that_nothing_is_missing() -> None:
    """If what is held leads from the last message to the newest, there is no gap, though the history is shorter."""
    track = joined(4)
    track.lost("the link was cut")
    take(track, 3, 5, 6)
    track.ask(2)
    take(track, 7)
    mended = track.mend(Recalled(items=kept(6, 6), top=place(6), found=False))
    assert (numbers(mended), mended.gap, mended.again) == ([5, 6, 7], None, False)
    assert take(track, 8) == [DELIVERED]


@pytest.mark.parametrize("first", [3, 4])
def test_what_is_held_can_begin_before_the_last_message(first: int) -> None:
    """What is held and was delivered before is not delivered again, where the history returns only a part."""
    track = joined(2)
    take(track, 3, 4)
    track.lost("the link was cut")
    for number in range(first, 9):
        track.take(sparse(number, number - 1), b"")
    track.ask(2)
    mended = track.mend(Recalled(items=kept(5, 6), top=place(8), more=True))
    assert (numbers(mended), mended.gap, mended.again) == ([5, 6, 7, 8], None, False)


def test_after_a_gap_a_run_must_begin_at_a_known_position() -> None:
    """Where the position before a run is not stated, only what follows the newest position is delivered."""
    track = joined(4)
    track.lost("the link was cut")
    for number, before in ((20, 18), (22, 20)):
        track.take(sparse(number, before), b"")
    track.ask(2)
    track.take(sparse(25, 22), b"")
    mended = track.mend(Recalled(top=sparse(22, 20), found=False))
    assert (numbers(mended), mended.position) == ([25], sparse(22, 20))


def test_what_the_newest_position_replaces_is_dropped_after_a_gap() -> None:
    """What arrived before the read and is of another epoch, or of lost offsets, is covered by the gap."""
    track = joined(4)
    track.lost("the link was cut")
    take(track, 6, 7)
    track.take(place(1, epoch=OTHER), b"")
    track.ask(2)
    mended = track.mend(Recalled(top=place(2, epoch=OTHER), found=False))
    assert (mended.items, mended.again) == ([], False)
    assert track.take(place(3, epoch=OTHER), b"") == DELIVERED


def test_what_is_newer_than_the_read_and_does_not_fit_is_read_again() -> None:
    """A message that arrives during a read whose answer contradicts it leads to another read, however often."""
    track = joined(4)
    track.lost("the link was cut")
    for number in range(1, 6):
        track.ask(2)
        track.take(place(number, epoch=OTHER), b"")
        assert plain(track.mend(Recalled(top=place(4)))) == plain(Mended(again=True))
    track.ask(2)
    assert plain(track.mend(Recalled(top=place(4)))) == plain(Mended())
    assert take(track, 5) == [DELIVERED]


def test_a_hole_after_a_gap_is_read() -> None:
    """Where what is held has a hole after the newest position, the gap is reported at once, and the hole is read."""
    track = joined(4)
    track.lost("the link was cut")
    track.ask(2)
    take(track, 20, 21, 23, 24)
    mended = track.mend(Recalled(top=place(21), found=False))
    assert (numbers(mended), mended.position, mended.again) == ([20, 21], place(19), True)
    assert mended.gap is not None
    assert track.ask(2) == (place(21), 2)
    mended = track.mend(Recalled(items=kept(22, 23), top=place(23)))
    assert (numbers(mended), mended.gap, mended.again) == ([22, 23, 24], None, False)


@pytest.mark.parametrize("number", [6, 9])
def test_what_three_reads_do_not_know_is_dropped(number: int) -> None:
    """A message that is newer than the newest one of three later reads is not in the history any more."""
    track = joined(4)
    track.lost("the link was cut")
    track.take(place(number, before_branch="other"), b"")
    for again in (True, True, False):
        track.ask(2)
        assert plain(track.mend(Recalled(top=place(4)))) == plain(Mended(again=again))
    assert take(track, 5) == [DELIVERED]


def test_a_history_that_does_not_lead_to_its_newest_position_is_a_gap() -> None:
    """Where three reads return nothing, though the newest position is another, there is one gap."""
    track = joined(4)
    track.lost("the link was cut")
    for again in (True, True, False):
        track.ask(2)
        mended = track.mend(Recalled(top=place(9)))
        assert mended.again is again
    assert mended.gap is not None
    assert (mended.position, track.last) == (place(9), place(9))


def test_a_contradicted_message_at_the_newest_offset_is_read_again() -> None:
    """A message with the newest offset and another check, newer than the read, leads to another read."""
    track = joined(4)
    track.lost("the link was cut")
    track.ask(2)
    track.take(place(4, branch="other"), b"")
    assert plain(track.mend(Recalled(top=place(4)))) == plain(Mended(again=True))
    track.ask(2)
    mended = track.mend(Recalled(top=place(4, branch="other"), found=False))
    assert (mended.position, numbers(mended)) == (place(3, branch="other"), [4])


def test_a_read_that_ends_before_the_newest_goes_on() -> None:
    """If the newest position is ahead of what was read, the rest is read."""
    track = joined(4)
    track.lost("the link was cut")
    track.ask(10)
    mended = track.mend(Recalled(items=kept(5, 6), top=place(9)))
    assert (numbers(mended), mended.again) == ([5, 6], True)
    track.gap_reason = "certain"
    track.ask(10)
    mended = track.mend(Recalled(items=kept(7, 8), top=place(9)))
    assert (numbers(mended), mended.again, mended.gap, mended.position) == ([7, 8], True, "certain", place(6))


def test_giving_up_is_a_gap() -> None:
    """Without a read the gap is reported, and any message is accepted next."""
    track = joined(4)
    assert plain(track.give_up("late")) == plain(Mended())
    track.lost("the link was cut")
    assert plain(track.give_up("late")) == plain(Mended([], "late", None))
    assert (track.last, track.doubt) == (None, None)
    assert take(track, 9, 10) == [DELIVERED, DELIVERED]


def test_giving_up_delivers_what_is_held_and_unbroken() -> None:
    """After the gap the newest run of what is held is delivered, without what was delivered before."""
    track = joined(4)
    track.lost("the link was cut")
    take(track, 3, 6, 8, 8, 9, 8)
    mended = track.give_up("late")
    assert (numbers(mended), mended.gap, mended.position) == ([8, 9], "late", place(7))
    assert take(track, 10) == [DELIVERED]
    track.lost("the link was cut")
    track.take(sparse(20, 18), b"")
    mended = track.give_up("late")
    assert (numbers(mended), mended.position) == ([20], None)


def test_a_link_lost_after_giving_up_is_another_gap() -> None:
    """Where the last position is not known, the next read ends with a gap, because nothing proves what was missed."""
    track = joined(4)
    track.lost("the link was cut")
    track.give_up("late")
    track.lost("the link was cut again")
    assert track.ask(10) == (None, 0)
    mended = track.mend(Recalled(top=place(9)))
    assert (mended.gap, mended.position) == ("the link was cut again", place(9))


def test_what_is_forgotten_is_accepted_again() -> None:
    """After a gap that others report, any message is accepted."""
    track = joined(4)
    track.forget()
    assert take(track, 9) == [DELIVERED]


# -- latest ------------------------------------------------------------------------------------------------------------


def test_of_a_latest_value_only_newer_ones_are_delivered() -> None:
    """Holes do not matter; an offset that comes again, or another epoch, is read."""
    track = joined(4, latest=True)
    assert take(track, 5, 9, 9) == [DELIVERED, DELIVERED, DROPPED]
    assert take(track, 8) == [HELD]
    track.ask(10)
    assert plain(track.mend(Recalled(items=kept(9, 9), top=place(9)))) == plain(Mended())
    assert track.take(place(1, epoch=OTHER), b"") == HELD


def test_of_a_latest_value_the_newest_is_read() -> None:
    """The newest value is read and delivered, unless it is the last one; nothing is ever a gap."""
    track = Track(latest=True)
    assert track.ask(10) == (None, 1)
    assert numbers(track.mend(Recalled(items=kept(4, 4), top=place(4), more=True))) == [4]
    track.lost("the link was cut")
    track.ask(10)
    assert plain(track.mend(Recalled(items=kept(4, 4), top=place(4)))) == plain(Mended())
    track.lost("the link was cut")
    track.gap_reason = "certain"
    track.ask(10)
    mended = track.mend(Recalled(items=kept(2, 2, branch="other"), top=place(2, branch="other"), found=False))
    assert (mended.gap, numbers(mended)) == (None, [2])
    track.lost("the link was cut")
    track.ask(10)
    assert plain(track.mend(Recalled(top=place(0, epoch=OTHER)))) == plain(Mended())


def test_of_what_is_held_the_newest_value_counts() -> None:
    """One value is held, and delivered in place of an older one that is read."""
    track = joined(4, latest=True)
    track.lost("the link was cut")
    track.take(place(7), b"")
    track.take(place(8), b"")
    assert len(track.held) == 1
    track.ask(10)
    assert numbers(track.mend(Recalled(items=kept(6, 6), top=place(6)))) == [8]
    track.lost("the link was cut")
    take(track, 10)
    track.ask(10)
    assert numbers(track.mend(Recalled(items=kept(12, 12), top=place(12)))) == [12]
    assert take(track, 11, 12, 13) == [DROPPED, DROPPED, DELIVERED]


@pytest.mark.parametrize("epoch", [EPOCH, OTHER])
def test_a_latest_value_that_contradicts_the_read_is_read_again(epoch: bytes) -> None:
    """Where it is not known which of two values is newer, there is another read, which is newer than both."""
    newest = place(6, epoch=epoch, branch="other")
    for top in (newest, place(6)):
        track = joined(4, latest=True)
        track.lost("the link was cut")
        for _ in range(5):
            track.ask(10)
            track.take(newest, b"arrived")
            assert track.mend(Recalled(items=kept(6, 6), top=place(6))).again
        track.ask(10)
        mended = track.mend(Recalled(items=[KeptMessage(b"read", top)], top=top))
        assert (numbers(mended), mended.again, track.last) == ([6], False, top)


def test_a_latest_value_that_is_not_the_newest_is_read_again() -> None:
    """If the newest position is ahead of the value that was read, there is another read."""
    track = joined(4, latest=True)
    track.lost("the link was cut")
    mended = Mended()
    for again in (True, True, False):
        track.ask(10)
        mended = track.mend(Recalled(items=kept(6, 6), top=place(7)))
        assert mended.again is again
    assert (numbers(mended), track.last) == ([6], place(6))


def test_giving_up_a_latest_value_is_no_gap() -> None:
    """Without a read the newest value that arrived is delivered, without a gap."""
    track = joined(4, latest=True)
    track.lost("the link was cut")
    assert plain(track.give_up("late")) == plain(Mended([]))
    track.lost("the link was cut")
    take(track, 7, 8)
    mended = track.give_up("late")
    assert (numbers(mended), mended.gap, track.last) == ([8], None, place(8))


def test_equal_parts_of_places_are_kept_once() -> None:
    """A message that follows shares what its place states of the one before it: many places are held in memory."""
    track = joined(1)
    first, second = place(2), place(3)
    second.epoch = bytes(bytearray(second.epoch))
    assert second.epoch is not first.epoch
    assert [track.take(each, b"") for each in (first, second)] == [DELIVERED] * 2
    assert second.epoch is first.epoch
    assert second.before is first.offset
    assert second.before_check is first.check
