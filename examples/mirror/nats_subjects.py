"""A tree of NATS subjects, wildcards as they are: `nats_subjects("nats://localhost:4222", "prices.>")`."""

# nats-py has no types of its options:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

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
    missing: list[Missing] = []

    async def note(error: Exception) -> None:
        if isinstance(error, SlowConsumerError):  # nats-py has dropped a message, and goes on
            missing[:] = [Missing("this process did not read fast enough")]

    # By itself nats-py connects again, and what was missed meanwhile is not reported.
    link: Any = await nats.connect(url, allow_reconnect=False, ping_interval=10, error_cb=note)
    try:
        subscription = await link.subscribe(subject, queue=queue)
        await link.flush()  # the server has the subscription, or has refused it
        if link.last_error is not None:
            raise BrokerError(str(link.last_error))
        yield _items(link, subscription, missing)
    finally:
        await link.close()


async def _items(link: Any, subscription: Any, missing: list[Missing]) -> AsyncIterator[Item]:
    async for message in subscription.messages:
        while missing:
            yield missing.pop()
        yield message.subject, message.data
    raise link.last_error or ConnectionError("the connection was closed")
