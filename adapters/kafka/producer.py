"""Publishing to Kafka: one batch in flight per partition, while the next one fills.

Idempotent (https://kafka.apache.org/documentation/#semantics): a batch without an answer is sent again, over another
connection or the next link, with its old sequence number, and the broker discards the repetition.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Final

from backplane.adapters.kafka.answers import ProduceAnswer, ProducerId
from backplane.adapters.kafka.batch import PublishBatch
from backplane.adapters.kafka.codes import Meaning, error_name, meaning
from backplane.adapters.kafka.connect_error import clock_hint, unavailable
from backplane.adapters.kafka.connection import ConnectionEndedError
from backplane.adapters.kafka.records import partition_hash
from backplane.errors import PublishError, PublishOutcomeUnknownError
from backplane.journal.events import BROKER_READ_ONLY, PUBLISH_LOST
from backplane.journal.writing import write

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backplane.adapters.kafka.link import KafkaLink

__all__ = ["KafkaProducer"]

logger: Final = logging.getLogger("backplane.adapters.kafka.producer")

_INVALID_TIMESTAMP: Final = 32
_MAX_SEQUENCE: Final = 2**31
_MAX_BATCH_BYTES: Final = 256 * 1024
# A batch that the broker postpones is sent again after 50 ms, then after twice as long each time, up to 1 s.
_FIRST_PAUSE_SECONDS: Final = 0.05
_MAX_PAUSE_SECONDS: Final = 1.0
# How often it is sent again, within some 1.5 s, before `publish` raises: less than `publish_timeout_seconds`.
_MAX_RETRIES: Final = 5
# A message that was alone in flight when this many connections ended is taken for the cause. Two could be a
# coincidence, and then the message may be stored.
_MAX_CONNECTION_LOSSES: Final = 3


class KafkaProducer:
    """Publishes over one link after another, from the start of the adapter to its stop.

    Args:
        max_payload_bytes: Largest payload.
        max_pending_bytes: How many bytes may be published and not answered yet.
        spawn: Starts a task whose failure is the loss of the link.

    Attributes:
        max_payload_bytes: Largest payload. A batch of several records is smaller too, because the topic's
            `max.message.bytes` limits the whole batch.
    """

    def __init__(
        self, max_payload_bytes: int, max_pending_bytes: int, spawn: Callable[..., asyncio.Task[None]]
    ) -> None:
        self.max_payload_bytes: int = max_payload_bytes
        self._max_pending_bytes = max_pending_bytes
        self._spawn = spawn
        self._pending_bytes = 0
        self._queues: dict[int, deque[PublishBatch]] = {}
        self._sequences: dict[int, int] = {}
        self._producer_id: ProducerId | None = None
        self._producer_id_lock = asyncio.Lock()
        self._denied_reason = ""
        self._topic: tuple[str | None, bytes] | None = None
        self._link: KafkaLink | None = None
        self._sending: dict[int, asyncio.Task[None]] = {}
        self._in_flight: set[int] = set()  # partitions with a batch in flight
        self._postponed: dict[int, asyncio.TimerHandle] = {}  # partitions whose next batch waits for its repetition

    async def open(self, link: KafkaLink) -> None:
        """Send over `link` from now on, beginning with the batches that are not answered yet.

        If the user lacks the right to publish, this does not raise, but each `publish` does.

        Raises:
            BrokerUnavailableError: The broker is gone, or grants no producer id yet.
        """
        topic = (link.topology.cluster, link.topology.topic_id)
        if self._topic not in (None, topic):
            # Another cluster may have granted this producer id to another producer, and would discard new batches as
            # repetitions.
            self._reset_producer_id()
            self._fail_sent("the topic was created anew")
        self._topic = topic
        await self._obtain_producer_id(link)
        self._link = link
        for partition in list(self._queues):
            if partition in link.topology.leaders:
                self._start_sending(partition)
            else:
                self._fail(self._queues.pop(partition), "the partition is gone")

    async def retry_authorization(self, link: KafkaLink) -> None:
        """Where the right to publish was denied, check whether it has been granted meanwhile."""
        if self._denied_reason:
            await self._obtain_producer_id(link)

    def close(self) -> None:
        """Stop sending; batches that are not answered wait for the next link, or for `fail`."""
        self._link = None
        self._sending.clear()
        for timer in self._postponed.values():
            timer.cancel()
        self._postponed.clear()

    def fail(self, reason: str) -> None:
        """Fail every publish: as not published where it was never sent, with an unknown outcome where it was."""
        for queue in self._queues.values():
            self._fail(queue, reason)
        self._queues.clear()

    async def publish(self, key: bytes, payload: bytes) -> tuple[int, int | None]:
        """Publish, in the order of the calls; return where the message is when every replica in sync has stored it.

        Returns:
            The partition, and the offset there; `None` for the offset if the broker has stored it before, when the
            answer was lost, and does not remember where.

        Raises:
            BrokerUnavailableError: The link is gone.
            PublishError: The broker refused it, or too many bytes are not answered yet.
        """
        link, size = self._link, len(key) + len(payload)
        if link is None or link.is_over:
            raise unavailable("the link is lost")
        if self._denied_reason:
            raise PublishError(self._denied_reason, adapter="kafka")
        if self._pending_bytes and self._pending_bytes + size > self._max_pending_bytes:
            raise PublishError(
                f"{self._pending_bytes:,} bytes await the broker's answer; publish slower, or raise max_pending_bytes",
                adapter="kafka",
                retriable=True,
            )
        partition = partition_hash(key) % len(link.topology.leaders)
        queue = self._queues.setdefault(partition, deque())
        answered = queue[-1].append(key, payload) if queue else None
        if answered is None:
            queue.append(PublishBatch(min(_MAX_BATCH_BYTES, self.max_payload_bytes)))
            answered = queue[-1].append(key, payload)
            assert answered is not None
        self._pending_bytes += size
        self._start_sending(partition)
        try:
            return partition, await answered
        finally:
            self._pending_bytes -= size

    async def _obtain_producer_id(self, link: KafkaLink) -> None:
        """Obtain a producer id, or keep the reason why it was denied. Several sending tasks may call this at once."""
        async with self._producer_id_lock:
            if self._producer_id is not None:
                return
            connection = await link.leader(next(iter(link.topology.leaders.values())))
            code, producer_id = await connection.request_producer_id()
            while meaning(code) is Meaning.TRANSIENT:  # a cluster that has just started; no event reports its readiness
                await asyncio.sleep(_FIRST_PAUSE_SECONDS)
                code, producer_id = await connection.request_producer_id()
        if not code:
            self._producer_id, self._denied_reason = producer_id, ""
            return
        if meaning(code) is not Meaning.FORBIDDEN:
            raise unavailable(f"no producer id: {error_name(code)}")
        reason = f"not authorized to publish to topic {link.target.topic!r} ({error_name(code)}): grant WRITE on it"
        if self._denied_reason != reason:
            write(logger, BROKER_READ_ONLY, "this process can only subscribe: %(reason)s", reason=reason)
        self._denied_reason = reason
        self.fail(reason)

    def _fail(self, queue: deque[PublishBatch], reason: str) -> None:
        for batch in queue:
            batch.fail(_unknown(reason) if batch.sent else unavailable(reason))

    def _fail_sent(self, reason: str) -> None:
        for queue in self._queues.values():
            while queue and queue[0].sent:
                queue.popleft().fail(_unknown(reason))

    def _start_sending(self, partition: int) -> None:
        if self._link is None or partition in self._postponed:
            return
        node = self._link.topology.leaders[partition]
        sending = self._sending.get(node)
        if sending is None or sending.done():
            self._sending[node] = self._spawn(self._send(self._link, node), f"kafka-send-{node}")

    async def _send(self, link: KafkaLink, node: int) -> None:
        """Send to one broker until no batch is left. Messages published in one pass of the loop are sent together."""
        milliseconds = int(link.target.request_timeout_seconds * 1000)
        while self._next_batches(link, node):
            await self._obtain_producer_id(link)
            connection = await link.leader(node)
            next_batches = self._next_batches(link, node)
            batches = {partition: self._build(partition, batch) for partition, batch in next_batches.items()}
            self._in_flight |= next_batches.keys()
            try:
                answers = await connection.produce(link.target.topic, batches, milliseconds) if batches else {}
            except ConnectionEndedError as error:
                self._note_connection_loss(next_batches, str(error))
                continue  # over a new connection, where the broker can be reached
            finally:
                self._in_flight -= next_batches.keys()
            moved = [self._process_answer(partition, batch, answers) for partition, batch in next_batches.items()]
            if any(moved):
                link.report_loss(f"publishing failed: {', '.join(sorted(set(filter(None, moved))))}")
                return
            for partition in next_batches:
                if self._queues.get(partition) and link.topology.leaders.get(partition, node) != node:
                    self._start_sending(partition)  # its leader changed meanwhile

    def _next_batches(self, link: KafkaLink, node: int) -> dict[int, PublishBatch]:
        """Return the next batch of each partition that `node` leads and that has none in flight.

        A batch with which a connection ended is sent alone, to find out which batch is the cause.
        """
        leaders, busy = link.topology.leaders, self._in_flight | self._postponed.keys()
        batches = {
            partition: queue[0]
            for partition, queue in self._queues.items()
            if queue and leaders.get(partition) == node and partition not in busy
        }
        suspects = [partition for partition, batch in batches.items() if batch.sent > batch.retries]
        return {suspects[0]: batches[suspects[0]]} if suspects else batches

    def _build(self, partition: int, batch: PublishBatch) -> bytes:
        assert self._producer_id is not None
        sequence = self._sequences.get(partition, 0)
        if batch.producer_id is None:
            self._sequences[partition] = (sequence + batch.count) % _MAX_SEQUENCE
        return batch.build(self._producer_id, sequence)

    def _note_connection_loss(self, in_flight: Mapping[int, PublishBatch], reason: str) -> None:
        """Give up a message with which every connection ends, for example one larger than the broker reads.

        The other messages would wait for it for ever. Of batches that were in flight together none is blamed: they are
        sent again one by one first.
        """
        if len(in_flight) > 1:
            return
        for partition, batch in in_flight.items():
            batch.connection_losses += 1
            if batch.connection_losses < _MAX_CONNECTION_LOSSES or not self._is_next(partition, batch):
                continue
            if batch.count > 1:
                self._replace(partition, batch, batch.halves())
                continue
            self._queues[partition].popleft()
            words = "gave up a message on channel %(channel)r: each connection on which it was sent ended"
            write(logger, PUBLISH_LOST, words, level=logging.WARNING, channel=batch.key.decode(errors="replace"))
            batch.fail(_unknown(f"{reason} each time it was sent: is it larger than socket.request.max.bytes?"))
            self._reset_producer_id()  # whether its sequence number was used is not known

    def _process_answer(self, partition: int, batch: PublishBatch, answers: Mapping[int, ProduceAnswer]) -> str:
        """Process the broker's answer to `batch`; return why the link must be opened anew, if it must."""
        answer = answers.get(partition, _NO_ANSWER)
        means = meaning(answer.code)
        if not self._is_next(partition, batch):
            return ""
        if means is Meaning.MOVED:
            return error_name(answer.code)
        if means in (Meaning.INVALID_RECORD, Meaning.CORRUPT) and batch.count > 1:
            self._split(partition, batch, answer)
            return ""
        can_wait = batch.retries < _MAX_RETRIES and means in (Meaning.TRANSIENT, Meaning.CORRUPT)
        if means is Meaning.MAYBE_STORED or can_wait:
            self._postpone(partition, batch)
            return ""
        self._queues[partition].popleft()
        if means is Meaning.OK:
            batch.succeed(answer.offset if answer.offset >= 0 else None)
        elif batch.sent > 1 + batch.retries or means in (Meaning.UNKNOWN_PRODUCER, Meaning.UNKNOWN):
            # The answer does not cover the batch, or refuses its repetition: the first copy may be stored all the same.
            batch.fail(_unknown(_reason(answer)))
            self._reset_producer_id()
        else:
            batch.fail(_refused(answer))
            self._release_sequence(partition, batch)
        return ""

    def _is_next(self, partition: int, batch: PublishBatch) -> bool:
        queue = self._queues.get(partition)
        return bool(queue) and queue[0] is batch  # type: ignore[index]

    def _postpone(self, partition: int, batch: PublishBatch) -> None:
        seconds = min(_FIRST_PAUSE_SECONDS * 2**batch.retries, _MAX_PAUSE_SECONDS)
        batch.retries += 1
        self._postponed[partition] = asyncio.get_running_loop().call_later(seconds, self._resume, partition)

    def _resume(self, partition: int) -> None:
        del self._postponed[partition]
        if self._link is not None and not self._link.is_over and partition in self._link.topology.leaders:
            self._start_sending(partition)

    def _split(self, partition: int, batch: PublishBatch, answer: ProduceAnswer) -> None:
        """Fail only the records that the broker refuses; where it does not name them, halve the batch to find them."""
        refused = {index: reason for index, reason in answer.refused.items() if index < batch.count}
        for index, reason in refused.items():
            batch.fail(_refused(ProduceAnswer(answer.code, reason or answer.message)), only={index})
        self._replace(partition, batch, batch.without(refused) if refused else batch.halves())

    def _replace(self, partition: int, batch: PublishBatch, parts: list[PublishBatch]) -> None:
        queue = self._queues[partition]
        queue.popleft()
        queue.extendleft(reversed(parts))
        self._release_sequence(partition, batch)

    def _release_sequence(self, partition: int, batch: PublishBatch) -> None:
        """Reuse the sequence number of a batch that was not stored: the broker accepts no gap between numbers."""
        if batch.producer_id == self._producer_id:
            self._sequences[partition] = batch.sequence

    def _reset_producer_id(self) -> None:
        """Obtain a new producer id for the next batch; batches in flight keep the old one, with their numbers."""
        self._producer_id = None
        self._sequences.clear()


_NO_ANSWER: Final = ProduceAnswer(-1, "the answer does not name the partition")


def _reason(answer: ProduceAnswer) -> str:
    reason = error_name(answer.code) + (f": {answer.message}" if answer.message else "")
    if meaning(answer.code) is Meaning.FORBIDDEN:
        return f"{reason}: grant WRITE on the topic"
    return f"{reason}; {clock_hint()}" if answer.code == _INVALID_TIMESTAMP else reason


def _refused(answer: ProduceAnswer) -> PublishError:
    retriable = meaning(answer.code) in (Meaning.TRANSIENT, Meaning.CORRUPT)
    return PublishError(f"refused: {_reason(answer)}", adapter="kafka", retriable=retriable)


def _unknown(reason: str) -> PublishOutcomeUnknownError:
    return PublishOutcomeUnknownError(
        f"{reason}, before the broker's answer; it may have been published", adapter="kafka"
    )
