"""The application of the scenario `history`: channels that begin with `kept-` have a history, others have none.

`/ws/{channel}` is what a user writes. The harness drives the rest over HTTP, one call at a time.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI, WebSocket

from backplane import Backlog, Backplane, Gap, History, Settings
from backplane.broker.registry import broadcaster_from_url
from benchmarks.servers.stall import watch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.message import Receipt

logger: Final = logging.getLogger("uvicorn.error")

_AT_ONCE: Final = 64
"""How many publishes wait for the broker at a time."""
_JOINED_AT_ONCE: Final = 500
_LOOK_SECONDS: Final = 0.005
_PROVEN_SECONDS: Final = 60.0
_MANY: Final = 1_000_000


@dataclass(slots=True)
class _Noted:
    """What this process has noted; times by the monotonic clock, which the processes of a host share.

    Attributes:
        recalls: How many reads of a history the adapter was asked for.
        received: Messages that the consumer has received.
        gaps: Gaps, likewise.
        expected: The consumer notes the processor time once it has received as many.
        begun: Processor time of this process when that was asked for, in nanoseconds.
        ended: The same at the last of these messages; 0 before.
        collected: The longest garbage collection since it was last asked for, in nanoseconds.
        collecting: When the present one began.
    """

    recalls: int = 0
    received: int = 0
    gaps: int = 0
    expected: int = 0
    begun: int = 0
    ended: int = 0
    collected: int = 0
    collecting: int = 0
    consumers: list[asyncio.Task[None]] = field(default_factory=list[asyncio.Task[None]])


noted = _Noted()


def _counted(adapter: Any) -> Any:
    """Count the reads, without the comparisons of quiet channels, which read no message and depend on no client."""
    recall = adapter.recall

    async def counted(*arguments: Any, **options: Any) -> Any:
        noted.recalls += options["max_bytes"] > 0
        return await recall(*arguments, **options)

    adapter.recall = counted
    return adapter


backplane = Backplane(
    _counted(broadcaster_from_url(os.environ["BACKPLANE_URL"])),
    history={"kept-*": History(max_messages=100, max_age_seconds=600)},
    # The link is to come back at once: what is measured is the repair.
    settings=Settings(max_backoff_seconds=0.05, subscribe_timeout_seconds=30),
)


def _note_collection(phase: str, _: dict[str, int]) -> None:
    if phase == "start":
        noted.collecting = time.monotonic_ns()
    else:
        noted.collected = max(noted.collected, time.monotonic_ns() - noted.collecting)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Start backplane, and watch the loop and the collections that block it."""
    gc.callbacks.append(_note_collection)
    async with backplane.lifespan(app):
        watch()
        yield
        for consumer in noted.consumers:
            consumer.cancel()


app = FastAPI(lifespan=lifespan)


@app.websocket("/ws/{channel}")
async def listen(websocket: WebSocket, channel: str, since: str = "") -> None:
    """Join the channel for as long as the client is connected, from the position that it passes."""
    async with backplane.connect(websocket, channel, since=since) as connection:
        async for _ in connection:
            pass


@app.get("/publish/{channel}")
async def publish(channel: str, count: int, size: int) -> dict[str, float]:
    """Publish `count` messages, pipelined; return what one took of the processor and of the clock, in seconds."""
    text = "x" * size

    async def some(number: int) -> None:
        for _ in range(number):
            await backplane.publish(channel, text)

    shares = [count // _AT_ONCE + (index < count % _AT_ONCE) for index in range(_AT_ONCE)]
    began, used = time.monotonic_ns(), time.process_time_ns()
    await asyncio.gather(*map(some, shares))
    used, took = time.process_time_ns() - used, time.monotonic_ns() - began
    return {"cpu": used / count / 1e9, "wall": took / count / 1e9}


@app.get("/fill")
async def fill(name: str, channels: int, count: int, size: int, after: int) -> list[str]:
    """Publish numbers to each of some channels, in order; return each one's position after the first `after`."""

    async def one(channel: str) -> str:
        receipts: list[Receipt] = [
            await backplane.publish(channel, f"{number}".ljust(size, "x")) for number in range(count)
        ]
        return str(receipts[after - 1].position) if after else ""

    found: list[str] = []
    for start in range(0, channels, _AT_ONCE):
        some = range(start, min(start + _AT_ONCE, channels))
        found += await asyncio.gather(*(one(f"{name}{number}") for number in some))
    return found


@app.get("/consume")
async def consume(name: str, channels: int) -> None:
    """Receive some channels from now on, and count.

    The objects of so many joins, that last, lead to a full collection at some later time. It is done here, as a worker
    that has run for a while has done it: what is measured next is what a repair itself leads to.
    """
    joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    names = [f"{name}{number}" for number in range(channels)]
    noted.consumers.append(asyncio.create_task(_consume(names, joined)))
    await joined
    gc.collect()


async def _consume(names: list[str], joined: asyncio.Future[None]) -> None:
    backlog = Backlog(max_messages=_MANY, max_bytes=_MANY * 1024)
    async with backplane.subscribe(backlog=backlog) as messages:
        for start in range(0, len(names), _JOINED_AT_ONCE):
            await asyncio.gather(*map(messages.join, names[start : start + _JOINED_AT_ONCE]))
        joined.set_result(None)
        async for message in messages:
            if isinstance(message, Gap):
                noted.gaps += 1
                logger.error("a gap on %s: %s", message.channel, message.reason)
            else:
                noted.received += 1
                if noted.received == noted.expected:
                    noted.ended = time.process_time_ns()


@app.get("/expect")
async def expect(count: int) -> None:
    """Note the processor time now, and when the consumer has received `count` messages more."""
    noted.expected, noted.ended = noted.received + count, 0
    noted.begun = time.process_time_ns()


@app.get("/noted")
async def read_noted() -> dict[str, float]:
    """Return what was noted; the longest collection begins anew with each call."""
    collected, noted.collected = noted.collected, 0
    health = await backplane.health()
    return {
        "recalls": noted.recalls,
        "received": noted.received,
        "gaps": noted.gaps,
        "cpu": (noted.ended - noted.begun) / 1e9 if noted.ended else 0,
        "connections": health.connections,
        "collected": collected / 1e9,
        "in_doubt": health.channels_in_doubt,
    }


@app.get("/proven")
async def wait_until_proven() -> float:
    """Wait until the link is live and no channel in doubt; return when that was."""
    async with asyncio.timeout(_PROVEN_SECONDS):
        while backplane.state != "live" or (await backplane.health()).channels_in_doubt:  # noqa: ASYNC110  # no event
            await asyncio.sleep(_LOOK_SECONDS)
    return time.monotonic()
