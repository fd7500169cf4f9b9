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
from tests.chaos.crew import talking
from tests.chaos.server_view import nats_subscriptions, redis_subscriptions
from tests.chaos.site import BROKERS, Site

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane import Backplane
    from tests.chaos.judge import Judge

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

_TASKS = 8
_ROOMS = [f"room-{number}" for number in range(40)]
_CUT_EVERY_SECONDS = 0.1
# Quick enough to get somewhere between two cuts.
_SETTINGS = Settings(
    probe_interval_seconds=1.0, max_backoff_seconds=0.05, publish_timeout_seconds=1.0, linger_seconds=0.02
)


@pytest.fixture(params=BROKERS)
def viewed_site(request: pytest.FixtureRequest) -> tuple[Site, Callable[[], Counter[str]] | None]:
    """A broker of the test's own, and its view of who subscribes to what; Kafka has none, its clients pick."""
    if request.param == "nats":
        port = free_port()
        site = Site.at("nats", request.getfixturevalue("private_nats")(f"http: '127.0.0.1:{port}'\n"))
        return site, lambda: nats_subscriptions(port)
    if request.param == "redis":
        site = Site.at("redis", request.getfixturevalue("private_redis")())
        return site, lambda: redis_subscriptions(site.url)
    return Site.at("kafka", request.getfixturevalue("kafka_broker")), None


class Churner:
    """One task that comes to rooms and goes; in the end it stays in some.

    Attributes:
        rooms: Where it stays.
        heard: What it hears there in the end.
    """

    def __init__(self, backplane: Backplane, seed: int) -> None:
        self._backplane = backplane
        self._random = random.Random(seed)
        self.rooms = self._random.sample(_ROOMS, 5)
        self.heard: set[str] = set()

    async def churn(self, over: asyncio.Event) -> None:
        """Come and go until it is over."""
        while not over.is_set():
            try:
                async with self._backplane.subscribe(*self._random.sample(_ROOMS, 3)):
                    await asyncio.sleep(self._random.uniform(0, 0.03))
            except BrokerUnavailableError:
                pass

    async def stay(self, everyone: asyncio.Barrier) -> None:
        """Join the rooms, and hear the last message in each."""
        async with AsyncExitStack() as stack:
            messages = await stack.enter_async_context(self._backplane.subscribe(*self.rooms))
            await everyone.wait()
            while self.heard != set(self.rooms):
                item = await anext(messages)
                if isinstance(item, Message):
                    self.heard.add(item.channel)
            await everyone.wait()


@pytest.mark.parametrize("seconds", [3, pytest.param(20, marks=pytest.mark.full)])
async def test_churn_while_the_link_is_cut_every_100_ms(
    seconds: float, viewed_site: tuple[Site, Callable[[], Counter[str]] | None], judge: Judge
) -> None:
    """Eight tasks come and go under cuts; then the broker's view is theirs, and a last message reaches everyone."""
    site, view = viewed_site
    over = asyncio.Event()
    async with site.proxy, talking(site.proxy.url, site.url, settings=_SETTINGS, lossless=site.lossless) as crew:
        churners = [Churner(crew.near[0].backplane, seed) for seed in range(_TASKS)]
        async with asyncio.TaskGroup() as churning:
            for churner in churners:
                churning.create_task(churner.churn(over))
            for _ in range(int(seconds / _CUT_EVERY_SECONDS)):
                site.proxy.cut()
                await asyncio.sleep(_CUT_EVERY_SECONDS)
            over.set()
        everyone = asyncio.Barrier(_TASKS + 1)
        async with asyncio.timeout(20), asyncio.TaskGroup() as staying:
            for churner in churners:
                staying.create_task(churner.stay(everyone))
            await everyone.wait()
            rooms = {room for churner in churners for room in churner.rooms}
            if view is not None:
                await asyncio.to_thread(_see, view, Counter(dict.fromkeys(rooms, 1)))
            await asyncio.gather(*(crew.members[-1].backplane.publish(room, "last") for room in rooms))
            await everyone.wait()
        recovered = await crew.recovered()
    # A cut meets links that are still being opened, of which a first batch is confirmed and its gaps are reported.
    more = crew.failed_openings
    judge(f"churn under cuts for {seconds} s", site.name, crew, recovered=recovered, more_gaps=more)


def _see(view: Callable[[], Counter[str]], expected: Counter[str]) -> None:
    """Wait until the broker's view of the rooms, once each, is the expected one: nothing missing, no zombie."""
    seen: Counter[str] = Counter()

    def is_expected() -> bool:
        nonlocal seen
        # What the crew itself holds, and the probes of its members, are not the rooms'.
        seen = Counter({name: count for name, count in view().items() if name.startswith("room-")})
        return seen == expected

    try:
        wait_until(is_expected, "the broker's view is ours", seconds=10)
    except TimeoutError as error:
        raise AssertionError(f"missing {expected - seen}, zombies {seen - expected}") from error
