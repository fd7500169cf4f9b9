"""Publishing to Kafka: one batch on its way per partition, the next one filling meanwhile.

Idempotent (https://kafka.apache.org/documentation/#semantics): a batch whose answer did not come is sent again over the
next link under its old sequence number, and the broker drops the repetition.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from backplane.adapters.kafka.link import unavailable
from backplane.adapters.kafka.wire import Records, partition_hash, words
from backplane.errors import BrokerError, PublishError, PublishOutcomeUnknownError

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.adapters.kafka.link import KafkaLink
    from backplane.adapters.kafka.wire import Connection, Identity

__all__ = ["KafkaProducer"]

_DUPLICATE: Final = 46
# The broker lost what it knew of this producer, or gave its place away: a new identity is needed.
_FORGOTTEN: Final = frozenset({45, 47, 49, 59, 90})
# The broker had not yet heard of the topic, the leader moved, a replica was slow: the same batch can succeed later.
_LATER: Final = frozenset({3, 5, 6, 7, 8, 9, 13, 14, 15, 16, 20, 56, 74, 75})
_TOO_FEW_REPLICAS: Final = 19
_LOADING: Final = frozenset({7, 14, 15, 16})
_LOADING_PAUSE_SECONDS: Final = 0.05
_MAX_SEQUENCE: Final = 2**31
# Links in a row that ended while a batch was under way: it is taken for the reason, and sent no more.
_MAX_UNANSWERED: Final = 3
_MAX_BATCH_BYTES: Final = 256 * 1024


class KafkaProducer:
    """What is published in one life of the adapter, over however many links.

    Args:
        max_payload_bytes: Largest payload; a batch of several records is kept below it, as it must be below the topic's
            `max.message.bytes` too.
        max_pending_bytes: Most bytes published and not yet answered.
        spawn: Starts a task whose failure is the link's loss.
    """

    def __init__(
        self, max_payload_bytes: int, max_pending_bytes: int, spawn: Callable[..., asyncio.Task[None]]
    ) -> None:
        self._max_batch_bytes = min(_MAX_BATCH_BYTES, max_payload_bytes)
        self._max_pending_bytes = max_pending_bytes
        self._spawn = spawn
        self._pending_bytes = 0
        self._queues: dict[int, deque[_Batch]] = {}
        self._sequences: dict[int, int] = {}
        self._identity: Identity | None = None
        self._link: KafkaLink | None = None
        self._sending: dict[int, asyncio.Task[None]] = {}
        self._awaited: set[int] = set()  # partitions with a batch on its way

    async def open(self, link: KafkaLink) -> None:
        """Send over `link` from now on, first what the link before left unanswered.

        Raises:
            BrokerUnavailableError: The broker is gone.
            BrokerError: It grants no identity.
        """
        if any(queue and queue[0].unanswered >= _MAX_UNANSWERED for queue in self._queues.values()):
            self._forget_identity("links ended over it again and again")
        if self._identity is None:
            self._identity = await _identify(link.leader(link.topology.leaders[0]))
        self._link = link
        for partition in list(self._queues):
            if partition in link.topology.leaders:
                self._send_soon(partition)
            else:
                self._fail(self._queues.pop(partition), "the partition is gone")

    def close(self) -> None:
        """Forget the link; what is unanswered waits for the next one, or for `fail`."""
        self._link = None
        self._sending.clear()

    def fail(self, reason: str) -> None:
        """Fail every publish: what never left for certain, what awaited its answer as unknown."""
        for queue in self._queues.values():
            self._fail(queue, reason)
        self._queues.clear()

    async def publish(self, key: bytes, payload: bytes) -> None:
        """Publish, in the order of the calls; returns when every replica in sync has it.

        Raises:
            BrokerUnavailableError: The link is gone.
            PublishError: The broker refused it, or too much awaits its answer.
        """
        link, size = self._link, len(key) + len(payload)
        if link is None or link.is_over:
            raise unavailable("the link is lost")
        if self._pending_bytes and self._pending_bytes + size > self._max_pending_bytes:
            raise PublishError(
                f"{self._pending_bytes:,} bytes await the broker's answer; publish slower, or raise max_pending_bytes",
                adapter="kafka",
                retriable=True,
            )
        partition = partition_hash(key) % len(link.topology.leaders)
        queue = self._queues.setdefault(partition, deque())
        if not queue or not queue[-1].append(key, payload):
            queue.append(_Batch(self._max_batch_bytes))
            queue[-1].append(key, payload)
        self._pending_bytes += size
        answered = queue[-1].add_waiter()
        self._send_soon(partition)
        try:
            await answered
        finally:
            self._pending_bytes -= size

    def _fail(self, queue: deque[_Batch], reason: str) -> None:
        for batch in queue:
            batch.fail(_unknown(reason) if batch.was_sent else unavailable(reason))

    def _send_soon(self, partition: int) -> None:
        assert self._link is not None
        node = self._link.topology.leaders[partition]
        sending = self._sending.get(node)
        if sending is None or sending.done():
            self._sending[node] = self._spawn(self._send(self._link, node), f"kafka-send-{node}")

    async def _send(self, link: KafkaLink, node: int) -> None:
        """Send to one broker until nothing is left; all that was published in one pass of the loop goes at once."""
        connection: Connection = link.leader(node)
        milliseconds = int(link.target.request_timeout_seconds * 1000)
        while heads := self._heads(link, node):
            batches = {partition: self._build(partition, batch) for partition, batch in heads.items()}
            self._awaited |= heads.keys()
            try:
                answers = await connection.produce(link.target.topic, batches, milliseconds)
            finally:
                self._awaited -= heads.keys()
            failed = {code for partition, code in answers.items() if not self._settle(partition, code)}
            if failed:
                link.lost(f"publishing failed: {', '.join(map(words, failed))}")
                return
            for partition in heads:
                if self._queues[partition] and link.topology.leaders.get(partition, node) != node:  # it moved meanwhile
                    self._send_soon(partition)

    def _heads(self, link: KafkaLink, node: int) -> dict[int, _Batch]:
        leaders, awaited = link.topology.leaders, self._awaited
        return {
            partition: queue[0]
            for partition, queue in self._queues.items()
            if queue and leaders.get(partition) == node and partition not in awaited
        }

    def _build(self, partition: int, batch: _Batch) -> bytes:
        assert self._identity is not None
        if batch.sequence is None:
            batch.sequence = self._sequences.get(partition, 0)
            self._sequences[partition] = (batch.sequence + batch.count) % _MAX_SEQUENCE
        return batch.build(self._identity)

    def _settle(self, partition: int, code: int) -> bool:
        """Take the broker's answer for the first batch of `partition`; returns whether the link can go on."""
        batch = self._queues[partition][0]
        batch.unanswered = 0
        if code in _LATER:
            return False
        self._queues[partition].popleft()
        if code in (0, _DUPLICATE):
            batch.succeed()
            return True
        retriable = code == _TOO_FEW_REPLICAS
        batch.fail(
            _unknown(words(code))
            if batch.was_repeated
            else PublishError(f"refused: {words(code)}", adapter="kafka", retriable=retriable)
        )
        if code in _FORGOTTEN:
            self._forget_identity(words(code))
            return False
        if batch.sequence is not None:  # what was not stored used no number
            self._sequences[partition] = batch.sequence
        return True

    def _forget_identity(self, reason: str) -> None:
        """Numbers of the old identity are worth nothing to the next one: fail what carries them."""
        self._identity = None
        self._sequences.clear()
        for queue in self._queues.values():
            if queue and queue[0].sequence is not None:
                queue.popleft().fail(_unknown(reason))


class _Batch:
    """Records of one partition, and who waits for their answer."""

    def __init__(self, max_bytes: int) -> None:
        self._records = Records(max_bytes)
        self._waiters: list[asyncio.Future[None]] = []
        self._sent = 0
        self.unanswered = 0  # in a row
        self.sequence: int | None = None

    @property
    def count(self) -> int:
        return self._records.count

    @property
    def was_sent(self) -> bool:
        return self._sent > 0

    @property
    def was_repeated(self) -> bool:
        return self._sent > 1

    def append(self, key: bytes, payload: bytes) -> bool:
        return self._records.append(key, payload)

    def add_waiter(self) -> asyncio.Future[None]:
        self._waiters.append(asyncio.get_running_loop().create_future())
        return self._waiters[-1]

    def build(self, identity: Identity) -> bytes:
        assert self.sequence is not None
        self._sent += 1
        self.unanswered += 1
        return self._records.build(identity, self.sequence)

    def succeed(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def fail(self, error: BrokerError) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(_copy(error))


async def _identify(connection: Connection) -> Identity:
    code, identity = await connection.identify()
    while code in _LOADING:  # a cluster that has just come up; no event tells when it is ready
        await asyncio.sleep(_LOADING_PAUSE_SECONDS)
        code, identity = await connection.identify()
    if code:
        raise BrokerError(f"no identity as a producer: {words(code)}; grant IDEMPOTENT_WRITE", adapter="kafka")
    return identity


def _copy(error: BrokerError) -> BrokerError:
    """Return the same error anew: each of many publishers raises its own."""
    return type(error)(str(error).removeprefix("kafka: "), adapter="kafka", retriable=error.retriable)


def _unknown(reason: str) -> PublishOutcomeUnknownError:
    return PublishOutcomeUnknownError(
        f"{reason}, before the broker's answer; it may have been published", adapter="kafka"
    )
