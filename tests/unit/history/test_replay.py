"""`backplane.history.replay`: with what a subscriber begins that joins a kept channel."""

from __future__ import annotations

import pytest

from backplane.broadcaster import Recalled
from backplane.history.kept_channel import KeptChannel
from backplane.history.replay import Start, beginning, needs_ring, unknown_start
from backplane.history.ring import Ring, RingBudget
from backplane.history.track import Track
from backplane.history_rules import History
from backplane.message import Gap, Joined, Message, Place, Position
from backplane.testing.resume_conformance import compacted

EPOCH = b"epoch  1"
OTHER = b"epoch  2"


def place(number: int, *, before_check: bool = True) -> Place:
    """Return the place of the message with this number; its check is ten times that."""
    return Place(EPOCH, number, 10 * number, number - 1, 10 * (number - 1) if before_check else None)


def position(number: int) -> str:
    """Return the text of the position of the message with this number."""
    return str(place(number))


def channel(
    *numbers: int, rule: History | None = None, complete: bool = True, before_check: bool = True
) -> KeptChannel:
    """Return a channel whose ring has these messages."""
    rule = rule or History()
    track, ring = Track(latest=rule.latest), Ring(rule.max_messages, 60, RingBudget(), clock=lambda: 0.0)
    newest = place(numbers[-1] if numbers else 0)
    track.ask(1)
    track.mend(Recalled(top=newest))
    entries = list[tuple[Place, Message | None]]()
    for number in numbers:
        at = place(number, before_check=before_check)
        entries.append((at, Message(channel="k", data=str(number), position=at)))
    assert ring.fill(entries, newest, complete=complete)
    return KeptChannel("k", rule, track, ring)


def data(kept: KeptChannel, since: str | None, rewind: int) -> list[str | bytes]:
    """Return the data of what is given back."""
    return [message.data for message in beginning(kept, Start.of(since, rewind)).missed]


def test_where_a_subscriber_begins() -> None:
    """It passed nothing, a position, or a text that is none, which is not the same as nothing."""
    assert [Start.of(since, 3) for since in (None, "", "garbage")] == [
        Start(None, False, 3),
        Start(None, False, 3),
        Start(None, True, 3),
    ]
    assert Start.of(position(5), 3) == Start(Position(EPOCH, 5, 50), True, 3)


# -- whether the ring must be filled -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "rewind", "needed"),
    [
        (None, 0, False),
        ("", 0, False),
        (None, 1, True),
        ("garbage", 0, False),
        ("garbage", 1, True),
        (position(5), 9, False),
        (position(3), 0, False),
        (position(2), 0, True),
        (position(9), 0, True),
    ],
)
def test_what_needs_the_ring(since: str | None, rewind: int, needed: bool) -> None:
    """`rewind` needs it, and a position that the ring does not hold; a complete ring is never filled again."""
    assert needs_ring(channel(4, 5, complete=False), Start.of(since, rewind)) is needed
    assert not needs_ring(channel(4, 5), Start.of(since, rewind))


def test_a_channel_of_latest_values_needs_the_ring() -> None:
    """Each join gets the newest message, so the ring must have it."""
    rule = History(latest=True)
    assert needs_ring(channel(5, rule=rule, complete=False), Start())
    assert not needs_ring(channel(5, rule=rule, complete=False), Start.of(position(5), 0))
    assert not needs_ring(channel(5, rule=rule), Start())


@pytest.mark.parametrize(
    ("since", "unknown"),
    [
        (str(Position(EPOCH, 2, 0)), True),
        (str(Position(EPOCH, 2, 1)), False),
        (str(Position(OTHER, 2, 0)), False),
        (str(Position(EPOCH, 5, 0)), True),
        (str(Position(EPOCH, 9, 0)), True),
        (str(Position(EPOCH, 9, 1)), True),
        ("garbage", False),
        ("", False),
        (None, False),
    ],
)
def test_what_is_an_unknown_start(since: str | None, unknown: bool) -> None:
    """A position of this epoch that the ring does not know, and that no message has, or that is ahead."""
    found = unknown_start(channel(4, 5), Start.of(since, 0), follows=False)
    assert (found and str(found)) == (since if unknown else None)


def test_a_start_that_the_ring_knows_is_not_unknown() -> None:
    """Nothing is read for one that was read before, nor before the first message of all."""
    kept = channel(4, 5)
    kept.ring.fill_after(
        Position(EPOCH, 2, 0), [(place(number), Message(channel="k", data="")) for number in (4, 5)], place(5)
    )
    assert unknown_start(kept, Start.of(str(Position(EPOCH, 2, 0)), 0), follows=False) is None
    assert unknown_start(channel(1, 2), Start.of(str(Position(EPOCH, 0, 0)), 0), follows=False) is None


def test_where_no_start_is_unknown() -> None:
    """Of latest values only the newest counts; and without a position of the channel nothing is older."""
    since = str(Position(EPOCH, 2, 0))
    assert unknown_start(channel(5, rule=History(latest=True)), Start.of(since, 0), follows=False) is None
    kept = channel(4, 5)
    kept.track.forget()
    assert unknown_start(kept, Start.of(since, 0), follows=False) is None


# -- what is given back ------------------------------------------------------------------------------------------------


def test_a_first_visit() -> None:
    """Without a position a subscriber begins at the newest message."""
    assert beginning(channel(4, 5), Start()) == (Joined(channel="k", position=place(5)), [])


def test_a_first_visit_with_rewind() -> None:
    """With `rewind` it begins before the first message that it is given back."""
    joined, missed = beginning(channel(3, 4, 5), Start(rewind=2))
    assert joined == Joined(channel="k", position=Position(EPOCH, 3, 30))
    assert [message.data for message in missed] == ["4", "5"]


def test_a_beginning_that_is_not_known() -> None:
    """Where the broker does not state the check before the first message, the position is not known."""
    joined, missed = beginning(channel(4, 5, before_check=False), Start(rewind=2))
    assert (joined.position, len(missed)) == (None, 2)


def test_a_position_is_resumed() -> None:
    """A subscriber that passes a position gets what came after it, and no `rewind`."""
    kept = channel(3, 4, 5)
    assert beginning(kept, Start.of(position(4), 3)).joined == Joined(channel="k", position=place(4), resumed=True)
    assert [data(kept, position(number), 3) for number in (2, 3, 4, 5)] == [["3", "4", "5"], ["4", "5"], ["5"], []]


def test_a_compact_position_is_resumed() -> None:
    """It is passed as text as any position is, gets the same, and is where the subscriber begins."""
    kept = channel(3, 4, 5)
    for number in (2, 3, 4, 5):
        compact = compacted(place(number))
        since = str(compact)
        assert beginning(kept, Start.of(since, 3)) == beginning(kept, Start.of(position(number), 3))
        assert str(beginning(kept, Start.of(since, 3)).joined.position) == since
        assert not needs_ring(kept, Start.of(since, 0))
        assert unknown_start(kept, Start.of(since, 0), follows=False) is None
    ahead = str(compacted(place(6)))
    assert str(unknown_start(kept, Start.of(ahead, 0), follows=False)) == ahead


@pytest.mark.parametrize(
    "since", ["garbage", position(1), str(Position(EPOCH, 4, 41)), str(compacted(Position(EPOCH, 4, 41)))]
)
def test_a_position_that_is_not_found_is_a_gap(since: str) -> None:
    """It is not resumed; the reason is stated, and then `rewind` comes."""
    kept = channel(3, 4, 5)
    joined = beginning(kept, Start.of(since, 1)).joined
    assert (joined.resumed, joined.position, data(kept, since, 1)) == (False, Position(EPOCH, 4, 40), ["5"])
    reason = "the history does not hold everything since the position that was passed"
    assert joined.gap == Gap(channel="k", reason=reason, position=place(5))


def test_a_history_that_could_not_be_read_is_the_reason() -> None:
    """Where the ring could not be filled, the gap states why."""
    kept = channel(5, complete=False)
    kept.end_fill("the history cannot be read: refused")
    gap = beginning(kept, Start.of(position(1), 0)).joined.gap
    assert gap is not None
    assert gap.reason == "the history cannot be read: refused"


@pytest.mark.parametrize(
    ("since", "given", "resumed"),
    [
        (None, ["5"], False),
        ("garbage", ["5"], False),
        (position(3), ["5"], True),
        (str(Position(OTHER, 1, 1)), ["5"], True),
        (position(5), [], True),
        (str(compacted(place(5))), [], True),
    ],
)
def test_latest_values(since: str | None, given: list[str], resumed: bool) -> None:
    """Of latest values the newest is given back, unless the subscriber has it, and never a gap."""
    kept = channel(5, rule=History(latest=True))
    joined = beginning(kept, Start.of(since, 0)).joined
    assert (data(kept, since, 0), joined.resumed, joined.gap) == (given, resumed, None)
    assert joined.position == (Position(EPOCH, 4, 40) if given else place(5))
