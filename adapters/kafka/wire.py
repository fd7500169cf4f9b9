"""One connection to one Kafka broker: the requests and answers that the adapter needs, with types.

A connection of aiokafka connects, speaks TLS and SASL, agrees on versions and matches answers to requests. Its producer
and consumer are not used (see `link`). `AIOKafkaConnection`, `aiokafka.protocol` and `aiokafka.record` are the
same in 0.13 and 0.14.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportArgumentType=false, reportPrivateUsage=false
# pyright: reportUntypedBaseClass=false
# aiokafka has no types for its users, and those it has for itself are wrong in places (0.14).

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from aiokafka.conn import AIOKafkaConnection, CloseReason  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError, SaslAuthenticationFailed  # type: ignore[import-untyped]
from aiokafka.protocol.admin import (  # type: ignore[import-untyped]
    CreateTopicsRequest,
    DescribeConfigsRequest,
    SaslAuthenticateRequest,
)
from aiokafka.protocol.transaction import InitProducerIdRequest  # type: ignore[import-untyped]

from backplane.adapters.kafka.codes import code_name
from backplane.adapters.kafka.protocol import (
    NO_EPOCH,
    NO_TOPIC_ID,
    FetchLog,
    FindTopic,
    ListOffsets,
    Produce,
    diverging_epoch,
)
from backplane.adapters.shared.fork import close_in_children
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerError, BrokerUnavailableError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping, Sequence

    from aiokafka.abc import AbstractTokenProvider  # type: ignore[import-untyped]

__all__ = [
    "EARLIEST",
    "LATEST",
    "Connection",
    "ConnectionEndedError",
    "Fetched",
    "Identity",
    "Position",
    "ProduceAnswer",
    "Security",
    "Topology",
]

EARLIEST: Final = -2
LATEST: Final = -1
_TOPIC: Final = 2
_LONGEST_MS: Final = 2**31 - 1
# aiokafka's own limits are not used: they take a pause of this process for the broker's silence.
_NO_LIMIT_MS: Final = 24 * 3600 * 1000
# Of the time that a login lasts, when the connection is replaced.
_RENEW_AFTER: Final = 0.8
# No answer of a broker is larger: a record of `max_payload_bytes` at its most, or four mebibytes of smaller ones.
_MAX_ANSWER_BYTES: Final = 300 * 1024 * 1024


def _hide_logins(record: logging.LogRecord) -> bool:
    """Drop what aiokafka logs of a login: at DEBUG the password stands in it (0.14)."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    return not any(type(argument).__name__.startswith("SaslAuthenticate") for argument in arguments)


logging.getLogger("aiokafka.conn").addFilter(_hide_logins)


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """How a connection is secured and who logs in on it; `repr` shows no secret."""

    ssl_context: ssl.SSLContext | None
    mechanism: str
    username: str | None
    password: str | None = field(repr=False)
    token: AbstractTokenProvider | None = field(default=None, repr=False)

    @property
    def protocol(self) -> str:
        """The same in Kafka's words."""
        logs_in = self.username is not None or self.token is not None
        return ("SASL_" if logs_in else "") + ("SSL" if self.ssl_context else "PLAINTEXT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Where the partitions of the topic are.

    Attributes:
        addresses: Host and port of each broker, by its id.
        leaders: The id of each partition's leader; -1 for none.
        controller: The broker that creates topics.
        error: Kafka's error code for the topic, 0 for none.
        cluster: Id of the cluster, where the broker tells it.
        topic_id: Id of the topic: another topic of the same name has another one. Zeros where the broker has none.
        epochs: How often the leadership of each partition has changed; empty where the broker does not tell.
    """

    addresses: Mapping[int, tuple[str, int]]
    leaders: Mapping[int, int]
    controller: int
    error: int
    cluster: str | None
    topic_id: bytes = NO_TOPIC_ID
    epochs: Mapping[int, int] = field(default_factory=dict[int, int])


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A producer as the broker knows it: together with sequence numbers it tells a repetition from a new batch."""

    producer_id: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the log of a partition.

    Attributes:
        offset: Of the record to be read next.
        epoch: The leader epoch of the one before it, -1 where it is not known: a log that has lost its end and has
            grown again past `offset` has another one there.
    """

    offset: int
    epoch: int = NO_EPOCH


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a broker answers for one partition.

    Attributes:
        partition: Its number.
        code: Kafka's error code.
        records: Batches, for `read_batches`.
        end: The offset up to which they are confirmed.
        shared_end: Where the log parts from what was read of it before; `None` where it does not.
    """

    partition: int
    code: int
    records: bytes
    end: int
    shared_end: Position | None = None


@dataclass(frozen=True, slots=True)
class ProduceAnswer:
    """What a broker answers to one batch.

    Attributes:
        code: Kafka's error code.
        message: The broker's own words, or none.
        culprits: Which records of the batch it does not take, with its words; empty where it does not say.
    """

    code: int
    message: str = ""
    culprits: Mapping[int, str] = field(default_factory=dict[int, str])


class ConnectionEndedError(BrokerUnavailableError):
    """The connection was closed while it owed an answer: whether the request was done is not known."""


class Connection:
    """One connection to one broker, which answers its requests in order.

    Args:
        address: Host and port.
        security: Who logs in, and how.
        timeout_seconds: How long the broker may take for an answer; a pause of this process does not count.
        on_end: Called with the reason, once, when it ends without `abort`; a request without its answer ends it.

    Attributes:
        is_over: It has ended.
        awaited: How many requests it owes the answer to.
    """

    def __init__(
        self, address: tuple[str, int], security: Security, timeout_seconds: float, on_end: Callable[[str], None]
    ) -> None:
        self._address = f"{address[0]}:{address[1]}"
        self._on_end = on_end
        self._timeout_seconds = timeout_seconds
        self._transport: asyncio.Transport | None = None
        self._inner = _CarefulConnection(
            *address,
            client_id="backplane",
            request_timeout_ms=_NO_LIMIT_MS,
            ssl_context=security.ssl_context,
            security_protocol=security.protocol,
            max_idle_ms=None,
            on_close=self._closed,
            sasl_mechanism=security.mechanism,
            sasl_plain_username=security.username,
            sasl_plain_password=security.password,
            sasl_oauth_token_provider=security.token,
        )
        self._aborted = False
        self._silent = False
        self._quiet_until = 0.0  # by then a broker whose quota was exceeded reads this connection again
        self._gone: asyncio.Future[None] | None = None
        self.is_over = False
        self.awaited = 0

    async def open(self) -> None:
        """Connect and log in.

        Raises:
            OSError: Nobody there, or there cannot be a host of that name.
            KafkaError: It was closed, or the login was refused.
            TimeoutError: No answer in time.
        """
        try:
            async with PatientTimeout(self._timeout_seconds):
                _, writer = await self._inner.connect()
        except BaseException as error:
            self._aborted = self.is_over = True
            self._inner.close()
            if isinstance(error, UnicodeError):  # of a label of more than 63 characters
                raise OSError(f"no host can have that name: {error}") from error
            raise
        self._transport = cast("asyncio.Transport", writer.transport)
        close_in_children(self, self._transport)
        if self.is_over:
            raise ConnectionResetError("closed at once")

    @property
    def expires_soon(self) -> bool:
        """Whether its login is about to run out: the broker then ends it at the next request (KIP-368)."""
        return asyncio.get_running_loop().time() >= self._inner.renew_at

    def abort(self) -> None:
        """End it at once, whatever is still to be written."""
        self._aborted = self.is_over = True
        if self._transport is not None:
            self._transport.abort()
        self._gone = self._inner.close(reason=CloseReason.SHUTDOWN) or self._gone

    async def wait_gone(self) -> None:
        """Wait, after `abort`, until the socket is closed."""
        if self._transport is not None and self._gone is not None:
            await asyncio.wait([self._gone])

    async def topology(self, topic: str) -> Topology:
        """Ask where the partitions of `topic` are; does not create it."""
        answer = await self._ask(FindTopic(topic))
        found = answer.topics[0]
        has_id = len(found) > 4
        partitions = sorted(found[4 if has_id else 3], key=lambda partition: int(partition[1]))
        return Topology(
            addresses={broker[0]: (broker[1], broker[2]) for broker in answer.brokers},
            leaders={partition[1]: partition[2] for partition in partitions},
            controller=answer.controller_id,
            error=found[0],
            cluster=getattr(answer, "cluster_id", None),
            topic_id=found[2] if has_id else NO_TOPIC_ID,
            epochs={partition[1]: partition[3] for partition in partitions} if has_id else {},
        )

    async def create_topic(self, topic: str, partitions: int, replicas: int, timeout_ms: int) -> tuple[int, str]:
        """Create `topic`; returns Kafka's error code, and its words for it."""
        answer = await self._ask(CreateTopicsRequest([(topic, partitions, replicas, [], [])], timeout_ms, False))
        _, code, *message = answer.topic_errors[0]
        return code, str(message[0]) if message and message[0] else code_name(code)

    async def topic_config(self, topic: str, names: Sequence[str]) -> dict[str, str]:
        """Ask how `topic` is set up; returns what is told of `names`: nothing without the right DESCRIBE_CONFIGS."""
        if DescribeConfigsRequest.API_KEY not in self._inner._versions:
            return {}
        answer = await self._ask(DescribeConfigsRequest([(_TOPIC, topic, list(names))]))
        return {
            entry[0]: entry[1]
            for code, _, _, _, entries in answer.resources
            if not code
            for entry in entries or ()
            if entry[1] is not None
        }

    async def identify(self) -> tuple[int, Identity]:
        """Ask for a new identity as an idempotent producer; returns Kafka's error code with it."""
        answer = await self._ask(InitProducerIdRequest(None, _LONGEST_MS))
        return answer.error_code, Identity(producer_id=answer.producer_id, epoch=answer.producer_epoch)

    async def produce(self, topic: str, batches: Mapping[int, bytes], timeout_ms: int) -> dict[int, ProduceAnswer]:
        """Have `batches` stored on every replica in sync; returns the answer for each partition."""
        answer = await self._ask(Produce(topic, list(batches.items()), timeout_ms))
        return {found[0]: _produce_answer(found) for _, partitions in answer.topics for found in partitions}

    async def offsets(self, topic: str, partitions: Mapping[int, int]) -> dict[int, tuple[int, Position]]:
        """Ask for the place of `EARLIEST` or `LATEST` of each partition; returns error code and place."""
        answer = await self._ask(ListOffsets(topic, list(partitions.items())))
        return {
            found[0]: (found[1], Position(found[3], found[4] if len(found) > 4 else NO_EPOCH))
            for _, answers in answer.topics
            for found in answers
        }

    async def fetch(
        self,
        topic: str,
        topic_id: bytes,
        positions: Mapping[int, Position],
        *,
        wait_ms: int,
        min_bytes: int,
        max_bytes: int,
        max_partition_bytes: int,
    ) -> list[Fetched]:
        """Read from the `positions` of partitions, in their order."""
        request = FetchLog(
            topic,
            topic_id,
            [(partition, position.offset, position.epoch) for partition, position in positions.items()],
            wait_ms=wait_ms,
            min_bytes=min_bytes,
            max_bytes=max_bytes,
            max_partition_bytes=max_partition_bytes,
        )
        answer = await self._ask(request)
        if code := getattr(answer, "error_code", 0):
            return [Fetched(partition, code, b"", 0) for partition in positions]
        return [_fetched(found) for topic_answer in answer.topics for found in topic_answer[1]]

    async def _ask(self, request: object) -> Any:
        self.awaited += 1
        loop = asyncio.get_running_loop()
        told_to_wait = max(0.0, self._quiet_until - loop.time())
        try:
            async with PatientTimeout(self._timeout_seconds + told_to_wait):
                answer = await self._inner.send(request)
            self._quiet_until = loop.time() + getattr(answer, "throttle_time_ms", 0) / 1000
            return answer
        except TimeoutError as error:
            self._silent = True
            self._inner.close(reason=CloseReason.CONNECTION_TIMEOUT)
            raise BrokerUnavailableError(f"no answer from {self._address}", adapter="kafka") from error
        except (KafkaError, OSError) as error:
            self._inner.close(reason=CloseReason.CONNECTION_BROKEN)
            reason = str(error) or f"the connection to {self._address} ended"
            if getattr(error, "retriable", True):
                raise ConnectionEndedError(reason, adapter="kafka") from error
            raise BrokerError(reason, adapter="kafka") from error
        except NotImplementedError as error:
            raise BrokerError(f"this broker is too old or too new: {error}", adapter="kafka") from error
        finally:
            self.awaited -= 1

    def _closed(self, _: object, reason: CloseReason | None) -> None:
        self.is_over = True
        if not self._aborted and self._transport is not None:
            why = "does not answer" if self._silent or reason == CloseReason.CONNECTION_TIMEOUT else "ended"
            self._on_end(f"the connection to {self._address} {why}")


class _CarefulConnection(AIOKafkaConnection):  # type: ignore[misc]
    """aiokafka's connection, less credulous."""

    renew_at = math.inf

    def send(self, request: Any, expect_response: bool = True) -> Any:
        """Send a request; note how long a login lasts, which aiokafka does not look at."""
        answer: Any = super().send(request, expect_response)
        return self._note_session(answer) if isinstance(request, SaslAuthenticateRequest) else answer

    async def _note_session(self, answer: Any) -> Any:
        found = await answer
        if lifetime_ms := getattr(found, "session_lifetime_ms", 0):
            self.renew_at = asyncio.get_running_loop().time() + _RENEW_AFTER * lifetime_ms / 1000
        return found

    def _create_reader_task(self) -> Any:
        """Bound the length of an answer: a port that speaks TLS "announces" 350 MB."""
        reader: Any = self._reader
        read = reader.readexactly

        async def readexactly(n: int) -> Any:
            if not 0 <= n <= _MAX_ANSWER_BYTES:
                raise ConnectionResetError(f"an answer of {n:,} bytes is none of Kafka's; does this port speak TLS?")
            return await read(n)

        reader.readexactly = readexactly
        return super()._create_reader_task()

    def authenticator_oauth(self) -> Any:
        """Return what logs in with a token, and takes the broker's "no" for one: aiokafka goes on as if logged in."""
        inner: Any = super().authenticator_oauth()
        step = inner.step

        async def checked(answer: bytes | None) -> Any:
            if answer:  # https://www.rfc-editor.org/rfc/rfc7628#section-3.2.2
                raise SaslAuthenticationFailed(answer.decode(errors="replace"))
            return await step(answer)

        inner.step = checked
        return inner


def _produce_answer(found: Sequence[Any]) -> ProduceAnswer:
    if len(found) <= 6:
        return ProduceAnswer(found[1])
    return ProduceAnswer(found[1], found[6] or "", {index: words or "" for index, words in found[5] or ()})


def _fetched(found: Sequence[Any]) -> Fetched:
    if len(found) <= 7:
        return Fetched(found[0], found[1], found[-1] or b"", found[2])
    parted = diverging_epoch(found[8])
    shared_end = None if parted is None else Position(parted[1], parted[0])
    return Fetched(found[0], found[1], found[7] or b"", found[2], shared_end)
