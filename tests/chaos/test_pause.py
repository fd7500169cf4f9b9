"""The worker itself is paused, or publishes more than its broker processes at once: no outage follows."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backplane import Backlog, Backplane, Gap
from tests.brokers.process import wait_until

if TYPE_CHECKING:
    from backplane import Subscription
    from tests.chaos.target import FaultTarget

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]

full = pytest.mark.full

_ROOT = Path(__file__).parents[2]
_BURST = 50_000


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ],
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both event loops: they differ in the order of timers and reads."""
    return request.param  # type: ignore[no-any-return]


async def received(messages: Subscription, count: int) -> list[str]:
    """Return so many messages; a gap fails the test."""
    data: list[str] = []
    async with asyncio.timeout(30):
        async for item in messages:
            assert not isinstance(item, Gap), item
            data.append(str(item.data))
            if len(data) == count:
                return data
    raise AssertionError("the subscription ended")


# A short pause is in the conformance suite of each adapter, with limits of one second.
@pytest.mark.parametrize("seconds", [pytest.param(2.5, marks=full), pytest.param(15, marks=full)])
@pytest.mark.parametrize("moment", ["before they are sent", "after they were sent"])
async def test_a_worker_that_blocks_its_event_loop_keeps_its_link(
    moment: str, seconds: float, target: FaultTarget
) -> None:
    """Publishes and a join in progress while the loop is blocked are confirmed: no loss, no gap, none unknown."""
    async with Backplane(target.url) as backplane, backplane.subscribe("room") as messages:
        changes: list[str] = []
        backplane.on_state(lambda change: changes.append(change.reason))
        publishing = [asyncio.create_task(backplane.publish("room", str(number))) for number in range(5)]
        joining = asyncio.create_task(messages.join("other"))
        for _ in range(1 if moment == "before they are sent" else 3):
            await asyncio.sleep(0)
        time.sleep(seconds)  # the fault
        await asyncio.gather(*publishing)
        await joining
        assert await received(messages, 5) == [str(number) for number in range(5)]
        await backplane.publish("other", "after")
        assert await received(messages, 1) == ["after"]
        assert changes == []


@pytest.mark.parametrize("seconds", [2, pytest.param(15, marks=full)])
async def test_a_worker_that_is_stopped_keeps_its_link(
    seconds: float, target: FaultTarget, anyio_backend: tuple[str, dict[str, bool]]
) -> None:
    """A process under SIGSTOP, for many times every limit it has, goes on publishing and receiving."""
    loop = "uvloop" if anyio_backend[1]["use_uvloop"] else "asyncio"
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.paused", target.url, loop],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert json.loads(await asyncio.to_thread(worker.stdout.readline)) == "ready"
        for _ in range(3):  # each stops it at another point
            await asyncio.sleep(0.3)
            worker.send_signal(signal.SIGSTOP)
            await asyncio.to_thread(wait_until, lambda: is_stopped(worker.pid), "the worker is stopped")
            await asyncio.sleep(seconds)
            worker.send_signal(signal.SIGCONT)
        await asyncio.sleep(1)  # twice its probe interval: a link wrongly taken for silent is degraded by then
        out, _ = await asyncio.to_thread(worker.communicate)
    finally:
        worker.kill()
        worker.wait()
    seen = json.loads(out)
    assert (seen["states"], seen["gaps"]) == ([], [])
    assert set(seen["published"]) == {"ok"}
    assert seen["received"] == seen["published"]["ok"]


async def test_a_burst_is_no_outage(target: FaultTarget) -> None:
    """Fifty thousand publishes at once are processed: none is unknown, no link is lost, and all arrive in order."""
    numbers = [str(number) for number in range(_BURST)]
    backlog = Backlog(max_messages=2 * _BURST, max_bytes=64 * 1024 * 1024)
    async with Backplane(target.url) as backplane, backplane.subscribe("room", backlog=backlog) as messages:
        changes: list[str] = []
        backplane.on_state(lambda change: changes.append(change.reason))
        outcomes = await asyncio.gather(
            *(backplane.publish("room", number) for number in numbers), return_exceptions=True
        )
        assert {type(outcome).__name__ for outcome in outcomes} == {"Receipt"}
        assert await received(messages, _BURST) == numbers
        assert changes == []


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
