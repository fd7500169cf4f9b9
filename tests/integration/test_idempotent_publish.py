"""Publishing with an idempotency key on real brokers: through lost links and swallowed answers, it is there once."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal

import pytest

from backplane import Backlog, Backplane, Gap, History, PublishOutcomeUnknownError, Receipt, Settings, Subscription
from backplane.testing import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.conftest import StartNats

pytestmark = pytest.mark.anyio

RULES = {"orders:*": History(max_messages=1000)}
CHANNEL = "orders:1"
TIMEOUT_SECONDS = 20.0


@pytest.fixture(params=["redis", "nats"])
def url(request: pytest.FixtureRequest) -> str:
    """A broker that keeps messages and knows their keys."""
    if request.param == "redis":
        broker: str = request.getfixturevalue("redis_broker").url
        return broker
    start: StartNats = request.getfixturevalue("private_nats")
    return start(jetstream=True).url


@asynccontextmanager
async def beside_an_observer(
    url: str, outage: Literal["raise", "buffer"]
) -> AsyncGenerator[tuple[FaultProxy, Backplane, Subscription]]:
    """Start a backplane whose link a proxy breaks, and a subscription of another one, whose link holds."""
    settings = Settings(
        publish_timeout_seconds=TIMEOUT_SECONDS, max_backoff_seconds=0.05, outage=outage, max_buffer_messages=10_000
    )
    async with (
        FaultProxy(url) as proxy,
        Backplane(proxy.url, settings=settings, history=RULES) as backplane,
        Backplane(url, history=RULES) as outside,
        outside.subscribe(CHANNEL, backlog=Backlog(max_messages=10_000)) as messages,
    ):
        yield proxy, backplane, messages


async def received(messages: Subscription, *, until: str) -> list[str | bytes]:
    """Return what is received before the data `until`."""
    got: list[str | bytes] = []
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            message = await anext(messages)
            assert not isinstance(message, Gap)
            if message.data == until:
                return got
            got.append(message.data)


@pytest.mark.parametrize("keyed", [True, False])
async def test_publish_whose_answer_is_swallowed(url: str, keyed: bool) -> None:
    """With a key the core finds that the broker has it; without one the outcome is unknown. It is there once."""
    async with beside_an_observer(url, "raise") as (proxy, backplane, messages):
        proxy.silence("to_client")
        key = "paid" if keyed else None
        publishing = asyncio.create_task(backplane.publish(CHANNEL, "1", idempotency_key=key))
        async with asyncio.timeout(TIMEOUT_SECONDS):
            there = await anext(messages)
            proxy.cut()
            proxy.heal()
            if keyed:
                receipt = await publishing
                assert not isinstance(there, Gap)
                assert (receipt.duplicate, receipt.position) == (True, there.position)
            else:
                with pytest.raises(PublishOutcomeUnknownError):
                    await publishing
                await backplane.wait_for_state("live")
        await backplane.publish(CHANNEL, "barrier")
        assert await received(messages, until="barrier") == []


@pytest.mark.parametrize("outage", ["raise", "buffer"])
@pytest.mark.parametrize("seed", range(2))
async def test_keyed_publishes_over_a_link_that_is_cut_again_and_again(
    url: str, outage: Literal["raise", "buffer"], seed: int
) -> None:
    """All of them are done in the end; each is there once, in the order of the calls, with a position of its own."""
    chance = random.Random(seed)
    async with beside_an_observer(url, outage) as (proxy, backplane, messages):
        publishing: list[asyncio.Task[Receipt]] = []
        for number in range(400):
            publishing.append(
                asyncio.create_task(backplane.publish(CHANNEL, str(number), idempotency_key=f"{seed} {number}"))
            )
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.01)
            fault = chance.random()
            if fault < 0.01:
                proxy.silence(chance.choice(["to_client", "to_broker"]))
                await asyncio.sleep(0.005)
                proxy.cut()
                proxy.heal()
            elif fault < 0.03:
                proxy.cut()
        receipts = await asyncio.gather(*publishing)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while backplane.statistics().buffered:
                await asyncio.sleep(0.01)
        await backplane.publish(CHANNEL, "barrier", idempotency_key="barrier")
        got = await received(messages, until="barrier")
        assert list(map(int, got)) == list(range(400))
        positions = [receipt.position for receipt in receipts if receipt.position is not None]
        assert len(set(positions)) == len(positions)
        counted = backplane.statistics()
        assert (counted.published, counted.buffer_dropped) == (401, 0)
        if outage == "raise":
            assert len(positions) == 400
