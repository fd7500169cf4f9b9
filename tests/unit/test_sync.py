"""`backplane.sync`: publishing from scripts and task queues, on `ipc://`; on every broker in tests/integration."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest
from pydantic import BaseModel

from backplane import (
    Backlog,
    Backplane,
    BrokerUnavailableError,
    ClosedError,
    ConfigurationError,
    Gap,
    History,
    InvalidChannelError,
    Receipt,
    Settings,
    WrongLoopError,
)
from backplane.broker.registry import broadcaster_from_url
from backplane.sync import SyncBackplane
from tests.unit.controlled_adapter import ControlledHistoryAdapter

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from backplane import Subscription

WAIT_SECONDS = 60.0


class Order(BaseModel):
    """A message."""

    item: str


@asynccontextmanager
async def listening(url: str, *channels: str) -> AsyncGenerator[Subscription]:
    """Subscribe in a worker."""
    async with Backplane(url) as worker, worker.subscribe(*channels, backlog=Backlog(max_messages=10_000)) as messages:
        yield messages


async def received(messages: Subscription, count: int) -> list[str]:
    """Return what is received next."""
    got: list[str] = []
    async with asyncio.timeout(WAIT_SECONDS):
        while len(got) < count:
            message = await anext(messages)
            assert not isinstance(message, Gap)
            got.append(str(message.data))
    return got


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, with warnings as errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# --- what it is -------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_publish(ipc_url: str) -> None:
    """What a thread publishes the workers receive, typed channels too; a publish returns when it is out."""
    async with listening(ipc_url, "a", "orders:7") as messages:
        with SyncBackplane(ipc_url) as backplane:
            orders = backplane.channel("orders:{user}", Order)
            await asyncio.to_thread(backplane.publish, "a", {"id": 42})
            await asyncio.to_thread(lambda: orders.publish(Order(item="tea"), user=7))
            assert await received(messages, 2) == ['{"id":42}', '{"item":"tea"}']


def test_opens_nothing() -> None:
    """Before its first publish it has no thread, whatever its broker; afterwards it is closed for good."""
    before = threading.active_count()
    backplane = SyncBackplane("redis://user:secret@nowhere.invalid")
    assert threading.active_count() == before
    assert repr(backplane) == f"<SyncBackplane {backplane.url}>"
    assert "secret" not in repr(backplane)
    backplane.close()
    with pytest.raises(ClosedError):
        backplane.publish("a", "x")


@pytest.mark.parametrize("url", [None, ""])
def test_no_url(url: str | None) -> None:
    """Without a URL it would reach no other process: it is refused, and BACKPLANE_URL named."""
    with pytest.raises(ConfigurationError, match="BACKPLANE_URL"):
        SyncBackplane(url)


@pytest.mark.parametrize("given", ["argument", "environment"])
def test_memory_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """`memory://` given explicitly is taken, for tests."""
    monkeypatch.setenv("BACKPLANE_URL", "memory://")
    with SyncBackplane("memory://" if given == "argument" else None) as backplane:
        backplane.publish("a", "x")


def test_wrong_url() -> None:
    """A wrong URL is refused where it is given."""
    with pytest.raises(ConfigurationError, match="unknown scheme"):
        SyncBackplane("rediss+cluster+x://a")


def test_publish_into_a_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rules of the workers it publishes into their history: with a position, and once for each key."""
    adapter = ControlledHistoryAdapter()
    monkeypatch.setattr("backplane.broker.adapter_source.broadcaster_from_url", Mock(return_value=adapter))
    with SyncBackplane("any://", history={"orders:*": History(max_messages=2)}) as backplane:
        first = backplane.publish("orders:1", "x", idempotency_key="k")
        second = backplane.publish("orders:1", "x", idempotency_key="k")
        assert first.position == adapter.log("orders:1").top
        assert (first.duplicate, second.duplicate, second.position) == (False, True, first.position)
        assert backplane.publish("other", "x") == Receipt()
        with pytest.raises(ConfigurationError, match="idempotency_key needs a history"):
            backplane.publish("other", "x", idempotency_key="k")


def test_errors_of_publish() -> None:
    """What the asynchronous `publish` raises, this one raises."""
    with SyncBackplane("memory://") as backplane, pytest.raises(InvalidChannelError):
        backplane.publish("", "x")


@pytest.mark.anyio
async def test_in_an_event_loop() -> None:
    """It would block an event loop that runs in its thread, and refuses."""
    with pytest.raises(WrongLoopError, match="await"):
        SyncBackplane("memory://").publish("a", "x")


def test_no_broker() -> None:
    """Without a broker the first publish ends with the time limit of a start, certainly not published."""
    settings = Settings(start_timeout_seconds=0.2, publish_timeout_seconds=0.2)
    with SyncBackplane("redis://127.0.0.1:1", settings=settings) as backplane:
        for _ in range(2):
            with pytest.raises(BrokerUnavailableError, match="cannot reach"):
                backplane.publish("a", "x")


@pytest.mark.anyio
async def test_100_threads_at_once(ipc_url: str) -> None:
    """Of 100 threads that publish at once nothing is lost, and each keeps its order."""
    async with listening(ipc_url, "a") as messages:
        with SyncBackplane(ipc_url) as backplane:

            def publish(name: int) -> None:
                for number in range(10):
                    backplane.publish("a", f"{name} {number}")

            threads = [threading.Thread(target=publish, args=(name,)) for name in range(100)]
            for thread in threads:
                thread.start()
            got = [text.split() for text in await received(messages, 1000)]
            for thread in threads:
                await asyncio.to_thread(thread.join)
    for name in range(100):
        assert [number for who, number in got if who == str(name)] == [str(number) for number in range(10)]


# --- forks, signals, the end ------------------------------------------------------------------------------------------

FORKED_WHILE_BUSY = """
import os, sys, threading
from backplane.broker.registry import broadcaster_from_url
from backplane.sync import SyncBackplane

backplane = SyncBackplane(sys.argv[1])
busy = True

def publish():
    while busy:
        backplane.publish("busy", "x")

threads = [threading.Thread(target=publish) for _ in range(10)]
for thread in threads:
    thread.start()
children = []
for number in range(20):
    pid = os.fork()
    if not pid:
        backplane.publish("a", f"child {number}")
        os._exit(0)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
busy = False
for thread in threads:
    thread.join()
backplane.publish("a", "parent")
print(codes == [0] * 20)
"""

ENDS = {
    "exit": "",
    "sys.exit": "sys.exit(0)",
    "os._exit": "os._exit(0)",
    "error": "raise SystemExit",
    "closed": "backplane.close()",
    "grandchild": "os.fork()",
}

PUBLISH_AND_END = """
import os, sys
from backplane.broker.registry import broadcaster_from_url
from backplane.sync import SyncBackplane

backplane = SyncBackplane(sys.argv[1])
for number in range(100):
    backplane.publish("a", number)
"""

INTERRUPTED = """
import signal, sys, time
from backplane import Settings
from backplane.broker.registry import broadcaster_from_url
from backplane.sync import SyncBackplane

class SoftTimeLimitExceeded(Exception):
    pass

def exceeded(*_):
    raise SoftTimeLimitExceeded

signal.signal(signal.SIGALRM, exceeded)
backplane = SyncBackplane(sys.argv[1], settings=Settings(start_timeout_seconds=30, publish_timeout_seconds=30))
signal.setitimer(signal.ITIMER_REAL, 0.3)
started = time.monotonic()
try:
    backplane.publish("a", "x")
except SoftTimeLimitExceeded:
    print("interrupted", time.monotonic() - started < 25)
"""


@pytest.mark.anyio
async def test_forks_while_other_threads_publish(ipc_url: str) -> None:
    """A fork in the middle of other threads' publishes hangs no child, and no publish of a child is lost."""
    async with listening(ipc_url, "a") as messages:
        done = await asyncio.to_thread(python, FORKED_WHILE_BUSY, ipc_url)
        assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
        got = await received(messages, 21)
    assert sorted(got) == sorted([*(f"child {number}" for number in range(20)), "parent"])


@pytest.mark.anyio
@pytest.mark.parametrize("end", ENDS)
async def test_nothing_is_lost_at_the_end_of_the_process(ipc_url: str, end: str) -> None:
    """However the process ends, what a publish has returned for arrives; the thread holds up no exit."""
    async with listening(ipc_url, "a") as messages:
        done = await asyncio.to_thread(python, PUBLISH_AND_END + ENDS[end], ipc_url)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert await received(messages, 100) == [str(number) for number in range(100)]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_soft_time_limit(silent_port: int) -> None:
    """What a signal handler raises interrupts the wait, and the process ends within the bound."""
    started = time.monotonic()
    done = python(INTERRUPTED, f"redis://127.0.0.1:{silent_port}")
    assert (done.returncode, done.stdout) == (0, "interrupted True\n"), done.stderr
    assert time.monotonic() - started < 28


def test_adapter_object() -> None:
    """Each process opens a link of its own, for which an adapter object, one link, is refused."""
    with pytest.raises(ConfigurationError, match="SyncBackplane takes a URL"):
        SyncBackplane(broadcaster_from_url("memory://"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
