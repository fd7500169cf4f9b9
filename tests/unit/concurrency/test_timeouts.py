"""`backplane.concurrency.timeouts`: one timer for many limits, with the manners of `asyncio.timeout`."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from backplane.concurrency.timeouts import PatientTimeout, SharedTimeout
from tests.unit.doubles import until_idle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 5.0
NEVER = 3_600.0
# Long enough that a busy machine gets to what precedes the expiry.
SOON = 0.1

Limit = Callable[[], AbstractAsyncContextManager[object]]


@asynccontextmanager
async def limited(deadlines: SharedTimeout) -> AsyncGenerator[None]:
    """Enter a limit as `asyncio.timeout` is entered."""
    with deadlines.limit():
        yield


@pytest.fixture(params=["SharedTimeout", "PatientTimeout", "asyncio.timeout"])
async def limit(request: pytest.FixtureRequest) -> AsyncGenerator[Limit]:
    """Make limits of some milliseconds, by the one way and by the other: what holds for one holds for both."""
    if request.param == "asyncio.timeout":
        yield lambda: asyncio.timeout(SOON)
        return
    if request.param == "PatientTimeout":
        yield lambda: PatientTimeout(SOON)
        return
    deadlines = SharedTimeout(SOON)
    yield lambda: limited(deadlines)
    deadlines.close()


class Timers:
    """The running loop as a limit's timer uses it, with its timers kept."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.handles: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        """Return the loop's time."""
        return self._loop.time()

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        """Set a timer."""
        self.handles.append(self._loop.call_at(when, callback, *args))
        return self.handles[-1]

    @property
    def left(self) -> int:
        """How many were not cancelled."""
        return sum(not handle.cancelled() for handle in self.handles)


def with_timers(seconds: float) -> tuple[SharedTimeout, Timers]:
    """Return limits of so many seconds, and their timers."""
    deadlines, timers = SharedTimeout(seconds), Timers()
    deadlines._timer._loop = timers  # type: ignore[assignment]  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    return deadlines, timers


async def never() -> None:
    """Wait for ever."""
    await asyncio.get_running_loop().create_future()


async def outcome(task: asyncio.Task[Any]) -> type[BaseException] | object:
    """Return what a task came to: the type of its error, or its result."""
    done, _ = await asyncio.wait([task], timeout=WAIT_SECONDS)
    assert done, "did not end in time"
    if task.cancelled():
        return asyncio.CancelledError
    error = task.exception()
    return task.result() if error is None else type(error)


def stand_still() -> None:
    """Hold the event loop until every limit of `SOON` is over."""
    until = time.monotonic() + 3 * SOON
    while time.monotonic() < until:
        pass


async def test_runs_out(limit: Limit) -> None:
    """What takes longer raises `TimeoutError`, with the cancellation as its cause, and the task goes on uncancelled."""
    with pytest.raises(TimeoutError) as raised:
        async with limit():
            await never()
    assert isinstance(raised.value.__cause__, asyncio.CancelledError)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_in_time(limit: Limit) -> None:
    """What ends in time raises nothing then, nor when the time is over."""
    async with limit():
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError):  # begun later, so the first one's time is over too
        async with limit():
            await never()


async def test_error_of_the_block(limit: Limit) -> None:
    """An error of the block goes on as it is."""
    with pytest.raises(KeyError, match="mine"):
        async with limit():
            raise KeyError("mine")


async def test_error_in_answer_to_the_time(limit: Limit) -> None:
    """An error that the block raises when its time is over goes on, and leaves the task uncancelled."""

    async def block() -> int:
        try:
            async with limit():
                try:
                    await never()
                finally:
                    raise KeyError("mine")
        except KeyError:
            await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert await outcome(asyncio.create_task(block())) == 0


async def test_cancelled_from_outside(limit: Limit) -> None:
    """A cancellation from outside stays one."""

    async def block() -> None:
        async with limit():
            await never()

    task = asyncio.create_task(block())
    await until_idle()
    task.cancel()
    assert await outcome(task) is asyncio.CancelledError


async def test_both_at_once(limit: Limit) -> None:
    """Cancelled from outside and out of time, before the task has run again: the cancellation from outside wins."""

    async def block() -> None:
        async with limit():
            await never()

    task = asyncio.create_task(block())
    await until_idle()
    stand_still()
    asyncio.get_running_loop().call_at(0, task.cancel)  # among the timers that are due, in front of the limit's
    assert await outcome(task) is asyncio.CancelledError


async def test_nested_outer_first(limit: Limit) -> None:
    """Of two limits of one task that run out together the inner one lets the outer one raise."""
    order: list[str] = []

    async def block() -> None:
        try:
            async with limit():
                try:
                    async with limit():
                        asyncio.get_running_loop().call_soon(stand_still)
                        await never()
                except TimeoutError:
                    order.append("inner")
                    raise
                except asyncio.CancelledError:
                    order.append("cancelled")
                    raise
        except TimeoutError:
            order.append("outer")

    await outcome(asyncio.create_task(block()))
    assert order == ["cancelled", "outer"]


async def test_inner_is_shorter() -> None:
    """An inner limit that runs out alone is a `TimeoutError` inside the outer one, which goes on."""
    outer, inner = SharedTimeout(NEVER), SharedTimeout(SOON)
    with outer.limit():
        with pytest.raises(TimeoutError), inner.limit():
            await never()
        await asyncio.sleep(0)
    outer.close()
    inner.close()


async def test_task_that_was_being_cancelled_before() -> None:
    """A limit entered while a cancellation is under way, as in a cleanup, still raises its own `TimeoutError`."""
    deadlines = SharedTimeout(SOON)

    async def block() -> str:
        try:
            await never()
        except asyncio.CancelledError:
            with pytest.raises(TimeoutError), deadlines.limit():
                await never()
        return "timed out"

    task = asyncio.create_task(block())
    await until_idle()
    task.cancel()
    assert await outcome(task) == "timed out"
    deadlines.close()


async def test_thousands_run_out_with_one_timer() -> None:
    """Thousands of limits begun together cost one timer, and each of them raises in its own task."""
    deadlines, timers = with_timers(0.5)

    async def block() -> None:
        with deadlines.limit():
            await never()

    tasks = [asyncio.create_task(block()) for _ in range(2_000)]
    await until_idle()
    assert len(timers.handles) == 1
    assert {await outcome(task) for task in tasks} == {TimeoutError}
    deadlines.close()


async def test_order_of_the_ends() -> None:
    """Limits run out in the order in which they began, those that were left early skipped."""
    deadlines = SharedTimeout(SOON)
    ended: list[int] = []
    gates = [asyncio.Event() for _ in range(10)]

    async def block(number: int) -> None:
        try:
            with deadlines.limit():
                await gates[number].wait()
        except TimeoutError:
            ended.append(number)

    tasks = [asyncio.create_task(block(number)) for number in range(10)]
    await until_idle()
    for number in (0, 3, 4, 9):
        gates[number].set()
    await asyncio.wait(tasks, timeout=WAIT_SECONDS)
    assert ended == [1, 2, 5, 6, 7, 8]
    deadlines.close()


async def test_one_timer_for_one_after_the_other() -> None:
    """Limits that follow one another share a timer as well, and none of the past ones is kept."""
    deadlines, timers = with_timers(NEVER)
    for _ in range(1_000):
        with deadlines.limit():
            await asyncio.sleep(0)
    assert len(timers.handles) == 1
    assert len(deadlines._limits) <= 1  # pyright: ignore[reportPrivateUsage]
    deadlines.close()


async def test_no_timer_before_the_first_and_after_the_close() -> None:
    """Without a limit there is no timer, and none is left behind the close, which may come twice."""
    deadlines, timers = with_timers(NEVER)
    assert timers.handles == []
    with deadlines.limit():
        assert timers.left == 1
        deadlines.close()
        assert timers.left == 0
    deadlines.close()
    assert timers.left == 0


async def test_closed_limits_run_no_more() -> None:
    """A limit that is entered at the close waits for as long as its block does."""
    deadlines, other = SharedTimeout(SOON), SharedTimeout(3 * SOON)

    async def block() -> str:
        with deadlines.limit():
            with pytest.raises(TimeoutError), other.limit():
                await never()
            return "not limited"

    task = asyncio.create_task(block())
    await until_idle()
    deadlines.close()
    assert await outcome(task) == "not limited"
    other.close()


def test_outside_of_a_task() -> None:
    """Without a task there is nothing to limit: refused, as by `asyncio.timeout`."""
    caught: list[BaseException] = []

    async def run() -> None:
        deadlines = SharedTimeout(NEVER)
        done = asyncio.Event()

        def enter() -> None:
            try:
                with deadlines.limit():
                    pytest.fail("entered")
            except RuntimeError as error:
                caught.append(error)
            done.set()

        asyncio.get_running_loop().call_soon(enter)
        await done.wait()
        deadlines.close()

    asyncio.run(run())
    assert [str(error) for error in caught] == ["a time limit needs a task"]


# --- a pause of the process ----------------------------------------------------------------------------------------

PAUSE_SECONDS = 0.5


@pytest.fixture(params=["SharedTimeout", "PatientTimeout"])
async def patient(request: pytest.FixtureRequest) -> AsyncGenerator[Limit]:
    """Make limits of some milliseconds that a pause of the process does not use up."""
    if request.param == "PatientTimeout":
        yield lambda: PatientTimeout(SOON)
        return
    deadlines = SharedTimeout(SOON)
    yield lambda: limited(deadlines)
    deadlines.close()


async def test_answer_that_arrived_during_a_pause_is_in_time(patient: Limit) -> None:
    """An answer that arrived while the event loop was blocked past the limit is read before the limit runs out."""
    loop = asyncio.get_running_loop()
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    with reader, writer:
        loop.call_soon(writer.send, b"answer")
        loop.call_soon(time.sleep, PAUSE_SECONDS)
        async with patient():
            assert await loop.sock_recv(reader, 6) == b"answer"


async def test_answer_that_is_only_asked_for_after_a_pause_is_in_time(patient: Limit) -> None:
    """A question that lay in a buffer of ours during the pause still gets its answer in time."""
    loop = asyncio.get_running_loop()
    (near, far), question = socket.socketpair(), b"question"
    near.setblocking(False)
    far.setblocking(False)

    async def peer() -> None:
        await loop.sock_sendall(far, await loop.sock_recv(far, len(question)))

    with near, far:
        answering = asyncio.create_task(peer())
        await until_idle()
        loop.call_soon(time.sleep, PAUSE_SECONDS)
        async with patient():
            await asyncio.sleep(0)
            await loop.sock_sendall(near, question)
            assert await loop.sock_recv(near, len(question)) == question
        await answering


async def test_limit_goes_on_after_a_pause() -> None:
    """A limit that had most of its time left at the pause has it left afterwards."""
    deadlines = SharedTimeout(PAUSE_SECONDS)
    begun = time.monotonic()
    asyncio.get_running_loop().call_soon(time.sleep, 2 * PAUSE_SECONDS)
    with pytest.raises(TimeoutError), deadlines.limit():
        await never()
    assert time.monotonic() - begun > 2 * PAUSE_SECONDS + PAUSE_SECONDS / 2
    deadlines.close()


async def test_pause_does_not_lift_the_limit(patient: Limit) -> None:
    """What does not come after a pause either is given up."""
    asyncio.get_running_loop().call_soon(time.sleep, PAUSE_SECONDS)
    with pytest.raises(TimeoutError):
        async with patient():
            await never()


async def test_event_loop_that_is_always_slow_does_not_lift_the_limit(patient: Limit) -> None:
    """Where every pass of the event loop takes longer than the clock counts a limit lasts longer, and ends."""
    loop = asyncio.get_running_loop()
    over = False

    def drag() -> None:
        time.sleep(0.25)
        if not over:
            loop.call_soon(drag)

    loop.call_soon(drag)
    with pytest.raises(TimeoutError):
        async with patient():
            await never()
    over = True


async def test_clock_stops_with_its_last_user() -> None:
    """Nothing ticks on where no limit is entered."""
    deadlines = SharedTimeout(NEVER)
    with deadlines.limit():
        async with PatientTimeout(NEVER):
            await asyncio.sleep(0)
    assert deadlines.clock._users == 1  # pyright: ignore[reportPrivateUsage]
    deadlines.close()
    assert deadlines.clock._users == 0  # pyright: ignore[reportPrivateUsage]


# --- a queue that moves --------------------------------------------------------------------------------------------

LENGTH_SECONDS = 0.3


async def entered(deadlines: SharedTimeout, answer: asyncio.Event) -> None:
    """Wait for an answer within a limit."""
    with deadlines.limit():
        await answer.wait()


async def test_queue_that_moves_does_not_run_out() -> None:
    """A limit counts from the last answer to one that began before it: a long queue is worked off, however long."""
    deadlines = SharedTimeout(LENGTH_SECONDS)
    answers = [asyncio.Event() for _ in range(6)]
    tasks = [asyncio.create_task(entered(deadlines, answer)) for answer in answers]
    for answer in answers:
        await asyncio.sleep(LENGTH_SECONDS / 2)
        answer.set()
    assert [await outcome(task) for task in tasks] == [None] * 6
    deadlines.close()


async def test_burst_that_fills_one_pass_of_the_event_loop_does_not_run_out() -> None:
    """The time in which the event loop was kept busy by beginning more limits is no time that an answer had."""
    deadlines = SharedTimeout(LENGTH_SECONDS)
    answer = asyncio.Event()

    async def begin() -> None:
        with deadlines.limit():
            time.sleep(LENGTH_SECONDS / 5)
            await answer.wait()

    tasks = [asyncio.create_task(begin()) for _ in range(10)]
    await asyncio.sleep(0.01)
    answer.set()
    assert [await outcome(task) for task in tasks] == [None] * 10
    deadlines.close()


async def test_queue_that_stops_runs_out() -> None:
    """Once the answers cease everything that waits runs out, one length after the last of them."""
    deadlines = SharedTimeout(LENGTH_SECONDS)
    answers = [asyncio.Event() for _ in range(6)]
    tasks = [asyncio.create_task(entered(deadlines, answer)) for answer in answers]
    await asyncio.sleep(LENGTH_SECONDS / 2)
    answers[0].set()
    stopped = time.monotonic()
    assert [await outcome(task) for task in tasks] == [None, *[TimeoutError] * 5]
    assert LENGTH_SECONDS - 0.15 < time.monotonic() - stopped < LENGTH_SECONDS + 1
    deadlines.close()


async def test_answers_to_later_ones_do_not_keep_a_stuck_one() -> None:
    """One that gets no answer runs out in its time, though those that began after it are answered without end."""
    deadlines = SharedTimeout(LENGTH_SECONDS)
    stuck = asyncio.create_task(entered(deadlines, asyncio.Event()))
    begun = time.monotonic()
    while not stuck.done():
        answer = asyncio.Event()
        later = asyncio.create_task(entered(deadlines, answer))
        await asyncio.sleep(0.01)
        answer.set()
        await later
        assert time.monotonic() - begun < LENGTH_SECONDS + 1
    assert await outcome(stuck) is TimeoutError
    deadlines.close()


async def test_who_gives_up_does_not_keep_the_others() -> None:
    """A cancelled wait is no answer: those that began after it run out in their own time."""
    deadlines = SharedTimeout(LENGTH_SECONDS)
    given_up, waiting = (asyncio.create_task(entered(deadlines, asyncio.Event())) for _ in range(2))
    await asyncio.sleep(LENGTH_SECONDS / 2)
    given_up.cancel()
    stopped = time.monotonic()
    assert await outcome(waiting) is TimeoutError
    assert time.monotonic() - stopped < LENGTH_SECONDS
    deadlines.close()
