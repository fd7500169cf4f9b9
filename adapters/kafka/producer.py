"""Publishing to Kafka: one batch on its way per partition, the next one filling meanwhile.

Idempotent (https://kafka.apache.org/documentation/#semantics): a batch whose answer did not come is sent again, over
another connection or the next link, under its old sequence number, and the broker drops the repetition.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Final

from backplane.adapters.kafka.batch import PublishBatch
from backplane.adapters.kafka.codes import Meaning, code_name, meaning
from backplane.adapters.kafka.connect_error import clock_hint, unavailable
from backplane.adapters.kafka.records import partition_hash
from backplane.adapters.kafka.wire import ConnectionEndedError, Identity, ProduceAnswer
from backplane.errors import PublishError, PublishOutcomeUnknownError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backplane.adapters.kafka.link import KafkaLink

__all__ = ["KafkaProducer"]

logger = logging.getLogger("backplane.kafka")

_INVALID_TIMESTAMP: Final = 32
_MAX_SEQUENCE: Final = 2**31
_MAX_BATCH_BYTES: Final = 256 * 1024
# A batch that the broker puts off is sent again after this time, doubled up to the second.
_FIRST_PAUSE_SECONDS: Final = 0.05
_MAX_PAUSE_SECONDS: Final = 1.0
# How often it is put off, some 1.5 s in all, before its publishers are told: less than `publish_timeout_seconds`.
_MAX_RETRIES: Final = 5
# A message that was alone on its way when as many connections ended is what ends them. Two can be chance, and then the
# message may stand in the log.
_MAX_KILLED: Final = 3


class KafkaProducer:
    """What is published in one life of the adapter, over however many links.

    Args:
        max_pending_bytes: Most bytes published and not yet answered.
        spawn: Starts a task whose failure is the link's loss.

    Attributes:
        max_payload_bytes: Largest payload; a batch of several records is kept below it, as it must be below the topic's
            `max.message.bytes` too.
    """

    def __init__(
        self, max_payload_bytes: int, max_pending_bytes: int, spawn: Callable[..., asyncio.Task[None]]
    ) -> None:
        self.max_payload_bytes = max_payload_bytes
        self._max_pending_bytes = max_pending_bytes
        self._spawn = spawn
        self._pending_bytes = 0
        self._queues: dict[int, deque[PublishBatch]] = {}
        self._sequences: dict[int, int] = {}
        self._identity: Identity | None = None
        self._identifying = asyncio.Lock()
        self._forbidden = ""
        self._log: tuple[str | None, bytes] | None = None
        self._link: KafkaLink | None = None
        self._sending: dict[int, asyncio.Task[None]] = {}
        self._awaited: set[int] = set()  # partitions with a batch on its way
        self._resting: dict[int, asyncio.TimerHandle] = {}  # partitions whose batch the broker has put off

    async def open(self, link: KafkaLink) -> None:
        """Send over `link` from now on, first what the link before left unanswered.

        A user who may not publish is no error: whatever is published then raises.

        Raises:
            BrokerUnavailableError: The broker is gone, or grants no identity yet.
        """
        log = (link.topology.cluster, link.topology.topic_id)
        if self._log not in (None, log):
            # Another cluster may have given the identity to somebody else, and would drop what is new as a repetition.
            self._forget_identity()
            self._fail_sent("the topic was created anew")
        self._log = log
        await self._identify(link)
        self._link = link
        for partition in list(self._queues):
            if partition in link.topology.leaders:
                self._send_soon(partition)
            else:
                self._fail(self._queues.pop(partition), "the partition is gone")

    async def follow(self, link: KafkaLink) -> None:
        """Ask again for the right to publish, where it was denied: it may have been granted."""
        if self._forbidden:
            await self._identify(link)

    def close(self) -> None:
        """Forget the link; what is unanswered waits for the next one, or for `fail`."""
        self._link = None
        self._sending.clear()
        for timer in self._resting.values():
            timer.cancel()
        self._resting.clear()

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
        if self._forbidden:
            raise PublishError(self._forbidden, adapter="kafka")
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
        self._send_soon(partition)
        try:
            await answered
        finally:
            self._pending_bytes -= size

    async def _identify(self, link: KafkaLink) -> None:
        """Get an identity, or keep why there is none; the tasks that send share one."""
        async with self._identifying:
            if self._identity is not None:
                return
            connection = await link.leader(next(iter(link.topology.leaders.values())))
            code, identity = await connection.identify()
            while meaning(code) is Meaning.PASSING:  # a cluster that has just come up; no event tells when it is ready
                await asyncio.sleep(_FIRST_PAUSE_SECONDS)
                code, identity = await connection.identify()
        if not code:
            self._identity, self._forbidden = identity, ""
            return
        if meaning(code) is not Meaning.FORBIDDEN:
            raise unavailable(f"no identity as a producer: {code_name(code)}")
        words = f"not authorized to publish to topic {link.target.topic!r} ({code_name(code)}): grant WRITE on it"
        if self._forbidden != words:
            logger.warning("this process can only listen: %s", words)
        self._forbidden = words
        self.fail(words)

    def _fail(self, queue: deque[PublishBatch], reason: str) -> None:
        for batch in queue:
            batch.fail(_unknown(reason) if batch.sent else unavailable(reason))

    def _fail_sent(self, reason: str) -> None:
        for queue in self._queues.values():
            while queue and queue[0].sent:
                queue.popleft().fail(_unknown(reason))

    def _send_soon(self, partition: int) -> None:
        if self._link is None or partition in self._resting:
            return
        node = self._link.topology.leaders[partition]
        sending = self._sending.get(node)
        if sending is None or sending.done():
            self._sending[node] = self._spawn(self._send(self._link, node), f"kafka-send-{node}")

    async def _send(self, link: KafkaLink, node: int) -> None:
        """Send to one broker until nothing is left; all that was published in one pass of the loop goes at once."""
        milliseconds = int(link.target.request_timeout_seconds * 1000)
        while self._heads(link, node):
            await self._identify(link)
            connection = await link.leader(node)
            heads = self._heads(link, node)
            batches = {partition: self._build(partition, batch) for partition, batch in heads.items()}
            self._awaited |= heads.keys()
            try:
                answers = await connection.produce(link.target.topic, batches, milliseconds) if batches else {}
            except ConnectionEndedError as error:
                self._suspect(heads, str(error))
                continue  # over a new connection, where the broker can be reached
            finally:
                self._awaited -= heads.keys()
            moved = [self._settle(partition, batch, answers) for partition, batch in heads.items()]
            if any(moved):
                link.lost(f"publishing failed: {', '.join(sorted(set(filter(None, moved))))}")
                return
            for partition in heads:
                if self._queues.get(partition) and link.topology.leaders.get(partition, node) != node:
                    self._send_soon(partition)  # it moved meanwhile

    def _heads(self, link: KafkaLink, node: int) -> dict[int, PublishBatch]:
        """Return what is next; a batch on which a connection ended goes alone, to find out which one ends them."""
        leaders, busy = link.topology.leaders, self._awaited | self._resting.keys()
        heads = {
            partition: queue[0]
            for partition, queue in self._queues.items()
            if queue and leaders.get(partition) == node and partition not in busy
        }
        suspects = [partition for partition, batch in heads.items() if batch.sent > batch.retries]
        return {suspects[0]: heads[suspects[0]]} if suspects else heads

    def _build(self, partition: int, batch: PublishBatch) -> bytes:
        assert self._identity is not None
        sequence = self._sequences.get(partition, 0)
        if batch.identity is None:
            self._sequences[partition] = (sequence + batch.count) % _MAX_SEQUENCE
        return batch.build(self._identity, sequence)

    def _suspect(self, heads: Mapping[int, PublishBatch], reason: str) -> None:
        """Set aside what ends every connection: a request that is larger than the broker reads, say."""
        if len(heads) > 1:
            return
        for partition, batch in heads.items():
            batch.killed += 1
            if batch.killed < _MAX_KILLED or not self._is_next(partition, batch):
                continue
            if batch.count > 1:
                self._replace(partition, batch, batch.halves())
                continue
            self._queues[partition].popleft()
            logger.warning("gave up a message on channel %r: every connection ended that it was sent on", batch.key)
            batch.fail(_unknown(f"{reason} each time it was sent: is it larger than socket.request.max.bytes?"))
            self._forget_identity()  # whether its number was used is not known

    def _settle(self, partition: int, batch: PublishBatch, answers: Mapping[int, ProduceAnswer]) -> str:
        """Take the broker's answer to `batch`; returns why the link must be opened anew, if it must."""
        answer = answers.get(partition, _NO_ANSWER)
        means = meaning(answer.code)
        if not self._is_next(partition, batch):
            return ""
        if means is Meaning.MOVED:
            return code_name(answer.code)
        if means in (Meaning.WRONG_CONTENT, Meaning.CORRUPT) and batch.count > 1:
            self._split(partition, batch, answer)
            return ""
        can_wait = batch.retries < _MAX_RETRIES and means in (Meaning.PASSING, Meaning.CORRUPT)
        if means is Meaning.STORED_MAYBE or can_wait:
            self._rest(partition, batch)
            return ""
        self._queues[partition].popleft()
        if means is Meaning.OK:
            batch.succeed()
        elif batch.sent > 1 + batch.retries or means in (Meaning.FORGOTTEN, Meaning.UNPLACED):
            # An answer that says nothing of the batch, or comes to its repetition: it can be in the log all the same.
            batch.fail(_unknown(_words(answer)))
            self._forget_identity()
        else:
            batch.fail(_refused(answer))
            self._take_back(partition, batch)
        return ""

    def _is_next(self, partition: int, batch: PublishBatch) -> bool:
        queue = self._queues.get(partition)
        return bool(queue) and queue[0] is batch  # type: ignore[index]

    def _rest(self, partition: int, batch: PublishBatch) -> None:
        seconds = min(_FIRST_PAUSE_SECONDS * 2**batch.retries, _MAX_PAUSE_SECONDS)
        batch.retries += 1
        self._resting[partition] = asyncio.get_running_loop().call_later(seconds, self._wake, partition)

    def _wake(self, partition: int) -> None:
        del self._resting[partition]
        if self._link is not None and not self._link.is_over and partition in self._link.topology.leaders:
            self._send_soon(partition)

    def _split(self, partition: int, batch: PublishBatch, answer: ProduceAnswer) -> None:
        """Let only those records fail that the broker does not take; where it does not name them, halve the batch."""
        culprits = {index: words for index, words in answer.culprits.items() if index < batch.count}
        for index, words in culprits.items():
            batch.fail(_refused(ProduceAnswer(answer.code, words or answer.message)), only={index})
        self._replace(partition, batch, batch.without(culprits) if culprits else batch.halves())

    def _replace(self, partition: int, batch: PublishBatch, parts: list[PublishBatch]) -> None:
        queue = self._queues[partition]
        queue.popleft()
        queue.extendleft(reversed(parts))
        self._take_back(partition, batch)

    def _take_back(self, partition: int, batch: PublishBatch) -> None:
        """Give the number of a batch that was not stored to the next one."""
        if batch.identity == self._identity:
            self._sequences[partition] = batch.sequence

    def _forget_identity(self) -> None:
        """Go on under a new identity; what is on its way keeps the old one, in which its numbers count."""
        self._identity = None
        self._sequences.clear()


_NO_ANSWER: Final = ProduceAnswer(-1, "the answer does not name the partition")


def _words(answer: ProduceAnswer) -> str:
    words = code_name(answer.code) + (f": {answer.message}" if answer.message else "")
    if meaning(answer.code) is Meaning.FORBIDDEN:
        return f"{words}: grant WRITE on the topic"
    return f"{words}; {clock_hint()}" if answer.code == _INVALID_TIMESTAMP else words


def _refused(answer: ProduceAnswer) -> PublishError:
    retriable = meaning(answer.code) in (Meaning.PASSING, Meaning.CORRUPT)
    return PublishError(f"refused: {_words(answer)}", adapter="kafka", retriable=retriable)


def _unknown(reason: str) -> PublishOutcomeUnknownError:
    return PublishOutcomeUnknownError(
        f"{reason}, before the broker's answer; it may have been published", adapter="kafka"
    )
