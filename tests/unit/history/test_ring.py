"""`backplane.history.ring`: what a subscriber that comes back is given from the memory of the worker."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from backplane.history.ring import Ring, RingBudget
from backplane.message import ExtendedMessage, Message, Place, Position
from backplane.testing.resume_conformance import compacted

if TYPE_CHECKING:
    from collections.abc import Callable

EPOCH = b"epoch  1"
OTHER = b"epoch  2"
NOW = 1_000_000.0
SIZE = 500  # of one message, roughly


def place(number: int, *, epoch: bytes = EPOCH, before_check: bool = True) -> Place:
    """Return the place of the message with this number; its check is ten times that."""
    return Place(epoch, number, 10 * number, number - 1, 10 * (number - 1) if before_check else None)


def message(number: int, *, published_at: float | None = NOW, size: int = 0) -> Message:
    """Return the message with this number."""
    data = str(number).ljust(size)
    return Message(channel="a", data=data, published_at=published_at, position=place(number))


def entries(first: int, last: int, *, epoch: bytes = EPOCH) -> list[tuple[Place, Message | None]]:
    """Return what was read."""
    return [(place(number, epoch=epoch), message(number)) for number in range(first, last + 1)]


def ring(max_messages: int = 5, *, budget: RingBudget | None = None, clock: Callable[[], float] = lambda: NOW) -> Ring:
    """Return an empty ring."""
    return Ring(max_messages, 60, budget or RingBudget(), clock=clock, timer=clock)


def filled(first: int, last: int, max_messages: int = 5) -> Ring:
    """Return a ring with these messages, of which everything was read."""
    made = ring(max_messages)
    assert made.fill(entries(first, last), place(last), complete=True)
    return made


def data(messages: list[Message] | None) -> list[str] | None:
    """Return the data of messages."""
    return None if messages is None else [str(one.data) for one in messages]


def test_everything_after_a_position_is_given_back() -> None:
    """After each position that the ring holds, exactly the later messages are returned."""
    made = filled(1, 4)
    made.append(place(5), message(5))
    assert len(made) == 5
    assert made.is_complete
    for number in range(6):
        assert data(made.after(place(number))) == [str(later) for later in range(number + 1, 6)]
    assert made.newest_position == place(5)


@pytest.mark.parametrize(
    "position",
    [
        Position(OTHER, 4, 40),
        Position(EPOCH, 4, 41),
        Position(EPOCH, 5, 41),
        Position(EPOCH, 6, 60),
        Position(EPOCH, 2, 21),
        Position(EPOCH, 1, 10),
        Position(EPOCH, 0, 0),
        Position(EPOCH, 1 << 63, 0),
    ],
    ids=repr,
)
def test_a_position_that_is_not_held_is_not_found(position: Position) -> None:
    """Another epoch, another check, an older or a newer offset is not found."""
    assert filled(3, 5).after(position) is None


def test_the_oldest_message_names_its_predecessor() -> None:
    """The position before the oldest message is found where that states its check, or where it is the first of all."""
    assert data(filled(3, 4).after(Position(EPOCH, 2, 20))) == ["3", "4"]
    assert data(filled(1, 2).after(Position(EPOCH, 0, 0))) == ["1", "2"]
    assert filled(1, 2).after(Position(EPOCH, 0, 1)) is None
    made = ring()
    made.append(place(3, before_check=False), message(3))
    assert made.after(Position(EPOCH, 2, 20)) is None
    made = ring()
    made.append(place(1, before_check=False), message(1))
    assert data(made.after(Position(EPOCH, 0, 0))) == ["1"]


def test_one_more_than_may_be_missed_is_held() -> None:
    """The oldest messages go; a client that missed as many as the rule keeps finds its position."""
    made = filled(1, 4)
    for number in range(5, 11):
        made.append(place(number), message(number))
    assert len(made) == 6
    assert made.is_complete
    assert data(made.after(place(5))) == ["6", "7", "8", "9", "10"]
    assert made.after(place(3)) is None
    assert data(made.newest(100)) == ["6", "7", "8", "9", "10"]


def test_the_newest_messages() -> None:
    """The newest ones are returned, oldest first; a malformed payload is not, nor does it count."""
    made = filled(1, 2)
    made.append(place(3), None)
    made.append(place(4), message(4))
    assert data(made.newest(0)) == []
    assert data(made.newest(1)) == ["4"]
    assert data(made.newest(2)) == ["2", "4"]
    assert data(made.newest(9)) == ["1", "2", "4"]
    assert data(made.after(place(2))) == ["4"]
    assert data(made.after(place(3))) == ["4"]
    assert data(ring().newest(3)) == []


def test_batches_are_shared() -> None:
    """Clients that come back with the same position get the same batch, until another message arrives."""
    made = filled(1, 4)
    batch = made.after(place(2))
    assert made.after(Position(EPOCH, 2, 20)) is batch
    assert made.newest(2) is made.newest(2)
    made.append(place(5), message(5))
    assert data(made.after(place(2))) == ["3", "4", "5"]
    assert data(made.newest(2)) == ["4", "5"]


def test_the_shared_batches_are_bounded() -> None:
    """However many different positions are asked for, few batches are remembered."""
    made = filled(1, 300, 300)
    for _ in range(2):
        for number in range(1, 301):
            assert data(made.after(place(number))) == [str(later) for later in range(number + 1, 301)]
    assert len(made._batches) <= 64  # pyright: ignore[reportPrivateUsage]


def test_the_shared_batches_count() -> None:
    """What is built for clients that come back counts as the messages do, until another message arrives."""
    budget = RingBudget(100 * SIZE)
    made, other = ring(20, budget=budget), ring(20, budget=budget)
    for number in range(1, 21):
        made.append(place(number), message(number, size=SIZE - 400))
        other.append(place(number), message(number, size=SIZE - 400))
    before = budget.size_bytes
    batch = made.after(place(1))
    assert batch is not None
    assert budget.size_bytes == before + batch.size_bytes
    for number in range(1, 21):
        assert data(made.after(place(number))) == [str(later).ljust(100) for later in range(number + 1, 21)]
        assert budget.size_bytes <= budget.max_bytes
    assert made.after(place(19)) is made.after(place(19))
    made.append(place(21), message(21, size=SIZE - 400))
    assert budget.size_bytes == before + SIZE
    assert made.after(place(2)) is not None
    made.clear(None)
    other.clear(None)
    assert budget.size_bytes == 0


def test_a_batch_beside_which_the_ring_has_no_room_is_not_remembered() -> None:
    """A ring that takes almost all room is read and not emptied for what is built from it."""
    made = ring(20, budget=RingBudget(11 * SIZE))
    for number in range(1, 11):
        made.append(place(number), message(number, size=SIZE - 400))
    assert made.after(place(2)) is not made.after(place(2))
    assert len(made) == 10


# -- filling -----------------------------------------------------------------------------------------------------------


def test_what_was_read_comes_before_what_has_arrived() -> None:
    """What is read is put before the messages that have arrived meanwhile, each once."""
    for last_read in (3, 4, 5, 6):
        made = ring(10)
        made.append(place(4), message(4))
        made.append(place(5), message(5))
        assert made.fill(entries(2, last_read), place(5), complete=True)
        assert data(made.newest(10)) == ["2", "3", "4", "5"]
        assert made.is_complete


def test_a_read_ahead_of_the_track_is_cut() -> None:
    """What the track has not let through is left out: it arrives."""
    made = ring()
    assert made.fill(entries(1, 6), place(4), complete=True)
    assert data(made.after(place(1))) == ["2", "3", "4"]
    made.append(place(5), message(5))
    assert data(made.after(place(1))) == ["2", "3", "4", "5"]


def test_a_channel_without_messages_is_complete() -> None:
    """Where nothing is kept, the position of the channel is found, and nothing else."""
    made = ring()
    assert made.fill([], place(7), complete=True)
    assert (data(made.after(place(7))), made.after(place(6)), made.is_complete) == ([], None, True)
    made.append(place(8), message(8))
    assert data(made.after(place(7))) == ["8"]


def test_a_read_that_does_not_join_is_refused() -> None:
    """Where a hole would be between what was read and what is there, nothing is filled."""
    made = ring()
    assert not made.fill(entries(1, 3), place(5), complete=True)
    assert not made.fill(entries(1, 5), Position(EPOCH, 5, 51), complete=True)
    made.append(place(5), message(5))
    assert not made.fill(entries(1, 3), place(5), complete=True)
    assert not made.fill(entries(1, 9, epoch=OTHER), place(5), complete=True)
    assert not made.fill([(Place(EPOCH, 5, 51, 4, 40), message(5))], place(5), complete=True)
    assert (data(made.newest(9)), made.is_complete) == (["5"], False)
    made = ring()
    made.append(place(1), message(1))
    assert made.fill([], place(1), complete=True)


def test_a_read_of_more_than_the_ring_holds_keeps_the_newest() -> None:
    """The oldest of what was read go, as everywhere."""
    budget = RingBudget()
    made = ring(3, budget=budget)
    made.append(place(9), message(9))
    assert made.fill(entries(1, 9), place(9), complete=False)
    assert (data(made.newest(9)), len(made), made.is_complete) == (["7", "8", "9"], 4, False)
    made.clear(None)
    assert budget.size_bytes == 0


def test_after_a_gap_nothing_is_held() -> None:
    """A gap empties the ring; where the channel goes on is a position that is found."""
    made = filled(1, 4)
    made.clear(place(9))
    assert (len(made), made.is_complete, made.newest_position) == (0, False, place(9))
    assert made.after(place(4)) is None
    assert data(made.after(place(9))) == []
    made.append(place(10), message(10))
    assert data(made.after(place(9))) == ["10"]
    made.clear(None)
    assert made.after(place(10)) is None


# -- age ---------------------------------------------------------------------------------------------------------------


class Timer:
    """A clock that the test moves, and that no one else sets."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.seconds


def test_what_is_too_old_is_not_given_back() -> None:
    """Older messages go, with those without a time before them; the newest position is found all the same."""
    timer = Timer()
    made = Ring(10, 60, RingBudget(), clock=lambda: NOW, timer=timer)
    times: list[float | None] = [None, NOW - 55, None, NOW - 52, None, NOW - 10, None]
    read = [(place(number), message(number, published_at=at)) for number, at in enumerate(times, start=1)]
    assert made.fill([*read, (place(8), None)], place(8), complete=True)
    timer.seconds = 9
    assert data(made.newest(9)) == ["5", "6", "7"]
    assert made.after(place(3)) is None
    assert data(made.after(place(4))) == ["5", "6", "7"]


def test_a_ring_of_old_messages_is_empty() -> None:
    """Where every message is too old, only the newest position is left, and nothing is counted."""
    budget, timer = RingBudget(), Timer()
    made = Ring(5, 60, budget, clock=lambda: NOW, timer=timer)
    assert made.fill(entries(1, 4), place(4), complete=True)
    timer.seconds = 1000
    assert (data(made.newest(9)), made.after(place(3)), data(made.after(place(4)))) == ([], None, [])
    assert (budget.size_bytes, made.is_complete) == (0, True)
    made.append(place(5), message(5))
    assert data(made.after(place(4))) == ["5"]


def test_what_was_received_ages_from_then_on() -> None:
    """Whatever a publisher takes the time to be, what was received live is given back for the age of the rule."""
    timer = Timer()
    made = Ring(10, 60, RingBudget(), clock=lambda: NOW, timer=timer)
    for number, published_at in enumerate((NOW - 3600, NOW + 3600, None, NOW), start=1):
        made.append(place(number), message(number, published_at=published_at))
        timer.seconds += 10
    assert data(made.after(place(1))) == ["2", "3", "4"]
    timer.seconds = 65
    assert data(made.newest(9)) == ["2", "3", "4"]
    timer.seconds = 85
    assert data(made.newest(9)) == ["4"]


@pytest.mark.parametrize("published_at", [NOW - 3600, NOW + 3600, None])
def test_what_the_broker_gives_back_is_not_too_old(published_at: float | None) -> None:
    """A message whose publisher's clock is wrong is as old as the one after it, and the newest one is new."""
    timer = Timer()
    made = Ring(10, 60, RingBudget(), clock=lambda: NOW, timer=timer)
    made.append(place(5), message(5))
    times = [published_at, NOW - 20, published_at, published_at]
    read = [(place(number), message(number, published_at=at)) for number, at in enumerate(times, start=1)]
    assert made.fill(read, place(5), complete=True)
    assert data(made.after(place(1))) == ["2", "3", "4", "5"]
    timer.seconds = 45
    assert data(made.newest(9)) == ["3", "4", "5"]
    timer.seconds = 61
    assert data(made.newest(9)) == []


def test_a_message_that_the_broker_gives_back_a_little_late_is_too_old() -> None:
    """A broker that rounds the age up by a second does not make a message new."""
    made = Ring(10, 60, RingBudget(), clock=lambda: NOW, timer=Timer())
    read = [(place(1), message(1, published_at=NOW - 61)), (place(2), message(2))]
    assert made.fill(read, place(2), complete=True)
    assert data(made.newest(9)) == ["2"]


# -- the bytes of all rings --------------------------------------------------------------------------------------------


def test_the_ring_that_was_read_least_recently_makes_room() -> None:
    """Above the limit a ring is emptied: one that was never read from, else the least recently read one."""
    budget = RingBudget(10 * SIZE + 100)  # with what is built for the reader of the second one
    rings = [ring(100, budget=budget) for _ in range(4)]
    for one in rings:
        assert one.fill([], place(0), complete=True)
        one.append(place(1), message(1, size=100))
        one.append(place(2), message(2, size=100))
    assert budget.size_bytes == 8 * SIZE
    rings[1].newest(1)
    rings[0].after(place(1))
    for number in (3, 4, 5):
        rings[0].append(place(number), message(number, size=100))
    assert [len(one) for one in rings] == [5, 2, 2, 0]
    for number in range(6, 9):
        rings[0].append(place(number), message(number, size=100))
    assert [len(one) for one in rings] == [8, 2, 0, 0]
    rings[0].append(place(9), message(9, size=100))
    assert [len(one) for one in rings] == [9, 0, 0, 0]
    assert [one.is_complete for one in rings] == [True, False, False, False]
    assert data(rings[3].after(place(2))) == []
    assert rings[3].after(place(1)) is None


def test_a_single_ring_is_bounded() -> None:
    """A ring that alone exceeds the limit is emptied, and goes on."""
    budget = RingBudget(3 * SIZE)
    made = ring(100, budget=budget)
    for number in range(1, 5):
        made.append(place(number), message(number, size=100))
    assert (len(made), budget.size_bytes) == (0, 0)
    made.append(place(5), message(5))
    assert data(made.after(place(4))) == ["5"]
    assert not made.is_complete


def test_the_size_is_counted_exactly() -> None:
    """After any calls the budget has the size of what the rings hold, and at most its limit."""
    choose = random.Random(3)
    budget = RingBudget(20_000)
    timer = Timer()
    timer.seconds = NOW
    rings = [ring(choose.randint(1, 20), budget=budget, clock=timer) for _ in range(10)]
    newest = [0] * len(rings)
    for _ in range(2_000):
        index = choose.randrange(len(rings))
        timer.seconds += choose.random()
        made, number = rings[index], newest[index]
        step = choose.random()
        if step < 0.8:
            newest[index] += 1
            malformed = choose.random() < 0.1
            new = None if malformed else message(number + 1, size=choose.randint(0, 1000))
            made.append(place(number + 1), new)
        elif step < 0.9:
            made.after(place(choose.randint(0, number)))
        elif step < 0.95:
            made.newest(choose.randint(0, 30))
        elif step < 0.98:
            made.fill(entries(max(1, number - 30), number), place(number), complete=True)
        else:
            made.clear(place(number))
        held = [one for made in rings for _, one, _ in made._entries]  # pyright: ignore[reportPrivateUsage]
        batches = [batch for made in rings for batch in made._batches.values()]  # pyright: ignore[reportPrivateUsage]
        size = sum(400 + (0 if one is None else len(one.data)) for one in held)
        assert budget.size_bytes == size + sum(batch.size_bytes for batch in batches) <= 20_000
        assert set(budget._rings) == {made for made in rings if len(made)}  # pyright: ignore[reportPrivateUsage]


# -- positions that no message has -------------------------------------------------------------------------------------


def between(number: int, *, check: int = 0, epoch: bytes = EPOCH) -> Position:
    """Return a position that no message has."""
    return Position(epoch, number, check)


def sparse(*numbers: int) -> list[tuple[Place, Message | None]]:
    """Return what was read of a channel whose broker states no check of the message before."""
    return [(place(number, before_check=False), message(number)) for number in numbers]


def floored(max_messages: int = 5) -> Ring:
    """Return a ring with the messages 7 and 8, which knows that nothing lies between 3 and them."""
    made = ring(max_messages)
    assert made.fill(sparse(7, 8), place(8), complete=True)
    made.fill_after(between(3), sparse(7, 8), place(8))
    return made


def test_a_position_that_no_message_has_is_found_once_it_was_read() -> None:
    """What came after it is returned, and after every later one before the oldest message; nothing else is."""
    made = ring()
    assert made.fill(sparse(7, 8), place(8), complete=True)
    assert made.after(between(3)) is None
    made = floored()
    assert made.is_complete
    for number in (3, 4, 5, 6):
        assert data(made.after(between(number))) == ["7", "8"]
    for unknown in (between(2), between(7), between(9), between(4, check=1), between(4, epoch=OTHER)):
        assert made.after(unknown) is None
    made.append(place(9), message(9))
    assert data(made.after(between(3))) == ["7", "8", "9"]


def test_an_older_position_that_no_message_has() -> None:
    """An older one that is read later is found, and so is the one that was read before it."""
    made = floored()
    made.fill_after(between(1), sparse(7, 8), place(8))
    assert [data(made.after(between(number))) for number in (0, 1, 3)] == [None, ["7", "8"], ["7", "8"]]


def test_a_dropped_message_ends_what_is_known_of_such_positions() -> None:
    """Once the oldest message is dropped, a position before it is not found: that message came after it."""
    made = floored(max_messages=2)
    made.append(place(9), message(9))
    assert data(made.after(between(3))) == ["7", "8", "9"]
    made.append(place(10), message(10))
    assert made.after(between(3)) is None


def test_a_read_that_does_not_lead_to_the_oldest_message() -> None:
    """A read that does not join, or begins with another message than the ring, makes no position known."""
    made = ring()
    made.append(place(8, before_check=False), message(8))
    made.fill_after(between(3), sparse(4), place(8))
    assert made.after(between(3)) is None
    made = ring(2)
    made.fill_after(between(3), sparse(5, 6, 7, 8), place(8))
    assert data(made.newest(9)) == ["7", "8"]
    assert made.after(between(3)) is None


def test_such_a_position_of_a_channel_without_messages() -> None:
    """Where nothing came after it, nothing is returned, and later what has arrived since."""
    made = ring(2)
    made.fill_after(between(3), [], between(5))
    assert data(made.after(between(3))) == []
    made.append(place(6), message(6))
    assert data(made.after(between(3))) == ["6"]
    for number in (7, 8, 9):
        made.append(place(number), message(number))
    assert made.after(between(3)) is None


def test_such_a_position_after_those_that_were_read() -> None:
    """Where no message follows, a later one than was read is not known: the log may end before it."""
    made = ring()
    made.fill_after(between(6), [], between(5))
    assert [data(made.after(between(number))) for number in (6, 7, 9)] == [[], None, None]
    made.fill_after(between(8), [], between(5))
    assert [data(made.after(between(number))) for number in (6, 7, 8, 9)] == [[], [], [], None]
    made.append(place(11), message(11))
    assert [data(made.after(between(number))) for number in (6, 9, 12)] == [["11"], ["11"], None]
    made.clear(place(20))
    made.fill_after(between(21), [], place(20))
    assert [data(made.after(between(number))) for number in (21, 22)] == [[], None]


@pytest.mark.parametrize("messages", [0, 1], ids=["none", "one"])
@pytest.mark.parametrize("end", ["gap", "eviction"])
def test_an_emptied_ring_knows_no_such_position(messages: int, end: str) -> None:
    """After a gap, or once it was emptied to make room, what came after such a position is not known."""
    made = ring()
    made.fill_after(between(3), [], between(5))
    for number in range(6, 6 + messages):
        made.append(place(number), message(number))
    if end == "gap":
        made.clear(place(9))
    else:
        made.append(place(6 + messages), message(6 + messages))
        made.evict()
    assert made.after(between(3)) is None


def test_messages_that_were_too_old_came_after_such_a_position() -> None:
    """Where the messages after it were dropped for their age, it is not found, also not before later ones."""
    timer = Timer()
    made = ring(clock=timer)
    made.fill_after(between(3), [], between(5))
    made.append(place(6), message(6))
    timer.seconds += 1000
    assert made.after(between(3)) is None
    made.append(place(7), message(7))
    assert made.after(between(3)) is None


def test_older_messages_that_are_read_end_it() -> None:
    """Where a later read puts messages into the empty ring, such a position is not found."""
    made = ring()
    made.fill_after(between(3), [], place(2))
    assert made.fill(entries(1, 2), place(2), complete=True)
    assert made.after(between(3)) is None


def test_a_position_that_no_entry_has_is_known_after_a_read() -> None:
    """What one read has returned after it is found for exactly this position, until the messages are dropped."""
    made = ring(4)
    for number in (1, 5, 7):
        made.append(place(number, before_check=False), message(number))
    unnamed = Position(EPOCH, 3, 12345)
    assert made.after(unnamed) is None
    made.fill_after(unnamed, [(place(number), message(number)) for number in (5, 7, 8)], place(7))
    assert data(made.after(unnamed)) == ["5", "7"]
    made.append(place(9), message(9))
    assert data(made.after(unnamed)) == ["5", "7", "9"]
    assert data(made.after(Position(EPOCH, 4, 0))) == ["5", "7", "9"]
    for other in (Position(EPOCH, 3, 12346), Position(EPOCH, 2, 0), Position(EPOCH, 5, 0), Position(OTHER, 3, 12345)):
        assert made.after(other) is None
    for number in range(10, 14):
        made.append(place(number), message(number))
    assert made.after(unnamed) is None


def test_a_position_after_the_newest_entry_is_known_until_another_one_follows() -> None:
    """Where a read has returned nothing after it, nothing is missing at this moment, and that is not known later."""
    made = filled(1, 3)
    unnamed = Position(EPOCH, 8, 12345)
    made.fill_after(unnamed, [], place(3))
    assert data(made.after(unnamed)) == []
    made.append(place(9), message(9))
    assert made.after(unnamed) is None
    made.fill_after(unnamed, entries(9, 9), place(9))
    assert data(made.after(unnamed)) == ["9"]
    made.fill_after(Position(EPOCH, 2, 12345), entries(9, 9), place(9))  # the read lacks what the ring has
    assert made.after(Position(EPOCH, 2, 12345)) is None


# -- compact positions -------------------------------------------------------------------------------------------------

SHORTS = 65_535  # two checks with this difference have the same short form


def test_a_compact_position_is_found_where_the_whole_one_is() -> None:
    """The newest, one that is held, the one before the oldest, that of an empty channel; and no other."""
    made = filled(3, 5)
    for number in range(2, 6):
        position = Position(EPOCH, number, 10 * number)
        assert data(made.after(compacted(position))) == data(made.after(position)) is not None
        for lost in (
            Position(EPOCH, number, 10 * number + 1),
            Position(OTHER, number, 10 * number),
            Position(EPOCH, 1, 10 * number),
            Position(EPOCH, 9, 10 * number),
        ):
            assert made.after(compacted(lost)) is None
    assert data(filled(1, 2).after(compacted(Position(EPOCH, 0, 0)))) == ["1", "2"]
    made = ring()
    made.clear(place(7))
    assert (data(made.after(compacted(place(7)))), made.after(compacted(place(6)))) == ([], None)


@pytest.mark.parametrize("number", [2, 4, 5], ids=["before the oldest", "held", "newest"])
def test_a_compact_position_makes_no_other_one_known(number: int) -> None:
    """A whole position that it equals, of a message that was lost, is not found after it was asked for."""
    made = filled(3, 5)
    lost = Position(EPOCH, number, 10 * number + SHORTS)
    for _ in range(2):
        assert data(made.after(compacted(lost))) == [str(later) for later in range(number + 1, 6)]
        assert made.after(lost) is None


def test_a_compact_position_that_was_read_is_found_as_such_alone() -> None:
    """What came after it is known of every compact one that equals it, and of a whole one only once that was read."""
    made = ring()
    for number in (1, 5, 7):
        made.append(place(number, before_check=False), message(number))
    read = [(place(number), message(number)) for number in (5, 7)]
    whole = Position(EPOCH, 3, 12345)
    made.fill_after(compacted(whole), read, place(7))
    lost = Position(EPOCH, 3, 12345 + SHORTS)
    assert data(made.after(compacted(whole))) == data(made.after(compacted(lost))) == ["5", "7"]
    assert (made.after(whole), made.after(lost), made.after(compacted(Position(EPOCH, 3, 12346)))) == (None, None, None)
    made.fill_after(whole, read, place(7))
    assert data(made.after(compacted(whole))) == data(made.after(whole)) == ["5", "7"]
    assert made.after(lost) is None


def test_no_loss_goes_unnoticed_but_for_equal_short_checks() -> None:
    """At random: a compact position is found exactly where a whole one with the same short check is."""
    choose = random.Random(18)
    found = refused = 0
    for _ in range(300):
        made, passed = ring(choose.randint(1, 6)), [Place(EPOCH, 0, 0)]
        lost: list[Place] = []
        first = choose.choice((1, 3))
        last = Place(EPOCH, first - 1, (first - 1) and 7)
        made.clear(last)
        for _ in range(choose.randint(1, 30)):
            if choose.random() < 0.2 and last.before is not None and last.before_check is not None:  # a failover
                lost.append(last)
                last = Place(EPOCH, last.before, last.before_check)
                made.clear(last)
            check = choose.choice((choose.randrange(1 << 32), choose.randint(0, 3) * SHORTS + 1))
            last = Place(EPOCH, last.offset + 1, check, last.offset, last.check if choose.random() < 0.9 else None)
            made.append(last, message(last.offset))
            passed.append(last)
            for position in (*passed, *lost):
                whole, compact = made.after(position), made.after(compacted(position))
                equal = [one for one in passed if one.compact == position.compact and made.after(one) is not None]
                assert (compact is not None) == bool(equal)
                if whole is not None:
                    assert data(compact) == data(whole)
                found += whole is not None
                refused += compact is None
    assert min(found, refused) > 1000


def received(made: Ring, *numbers: int) -> None:
    """Let a ring receive messages in one pass of the event loop."""
    for number in numbers:
        (made.received or made.receive()).append(message(number))


def test_what_was_received_is_found_at_once() -> None:
    """What a pass of the event loop has received so far is part of the ring for each of its readers."""
    reads: list[Callable[[Ring], bool]] = [
        lambda made: len(made) == 4,
        lambda made: made.newest_position == place(4),
        lambda made: data(made.after(place(2))) == ["3", "4"],
        lambda made: data(made.newest(3)) == ["2", "3", "4"],
    ]
    for read in reads:
        made = filled(1, 2)
        received(made, 3, 4)
        assert read(made)
        assert not made.received


def test_what_was_received_comes_before_what_is_added_later() -> None:
    """A read is joined to it, and a message that is added by itself follows it."""
    made = ring()
    received(made, 3)
    assert made.fill(entries(1, 3), place(3), complete=True)
    received(made, 4)
    made.append(place(5), message(5))
    assert data(made.newest(9)) == ["1", "2", "3", "4", "5"]


def test_all_rings_add_what_they_have_received_at_the_end_of_a_pass() -> None:
    """It counts for the limit of all rings, and is as old as that."""
    now = NOW
    budget = RingBudget()
    one, other = (ring(budget=budget, clock=lambda: now) for _ in range(2))
    received(one, 1, 2)
    received(other, 1)
    assert not budget.size_bytes
    budget.settle()
    assert budget.size_bytes == 3 * (400 + 1)
    assert not [*one.received, *other.received, *budget.receiving]
    now += 61
    received(one, 3)
    budget.settle()
    assert (data(one.newest(9)), data(other.newest(9))) == (["3"], [])


def test_what_was_received_before_a_gap_is_forgotten() -> None:
    """Nothing from before a gap is given back after it."""
    made = ring()
    received(made, 1, 2)
    made.clear(place(7))
    received(made, 8)
    assert data(made.newest(9)) == ["8"]


def test_a_pass_makes_no_difference() -> None:
    """However a ring receives its messages, it gives back the same, also where one pass has more than it holds."""
    rng = random.Random(15)
    for _ in range(300):
        budgets = RingBudget(), RingBudget()
        max_messages = rng.choice((1, 3))
        one_by_one, in_passes = (ring(max_messages, budget=budget) for budget in budgets)
        for made in (one_by_one, in_passes):
            made.fill_after(between(3), [], between(3))
        number = 4
        for _ in range(rng.randrange(1, 4)):
            for _ in range(rng.randrange(8)):
                one_by_one.append(place(number), message(number))
                received(in_passes, number)
                number += 1
            budgets[1].settle()
        for position in (between(3), *(place(known) for known in range(1, number + 1))):
            assert data(in_passes.after(position)) == data(one_by_one.after(position))
        for count in range(6):
            assert data(in_passes.newest(count)) == data(one_by_one.newest(count))
        assert in_passes.newest_position == one_by_one.newest_position
        assert len(in_passes) == len(one_by_one)
        for made in (one_by_one, in_passes):
            made.clear(None)
        assert budgets[0].size_bytes == budgets[1].size_bytes == 0


def test_extensions_count() -> None:
    """What a publisher adds to the header of a message counts as its data does, until the message has gone."""
    budget = RingBudget()
    kept = ring(2, budget=budget)
    for number in range(1, 6):
        kept.append(place(number), ExtendedMessage(channel="a", data="", extensions=bytes(1_000)))
    assert budget.size_bytes == 3 * (400 + 1_000)
    kept.clear(None)
    assert budget.size_bytes == 0
