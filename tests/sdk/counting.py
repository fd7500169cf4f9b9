"""Numbers that are published while something fails, and what of them a client must have."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Final

from backplane import Backplane, History
from backplane.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from tests.chaos.target import FaultTarget
    from tests.sdk.sdk import Event

__all__ = ["HISTORY", "Numbers", "check", "publishing"]

HISTORY: Final = {"HISTORY_CHANNELS": "kept*", "HISTORY_MESSAGES": "1000"}
"""The history of tests/sdk/app.py, as variables of its environment."""
_PERIOD_SECONDS: Final = 0.1
_PATIENCE_SECONDS: Final = 60.0


class Numbers:
    """Publishes `{"n": 1}`, `{"n": 2}` and so on, ten a second.

    A number whose publish failed may have been published or not; it is not published again.

    Attributes:
        confirmed: Those that were published.
        failed: How many were perhaps not.
    """

    def __init__(self) -> None:
        self.confirmed: list[int] = []
        self.failed = 0
        self._stopping = False

    async def run(self, backplane: Backplane, channel: str) -> None:
        """Publish until it is stopped."""
        for number in count(1):
            try:
                await backplane.publish(channel, {"n": number})
                self.confirmed.append(number)
            except BrokerError:
                self.failed += 1
            if self._stopping:
                return
            await asyncio.sleep(_PERIOD_SECONDS)

    async def more(self, published: int) -> int:
        """Wait until so many more are published; return the last one."""
        expected = len(self.confirmed) + published
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while len(self.confirmed) < expected:
                await asyncio.sleep(_PERIOD_SECONDS)
        return self.confirmed[-1]

    async def over_a_restart(self, target: FaultTarget, meanwhile: Callable[[], None] | None = None) -> None:
        """Kill the broker, and start it again when a publish has failed; go on when one succeeds."""
        before = self.failed
        target.broker.kill9()
        if meanwhile is not None:
            meanwhile()
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while self.failed == before:
                await asyncio.sleep(_PERIOD_SECONDS)
        await target.restart_broker()
        await self.more(1)

    def stop(self) -> None:
        """Let the next number be the last one."""
        self._stopping = True


@asynccontextmanager
async def publishing(url: str, channel: str) -> AsyncGenerator[Numbers]:
    """Publish numbers during the block, from this process; the last one is published when the block has ended."""
    numbers = Numbers()
    history = {HISTORY["HISTORY_CHANNELS"]: History(max_messages=int(HISTORY["HISTORY_MESSAGES"]))}
    async with Backplane(url, history=history) as backplane:
        running = asyncio.create_task(numbers.run(backplane, channel))
        try:
            yield numbers
        finally:
            numbers.stop()
            await running


def check(events: Sequence[Event], confirmed: Sequence[int], *, may_repeat: bool = False) -> set[int]:
    """Check that confirmed numbers came once, in order, and that none is missing unseen; return which are missing.

    What was published before the first number that came was not subscribed to.

    Args:
        events: What the client reported.
        confirmed: What was published.
        may_repeat: After `recovered: false` earlier ones may come again: a worker on Kafka goes on where it was, and
            the client that comes to it may have been further.
    """
    received = [event["data"]["n"] for event in events if event["event"] == "publication"]
    assert may_repeat or len(set(received)) == len(received), f"something came twice: {received}"
    expected = [number for number in confirmed if number >= received[0]]
    places = {number: place for place, number in enumerate(expected)}
    place = 0  # of the next one
    may_miss = False
    for event in events:
        if event["event"] == "subscribed":
            may_miss = may_miss or (event["was_recovering"] and not event["recovered"])
        elif event["event"] == "publication" and (came := places.get(event["data"]["n"])) is not None:
            assert came == place or may_miss, f"{expected[came]} came, not {expected[place:came]}; nothing states it"
            assert came >= place or may_repeat, f"{expected[came]} came too late"
            place, may_miss = came + 1, False
    assert place == len(expected), f"{expected[place:]} did not come at the end"
    return set(expected).difference(received)
