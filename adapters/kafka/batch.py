"""A batch of what was published to one partition, with those who wait for the broker's answer to it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from backplane.adapters.kafka.records import Records

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.adapters.kafka.wire import Identity
    from backplane.errors import BrokerError

__all__ = ["PublishBatch"]


class PublishBatch:
    """Records that go to the broker together.

    Args:
        max_bytes: Size at which it is full; one record is always taken.

    Attributes:
        identity: Under which it was built; `None` before.
        sequence: Number of its first record there, by which the broker finds a repetition.
        sent: How often it went out.
        killed: How often a connection ended while it was the only thing that the broker owed an answer to.
        retries: How often the broker has put it off.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._records = Records(max_bytes)
        self._items: list[tuple[bytes, bytes, asyncio.Future[None]]] = []
        self.identity: Identity | None = None
        self.sequence = 0
        self.sent = 0
        self.killed = 0
        self.retries = 0

    @property
    def count(self) -> int:
        """How many records it holds."""
        return len(self._items)

    @property
    def key(self) -> bytes:
        """The key of its first record."""
        return self._items[0][0]

    def append(self, key: bytes, payload: bytes) -> asyncio.Future[None] | None:
        """Add a record; returns what to await for its answer, or `None` where there is no room."""
        if not self._records.append(key, payload):
            return None
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._items.append((key, payload, answered))
        return answered

    def build(self, identity: Identity, sequence: int) -> bytes:
        """Return it as it goes to the broker; the same bytes every time, whatever is passed the second time."""
        if self.identity is None:
            self.identity, self.sequence = identity, sequence
        self.sent += 1
        return self._records.build(self.identity, self.sequence)

    def halves(self) -> list[PublishBatch]:
        """Return the same records in two new batches."""
        middle = self.count // 2
        return [self._part(range(middle)), self._part(range(middle, self.count))]

    def without(self, culprits: Collection[int]) -> list[PublishBatch]:
        """Return the records that are none of `culprits` in a new batch, if there are any."""
        rest = [index for index in range(self.count) if index not in culprits]
        return [self._part(rest)] if rest else []

    def succeed(self) -> None:
        """Let every waiter return."""
        for _, _, answered in self._items:
            if not answered.done():
                answered.set_result(None)

    def fail(self, error: BrokerError, only: Collection[int] | None = None) -> None:
        """Let every waiter raise the same error, or `only` those of the records with these places."""
        for index, (_, _, answered) in enumerate(self._items):
            if not answered.done() and (only is None or index in only):
                answered.set_exception(_copy(error))

    def _part(self, places: Collection[int]) -> PublishBatch:
        part = PublishBatch(self._max_bytes)
        for place in places:
            key, payload, answered = self._items[place]
            part._records.append(key, payload)
            part._items.append((key, payload, answered))
        return part


def _copy(error: BrokerError) -> BrokerError:
    """Return the same error anew: each of many publishers raises its own."""
    return type(error)(str(error).removeprefix("kafka: "), adapter="kafka", retriable=error.retriable)
