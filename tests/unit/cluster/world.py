"""Workers of a cluster in one event loop, over a broker that a test controls."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from backplane.cluster.bus import ClusterBus
from backplane.cluster.signatures import Signer
from backplane.journal.journal import Journal
from backplane.message import Receipt
from tests.unit.doubles import Gate
from tests.unit.kit import WAIT_SECONDS, running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.unit.kit import World

__all__ = ["MAX_PAYLOAD", "Broker", "BusWorker", "Recorder", "buses"]

MAX_PAYLOAD = 100_000


class Broker:
    """Delivers what is published to the hubs of all workers.

    Attributes:
        gate: Holds what is published.
        error: What a publish raises, if anything.
        published: Every channel with its payload, in the order of the publishes.
    """

    def __init__(self) -> None:
        self.gate = Gate()
        self.error: Exception | None = None
        self.published: list[tuple[str, bytes]] = []
        self._worlds: list[World] = []
        self._changed = asyncio.Event()

    def add(self, world: World) -> None:
        """Deliver to one more hub."""
        self._worlds.append(world)

    async def publish(self, channel: str, payload: bytes) -> Receipt:
        """Publish, once the gate is open."""
        await self.gate.passage()
        if self.error is not None:
            raise self.error
        self.deliver(channel, payload)
        return Receipt()

    def deliver(self, channel: str, payload: bytes) -> None:
        """Deliver a payload as it is, as another program would publish it."""
        self.published.append((channel, payload))
        for world in self._worlds:
            world.hub.deliver(channel, payload)
        self._changed.set()

    async def until_published(self, count: int) -> None:
        """Wait until so much was published."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.published) < count:
                self._changed.clear()
                await self._changed.wait()


class BusWorker:
    """The bus of one worker, and its hub."""

    def __init__(self, broker: Broker, world: World, number: int, secret: bytes | None) -> None:
        self.world = world
        self.journal = Journal(window_seconds=60, burst=1)
        self.max_payload_bytes = MAX_PAYLOAD
        self.bus = ClusterBus(
            world.hub,
            broker.publish,
            origin=number.to_bytes(8, "big"),
            wire_format="header",
            max_payload_bytes=lambda: self.max_payload_bytes,
            journal=self.journal,
            signer=None if secret is None else Signer(secret),
        )


class Recorder:
    """A receiver that keeps what it takes, and raises where a test demands it.

    Attributes:
        texts: What was received.
        gaps: The channels of the gaps.
        error: What it raises, if anything.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.gaps: list[str] = []
        self.error: Exception | None = None

    def received(self, _topic: str, text: str, /) -> None:
        """Keep a text."""
        if self.error is not None:
            raise self.error
        self.texts.append(text)

    def gap(self, topic: str, /) -> None:
        """Keep a gap."""
        if self.error is not None:
            raise self.error
        self.gaps.append(topic)


@asynccontextmanager
async def buses(*secrets: bytes | None) -> AsyncGenerator[tuple[Broker, list[BusWorker]]]:
    """Run a worker for each of `secrets`; by default one without."""
    broker = Broker()
    async with AsyncExitStack() as stack:
        workers: list[BusWorker] = []
        for number, secret in enumerate(secrets or (None,), 1):
            world = await stack.enter_async_context(running())
            broker.add(world)
            worker = BusWorker(broker, world, number, secret)
            stack.push_async_callback(worker.bus.stop)
            stack.callback(worker.journal.flush)
            workers.append(worker)
        yield broker, workers
