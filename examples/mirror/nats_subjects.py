"""A tree of NATS subjects, wildcards as they are: `nats_subjects("nats://localhost:4222", "prices.>")`."""

# nats-py has no types of its options:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import nats
from nats.errors import SlowConsumerError

from backplane.errors import BrokerError

from .mirror import Item, Missing, Source

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator


def nats_subjects(url: str, subject: str, queue: str = "") -> Source:
    """Return the messages of `subject`; of all readers with the same `queue`, one gets each of them."""
    return Source(url=url, topic=subject, read=partial(_read, url, subject, queue))


@asynccontextmanager
async def _read(url: str, subject: str, queue: str) -> AsyncGenerator[AsyncIterator[Item]]:
    items: asyncio.Queue[Item | None] = asyncio.Queue(1000)

    async def received(message: Any) -> None:
        await items.put((message.subject, message.data))

    async def failed(error: Exception) -> None:
        if isinstance(error, SlowConsumerError):  # nats-py has dropped a message, and goes on
            await items.put(Missing("this process did not read fast enough"))

    # nats-py connects again by itself, and reports nothing of what was missed meanwhile: so this ends here.
    async def disconnected() -> None:
        await items.put(None)

    link: Any = await nats.connect(url, ping_interval=10, error_cb=failed, disconnected_cb=disconnected)
    earlier = link.last_error  # of a try to connect
    try:
        await link.subscribe(subject, queue=queue, cb=received)
        await link.flush()  # the server has the subscription, or has refused it
        if link.last_error is not earlier:
            raise BrokerError(str(link.last_error))
        yield _items(link, items)
    finally:
        await link.close()


async def _items(link: Any, items: asyncio.Queue[Item | None]) -> AsyncIterator[Item]:
    while (item := await items.get()) is not None:
        yield item
    raise link.last_error or ConnectionError("the connection was lost")
