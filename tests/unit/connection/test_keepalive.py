"""`backplane.connection.keepalive`: one timer for all clients, each checked when it is due."""

from __future__ import annotations

import asyncio
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.close_codes import CloseCode
from backplane.connection.keepalive import ConnectionTimers, KeepaliveScheduler
from backplane.connection.limits import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0
NEVER = math.inf
OFF = Limits(heartbeat_seconds=None)
# A sum of two times of a machine that has run for a day is off by some 1e-11 s.
ROUNDING = 1e-9


class TimedClient:
    """A connection of the scheduler.

    Attributes:
        timers: When it is due.
        checks: When it was checked.
        next_due: What it sets at each check; a list is used up, then never again.
        at_check: Called at each check.
    """

    def __init__(self, due: float) -> None:
        self.timers = ConnectionTimers(0.0)
        self.timers.due = due
        self.checks: list[float] = []
        self.next_due: list[float] = []
        self.at_check: Callable[[], object] = lambda: None

    def check_timers(self, now: float, /) -> None:
        """Note it."""
        self.checks.append(now)
        self.timers.due = self.next_due.pop(0) if self.next_due else NEVER
        self.at_check()


def timer(scheduler: KeepaliveScheduler) -> asyncio.TimerHandle | None:
    """Return the timer of the scheduler."""
    return scheduler._timer  # pyright: ignore[reportPrivateUsage]


def kept(scheduler: KeepaliveScheduler) -> list[object]:
    """Return the clients that the scheduler checks."""
    buckets = scheduler._buckets.values()  # pyright: ignore[reportPrivateUsage]
    assert all(buckets), "an empty bucket"
    return [client for bucket in buckets for client in bucket]


def now() -> float:
    """Return the loop's time."""
    return asyncio.get_running_loop().time()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.001)


@contextmanager
def scheduler_of(*, tick_seconds: float = 0.001, slice_size: int = 500) -> Generator[KeepaliveScheduler]:
    """Yield a scheduler that must be empty in the end."""
    scheduler = KeepaliveScheduler(tick_seconds=tick_seconds, slice_size=slice_size)
    yield scheduler
    assert kept(scheduler) == []
    assert timer(scheduler) is None


@pytest.fixture
async def scheduler() -> AsyncGenerator[KeepaliveScheduler]:
    """A scheduler that ticks every millisecond."""
    with scheduler_of() as made:
        yield made


async def test_checked_when_due(scheduler: KeepaliveScheduler) -> None:
    """A client is checked once it is due, and never before; then it is forgotten until it is put again."""
    due = now() + 0.02
    client = TimedClient(due)
    scheduler.put(client)
    assert client.checks == []
    await until(lambda: client.checks != [])
    assert len(client.checks) == 1
    assert client.checks[0] >= due - ROUNDING


async def test_again_and_again(scheduler: KeepaliveScheduler) -> None:
    """A client that sets its next time is checked then too."""
    client = TimedClient(now())
    client.next_due = [now() + 0.005, now() + 0.01, now() + 0.015]
    expected = [client.timers.due, *client.next_due]
    scheduler.put(client)
    await until(lambda: len(client.checks) == 4)
    assert all(checked >= due - ROUNDING for checked, due in zip(client.checks, expected, strict=True))


async def test_in_the_order_of_their_times(scheduler: KeepaliveScheduler) -> None:
    """Clients put in any order are checked in the order of their times."""
    order: list[int] = []
    begin = now()
    clients = [TimedClient(begin + 0.004 * number) for number in range(6)]
    for number in (3, 0, 5, 1, 4, 2):
        clients[number].at_check = lambda number=number: order.append(number)  # type: ignore[misc]
        scheduler.put(clients[number])
    await until(lambda: len(order) == 6)
    assert order == list(range(6))


async def test_one_timer_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand clients of one time, and a thousand later ones, are one timer at a time."""
    set_timer, count = KeepaliveScheduler._set_timer, 0  # pyright: ignore[reportPrivateUsage]

    def counted(self: KeepaliveScheduler, bucket: int) -> None:
        nonlocal count
        count += 1
        set_timer(self, bucket)

    monkeypatch.setattr(KeepaliveScheduler, "_set_timer", counted)
    with scheduler_of(tick_seconds=0.125) as scheduler:  # whole milliseconds: no timer comes early
        begin = now()
        clients = [TimedClient(begin + (0.1 if number >= 1_000 else 0)) for number in range(2_000)]
        for client in clients:
            scheduler.put(client)
        assert count == 1
        await until(lambda: all(client.checks for client in clients) and timer(scheduler) is None)
    assert count <= 10  # a timer for each time, and one for each slice


async def test_earlier_one_moves_the_timer(scheduler: KeepaliveScheduler) -> None:
    """A client that is due before all others does not wait for them."""
    late, soon = TimedClient(now() + 3_600), TimedClient(now() + 0.005)
    scheduler.put(late)
    scheduler.put(soon)
    await until(lambda: soon.checks != [])
    assert (late.checks, kept(scheduler)) == ([], [late])
    scheduler.remove(late)


async def test_past_time(scheduler: KeepaliveScheduler) -> None:
    """A client that is overdue when it is put is checked in a later pass of the event loop, not at once."""
    client = TimedClient(now() - 100)
    scheduler.put(client)
    assert client.checks == []
    await until(lambda: client.checks != [])


async def test_never_due(scheduler: KeepaliveScheduler) -> None:
    """A client that is never due costs neither a place nor a timer."""
    client = TimedClient(NEVER)
    scheduler.put(client)
    assert (kept(scheduler), timer(scheduler)) == ([], None)
    scheduler.remove(client)


async def test_remove(scheduler: KeepaliveScheduler) -> None:
    """A client that is removed is not checked, and with the last one the timer goes; removing again does nothing."""
    one, two = TimedClient(now() + 0.005), TimedClient(now() + 0.005)
    for client in (one, two):
        scheduler.put(client)
    scheduler.remove(one)
    scheduler.remove(one)
    assert timer(scheduler) is not None
    scheduler.remove(two)
    handle = timer(scheduler)
    assert handle is None
    third = TimedClient(now() + 0.01)
    scheduler.put(third)
    await until(lambda: third.checks != [])
    assert (one.checks, two.checks) == ([], [])


async def test_put_again_moves(scheduler: KeepaliveScheduler) -> None:
    """A client that is put again is due at its new time alone, earlier or later."""
    client = TimedClient(now() + 3_600)
    scheduler.put(client)
    client.timers.due = now() + 0.005
    scheduler.put(client)
    assert kept(scheduler) == [client]
    await until(lambda: client.checks != [])
    client.timers.due = now() + 0.001
    scheduler.put(client)
    client.timers.due = NEVER
    scheduler.put(client)
    assert kept(scheduler) == []
    assert len(client.checks) == 1


async def test_slices() -> None:
    """Many clients that are due together are checked over several passes of the event loop, each once."""
    with scheduler_of(slice_size=10) as scheduler:
        due = now() - 1
        clients = [TimedClient(due) for _ in range(35)]
        for client in clients:
            scheduler.put(client)
        seen: list[int] = []
        async with asyncio.timeout(WAIT_SECONDS):
            while not seen or seen[-1] < 35:
                await asyncio.sleep(0)
                checked = sum(len(client.checks) for client in clients)
                if not seen or checked != seen[-1]:
                    seen.append(checked)
        await asyncio.sleep(0)
    assert [step for step in seen if step] == [10, 20, 30, 35]
    assert [len(client.checks) for client in clients] == [1] * 35


async def test_slice_that_ends_with_the_last_client() -> None:
    """After a slice that is exactly full no timer is left."""
    with scheduler_of(slice_size=10) as scheduler:
        clients = [TimedClient(now() - 1) for _ in range(10)]
        for client in clients:
            scheduler.put(client)
        await until(lambda: all(client.checks for client in clients) and timer(scheduler) is None)


async def test_slices_do_not_starve_the_rest() -> None:
    """Clients that are due again at once do not keep later ones from being checked."""
    with scheduler_of(slice_size=2) as scheduler:
        due = now() - 1
        busy = [TimedClient(due) for _ in range(2)]
        for client in busy:
            client.next_due = [due + 0.1] * 20
            scheduler.put(client)
        quiet = TimedClient(due + 0.05)
        scheduler.put(quiet)
        await until(lambda: all(len(client.checks) == 21 for client in busy) and quiet.checks != [])


async def test_client_that_is_removed_in_its_check(scheduler: KeepaliveScheduler) -> None:
    """A client that ends while it is checked, and has nothing due any more, is forgotten."""
    client = TimedClient(now())
    client.at_check = lambda: scheduler.remove(client)
    scheduler.put(client)
    await until(lambda: client.checks != [])
    assert kept(scheduler) == []


async def test_client_that_ends_its_neighbour(scheduler: KeepaliveScheduler) -> None:
    """A client that was removed by the check of another one, due at the same time, is not checked, nor kept."""
    due = now() - 1
    one, two = TimedClient(due), TimedClient(due)
    two.next_due = [now() + 3_600]
    one.at_check = lambda: scheduler.remove(two)
    scheduler.put(one)
    scheduler.put(two)
    await until(lambda: one.checks != [])
    for _ in range(3):
        await asyncio.sleep(0)
    assert (two.checks, kept(scheduler)) == ([], [])


async def test_client_that_puts_another(scheduler: KeepaliveScheduler) -> None:
    """A client that is put while others are checked is checked too."""
    one, two = TimedClient(now()), TimedClient(0.0)
    one.at_check = lambda: scheduler.put(two)
    scheduler.put(one)
    await until(lambda: two.checks != [])
    assert (len(one.checks), len(two.checks)) == (1, 1)


async def test_check_that_raises(scheduler: KeepaliveScheduler) -> None:
    """A client whose check fails is checked again, a tick later, and the others are checked."""
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    fault = ZeroDivisionError()
    broken, other = TimedClient(now()), TimedClient(now())
    broken.next_due = [0.0]

    def fail() -> None:
        if len(broken.checks) == 1:
            raise fault

    broken.at_check = fail
    scheduler.put(broken)
    scheduler.put(other)
    await until(lambda: len(broken.checks) == 2 and other.checks != [])
    asyncio.get_running_loop().set_exception_handler(None)
    assert reported == [fault]
    assert broken.checks[1] - broken.checks[0] >= 0.001 - 1e-9  # rounding


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


def test_message_puts_idle_off() -> None:
    """A message of the client puts its idle timeout off, and neither its largest age nor its permission."""
    limits = Limits(heartbeat_seconds=None, idle_timeout_seconds=10, max_age_seconds=50)
    timers = ConnectionTimers(0.0)
    timers.begin(0.0, limits)
    timers.last_received_at = 9.0
    assert timers.ended_by(18.9, limits) is None
    assert timers.next_due(limits) == 19.0
    timers.last_received_at = 49.0
    assert (timers.ended_by(50.0, limits), timers.next_due(limits)) == (CloseCode.MAX_AGE, 50.0)


def test_first_heartbeats_are_spread() -> None:
    """Clients that connect together are not pinged together: the first time is half an interval to a whole one."""
    dues: set[float] = set()
    for _ in range(200):
        timers = ConnectionTimers(0.0)
        timers.begin(100.0, Limits(heartbeat_seconds=30))
        dues.add(timers.due)
    assert len(dues) > 100
    assert min(dues) >= 115
    assert max(dues) <= 130


def test_client_without_an_answer_is_silent() -> None:
    """A client that sends nothing is pinged at a heartbeat, and silent if nothing has come by the next one."""
    timers = ConnectionTimers(0.0)
    assert timers.heartbeat(10.0, 10.0, last_received_at=0.0, is_read=True) == "ping"
    assert timers.heartbeat(20.0, 10.0, last_received_at=9.9, is_read=True) == "silent"


def test_client_that_answers_stays() -> None:
    """A client that answers is pinged again and again and stays; one that sends anyway is not pinged at all."""
    timers = ConnectionTimers(0.0)
    for beat in range(1, 6):
        assert timers.heartbeat(10.0 * beat, 10.0, last_received_at=10.0 * (beat - 1), is_read=True) == "ping"
    for beat in range(6, 9):
        assert timers.heartbeat(10.0 * beat, 10.0, last_received_at=10.0 * beat - 4.9, is_read=True) == "alive"
    assert timers.heartbeat(90.0, 10.0, last_received_at=80.0, is_read=True) == "ping"


def test_client_that_is_not_read_is_not_silent() -> None:
    """While the client is not read, a missing answer shows nothing; it counts anew from then on."""
    timers = ConnectionTimers(0.0)
    assert timers.heartbeat(10.0, 10.0, last_received_at=0.0, is_read=True) == "ping"
    for beat in range(2, 6):
        assert timers.heartbeat(10.0 * beat, 10.0, last_received_at=0.0, is_read=False) == "alive"
    assert timers.heartbeat(60.0, 10.0, last_received_at=0.0, is_read=True) == "ping"
    assert timers.heartbeat(70.0, 10.0, last_received_at=0.0, is_read=True) == "silent"


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
    """Whatever the limits: at the next due time a limit is reached or a heartbeat due; until then no limit is."""
    limits = Limits(heartbeat_seconds=heartbeat, idle_timeout_seconds=idle, max_age_seconds=age)
    timers = ConnectionTimers(0.0)
    timers.expires_at = expires_at
    timers.last_received_at = last_received_at
    if heartbeat is not None:
        timers.heartbeat(now, heartbeat, last_received_at=last_received_at, is_read=True)
    due = timers.next_due(limits)
    if due != NEVER:
        assert timers.ended_by(due, limits) is not None or due == now + (heartbeat or 0)
    if due > now:
        assert timers.ended_by(math.nextafter(min(due, 1e12), -math.inf), limits) is None
