"""`backplane.concurrency.threads`: real threads, with and without gevent."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from backplane.concurrency.threads import new_waiter, start_thread

GREENLETS = """
import sys
from gevent import monkey
monkey.patch_all(thread=len(sys.argv) < 2)
import asyncio
import gevent
from backplane.concurrency.threads import new_waiter, start_thread

def serve(*waiters):
    async def main():
        for waiter in waiters:
            await asyncio.sleep(0.01)
            waiter.notify()
    return lambda: asyncio.new_event_loop().run_until_complete(main())

waiters = [new_waiter() for _ in range(20)]
turns = []

def other():
    while not done:
        turns.append(1)
        gevent.sleep(0.001)

done = False
beside = gevent.spawn(other)
start_thread(serve(*waiters), "real")
waiting = [gevent.spawn(waiter.wait, 5) for waiter in waiters]
gevent.joinall(waiting)
done = True
beside.join()
assert all(greenlet.value for greenlet in waiting)
assert len(turns) > 10, turns                              # the other greenlets went on
assert not new_waiter().wait(0.01)
try:
    asyncio.get_running_loop()
except RuntimeError:
    print("no event loop here")                            # the thread is a real one
"""


def test_notified() -> None:
    """A waiter returns when another thread notifies it."""
    waiter = new_waiter()
    start_thread(waiter.notify, "test")
    assert waiter.wait(5)


def test_notified_before_the_wait() -> None:
    """A notification before the wait is not lost."""
    waiter = new_waiter()
    waiter.notify()
    assert waiter.wait(5)


def test_not_notified() -> None:
    """Without a notification the wait ends after its time."""
    started = time.monotonic()
    assert not new_waiter().wait(0.05)
    assert time.monotonic() - started >= 0.05


def test_thread_is_a_daemon_with_a_name() -> None:
    """The thread delays no exit of the interpreter, and a dump of all threads names it."""
    seen: list[tuple[str, bool]] = []
    waiter = new_waiter()

    def look() -> None:
        seen.append((threading.current_thread().name, threading.current_thread().daemon))
        waiter.notify()

    start_thread(look, "named")
    assert waiter.wait(5)
    assert seen == [("named", True)]


@pytest.mark.parametrize("arguments", [[], ["real threads"]], ids=["all", "all but threads"])
def test_under_gevent(arguments: list[str]) -> None:
    """A waiting greenlet blocks no other, and an event loop in a started thread is not the greenlets' running one."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", GREENLETS, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "no event loop here\n", "")
