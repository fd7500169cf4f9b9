"""Subscribing and unsubscribing while the link is cut again and again."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from backplane import BrokerUnavailableError, Message, Settings
from tests.brokers.process import free_port, wait_until
from tests.chaos.broker_view import nats_subscriptions, redis_subscriptions
from tests.chaos.target import BROKERS, FaultTarget
from tests.chaos.workload import running_workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane import Backplane
    from tests.chaos.case_table import CaseRecorder

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

_TASKS = 8
_ROOMS = [f"room-{number}" for number in range(40)]
_CUT_EVERY_SECONDS = 0.1
# Short enough for a join between two cuts.
_SETTINGS = Settings(
    probe_interval_seconds=1.0, max_backoff_seconds=0.05, publish_timeout_seconds=1.0, linger_seconds=0.02
)


@pytest.fixture(params=BROKERS)
def viewed_target(request: pytest.FixtureRequest) -> tuple[FaultTarget, Callable[[], Counter[str]] | None]:
    """A broker of the test's own, and its view of the subscriptions; where clients filter, it has none."""
    if request.param == "nats":
        port = free_port()
        target = FaultTarget.of("nats", request.getfixturevalue("private_nats")(f"http: '127.0.0.1:{port}'\n"))
        return target, lambda: nats_subscriptions(port)
    if request.param == "redis":
        target = FaultTarget.of("redis", request.getfixturevalue("private_redis")())
        return target, lambda: redis_subscriptions(target.url)
    return FaultTarget.of(request.param, request.getfixturevalue(f"{request.param}_broker")), None


class Churner:
    """One task that joins and leaves rooms; in the end it stays in some.

    Attributes:
        rooms: Where it stays.
        received: The rooms whose last message it has received.
    """

    def __init__(self, backplane: Backplane, seed: int) -> None:
        self._backplane = backplane
        self._random = random.Random(seed)
        self.rooms = self._random.sample(_ROOMS, 5)
        self.received: set[str] = set()

    async def churn(self, over: asyncio.Event) -> None:
        """Join and leave until it is over."""
        while not over.is_set():
            try:
                async with self._backplane.subscribe(*self._random.sample(_ROOMS, 3)):
                    await asyncio.sleep(self._random.uniform(0, 0.03))
            except BrokerUnavailableError:
                pass

    async def stay(self, barrier: asyncio.Barrier) -> None:
        """Join the rooms, and receive the last message in each."""
        async with AsyncExitStack() as stack:
            messages = await stack.enter_async_context(self._backplane.subscribe(*self.rooms))
            await barrier.wait()
            while self.received != set(self.rooms):
                item = await anext(messages)
                if isinstance(item, Message):
                    self.received.add(item.channel)
            await barrier.wait()


@pytest.mark.parametrize("seconds", [3, pytest.param(20, marks=pytest.mark.full)])
async def test_churn_while_the_link_is_cut_every_100_ms(
    seconds: float, viewed_target: tuple[FaultTarget, Callable[[], Counter[str]] | None], record_case: CaseRecorder
) -> None:
    """Eight tasks join and leave under cuts; then the broker's view is theirs, and a last message reaches all."""
    target, view = viewed_target
    over = asyncio.Event()
    async with (
        target.proxy,
        running_workload(target.proxy.url, target.url, settings=_SETTINGS, lossless=target.lossless) as workload,
    ):
        churners = [Churner(workload.near[0].backplane, seed) for seed in range(_TASKS)]
        async with asyncio.TaskGroup() as churning:
            for churner in churners:
                churning.create_task(churner.churn(over))
            for _ in range(int(seconds / _CUT_EVERY_SECONDS)):
                target.proxy.cut()
                await asyncio.sleep(_CUT_EVERY_SECONDS)
            over.set()
        barrier = asyncio.Barrier(_TASKS + 1)
        async with asyncio.timeout(30), asyncio.TaskGroup() as staying:
            for churner in churners:
                staying.create_task(churner.stay(barrier))
            await barrier.wait()
            rooms = {room for churner in churners for room in churner.rooms}
            if view is not None:
                await asyncio.to_thread(_expect_view, view, Counter(dict.fromkeys(rooms, 1)))
            await asyncio.gather(*(workload.participants[-1].backplane.publish(room, "last") for room in rooms))
            await barrier.wait()
        recovered = await workload.recovered()
    # A cut can end a link that is still being opened, whose first batch is confirmed and its gaps are reported.
    more = workload.failed_openings
    record_case(f"churn under cuts for {seconds} s", target.name, workload, recovered=recovered, more_gaps=more)


def _expect_view(view: Callable[[], Counter[str]], expected: Counter[str]) -> None:
    """Wait until the broker's view of the rooms is the expected one: none missing, none left over."""
    seen: Counter[str] = Counter()

    def is_expected() -> bool:
        nonlocal seen
        # Without the channels of the workload and of the probes.
        seen = Counter({name: count for name, count in view().items() if name.startswith("room-")})
        return seen == expected

    try:
        wait_until(is_expected, "the broker's view is the expected one", seconds=30)
    except TimeoutError as error:
        raise AssertionError(f"missing {expected - seen}, left over {seen - expected}") from error
