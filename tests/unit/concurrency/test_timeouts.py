"""`backplane.concurrency.timeouts`: one timer for many limits, which otherwise behave like `asyncio.timeout`."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any
from weakref import ref

import pytest

from backplane.concurrency.timeouts import PatientTimeout, SharedTimeout
from tests.unit.doubles import run_passes, until_idle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0
NEVER = 3_600.0
# Long enough that a busy machine gets to what precedes the expiry.
SOON = 0.2

Limit = Callable[[], AbstractAsyncContextManager[object]]


@asynccontextmanager
async def limited(shared: SharedTimeout) -> AsyncGenerator[None]:
    """Enter a limit as `asyncio.timeout` is entered."""
    with shared.limit():
        yield


@pytest.fixture(params=["SharedTimeout", "PatientTimeout", "asyncio.timeout"])
async def limit(request: pytest.FixtureRequest) -> AsyncGenerator[Limit]:
    """Make limits of some milliseconds in each of the ways: what holds for one holds for all."""
    if request.param == "asyncio.timeout":
        yield lambda: asyncio.timeout(SOON)
        return
    if request.param == "PatientTimeout":
        yield lambda: PatientTimeout(SOON)
        return
    shared = SharedTimeout(SOON)
    yield lambda: limited(shared)
    shared.close()


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
    """Return limits of `seconds`, and their timers."""
    shared, timers = SharedTimeout(seconds), Timers()
    shared._timer._loop = timers  # type: ignore[assignment]  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    return shared, timers


async def never() -> None:
    """Wait for ever."""
    await asyncio.get_running_loop().create_future()


async def outcome(task: asyncio.Task[Any]) -> type[BaseException] | object:
    """Return the type of a task's error, or its result."""
    done, _ = await asyncio.wait([task], timeout=WAIT_SECONDS)
    assert done, "did not end in time"
    if task.cancelled():
        return asyncio.CancelledError
    error = task.exception()
    return task.result() if error is None else type(error)


def stand_still() -> None:
    """Block the event loop until every limit of `SOON` is due."""
    until = time.monotonic() + 3 * SOON
    while time.monotonic() < until:
        pass


async def test_runs_out(limit: Limit) -> None:
    """A block that takes longer raises `TimeoutError`, caused by the cancellation, and the task goes on uncancelled."""
    with pytest.raises(TimeoutError) as raised:
        async with limit():
            await never()
    assert isinstance(raised.value.__cause__, asyncio.CancelledError)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_in_time(limit: Limit) -> None:
    """A block that ends in time raises nothing, neither then nor when the limit is due."""
    async with limit():
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError):  # begun later, so the first one's time is over too
        async with limit():
            await never()


async def test_error_of_the_block(limit: Limit) -> None:
    """An error of the block is raised unchanged."""
    with pytest.raises(KeyError, match="mine"):
        async with limit():
            raise KeyError("mine")


async def test_error_in_answer_to_the_time(limit: Limit) -> None:
    """An error that the block raises when it expires is raised unchanged, and the task is not cancelled."""

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
    """A cancellation from outside remains a cancellation."""

    async def block() -> None:
        async with limit():
            await never()

    task = asyncio.create_task(block())
    await run_passes(2)
    task.cancel()
    assert await outcome(task) is asyncio.CancelledError


async def test_both_at_once(limit: Limit) -> None:
    """If a task is cancelled from outside and its limit expires before it runs again, it is cancelled."""

    async def block() -> None:
        async with limit():
            await never()

    task = asyncio.create_task(block())
    await run_passes(2)
    stand_still()
    asyncio.get_running_loop().call_at(0, task.cancel)  # among the timers that are due, in front of the limit's
    assert await outcome(task) is asyncio.CancelledError


async def test_nested_outer_first(request: pytest.FixtureRequest, limit: Limit) -> None:
    """Of two limits of one task that expire together, the outer one raises.

    Each `PatientTimeout` has a clock of its own, which a blocked event loop stops: of these either can be first.
    """
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
    is_patient = "PatientTimeout" in request.node.name
    assert order == ["cancelled", "outer"] or (is_patient and order == ["inner", "outer"])


async def test_inner_is_shorter() -> None:
    """An inner limit that expires alone raises `TimeoutError` inside the outer one, which goes on."""
    outer, inner = SharedTimeout(NEVER), SharedTimeout(SOON)
    with outer.limit():
        with pytest.raises(TimeoutError), inner.limit():
            await never()
        await asyncio.sleep(0)
    outer.close()
    inner.close()


async def test_task_that_was_being_cancelled_before() -> None:
    """A limit entered while the task is being cancelled, as in a cleanup, raises its own `TimeoutError`."""
    shared = SharedTimeout(SOON)

    async def block() -> str:
        try:
            await never()
        except asyncio.CancelledError:
            with pytest.raises(TimeoutError), shared.limit():
                await never()
        return "timed out"

    task = asyncio.create_task(block())
    await until_idle()
    task.cancel()
    assert await outcome(task) == "timed out"
    shared.close()


async def test_thousands_expire_with_one_timer() -> None:
    """Thousands of limits begun together have one timer, and each raises in its own task."""
    shared, timers = with_timers(0.5)

    async def block() -> None:
        with shared.limit():
            await never()

    tasks = [asyncio.create_task(block()) for _ in range(2_000)]
    await run_passes(2)
    assert len(timers.handles) == 1
    assert {await outcome(task) for task in tasks} == {TimeoutError}
    shared.close()


async def test_order_of_the_ends() -> None:
    """Limits expire in the order in which they began, without those that ended early."""
    shared = SharedTimeout(0.3)
    ended: list[int] = []
    gates = [asyncio.Event() for _ in range(10)]

    async def block(number: int) -> None:
        try:
            with shared.limit():
                await gates[number].wait()
        except TimeoutError:
            ended.append(number)

    tasks = [asyncio.create_task(block(number)) for number in range(10)]
    await until_idle()
    for number in (0, 3, 4, 9):
        gates[number].set()
    await asyncio.wait(tasks, timeout=WAIT_SECONDS)
    assert ended == [1, 2, 5, 6, 7, 8]
    shared.close()


async def test_one_timer_for_one_after_the_other() -> None:
    """Limits that follow one another share a timer too, and ended ones are not kept."""
    shared, timers = with_timers(NEVER)
    for _ in range(1_000):
        with shared.limit():
            await asyncio.sleep(0)
    assert len(timers.handles) == 1
    assert len(shared._limits) <= 1  # pyright: ignore[reportPrivateUsage]
    shared.close()


async def test_no_timer_before_the_first_and_after_the_close() -> None:
    """Without a limit there is no timer, and none is left after the close, which may be repeated."""
    shared, timers = with_timers(NEVER)
    assert timers.handles == []
    with shared.limit():
        assert timers.left == 1
        shared.close()
        assert timers.left == 0
    shared.close()
    assert timers.left == 0


async def test_closed_limits_do_not_expire() -> None:
    """A limit that is entered at the close does not expire."""
    shared, other = SharedTimeout(0.3), SharedTimeout(0.5)

    async def block() -> str:
        with shared.limit():
            with pytest.raises(TimeoutError), other.limit():
                await never()
            return "not limited"

    task = asyncio.create_task(block())
    await until_idle()
    shared.close()
    assert await outcome(task) == "not limited"
    other.close()


def test_outside_of_a_task() -> None:
    """Outside a task a limit raises, like `asyncio.timeout`."""
    caught: list[BaseException] = []

    async def run() -> None:
        shared = SharedTimeout(NEVER)
        done = asyncio.Event()

        def enter() -> None:
            try:
                with shared.limit():
                    pytest.fail("entered")
            except RuntimeError as error:
                caught.append(error)
            done.set()

        asyncio.get_running_loop().call_soon(enter)
        await done.wait()
        shared.close()

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
    shared = SharedTimeout(SOON)
    yield lambda: limited(shared)
    shared.close()


async def test_answer_that_arrived_during_a_pause_is_in_time(patient: Limit) -> None:
    """An answer that arrived while the event loop was blocked beyond the limit is read before the limit expires."""
    loop = asyncio.get_running_loop()
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    with reader, writer:
        loop.call_soon(writer.send, b"answer")
        loop.call_soon(time.sleep, PAUSE_SECONDS)
        async with patient():
            assert await loop.sock_recv(reader, 6) == b"answer"


async def test_answer_that_is_only_asked_for_after_a_pause_is_in_time(patient: Limit) -> None:
    """A request that was buffered during the pause still gets its answer in time."""
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
    """A limit has as much time left after a pause as before it."""
    shared = SharedTimeout(PAUSE_SECONDS)
    begun = time.monotonic()
    asyncio.get_running_loop().call_soon(time.sleep, 2 * PAUSE_SECONDS)
    with pytest.raises(TimeoutError), shared.limit():
        await never()
    assert time.monotonic() - begun > 2 * PAUSE_SECONDS + PAUSE_SECONDS / 2
    shared.close()


async def test_pause_does_not_lift_the_limit(patient: Limit) -> None:
    """A block that does not end after a pause expires."""
    asyncio.get_running_loop().call_soon(time.sleep, PAUSE_SECONDS)
    with pytest.raises(TimeoutError):
        async with patient():
            await never()


async def test_event_loop_that_is_always_slow_does_not_lift_the_limit(patient: Limit) -> None:
    """Where every pass of the event loop takes longer than the clock counts, a limit lasts longer, and does expire."""
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
    """The clock does not tick while no limit is entered."""
    shared = SharedTimeout(NEVER)
    with shared.limit():
        async with PatientTimeout(NEVER):
            await asyncio.sleep(0)
    assert shared.clock._users == 1  # pyright: ignore[reportPrivateUsage]
    shared.close()
    assert shared.clock._users == 0  # pyright: ignore[reportPrivateUsage]


# --- a queue that moves --------------------------------------------------------------------------------------------

LENGTH_SECONDS = 0.3


async def entered(shared: SharedTimeout, answer: asyncio.Event) -> None:
    """Wait for an answer within a limit."""
    with shared.limit():
        await answer.wait()


async def test_queue_that_moves_does_not_expire() -> None:
    """A limit is measured from the last answer to a call that began before it, however long the queue is."""
    shared = SharedTimeout(LENGTH_SECONDS)
    answers = [asyncio.Event() for _ in range(6)]
    tasks = [asyncio.create_task(entered(shared, answer)) for answer in answers]
    for answer in answers:
        await asyncio.sleep(LENGTH_SECONDS / 2)
        answer.set()
    assert [await outcome(task) for task in tasks] == [None] * 6
    shared.close()


async def test_burst_that_fills_one_pass_of_the_event_loop_does_not_expire() -> None:
    """The time in which the event loop is busy with beginning more limits is not counted."""
    shared = SharedTimeout(LENGTH_SECONDS)
    answer = asyncio.Event()

    async def begin() -> None:
        with shared.limit():
            time.sleep(LENGTH_SECONDS / 5)
            await answer.wait()

    tasks = [asyncio.create_task(begin()) for _ in range(10)]
    await asyncio.sleep(0.01)
    answer.set()
    assert [await outcome(task) for task in tasks] == [None] * 10
    shared.close()


async def test_queue_that_stops_expires() -> None:
    """Once the answers cease, every waiting limit expires, one length after the last answer."""
    shared = SharedTimeout(LENGTH_SECONDS)
    answers = [asyncio.Event() for _ in range(6)]
    tasks = [asyncio.create_task(entered(shared, answer)) for answer in answers]
    await asyncio.sleep(LENGTH_SECONDS / 2)
    answers[0].set()
    stopped = shared.clock.now()
    assert [await outcome(task) for task in tasks] == [None, *[TimeoutError] * 5]
    assert LENGTH_SECONDS - 0.15 < shared.clock.now() - stopped < LENGTH_SECONDS + 1
    shared.close()


async def test_answers_to_later_ones_do_not_keep_a_stuck_one() -> None:
    """A call without an answer expires in its time, though calls that began after it are answered."""
    shared = SharedTimeout(LENGTH_SECONDS)
    stuck = asyncio.create_task(entered(shared, asyncio.Event()))
    begun = shared.clock.now()
    while not stuck.done():
        answer = asyncio.Event()
        later = asyncio.create_task(entered(shared, answer))
        await asyncio.sleep(0.01)
        answer.set()
        await later
        assert shared.clock.now() - begun < LENGTH_SECONDS + 1
    assert await outcome(stuck) is TimeoutError
    shared.close()


async def test_cancelled_call_is_no_answer() -> None:
    """A cancelled call is no answer: those that began after it expire in their own time."""
    shared = SharedTimeout(3 * LENGTH_SECONDS)
    given_up, waiting = (asyncio.create_task(entered(shared, asyncio.Event())) for _ in range(2))
    begun = shared.clock.now()
    while shared.clock.now() < begun + 2 * LENGTH_SECONDS:
        await asyncio.sleep(0.01)
    given_up.cancel()
    stopped = shared.clock.now()
    assert await outcome(waiting) is TimeoutError
    assert shared.clock.now() - stopped < 3 * LENGTH_SECONDS
    shared.close()


def test_event_loop_is_freed() -> None:
    """An event loop that ended while the clock of its limits still ticked is freed."""

    async def use() -> None:
        async with PatientTimeout(WAIT_SECONDS):
            await asyncio.sleep(0)

    with asyncio.Runner() as runner:
        runner.run(use())
        loop = ref(runner.get_loop())
    del runner
    gc.collect()
    assert loop() is None
