"""While names and prefixes come and go, every message is delivered exactly once, in the order of its channel."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from backplane.broadcaster import SupportsHistory, SupportsPrefixes
from backplane.broker.registry import broadcaster_from_url
from backplane.history_rules import History, HistoryRules
from backplane.testing import RecordingSink

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.broadcaster import Broadcaster

pytestmark = pytest.mark.anyio

CHANNELS = ["t.a.1", "t.a.2", "t.b.1", "t.[x]?*\\", "t.ü.1"]
PREFIXES = ["", "t.", "t.a.", "t.b", "t.[x]?*", "t.ü", "t.a.1"]
RULE = History(max_messages=50, max_age_seconds=300)
STEPS = 80
BROKERS = ["redis", "nats", "ipc"]


@pytest.fixture(params=BROKERS)
def url(request: pytest.FixtureRequest) -> str:
    """The URL of each broker that this is of interest for: the others receive everything in any case."""
    if request.param == "ipc":
        return str(request.getfixturevalue("ipc_url"))
    return f"{request.getfixturevalue(f'{request.param}_broker').url}?prefix=churn."


@asynccontextmanager
async def started(url: str) -> AsyncGenerator[tuple[Broadcaster, RecordingSink]]:
    """Return an adapter that is started, and its sink."""
    broadcaster, sink = broadcaster_from_url(url), RecordingSink()
    await broadcaster.start(sink)
    assert isinstance(broadcaster, SupportsHistory)
    await broadcaster.prepare(HistoryRules({"t.*": RULE}))
    try:
        yield broadcaster, sink
    finally:
        await broadcaster.stop()


class Wanted:
    """What one adapter has subscribed to.

    Args:
        broadcaster: The adapter.
    """

    def __init__(self, broadcaster: Broadcaster) -> None:
        assert isinstance(broadcaster, SupportsPrefixes)
        self._broadcaster = broadcaster
        self._prefixes: SupportsPrefixes = broadcaster
        self.names: set[str] = set()
        self.prefixes: set[str] = set()

    async def add(self, names: set[str], prefixes: set[str]) -> None:
        """Subscribe to more, both at once."""
        await asyncio.gather(
            self._broadcaster.subscribe(names - self.names), self._prefixes.subscribe_prefixes(prefixes - self.prefixes)
        )
        self.names |= names
        self.prefixes |= prefixes

    async def drop(self, names: set[str], prefixes: set[str]) -> None:
        """Unsubscribe from those of which every channel is still wanted in another way."""
        names, prefixes = names & self.names, prefixes & self.prefixes
        left = tuple(self.prefixes - prefixes)
        if all(channel in self.names - names or channel.startswith(left) for channel in CHANNELS):
            self.names -= names
            self.prefixes -= prefixes
            await asyncio.gather(self._broadcaster.unsubscribe(names), self._prefixes.unsubscribe_prefixes(prefixes))

    async def take_turns(self, step: int) -> None:
        """Want names alone from time to time, and prefixes alone."""
        if step % 7 == 2:
            await self.add(set(CHANNELS), set())
            await self.drop(set(), set(PREFIXES))
            assert not self.prefixes
        elif step % 7 == 5:
            await self.add(set(), {"t."})
            await self.drop(set(CHANNELS), set())
            assert not self.names


@pytest.mark.parametrize("is_kept", [False, True], ids=["live", "kept"])
async def test_churn_loses_and_repeats_nothing(url: str, *, is_kept: bool) -> None:
    """While two workers publish, a third one wants every channel all the time, in ways that change all the time."""
    chance = random.Random(20)
    sent: defaultdict[str, list[bytes]] = defaultdict(list)
    done = False

    async def publish(publisher: Broadcaster, number: int) -> None:
        count = 0
        while not done:
            channel, payload, count = chance.choice(CHANNELS), b"%d:%d" % (number, count), count + 1
            sent[channel].append(payload)
            if is_kept:
                assert isinstance(publisher, SupportsHistory)
                await publisher.keep(channel, payload, RULE)
            else:
                await publisher.publish(channel, payload)

    def some(things: list[str]) -> set[str]:
        return set(chance.sample(things, chance.randrange(len(things))))

    async with AsyncExitStack() as stack:
        publishers = [(await stack.enter_async_context(started(url)))[0] for _ in range(2)]
        broadcaster, sink = await stack.enter_async_context(started(url))
        wanted = Wanted(broadcaster)
        await wanted.add(set(), {""})
        publishing = [asyncio.create_task(publish(each, number)) for number, each in enumerate(publishers)]
        for step in range(STEPS):
            await wanted.add(some(CHANNELS), some(PREFIXES))
            for _ in range(3):
                await wanted.drop(some(CHANNELS), some(PREFIXES))
            await wanted.take_turns(step)
        done = True
        await asyncio.gather(*publishing)
        await publishers[0].publish("t.a.1", b"last")
        await publishers[1].publish("t.a.1", b"last")
        await sink.until(lambda: sink.payloads("t.a.1").count(b"last") == 2)
        await sink.until(lambda: len(sink.delivered) >= 2 + sum(map(len, sent.values())))
    assert (sink.gaps, sink.losses, sink.revocations) == ([], [], [])
    for channel in CHANNELS:
        received = [payload for payload in sink.payloads(channel) if payload != b"last"]
        for number in (b"0:", b"1:"):
            expected = [payload for payload in sent[channel] if payload.startswith(number)]
            assert [payload for payload in received if payload.startswith(number)] == expected
        assert len(received) == len(sent[channel])


async def test_a_thousand_prefixes(url: str) -> None:
    """Each of a thousand prefixes receives what is published below it, until it is unsubscribed from."""
    async with started(url) as (broadcaster, sink), started(url) as (publisher, _):
        assert isinstance(broadcaster, SupportsPrefixes)
        prefixes = [f"{number:03}." for number in range(1000)]
        await broadcaster.subscribe_prefixes(prefixes)
        await asyncio.gather(*(publisher.publish(f"{prefix}x", b"1") for prefix in prefixes))
        await sink.until(lambda: len(sink.delivered) == 1000)
        await broadcaster.unsubscribe_prefixes(prefixes[:-1])
        await asyncio.gather(*(publisher.publish(f"{prefix}x", b"2") for prefix in prefixes))
        await sink.until(lambda: len(sink.delivered) == 1001)
        assert sink.delivered[1000:] == [("999.x", b"2")]
        assert {channel for channel, _ in sink.delivered} == {f"{prefix}x" for prefix in prefixes}
