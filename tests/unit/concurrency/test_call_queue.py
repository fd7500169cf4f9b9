"""`backplane.concurrency.call_queue`: publishes of other threads in one event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

from backplane import BrokerUnavailableError, ClosedError, PublishError, PublishOutcomeUnknownError
from backplane.concurrency.call_queue import CallQueue
from backplane.concurrency.threads import new_waiter
from tests.unit.doubles import until_idle

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0

trace: ContextVar[str] = ContextVar("trace")


async def opened() -> CallQueue:
    """Return a queue into the running event loop."""
    calls = CallQueue()
    calls.open()
    return calls


def publish(published: list[int], number: int) -> Callable[[], Coroutine[None, None, None]]:
    """Return a publish that keeps its number."""

    async def keep() -> None:
        published.append(number)

    return keep


async def test_a_call_returns_when_the_publish_has_ended() -> None:
    """The thread waits for the publish, and the event loop goes on running."""
    calls, answered = await opened(), asyncio.Event()
    calling = asyncio.create_task(asyncio.to_thread(calls.run, answered.wait, seconds=WAIT_SECONDS))
    await until_idle()
    assert not calling.done()
    answered.set()
    await calling


async def test_what_the_publish_returns() -> None:
    """The caller gets what the publish returns."""
    calls = await opened()
    assert await asyncio.to_thread(calls.run, lambda: asyncio.sleep(0, "receipt"), seconds=WAIT_SECONDS) == "receipt"


async def test_what_the_publish_raises() -> None:
    """The caller gets the error of the publish, with its traceback."""
    calls = await opened()

    async def refused() -> None:
        raise PublishError("no")

    with pytest.raises(PublishError, match="no"):
        await asyncio.to_thread(calls.run, refused, seconds=WAIT_SECONDS)


async def test_order_of_each_thread() -> None:
    """Of 100 threads at once, all publishes run, those of each thread in its order."""
    calls, published = await opened(), list[int]()

    def call(start: int) -> None:
        for number in range(20):
            calls.run(publish(published, start * 100 + number), seconds=60)

    threads = [threading.Thread(target=call, args=(start,)) for start in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert len(published) == 2000
    for start in range(100):
        assert [number for number in published if number // 100 == start] == [start * 100 + n for n in range(20)]


async def test_calls_before_the_event_loop() -> None:
    """Calls made before the queue is open wait for it."""
    calls, published = CallQueue(), list[int]()
    waiting = [asyncio.create_task(asyncio.to_thread(calls.run, publish(published, 1), seconds=WAIT_SECONDS))]
    while not calls._waiting:  # pyright: ignore[reportPrivateUsage]
        await asyncio.sleep(0)
    assert not calls.is_open
    calls.open()
    await asyncio.wait(waiting)
    assert published == [1]


async def test_context_of_the_caller() -> None:
    """The publish runs in a copy of its caller's Context."""
    calls, seen = await opened(), list[str]()

    async def look() -> None:
        seen.append(trace.get())
        trace.set("changed")

    def call() -> str:
        trace.set("mine")
        calls.run(look, seconds=WAIT_SECONDS)
        return trace.get()

    assert await asyncio.to_thread(call) == "mine"
    assert seen == ["mine"]
    assert trace.get("none") == "none"


async def test_a_blocked_event_loop() -> None:
    """A call that the event loop does not begin in time is certainly not published, and not begun later."""
    calls, published = CallQueue(), list[int]()
    with pytest.raises(BrokerUnavailableError, match="not published"):
        await asyncio.to_thread(calls.run, publish(published, 1), seconds=0.01)
    calls.open()
    await until_idle()
    assert published == []


async def test_a_publish_without_an_end() -> None:
    """A publish that was begun and does not end in time has an unknown outcome, and is cancelled."""
    calls, cancelled = await opened(), asyncio.Event()

    async def never() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(PublishOutcomeUnknownError, match="may have been published"):
        await asyncio.to_thread(calls.run, never, seconds=0.05)
    await asyncio.wait_for(cancelled.wait(), WAIT_SECONDS)


async def test_a_pause_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait that ends late, as after a pause of the process, gives the event loop time to answer."""
    calls, published = await opened(), list[int]()

    class Paused:
        def __init__(self) -> None:
            self._waiter, self._paused = new_waiter(), False

        def wait(self, seconds: float) -> bool:
            if self._paused:
                return self._waiter.wait(seconds)
            self._paused = True
            time.sleep(seconds + 0.2)
            return False

        def notify(self) -> None:
            self._waiter.notify()

    monkeypatch.setattr("backplane.concurrency.call_queue.new_waiter", Paused)
    await asyncio.to_thread(calls.run, publish(published, 1), seconds=0.01)
    assert published == [1]


async def test_an_interrupted_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that interrupts the wait, such as a task queue's time limit, is raised, and cancels the publish."""
    calls, begun, cancelled = await opened(), threading.Event(), asyncio.Event()

    async def never() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    class Interrupted:
        def wait(self, seconds: float) -> bool:
            begun.wait(seconds)
            raise KeyboardInterrupt

        def notify(self) -> None:
            pass

    monkeypatch.setattr("backplane.concurrency.call_queue.new_waiter", Interrupted)

    def call() -> bool:
        try:
            calls.run(never, seconds=WAIT_SECONDS)
        except KeyboardInterrupt:
            return True
        return False

    assert await asyncio.to_thread(call)
    await asyncio.wait_for(cancelled.wait(), WAIT_SECONDS)
    await calls.close()


async def test_calls_after_the_close() -> None:
    """A closed queue refuses calls."""
    calls, published = await opened(), list[int]()
    await calls.close()
    with pytest.raises(ClosedError, match="not published"):
        await asyncio.to_thread(calls.run, publish(published, 1), seconds=WAIT_SECONDS)
    assert published == []


async def test_close_waits_for_what_was_taken() -> None:
    """A publish that was begun before the close ends before it."""
    calls, answer = await opened(), asyncio.Event()
    calling = asyncio.create_task(asyncio.to_thread(calls.run, answer.wait, seconds=WAIT_SECONDS))
    while not calls._in_progress:  # pyright: ignore[reportPrivateUsage]
        await asyncio.sleep(0)
    closing = asyncio.create_task(calls.close())
    await until_idle()
    assert not closing.done()
    answer.set()
    await closing
    await calling


async def test_an_event_loop_that_has_ended() -> None:
    """A call into an event loop that was closed is refused at once, each time."""
    calls = CallQueue()

    async def open_it() -> None:
        calls.open()

    await asyncio.to_thread(asyncio.run, open_it())
    for _ in range(2):
        with pytest.raises(ClosedError, match="not published"):
            await asyncio.to_thread(calls.run, publish([], 1), seconds=WAIT_SECONDS)


async def test_an_event_loop_that_ends_in_the_middle() -> None:
    """The end of the event loop wakes the caller of a running publish with an unknown outcome."""
    calls, begun = CallQueue(), threading.Event()

    async def never() -> None:
        begun.set()
        await asyncio.Event().wait()

    async def run_until_begun() -> None:
        calls.open()
        await asyncio.to_thread(begun.wait)

    running = asyncio.create_task(asyncio.to_thread(asyncio.run, run_until_begun()))
    with pytest.raises(PublishOutcomeUnknownError, match="the event loop ended"):
        await asyncio.to_thread(calls.run, never, seconds=WAIT_SECONDS)
    await running


async def of_another_loop(
    calls: CallQueue, publish: Callable[[], Coroutine[None, None, object]], seconds: float
) -> object:
    """Call from a coroutine of an event loop in another thread."""
    return await asyncio.to_thread(asyncio.run, calls.call(publish, seconds=seconds))


async def test_call_of_another_event_loop() -> None:
    """A coroutine gets what the publish returns or raises, while its own event loop goes on."""
    calls = await opened()
    assert await of_another_loop(calls, lambda: asyncio.sleep(0, "receipt"), WAIT_SECONDS) == "receipt"
    assert await calls.call(lambda: asyncio.sleep(0, "the same event loop"), seconds=WAIT_SECONDS)

    async def refused() -> None:
        raise PublishError("no")

    with pytest.raises(PublishError, match="no"):
        await of_another_loop(calls, refused, WAIT_SECONDS)
    with pytest.raises((PublishOutcomeUnknownError, BrokerUnavailableError)):  # it may not have begun in time
        await of_another_loop(calls, asyncio.Event().wait, 0.01)
    await calls.close()
    with pytest.raises(ClosedError):
        await calls.call(refused, seconds=WAIT_SECONDS)


async def test_call_that_is_cancelled() -> None:
    """The publish is cancelled with the coroutine that waits for it."""
    calls, begun, cancelled = await opened(), asyncio.Event(), asyncio.Event()

    async def publish() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    calling = asyncio.create_task(calls.call(publish, seconds=WAIT_SECONDS))
    await begun.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    await cancelled.wait()


async def test_call_of_an_event_loop_that_has_ended() -> None:
    """The end of a publish whose caller's event loop was closed is dropped."""
    calls, answered = await opened(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def begin() -> asyncio.Task[object]:
        task: asyncio.Task[object] = asyncio.create_task(calls.call(answered.wait, seconds=WAIT_SECONDS))
        await asyncio.sleep(0)
        return task

    task: Any = await asyncio.to_thread(loop.run_until_complete, begin())
    loop.close()
    task._log_destroy_pending = False
    answered.set()
    await calls.close()


async def test_call_in_a_pause_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait that ends late, as the process was paused, goes on a little: the answer may have arrived."""
    calls, answered = await opened(), asyncio.Event()
    times = iter([0.0, 100.0])
    monkeypatch.setattr("backplane.concurrency.call_queue.monotonic", lambda: next(times))
    monkeypatch.setattr("backplane.concurrency.call_queue._GRACE_SECONDS", WAIT_SECONDS)
    asyncio.get_running_loop().call_later(0.1, answered.set)
    assert await calls.call(answered.wait, seconds=0.01) is True


async def test_post() -> None:
    """It is run without being waited for; after the close nothing happens."""
    calls, published = await opened(), list[int]()
    calls.post(publish(published, 1))
    await until_idle()
    await calls.close()
    calls.post(publish(published, 2))
    await until_idle()
    assert published == [1]
