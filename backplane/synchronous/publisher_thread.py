"""A thread with an event loop and a `Backplane` of its own, which publishes for the other threads of its process."""

from __future__ import annotations

import asyncio
import atexit
import logging
import weakref
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from backplane.concurrency.affinity import current_process
from backplane.concurrency.call_queue import CallQueue
from backplane.concurrency.context import task_in
from backplane.concurrency.shared_future import outcome_of
from backplane.concurrency.threads import new_waiter, start_thread
from backplane.errors import BrokerUnavailableError, ClosedError
from backplane.journal.events import THREAD_FAILED
from backplane.journal.writing import write

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from backplane.message import Receipt
    from backplane.settings import Settings

__all__ = ["GRACE_SECONDS", "Publisher", "PublisherThreads"]

_T = TypeVar("_T")

logger: Final = logging.getLogger("backplane.synchronous.publisher_thread")

GRACE_SECONDS: Final = 1.0
"""How long a thread waits for a publish beyond the time limits of the core, which answers by itself."""

# A broker that is not available must not delay the end of the process for longer.
_CLOSE_SECONDS: Final = 2.0


class Publisher(Protocol):
    """The part of a `Backplane` that the thread drives."""

    async def start(self) -> None:
        """Connect to the broker."""
        ...

    async def stop(self) -> None:
        """Close the link."""
        ...

    async def publish(
        self, channel: str, data: object, *, exclude: Any = None, idempotency_key: str | bytes | None = None
    ) -> Receipt:
        """Publish."""
        ...


class PublisherThreads:
    """One publisher thread for each process that publishes, started by its first publish.

    A forked child gets a thread of its own. The objects that it inherited are kept and never used: to close them would
    disturb the parent process, with which it shares the sockets.

    Args:
        make_publisher: Makes a `Backplane` that is not started.
        settings: Its times.
    """

    def __init__(self, make_publisher: Callable[[], Publisher], settings: Settings) -> None:
        self._make_publisher = make_publisher
        self._settings = settings
        self._threads: dict[object, _PublisherThread] = {}
        self._closed = False
        # If the owner is collected without `close`, the thread ends; at the exit of the process `atexit` waits for it.
        weakref.finalize(self, _end_all, self._threads).atexit = False

    def publish(
        self, channel: str, data: object, *, exclude: Any = None, idempotency_key: str | bytes | None = None
    ) -> Receipt:
        """Publish, and wait for the broker's answer.

        Raises:
            BackplaneError: As `Backplane.start` and `Backplane.publish`.
        """

        def publish(publisher: Publisher) -> Coroutine[Any, Any, Receipt]:
            return publisher.publish(channel, data, exclude=exclude, idempotency_key=idempotency_key)

        return self.run(publish)

    def run(self, action: Callable[[Any], Coroutine[Any, Any, _T]]) -> _T:
        """Call a verb of the publisher, and wait for its end; raises what it raises, and as `Backplane.start`."""
        return self._thread().run(action)

    async def call(self, action: Callable[[Any], Coroutine[Any, Any, _T]], *, seconds: float) -> _T:
        """Call a verb of the publisher as `run` does, from a coroutine of any event loop, which goes on meanwhile.

        Args:
            action: Calls the verb.
            seconds: The longest time that it takes.
        """
        return await self._thread().call(action, seconds + GRACE_SECONDS)

    def post(self, action: Callable[[Any], Coroutine[Any, Any, object]]) -> None:
        """Call a verb of a publisher that is started, without waiting for its end; elsewhere nothing happens."""
        thread = self._threads.get(current_process())
        if thread is not None:
            thread.post(action)

    def _thread(self) -> _PublisherThread:
        if self._closed:
            raise ClosedError("it has been closed, and publishes no more")
        process = current_process()
        thread = self._threads.get(process)
        if thread is None:
            # One operation, so that two threads of the process get the same one, and no lock is inherited by a child.
            thread = self._threads.setdefault(process, _PublisherThread(self._make_publisher(), self._settings))
        return thread

    def close(self) -> None:
        """End the thread of this process after the publishes in flight, within two seconds; no other one starts."""
        self._closed = True
        thread = self._threads.get(current_process())
        if thread is not None:
            thread.close()


class _PublisherThread:
    """The thread of one process."""

    def __init__(self, publisher: Publisher, settings: Settings) -> None:
        self._publisher = publisher
        self._process = current_process()
        self._publish_seconds = settings.publish_timeout_seconds + GRACE_SECONDS
        self._start_seconds = settings.start_timeout_seconds
        self._calls = CallQueue()
        self._not_begun = [None]
        self._not_run = [None]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting: asyncio.Task[None] | None = None
        self._is_started = False
        self._closing = asyncio.Event()
        self._is_closing = False
        self._ended = False
        self._on_end: Callable[[], None] | None = None

    def run(self, action: Callable[[Publisher], Coroutine[Any, Any, _T]]) -> _T:
        """Call a verb of the publisher, and wait; the first call starts the thread."""
        seconds = self._begin(self._publish_seconds)
        try:
            return self._calls.run(partial(self._run_started, action), seconds=seconds)
        except BrokerUnavailableError as error:
            self._check_runs(error)
            raise

    async def call(self, action: Callable[[Publisher], Coroutine[Any, Any, _T]], seconds: float) -> _T:
        """Call a verb of the publisher as `run` does, from a coroutine of another event loop."""
        seconds = self._begin(seconds)
        try:
            return await self._calls.call(partial(self._run_started, action), seconds=seconds)
        except BrokerUnavailableError as error:
            self._check_runs(error)
            raise

    def post(self, action: Callable[[Publisher], Coroutine[Any, Any, object]]) -> None:
        """Call a verb of the publisher if that is started, without waiting."""
        if self._is_started:
            self._calls.post(partial(action, self._publisher))

    def end(self) -> None:
        """Ask the thread to end, without waiting."""
        atexit.unregister(self.close)
        self._is_closing = True
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._closing.set)

    def close(self) -> None:
        """End the thread, and wait for that; does nothing in a forked child."""
        if self._not_begun or self._process is not current_process():
            return
        ended = new_waiter()
        self._on_end = ended.notify
        self.end()
        if self._calls.is_open and not self._ended and not ended.wait(_CLOSE_SECONDS):
            words = "the publisher's thread did not end within %(seconds)g s"
            write(logger, THREAD_FAILED, words, level=logging.WARNING, seconds=_CLOSE_SECONDS)

    def _check_runs(self, error: BrokerUnavailableError) -> None:
        if not self._calls.is_open:
            raise BrokerUnavailableError(
                "the publisher's thread does not run, so nothing was published: uWSGI needs `enable-threads = true`"
            ) from error

    def _begin(self, seconds: float) -> float:
        """Start the thread with the first call; return how long a call of so many seconds takes at most."""
        if self._is_started:
            return seconds
        self._start_thread()
        return seconds + self._start_seconds

    def _start_thread(self) -> None:
        try:
            self._not_begun.pop()  # one operation, so that one of many first callers starts the thread
        except IndexError:
            return
        try:
            atexit.register(self.close)
            start_thread(self._run, "backplane-sync")
        except BaseException as error:  # a signal handler may raise one after the thread has started
            self._not_begun.append(None)
            if isinstance(error, RuntimeError):
                raise BrokerUnavailableError(f"no thread to publish in, nothing was published: {error}") from error
            raise

    def _run(self) -> None:
        try:
            self._not_run.pop()
        except IndexError:  # a call that was interrupted had started it already
            return
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(self._serve())
        except Exception as error:
            write(logger, THREAD_FAILED, "the publisher's thread failed", exc_info=error)
        finally:
            loop.close()
            self._ended = True
            if self._on_end is not None:
                self._on_end()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls.open()
        try:
            if not self._is_closing:
                await self._closing.wait()
            if self._starting is not None and not self._starting.done():
                self._starting.cancel()
                await asyncio.wait([self._starting])
            await self._publisher.stop()
        finally:
            await self._calls.close()

    async def _run_started(self, action: Callable[[Publisher], Coroutine[Any, Any, _T]]) -> _T:
        if not self._is_started:
            await self._start()
        return await action(self._publisher)

    async def _start(self) -> None:
        """Start the publisher, once for all calls that wait for it; after a failure the next publish tries again."""
        if self._starting is None:
            # In an empty context: the work of the link, for years, is not part of the first caller's trace.
            starting = task_in(Context(), self._publisher.start(), asyncio.get_running_loop())
            starting.add_done_callback(self._start_ended)
            self._starting = starting
        await outcome_of(self._starting)

    def _start_ended(self, starting: asyncio.Task[None]) -> None:
        self._starting = None
        self._is_started = not starting.cancelled() and starting.exception() is None


def _end_all(threads: dict[object, _PublisherThread]) -> None:
    thread = threads.get(current_process())
    if thread is not None:
        thread.end()
