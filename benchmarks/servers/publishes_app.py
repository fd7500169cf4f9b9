"""The application of the scenario `publishes`: workers of its own in this one process, of which one publishes.

The harness drives it over HTTP, one call at a time. Its workers are ordinary `Backplane`s with their own connections.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI

from backplane import Backlog, Backplane, Gap

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

app: Final = FastAPI()

_CHANNEL: Final = "publishes"
_LEAST_PUBLISHES: Final = 100
_RECEIVED_SECONDS: Final = 30.0
_MANY: Final = 10_000_000


@dataclass(slots=True, kw_only=True)
class _Consumer:
    """What one worker has received.

    Attributes:
        received: Messages.
        gaps: Gaps.
        is_complete: Set once it has received as many as were `expected`.
    """

    received: int = 0
    gaps: int = 0
    expected: int = _MANY
    is_complete: asyncio.Event = field(default_factory=asyncio.Event)

    def expect(self, count: int) -> None:
        """Set `is_complete` once it has received `count` messages in all."""
        self.expected = count
        self._look()

    async def run(self, backplane: Backplane, joined: asyncio.Event) -> None:
        """Receive until it is cancelled."""
        async with backplane.subscribe(_CHANNEL, backlog=Backlog(max_messages=_MANY, max_bytes=1 << 40)) as messages:
            joined.set()
            async for message in messages:
                if isinstance(message, Gap):
                    self.gaps += 1
                else:
                    self.received += 1
                    self._look()

    def _look(self) -> None:
        if self.received >= self.expected:
            self.is_complete.set()


@app.get("/flood")
async def flood(workers: int, outstanding: int, size: int, warm_up: float, seconds: float) -> dict[str, float]:
    """Publish with so many publishes in flight until the time is over, and wait until each worker has received all."""
    async with _started(workers) as (publisher, consumers):
        count = await _publish_until(publisher, outstanding, size, warm_up)
        await _receive(consumers, count)
        used, began = time.process_time(), time.monotonic()
        measured = await _publish_until(publisher, outstanding, size, seconds)
        took = time.monotonic() - began
        await _receive(consumers, count + measured)
        return {
            "per_second": measured / took,
            "cpu": (time.process_time() - used) / measured,
            "lost": sum(max(count + measured - each.received, 0) for each in consumers),
            "duplicates": sum(max(each.received - count - measured, 0) for each in consumers),
            "gaps": sum(each.gaps for each in consumers),
        }


@app.get("/single")
async def single(workers: int, size: int, warm_up: float, seconds: float) -> list[float]:
    """Publish one message after another, and return how long each publish took, in seconds."""
    async with _started(workers) as (publisher, _):
        await _publish_until(publisher, 1, size, warm_up)
        text, deadline, taken = "x" * size, time.monotonic() + seconds, list[float]()
        while len(taken) < _LEAST_PUBLISHES or time.monotonic() < deadline:
            began = time.perf_counter()
            await publisher.publish(_CHANNEL, text)
            taken.append(time.perf_counter() - began)
        return taken


@asynccontextmanager
async def _started(workers: int) -> AsyncGenerator[tuple[Backplane, Sequence[_Consumer]]]:
    """Start as many workers, each with a consumer; yields the one that publishes, and all consumers."""
    async with AsyncExitStack() as stack:
        backplanes = [await stack.enter_async_context(Backplane(os.environ["BACKPLANE_URL"])) for _ in range(workers)]
        consumers = [_Consumer() for _ in backplanes]
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        joined = [asyncio.Event() for _ in backplanes]
        running = [
            tasks.create_task(each.run(backplane, event))
            for each, backplane, event in zip(consumers, backplanes, joined, strict=True)
        ]
        for event in joined:
            await event.wait()
        yield backplanes[0], consumers
        for task in running:
            task.cancel()


async def _publish_until(backplane: Backplane, outstanding: int, size: int, seconds: float) -> int:
    """Publish for so many seconds, and return how many publishes were confirmed, each of them."""
    text, deadline = "x" * size, time.monotonic() + seconds

    async def some() -> int:
        count = 0
        while not count or time.monotonic() < deadline:
            await backplane.publish(_CHANNEL, text)
            count += 1
        return count

    return sum(await asyncio.gather(*(some() for _ in range(outstanding))))


async def _receive(consumers: Sequence[_Consumer], count: int) -> None:
    """Wait until each consumer has received as many messages, or they do not come."""
    for consumer in consumers:
        consumer.is_complete.clear()
        consumer.expect(count)
        try:
            async with asyncio.timeout(_RECEIVED_SECONDS):
                await consumer.is_complete.wait()
        except TimeoutError:
            return  # what is missing is counted
