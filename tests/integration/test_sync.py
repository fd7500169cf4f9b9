"""`backplane.sync` and forks on every broker that connects processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter

import pytest

from backplane import Backlog, Backplane, Gap

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 40.0

FORK = """
import os, sys
{patch}
from backplane.sync import SyncBackplane

backplane = SyncBackplane(sys.argv[1])
backplane.publish("a", "before the fork")        # its thread and its link exist
children = []
for name in range(3):
    pid = os.fork()
    if not pid:
        for number in range(100):
            backplane.publish("a", f"child {name} {number}")
        os._exit(0)
    children.append(pid)
for number in range(100):
    backplane.publish("a", f"parent 0 {number}")
assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0]
"""

GREENLETS = """
import sys
from gevent import monkey
monkey.patch_all()
import asyncio
import gevent
from backplane.sync import SyncBackplane

backplane = SyncBackplane(sys.argv[1])
backplane.publish("a", "before the fork")

def publish(name):
    for number in range(100):
        backplane.publish("a", f"greenlet {name} {number}")

gevent.joinall([gevent.spawn(publish, name) for name in range(4)], raise_error=True)

async def main():
    return "an event loop of the application's own"

asyncio.run(main())
"""

STARTED_AND_FORKED = """
import asyncio, os, sys, time
{loop}
import psutil
from backplane import Backplane, Settings, WrongLoopError

def connections():
    return [found.raddr for found in psutil.Process().net_connections("inet") if found.raddr]

async def child(backplane):
    assert connections() == []                   # no socket of its parent is open
    for use in (
        lambda: backplane.publish("a", "x"), backplane.stop, backplane.drain, backplane.health,
        lambda: backplane.wait_for_state("live"),
    ):
        try:
            await use()
        except WrongLoopError as error:
            assert "forked" in str(error) and "SyncBackplane" in str(error), error
        else:
            raise AssertionError(use)
    assert backplane.state == "closed"
    async with backplane:                        # its own
        await backplane.publish("a", "from the child")
        assert backplane.state == "live"
    assert backplane.state == "closed"

async def main():
    settings = Settings(probe_interval_seconds=0.2)
    async with Backplane(sys.argv[1], settings=settings) as backplane:
        async with backplane.subscribe("a") as messages:
            assert bool(connections()) is not sys.argv[1].startswith("ipc:")
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    asyncio._set_running_loop(None)
                    asyncio.run(child(backplane))
                    code = 0
                finally:
                    os._exit(code)
            assert (await anext(messages)).data == "from the child"
            await asyncio.to_thread(os.waitpid, pid, 0)
            await backplane.publish("a", "from the parent")
            assert (await anext(messages)).data == "from the parent"
            since = time.monotonic()             # wait for the next probe, where there are probes
            while not sys.argv[1].startswith("ipc:"):
                probed = (await backplane.health()).probed_seconds_ago
                if probed is not None and probed < time.monotonic() - since:
                    break
                await asyncio.sleep(0.05)
            assert backplane.state == "live"
            assert backplane.statistics().gaps == 0

asyncio.run(main())
"""


STARTED_IN_A_LOOP_THAT_ENDED = """
import asyncio, sys, warnings
{loop}
from backplane import Backplane

warnings.simplefilter("ignore", ResourceWarning)     # a loop that ends without `stop` leaves sockets open
backplane = Backplane(sys.argv[1])

async def leave():
    await backplane.start()
    await backplane.subscribe("a").__aenter__()

async def again():
    async with backplane, backplane.subscribe("a") as messages:
        await backplane.publish("a", "again")
        assert (await anext(messages)).data == "again"

for _ in range(2):
    asyncio.run(leave())
    assert backplane.state == "closed"
    asyncio.run(again())
"""


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop: what is tested runs in other processes."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(params=["ipc", "redis", "nats", "kafka"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """The URL of each broker that connects processes, in turn."""
    if request.param == "ipc":
        return str(request.getfixturevalue("ipc_url"))
    url = str(request.getfixturevalue(f"{request.param}_broker").own_url)
    if request.param == "redis":  # one that is given by a URL can hold keys: without a prefix a worker warns
        return f"{url}{'&' if '?' in url else '?'}prefix=sync:"
    return url


def run(code: str, url: str) -> None:
    """Run a script; it must end with status 0 and print nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", code, url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    errors = [line for line in done.stderr.splitlines() if "has ended without `stop`" not in line]
    assert (done.returncode, done.stdout, errors) == (0, "", [])


async def published_by(code: str, url: str, count: int) -> dict[str, list[int]]:
    """Run a script; return what a worker receives: the numbers of each publisher, in order."""
    found: dict[str, list[int]] = {}
    async with Backplane(url) as worker, worker.subscribe("a", backlog=Backlog(max_messages=10_000)) as messages:
        running = asyncio.create_task(asyncio.to_thread(run, code, url))
        async with asyncio.timeout(WAIT_SECONDS):
            for _ in range(count):
                message = await anext(messages)
                assert not isinstance(message, Gap), message.reason
                name, _, number = str(message.data).rpartition(" ")
                if number.isdigit():
                    found.setdefault(name, []).append(int(number))
        await running
        await worker.publish("a", "last")
        assert getattr(await anext(messages), "data", None) == "last"  # nothing arrived twice
    return found


async def test_parent_and_children_publish(broker_url: str) -> None:
    """Started before the fork, a parent and three children publish 100 each: all arrive once and in order."""
    found = await published_by(FORK.replace("{patch}", ""), broker_url, 401)
    assert found == {name: list(range(100)) for name in ("parent 0", "child 0", "child 1", "child 2")}


async def test_greenlets_publish(broker_url: str) -> None:
    """Under gevent four greenlets publish 100 each, and the application's own event loops still work."""
    found = await published_by(GREENLETS, broker_url, 401)
    assert Counter({name: len(numbers) for name, numbers in found.items()}) == {f"greenlet {n}": 100 for n in range(4)}
    assert all(numbers == list(range(100)) for numbers in found.values())


async def test_parent_and_children_under_gevent(broker_url: str) -> None:
    """Under gevent too parent and children of a fork have links of their own."""
    patch = "from gevent import monkey; monkey.patch_all()"
    found = await published_by(FORK.replace("{patch}", patch), broker_url, 401)
    assert found == {name: list(range(100)) for name in ("parent 0", "child 0", "child 1", "child 2")}


@pytest.mark.parametrize("loop", ["", "import uvloop; uvloop.install()"], ids=["asyncio", "uvloop"])
async def test_a_started_backplane_in_a_forked_child(broker_url: str, loop: str) -> None:
    """In a child the parent's backplane is refused, can be started again, and affects no socket of the parent."""
    await asyncio.to_thread(run, STARTED_AND_FORKED.replace("{loop}", loop), broker_url)


@pytest.mark.parametrize("loop", ["", "import uvloop; uvloop.install()"], ids=["asyncio", "uvloop"])
async def test_a_backplane_whose_event_loop_ended(broker_url: str, loop: str) -> None:
    """An event loop that ends without `stop` leaves a closed backplane, which can be started again."""
    await asyncio.to_thread(run, STARTED_IN_A_LOOP_THAT_ENDED.replace("{loop}", loop), broker_url)
