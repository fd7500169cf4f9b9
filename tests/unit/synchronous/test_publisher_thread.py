"""`backplane.synchronous.publisher_thread`: one thread for each process that publishes."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from backplane import BrokerUnavailableError, ClosedError, Receipt, Settings
from backplane.concurrency.threads import start_thread
from backplane.synchronous.publisher_thread import PublisherThreads
from tests.brokers.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SETTINGS = Settings(publish_timeout_seconds=1, start_timeout_seconds=1)


class FakePublisher:
    """A double of `Backplane` that a test controls.

    Attributes:
        published: What was published.
        starts: How often it was started.
        stopped: How often it was stopped.
        failures: What the next starts raise.
        start_gate: A start waits until it is set; `None`: no wait.
    """

    def __init__(self) -> None:
        self.published: list[tuple[str, object, Any]] = []
        self.starts = 0
        self.stopped = 0
        self.failures: list[Exception] = []
        self.keys: list[str | bytes | None] = []
        self.receipt = Receipt()
        self.start_gate: threading.Event | None = None

    async def start(self) -> None:
        """Start, or fail."""
        self.starts += 1
        if self.start_gate is not None:
            await asyncio.to_thread(self.start_gate.wait)
        if self.failures:
            raise self.failures.pop()

    async def stop(self) -> None:
        """Count the stop."""
        self.stopped += 1

    async def publish(
        self, channel: str, data: object, *, exclude: Any = None, idempotency_key: str | bytes | None = None
    ) -> Receipt:
        """Record the message."""
        self.published.append((channel, data, exclude))
        self.keys.append(idempotency_key)
        return self.receipt


def threads_of(publisher: FakePublisher) -> PublisherThreads:
    """Return threads that publish with `publisher`."""
    return PublisherThreads(lambda: publisher, SETTINGS)


_threads_of_other_tests: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """Leave out the threads of other tests: those of a backplane at module level live as long as the process."""
    _threads_of_other_tests.update(running_threads())
    yield
    _threads_of_other_tests.clear()


def running_threads() -> list[threading.Thread]:
    """Return the publisher threads that the running test has started."""
    threads = [thread for thread in threading.enumerate() if thread.name == "backplane-sync"]
    return [thread for thread in threads if thread not in _threads_of_other_tests]


def test_first_publish_starts() -> None:
    """Nothing is started before the first publish; one start serves all that follow."""
    publisher = FakePublisher()
    threads = threads_of(publisher)
    assert (publisher.starts, running_threads()) == (0, [])
    for number in range(3):
        threads.publish("a", number, exclude="me")
    assert publisher.published == [("a", 0, "me"), ("a", 1, "me"), ("a", 2, "me")]
    assert (publisher.starts, len(running_threads())) == (1, 1)
    threads.close()
    assert publisher.stopped == 1
    wait_until(lambda: not running_threads(), "the thread ends")


def test_receipt_and_key() -> None:
    """The idempotency key reaches the publisher, and its receipt the caller."""
    publisher = FakePublisher()
    publisher.receipt = Receipt(duplicate=True)
    threads = threads_of(publisher)
    assert threads.publish("a", 1, idempotency_key="k") is publisher.receipt
    assert publisher.keys == ["k"]
    threads.close()


def test_many_first_publishes() -> None:
    """100 threads that publish first at once wait for one start in one thread."""
    publisher = FakePublisher()
    publisher.start_gate = threading.Event()
    threads = threads_of(publisher)
    callers = [threading.Thread(target=threads.publish, args=("a", number)) for number in range(100)]
    for caller in callers:
        caller.start()
    publisher.start_gate.set()
    for caller in callers:
        caller.join()
    assert sorted(str(data) for _, data, _ in publisher.published) == sorted(str(number) for number in range(100))
    assert publisher.starts == 1
    threads.close()


def test_a_failed_start() -> None:
    """The error of a start reaches its publish, and the next publish starts again."""
    publisher = FakePublisher()
    publisher.failures = [BrokerUnavailableError("away", adapter="fake")]
    threads = threads_of(publisher)
    with pytest.raises(BrokerUnavailableError, match="fake: away"):
        threads.publish("a", 1)
    threads.publish("a", 2)
    assert publisher.published == [("a", 2, None)]
    assert publisher.starts == 2
    threads.close()


def test_publish_after_the_close() -> None:
    """After the close a publish is refused; closing again changes nothing."""
    publisher = FakePublisher()
    threads = threads_of(publisher)
    threads.publish("a", 1)
    threads.close()
    threads.close()
    with pytest.raises(ClosedError):
        threads.publish("a", 2)
    assert publisher.stopped == 1


def test_close_before_the_first_publish() -> None:
    """Without a publish there is no thread to close."""
    threads = threads_of(FakePublisher())
    threads.close()
    assert running_threads() == []


def test_close_during_the_start() -> None:
    """A close cancels a start in progress, and wakes its publish."""
    publisher = FakePublisher()
    publisher.start_gate = threading.Event()
    threads = threads_of(publisher)
    raised: list[BaseException] = []

    def publish() -> None:
        try:
            threads.publish("a", 1)
        except BaseException as error:
            raised.append(error)

    caller = threading.Thread(target=publish)
    caller.start()
    wait_until(lambda: publisher.starts == 1, "the start begins")
    closing = threading.Thread(target=threads.close)
    closing.start()
    closing.join(5)
    publisher.start_gate.set()
    caller.join(5)
    assert len(raised) == 1
    assert publisher.published == []
    wait_until(lambda: not running_threads(), "the thread ends")


def test_dropped_without_close() -> None:
    """An owner that is garbage-collected leaves no thread and no object."""
    publisher = FakePublisher()
    threads = threads_of(publisher)
    threads.publish("a", 1)
    assert len(running_threads()) == 1
    left = weakref.ref(publisher)
    del threads, publisher
    gc.collect()
    wait_until(lambda: not running_threads(), "the thread ends")
    gc.collect()
    assert left() is None


def test_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started the publish raises the reason, and a later one starts again."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    publisher = FakePublisher()
    threads = threads_of(publisher)
    with monkeypatch.context() as patched:
        patched.setattr("backplane.synchronous.publisher_thread.start_thread", refuse)
        with pytest.raises(BrokerUnavailableError, match="can't start new thread"):
            threads.publish("a", 1)
    threads.publish("a", 2)
    assert publisher.published == [("a", 2, None)]
    threads.close()


def test_an_interrupted_start_of_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler that raises while the thread starts leaves one thread, and the next publish succeeds."""

    def interrupted(run: Callable[[], None], name: str) -> None:
        start_thread(run, name)
        raise KeyboardInterrupt

    publisher = FakePublisher()
    threads = threads_of(publisher)
    with monkeypatch.context() as patched:
        patched.setattr("backplane.synchronous.publisher_thread.start_thread", interrupted)
        with pytest.raises(KeyboardInterrupt):
            threads.publish("a", 1)
    threads.publish("a", 2)
    assert publisher.published == [("a", 2, None)]
    threads.close()
    wait_until(lambda: not running_threads(), "every thread ends")


def test_a_thread_that_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under uWSGI without threads the first publish names the option, in bounded time, and nothing was published."""

    def never(_: Callable[[], None], __: str) -> None:
        pass

    monkeypatch.setattr("backplane.synchronous.publisher_thread.start_thread", never)
    threads = PublisherThreads(FakePublisher, Settings(publish_timeout_seconds=0.05, start_timeout_seconds=0.05))
    started = time.monotonic()
    with pytest.raises(BrokerUnavailableError, match="enable-threads"):
        threads.publish("a", 1)
    assert time.monotonic() - started < 25
