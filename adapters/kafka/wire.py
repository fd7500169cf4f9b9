"""What is taken from aiokafka: connections, and the requests and answers the adapter needs, with types.

A connection of aiokafka connects, speaks TLS and SASL, agrees on versions and matches answers to requests. Its producer
and consumer are not used (see `link`). `AIOKafkaConnection`, `aiokafka.protocol` and `aiokafka.record` are the
same in 0.13 and 0.14.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportArgumentType=false
# aiokafka has no types for whoever uses it, and those it has for itself are wrong in places (0.14).

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

from aiokafka.conn import AIOKafkaConnection, CloseReason  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError, for_code  # type: ignore[import-untyped]
from aiokafka.partitioner import murmur2  # type: ignore[import-untyped]
from aiokafka.protocol.admin import CreateTopicsRequest  # type: ignore[import-untyped]
from aiokafka.protocol.fetch import FetchRequest  # type: ignore[import-untyped]
from aiokafka.protocol.metadata import MetadataRequest  # type: ignore[import-untyped]
from aiokafka.protocol.offset import OffsetRequest  # type: ignore[import-untyped]
from aiokafka.protocol.produce import ProduceRequest  # type: ignore[import-untyped]
from aiokafka.protocol.transaction import InitProducerIdRequest  # type: ignore[import-untyped]
from aiokafka.record.default_records import DefaultRecordBatchBuilder  # type: ignore[import-untyped]
from aiokafka.record.memory_records import MemoryRecords  # type: ignore[import-untyped]

from backplane.errors import BrokerError, BrokerUnavailableError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "EARLIEST",
    "LATEST",
    "Connection",
    "Identity",
    "Records",
    "Security",
    "Topology",
    "UnreadableError",
    "partition_hash",
    "read_records",
    "words",
]

EARLIEST: Final = -2
LATEST: Final = -1
_ALL_REPLICAS: Final = -1
_LONGEST_MS: Final = 2**31 - 1


def _hide_logins(record: logging.LogRecord) -> bool:
    """Drop what aiokafka logs of a login: at DEBUG the password stands in it (0.14)."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    return not any(type(argument).__name__.startswith("SaslAuthenticate") for argument in arguments)


logging.getLogger("aiokafka.conn").addFilter(_hide_logins)


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """How a connection is secured and who logs in on it."""

    ssl_context: ssl.SSLContext | None
    mechanism: str
    username: str | None
    password: str | None

    @property
    def protocol(self) -> str:
        """The same in Kafka's words."""
        return ("SASL_" if self.username is not None else "") + ("SSL" if self.ssl_context else "PLAINTEXT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Where the partitions of the topic are.

    Attributes:
        addresses: Host and port of each broker, by its id.
        leaders: The id of each partition's leader; -1 for none.
        controller: The broker that creates topics.
        error: Kafka's error code for the topic, 0 for none.
        cluster: Id of the cluster, where the broker tells it.
    """

    addresses: Mapping[int, tuple[str, int]]
    leaders: Mapping[int, int]
    controller: int
    error: int
    cluster: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A producer as the broker knows it: together with sequence numbers it tells a repetition from a new batch."""

    producer_id: int
    epoch: int


def words(code: int) -> str:
    """Return Kafka's error `code` as its name and meaning."""
    error = for_code(code)
    return f"{error.__name__} ({code})" if code else "no error"


@lru_cache(maxsize=65_536)
def partition_hash(key: bytes) -> int:
    """Return what Java's and aiokafka's default partitioners take modulo the number of partitions. Costs 4 µs new."""
    return int(murmur2(key)) & 0x7FFFFFFF


class UnreadableError(Exception):
    """A batch of records cannot be read.

    Attributes:
        position: The one behind it.
    """

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason)
        self.position = position


class Connection:
    """One connection to one broker, which answers its requests in order.

    Args:
        on_end: Called with the reason, once, when it ends without `abort`; a request without its answer ends it.
    """

    def __init__(
        self, address: tuple[str, int], security: Security, timeout_seconds: float, on_end: Callable[[str], None]
    ) -> None:
        self._address = f"{address[0]}:{address[1]}"
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._inner = AIOKafkaConnection(
            *address,
            client_id="backplane",
            request_timeout_ms=int(timeout_seconds * 1000),
            ssl_context=security.ssl_context,
            security_protocol=security.protocol,
            max_idle_ms=None,
            on_close=self._closed,
            sasl_mechanism=security.mechanism,
            sasl_plain_username=security.username,
            sasl_plain_password=security.password,
        )
        self._aborted = False
        self._gone: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Connect and log in.

        Raises:
            OSError: Nobody there.
            KafkaError: It was closed, or the login was refused.
        """
        try:
            _, writer = await self._inner.connect()
        except BaseException:
            self._aborted = True
            self._inner.close()
            raise
        self._transport = cast("asyncio.Transport", writer.transport)

    def abort(self) -> None:
        """End it at once, whatever is still to be written."""
        self._aborted = True
        if self._transport is not None:
            self._transport.abort()
        self._gone = self._inner.close(reason=CloseReason.SHUTDOWN) or self._gone

    async def wait_gone(self) -> None:
        """Wait, after `abort`, until the socket is closed."""
        if self._transport is not None and self._gone is not None:
            await asyncio.wait([self._gone])

    async def topology(self, topic: str) -> Topology:
        """Ask where the partitions of `topic` are; does not create it."""
        answer = await self._ask(MetadataRequest([topic], allow_auto_topic_creation=False))
        error, _, _, partitions = answer.topics[0]
        return Topology(
            addresses={node: (host, port) for node, host, port, _ in answer.brokers},
            leaders={partition[1]: partition[2] for partition in sorted(partitions, key=lambda found: int(found[1]))},
            controller=answer.controller_id,
            error=error,
            cluster=getattr(answer, "cluster_id", None),
        )

    async def create_topic(self, topic: str, partitions: int, replicas: int, timeout_ms: int) -> tuple[int, str]:
        """Create `topic`; returns Kafka's error code, and its words for it."""
        answer = await self._ask(CreateTopicsRequest([(topic, partitions, replicas, [], [])], timeout_ms, False))
        _, code, *message = answer.topic_errors[0]
        return code, str(message[0]) if message and message[0] else words(code)

    async def identify(self) -> tuple[int, Identity]:
        """Ask for a new identity as an idempotent producer; returns Kafka's error code with it."""
        answer = await self._ask(InitProducerIdRequest(None, _LONGEST_MS))
        return answer.error_code, Identity(producer_id=answer.producer_id, epoch=answer.producer_epoch)

    async def produce(self, topic: str, batches: Mapping[int, bytes], timeout_ms: int) -> dict[int, int]:
        """Have `batches` stored on every replica in sync; returns Kafka's error code for each partition."""
        answer = await self._ask(ProduceRequest(None, _ALL_REPLICAS, timeout_ms, [(topic, list(batches.items()))]))
        return {partition[0]: partition[1] for _, partitions in answer.topics for partition in partitions}

    async def offsets(self, topic: str, partitions: Mapping[int, int]) -> dict[int, tuple[int, int]]:
        """Ask for the offset at `EARLIEST` or `LATEST` of each partition; returns error code and offset."""
        answer = await self._ask(OffsetRequest(-1, 0, [(topic, list(partitions.items()))]))
        return {found[0]: (found[1], found[-1]) for _, answers in answer.topics for found in answers}

    async def fetch(
        self, topic: str, positions: list[tuple[int, int, int]], *, wait_ms: int, min_bytes: int, max_bytes: int
    ) -> list[tuple[int, int, bytes]]:
        """Read from `positions` (partition, offset, most bytes); returns partition, error code and records of each."""
        answer = await self._ask(FetchRequest(wait_ms, min_bytes, max_bytes, 0, [(topic, positions)]))
        return [(found[0], found[1], found[-1] or b"") for _, partitions in answer.topics for found in partitions]

    async def _ask(self, request: object) -> Any:
        try:
            return await self._inner.send(request)
        except (KafkaError, OSError, TimeoutError) as error:
            reason = str(error) or f"no answer from {self._address}"
            self._inner.close(reason=CloseReason.CONNECTION_TIMEOUT)
            if getattr(error, "retriable", True):
                raise BrokerUnavailableError(reason, adapter="kafka") from error
            raise BrokerError(reason, adapter="kafka") from error

    def _closed(self, _: object, reason: CloseReason | None) -> None:
        if not self._aborted:
            why = "does not answer" if reason == CloseReason.CONNECTION_TIMEOUT else "ended"
            self._on_end(f"the connection to {self._address} {why}")


class Records:
    """A batch of records in the making.

    Args:
        max_bytes: Size at which it is full; one record is always taken.
    """

    def __init__(self, max_bytes: int) -> None:
        self._builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, max_bytes)
        self._built: bytes | None = None
        self.count = 0

    def append(self, key: bytes, value: bytes) -> bool:
        """Add a record; returns whether there was room."""
        if self._built is not None or self._builder.append(self.count, None, key, value, []) is None:
            return False
        self.count += 1
        return True

    def build(self, identity: Identity, sequence: int) -> bytes:
        """Return it as it goes to the broker, and take no more records; the same bytes every time."""
        if self._built is None:
            self._builder.set_producer_state(identity.producer_id, identity.epoch, sequence)
            self._built = bytes(self._builder.build())
        return self._built


def read_records(data: bytes, position: int) -> Iterator[tuple[int, bytes | None, bytes | None]]:
    """Yield each record of `data` from `position` on: the position behind it, its key, its value.

    What holds no record, such as the mark of a transaction's end, is yielded with neither.

    Raises:
        UnreadableError: A batch is damaged, or compressed in a way that is not installed.
    """
    batches: Any = MemoryRecords(data)
    while batches.has_next():
        batch = batches.next_batch()
        if batch.next_offset <= position:
            continue
        if not batch.is_control_batch:
            for record in _open_batch(batch):
                if record.offset >= position:
                    yield record.offset + 1, record.key, record.value
        yield batch.next_offset, None, None


def _open_batch(batch: Any) -> Iterator[Any]:
    if not batch.validate_crc():
        raise UnreadableError("damaged records", batch.next_offset)
    try:
        return iter(list(batch))
    except Exception as error:  # whatever a codec raises
        raise UnreadableError(f"{type(error).__name__}: {error}", batch.next_offset) from error
