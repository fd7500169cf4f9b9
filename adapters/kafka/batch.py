"""A batch of messages for one partition, with the futures of the calls that wait for the broker's answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from backplane.adapters.kafka.records import Records

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.adapters.kafka.answers import ProducerId
    from backplane.errors import BrokerError

__all__ = ["PublishBatch"]


class PublishBatch:
    """Records that are sent to the broker together.

    Args:
        max_bytes: Size at which it is full; one record always fits.

    Attributes:
        producer_id: The producer id with which it was built; `None` before.
        sequence: Sequence number of its first record, by which the broker detects a repetition.
        sent: How often it was sent.
        connection_losses: How often a connection ended while it was the only batch in flight there.
        retries: How often the broker has answered that it was to be sent again later.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._records = Records(max_bytes)
        self._items: list[tuple[bytes, bytes, asyncio.Future[int | None]]] = []
        self.producer_id: ProducerId | None = None
        self.sequence: int = 0
        self.sent: int = 0
        self.connection_losses: int = 0
        self.retries: int = 0

    @property
    def count(self) -> int:
        """How many records it holds."""
        return len(self._items)

    @property
    def key(self) -> bytes:
        """The key of its first record."""
        return self._items[0][0]

    def append(self, key: bytes, payload: bytes) -> asyncio.Future[int | None] | None:
        """Add a record; return the future of its answer, or `None` if the batch is full."""
        if not self._records.append(key, payload):
            return None
        answered: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._items.append((key, payload, answered))
        return answered

    def build(self, producer_id: ProducerId, sequence: int) -> bytes:
        """Return the encoded batch; later calls return the same bytes, whatever they are passed."""
        if self.producer_id is None:
            self.producer_id, self.sequence = producer_id, sequence
        self.sent += 1
        return self._records.build(self.producer_id, self.sequence)

    def halves(self) -> list[PublishBatch]:
        """Return the same records in two new batches."""
        middle = self.count // 2
        return [self._part(range(middle)), self._part(range(middle, self.count))]

    def without(self, refused: Collection[int]) -> list[PublishBatch]:
        """Return the records whose indexes are not in `refused` in a new batch, if there are any."""
        rest = [index for index in range(self.count) if index not in refused]
        return [self._part(rest)] if rest else []

    def succeed(self, offset: int | None = None) -> None:
        """Let every waiting call return the offset of its record; `offset` is that of the first, if it is known."""
        for index, (_, _, answered) in enumerate(self._items):
            if not answered.done():
                answered.set_result(None if offset is None else offset + index)

    def fail(self, error: BrokerError, only: Collection[int] | None = None) -> None:
        """Let every waiting call raise the same error, or `only` those of the records with these indexes."""
        for index, (_, _, answered) in enumerate(self._items):
            if not answered.done() and (only is None or index in only):
                answered.set_exception(_copy(error))

    def _part(self, indexes: Collection[int]) -> PublishBatch:
        part = PublishBatch(self._max_bytes)
        for index in indexes:
            key, payload, answered = self._items[index]
            part._records.append(key, payload)
            part._items.append((key, payload, answered))
        return part


def _copy(error: BrokerError) -> BrokerError:
    """Return a copy of the error: each publisher raises its own instance."""
    return type(error)(error.reason, adapter="kafka", retriable=error.retriable)
