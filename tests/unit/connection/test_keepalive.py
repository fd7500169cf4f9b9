"""`backplane.connection.keepalive`: one timer for all clients, each looked after when it is due."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import backplane.connection.keepalive
from backplane.close_codes import CloseCode
from backplane.connection.keepalive import ConnectionTimers, KeepaliveScheduler
from backplane.connection.limits import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 5.0
NEVER = math.inf
OFF = Limits(heartbeat_seconds=None)


class Patient:
    """What is watched.

    Attributes:
        timers: When it is due.
        looks: When it was looked at.
        next_due: What it sets at each look; a list is used up, then never again.
        at_look: Called at each look.
    """

    def __init__(self, due: float) -> None:
        self.timers = ConnectionTimers(0.0)
        self.timers.due = due
        self.looks: list[float] = []
        self.next_due: list[float] = []
        self.at_look: Callable[[], object] = lambda: None

    def check_timers(self, now: float, /) -> None:
        """Note it."""
        self.looks.append(now)
        self.timers.due = self.next_due.pop(0) if self.next_due else NEVER
        self.at_look()


def timer(watch: KeepaliveScheduler) -> asyncio.TimerHandle | None:
    """Return the watch's timer."""
    return watch._timer  # pyright: ignore[reportPrivateUsage]


def kept(watch: KeepaliveScheduler) -> list[object]:
    """Return whom the watch keeps."""
    buckets = watch._buckets.values()  # pyright: ignore[reportPrivateUsage]
    assert all(buckets), "a bucket of nobody"
    return [client for bucket in buckets for client in bucket]


def now() -> float:
    """Return the loop's time."""
    return asyncio.get_running_loop().time()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
async def watch(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[KeepaliveScheduler]:
    """A watch that ticks every millisecond, and must be empty in the end."""
    monkeypatch.setattr(backplane.connection.keepalive, "_TICK_SECONDS", 0.001)
    made = KeepaliveScheduler()
    yield made
    assert kept(made) == []
    assert timer(made) is None


async def test_looked_after_when_due(watch: KeepaliveScheduler) -> None:
    """A client is looked at once it is due, and never before; then it is forgotten until it asks again."""
    due = now() + 0.02
    client = Patient(due)
    watch.put(client)
    assert client.looks == []
    await until(lambda: client.looks != [])
    assert len(client.looks) == 1
    assert client.looks[0] >= due


async def test_again_and_again(watch: KeepaliveScheduler) -> None:
    """A client that sets its next time is looked at then too."""
    client = Patient(now())
    client.next_due = [now() + 0.005, now() + 0.01, now() + 0.015]
    expected = [client.timers.due, *client.next_due]
    watch.put(client)
    await until(lambda: len(client.looks) == 4)
    assert all(look >= due for look, due in zip(client.looks, expected, strict=True))


async def test_in_the_order_of_their_times(watch: KeepaliveScheduler) -> None:
    """Clients put in any order are looked at in the order of their times."""
    order: list[int] = []
    begin = now()
    clients = [Patient(begin + 0.004 * number) for number in range(6)]
    for number in (3, 0, 5, 1, 4, 2):
        clients[number].at_look = lambda number=number: order.append(number)  # type: ignore[misc]
        watch.put(clients[number])
    await until(lambda: len(order) == 6)
    assert order == list(range(6))


async def test_one_timer_for_many(watch: KeepaliveScheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand clients of one time, and a thousand later ones, are one timer at a time."""
    set_timer, count = KeepaliveScheduler._set_timer, 0  # pyright: ignore[reportPrivateUsage]

    def counted(self: KeepaliveScheduler, bucket: int) -> None:
        nonlocal count
        count += 1
        set_timer(self, bucket)

    monkeypatch.setattr(KeepaliveScheduler, "_set_timer", counted)
    # Whole milliseconds: no timer comes early.
    monkeypatch.setattr(backplane.connection.keepalive, "_TICK_SECONDS", 0.125)
    begin = now()
    clients = [Patient(begin + (0.1 if number >= 1_000 else 0)) for number in range(2_000)]
    for client in clients:
        watch.put(client)
    assert count == 1
    await until(lambda: all(client.looks for client in clients))
    assert count <= 10  # a timer for each time, and one for each slice


async def test_earlier_one_moves_the_timer(watch: KeepaliveScheduler) -> None:
    """A client that is due before all others does not wait for them."""
    late, soon = Patient(now() + 3_600), Patient(now() + 0.005)
    watch.put(late)
    watch.put(soon)
    await until(lambda: soon.looks != [])
    assert (late.looks, kept(watch)) == ([], [late])
    watch.remove(late)


async def test_past_time(watch: KeepaliveScheduler) -> None:
    """A client that is overdue when it is put is looked at in a coming pass of the event loop, not at once."""
    client = Patient(now() - 100)
    watch.put(client)
    assert client.looks == []
    await until(lambda: client.looks != [])


async def test_never_due(watch: KeepaliveScheduler) -> None:
    """A client with nothing to be looked at costs neither a place nor a timer."""
    client = Patient(NEVER)
    watch.put(client)
    assert (kept(watch), timer(watch)) == ([], None)
    watch.remove(client)


async def test_remove(watch: KeepaliveScheduler) -> None:
    """A client that is removed is not looked at, and with the last one the timer goes; removing again does nothing."""
    one, two = Patient(now() + 0.005), Patient(now() + 0.005)
    for client in (one, two):
        watch.put(client)
    watch.remove(one)
    watch.remove(one)
    assert timer(watch) is not None
    watch.remove(two)
    handle = timer(watch)
    assert handle is None
    third = Patient(now() + 0.01)
    watch.put(third)
    await until(lambda: third.looks != [])
    assert (one.looks, two.looks) == ([], [])


async def test_put_again_moves(watch: KeepaliveScheduler) -> None:
    """A client that is put again stands at its new time alone, earlier or later."""
    client = Patient(now() + 3_600)
    watch.put(client)
    client.timers.due = now() + 0.005
    watch.put(client)
    assert kept(watch) == [client]
    await until(lambda: client.looks != [])
    client.timers.due = now() + 0.001
    watch.put(client)
    client.timers.due = NEVER
    watch.put(client)
    assert kept(watch) == []
    assert len(client.looks) == 1


async def test_slices(watch: KeepaliveScheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many clients that are due together are looked at over several passes of the event loop, each once."""
    monkeypatch.setattr(backplane.connection.keepalive, "_SLICE", 10)
    due = now() - 1
    clients = [Patient(due) for _ in range(35)]
    for client in clients:
        watch.put(client)
    seen: list[int] = []
    async with asyncio.timeout(WAIT_SECONDS):
        while not seen or seen[-1] < 35:
            await asyncio.sleep(0)
            looked = sum(len(client.looks) for client in clients)
            if not seen or looked != seen[-1]:
                seen.append(looked)
    await asyncio.sleep(0)
    assert [step for step in seen if step] == [10, 20, 30, 35]
    assert [len(client.looks) for client in clients] == [1] * 35


async def test_slice_that_ends_with_the_last_client(watch: KeepaliveScheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice that is exactly full leaves no timer behind."""
    monkeypatch.setattr(backplane.connection.keepalive, "_SLICE", 10)
    clients = [Patient(now() - 1) for _ in range(10)]
    for client in clients:
        watch.put(client)
    await until(lambda: all(client.looks for client in clients) and timer(watch) is None)


async def test_slices_do_not_starve_the_rest(watch: KeepaliveScheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that are due again at once do not keep later ones from their turn."""
    monkeypatch.setattr(backplane.connection.keepalive, "_SLICE", 2)
    due = now() - 1
    busy = [Patient(due) for _ in range(2)]
    for client in busy:
        client.next_due = [due + 0.1] * 20
        watch.put(client)
    quiet = Patient(due + 0.05)
    watch.put(quiet)
    await until(lambda: all(len(client.looks) == 21 for client in busy) and quiet.looks != [])


async def test_client_that_leaves_at_its_look(watch: KeepaliveScheduler) -> None:
    """A client that ends while it is looked at, and says so by having nothing due, is forgotten."""
    client = Patient(now())
    client.at_look = lambda: watch.remove(client)
    watch.put(client)
    await until(lambda: client.looks != [])
    assert kept(watch) == []


async def test_client_that_ends_its_neighbour(watch: KeepaliveScheduler) -> None:
    """A client that was removed by the look at another one, due at the same time, is not looked at, nor kept."""
    due = now() - 1
    one, two = Patient(due), Patient(due)
    two.next_due = [now() + 3_600]
    one.at_look = lambda: watch.remove(two)
    watch.put(one)
    watch.put(two)
    await until(lambda: one.looks != [])
    for _ in range(3):
        await asyncio.sleep(0)
    assert (two.looks, kept(watch)) == ([], [])


async def test_client_that_puts_another(watch: KeepaliveScheduler) -> None:
    """A client that is put while others are looked at has its turn too."""
    one, two = Patient(now()), Patient(0.0)
    one.at_look = lambda: watch.put(two)
    watch.put(one)
    await until(lambda: two.looks != [])
    assert (len(one.looks), len(two.looks)) == (1, 1)


# --- lifetimes -----------------------------------------------------------------------------------------------------


def test_nothing_due() -> None:
    """Without limits nothing is ever due, and nothing ends it."""
    timers = ConnectionTimers(100.0)
    timers.begin(200.0, OFF)
    assert (timers.due, timers.ended_by(1e9, OFF)) == (NEVER, None)


@pytest.mark.parametrize(
    ("limits", "expires_at", "at", "code"),
    [
        (Limits(idle_timeout_seconds=10), None, 210.0, CloseCode.IDLE),
        (Limits(max_age_seconds=10), None, 210.0, CloseCode.MAX_AGE),
        (OFF, 210.0, 210.0, CloseCode.EXPIRED),
        (Limits(idle_timeout_seconds=10, max_age_seconds=10), 210.0, 210.0, CloseCode.EXPIRED),
        (Limits(idle_timeout_seconds=10, max_age_seconds=10), None, 210.0, CloseCode.MAX_AGE),
    ],
    ids=["idle", "age", "expiry", "expiry first", "age before idle"],
)
def test_limit_that_ends(limits: Limits, expires_at: float | None, at: float, code: CloseCode) -> None:
    """A limit ends the connection from its moment on, counted from the end of the handshake, and not before."""
    timers = ConnectionTimers(100.0)
    timers.expires_at = expires_at
    timers.begin(200.0, limits)
    assert timers.due <= at
    assert timers.ended_by(at - 0.001, limits) is None
    assert timers.ended_by(at, limits) is code


def test_saying_something_puts_idle_off() -> None:
    """What a client says counts for being idle, and neither for its age nor its permission."""
    limits = Limits(heartbeat_seconds=None, idle_timeout_seconds=10, max_age_seconds=50)
    timers = ConnectionTimers(0.0)
    timers.begin(0.0, limits)
    timers.last_received_at = 9.0
    assert timers.ended_by(18.9, limits) is None
    assert timers.next_due(10.0, limits) == 19.0
    timers.last_received_at = 49.0
    assert (timers.ended_by(50.0, limits), timers.next_due(49.0, limits)) == (CloseCode.MAX_AGE, 50.0)


def test_first_heartbeats_are_spread() -> None:
    """Clients that come together are not asked together: the first time is drawn from half an interval to a whole."""
    dues: set[float] = set()
    for _ in range(200):
        timers = ConnectionTimers(0.0)
        timers.begin(100.0, Limits(heartbeat_seconds=30))
        dues.add(timers.due)
    assert len(dues) > 100
    assert min(dues) >= 115
    assert max(dues) <= 130


def test_silent_client_is_asked_then_given_up() -> None:
    """A client that is not heard of is asked at a heartbeat, and has vanished if it is not heard of by the next one."""
    timers = ConnectionTimers(0.0)
    assert timers.heartbeat(10.0, 10.0, heard=0.0, listening=True) == "ask"
    assert timers.heartbeat(20.0, 10.0, heard=9.9, listening=True) == "vanished"


def test_client_that_answers_stays() -> None:
    """Whoever answers is asked again and again and stays; whoever talks anyway is not asked at all."""
    timers = ConnectionTimers(0.0)
    for beat in range(1, 6):
        assert timers.heartbeat(10.0 * beat, 10.0, heard=10.0 * (beat - 1), listening=True) == "ask"
    for beat in range(6, 9):
        assert timers.heartbeat(10.0 * beat, 10.0, heard=10.0 * beat - 4.9, listening=True) == "there"
    assert timers.heartbeat(90.0, 10.0, heard=80.0, listening=True) == "ask"


def test_not_listening_is_no_silence() -> None:
    """While nobody listens, a silence says nothing about the client; it counts anew from then on."""
    timers = ConnectionTimers(0.0)
    assert timers.heartbeat(10.0, 10.0, heard=0.0, listening=True) == "ask"
    for beat in range(2, 6):
        assert timers.heartbeat(10.0 * beat, 10.0, heard=0.0, listening=False) == "there"
    assert timers.heartbeat(60.0, 10.0, heard=0.0, listening=True) == "ask"
    assert timers.heartbeat(70.0, 10.0, heard=0.0, listening=True) == "vanished"


times = st.none() | st.floats(0.01, 1e6)


@given(times, times, times, st.none() | st.floats(-1e6, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_due_before_the_first_limit(
    heartbeat: float | None,
    idle: float | None,
    age: float | None,
    expires_at: float | None,
    last_received_at: float,
    now: float,
) -> None:
    """Whatever the limits: at the time it says, a limit is reached or a heartbeat due; until then no limit is."""
    limits = Limits(heartbeat_seconds=heartbeat, idle_timeout_seconds=idle, max_age_seconds=age)
    timers = ConnectionTimers(0.0)
    timers.expires_at = expires_at
    timers.last_received_at = last_received_at
    due = timers.next_due(now, limits)
    if due != NEVER:
        assert timers.ended_by(due, limits) is not None or due == now + (heartbeat or 0)
    if due > now:
        assert timers.ended_by(math.nextafter(min(due, 1e12), -math.inf), limits) is None
