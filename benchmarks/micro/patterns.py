"""Matching a channel with patterns, by how many there are: what every message costs where any pattern is subscribed."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from backplane.fanout.broker_subscriptions import BrokerSubscriptions
from backplane.fanout.hub import Hub
from benchmarks.micro.figure import interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from backplane.fanout.batch import Batch
    from benchmarks.micro.figure import Figure

__all__ = ["COUNTS", "run"]

COUNTS = (0, 1_000, 10_000)
_PAYLOAD = b"x" * 128


class _Broker:
    """Confirms every prefix."""

    async def subscribe(self, channels: Collection[str]) -> None:
        """Do nothing."""

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Do nothing."""


class _Reader:
    """The least a `backplane.fanout.delivery.Subscriber` can be."""

    token = b""

    def offer(self, _: Batch, /) -> None:
        """Do nothing."""

    def gap(self, _: object, /) -> None:
        """Do nothing."""

    def joined(self, _: object, /) -> None:
        """Do nothing."""

    def offer_missed(self, _: Batch, /) -> None:
        """Do nothing."""


def run(rounds: int, times: int) -> list[Figure]:
    """Return the figures per message: of a channel that is known and matches none, or one, and of new channels."""
    with asyncio.Runner() as runner:
        candidates: dict[str, Callable[[], object]] = {}
        for patterns in COUNTS:
            hub = runner.run(_hub(patterns))
            numbers = count()
            candidates |= {
                f"{patterns:,} patterns, a channel without a subscriber": partial(hub.deliver, "other", _PAYLOAD),
                f"{patterns:,} patterns, a new channel each time": partial(_deliver_new, hub, numbers),
                f"{patterns:,} patterns, looking up a channel that matches": partial(hub.patterns.match, "user:0:x"),
            }
        return interleaved(candidates, rounds, times)


def _deliver_new(hub: Hub, numbers: count[int]) -> None:
    hub.deliver(f"other:{next(numbers)}", _PAYLOAD)


async def _hub(patterns: int) -> Hub:
    """Return a hub with so many patterns, each of a prefix of its own."""
    names, prefixes = [BrokerSubscriptions(linger_seconds=1, timeout_seconds=60) for _ in range(2)]
    hub = Hub(names, prefixes=prefixes)
    link = asyncio.create_task(prefixes.run(_Broker()))
    await asyncio.gather(*(hub.patterns.join(f"user:{number}:*", _Reader()) for number in range(patterns)))
    link.cancel()
    await asyncio.wait([link])
    return hub
