"""One connection to one Kafka broker: the requests that the adapter needs, with types.

A connection of aiokafka connects, speaks TLS and SASL, agrees on versions and matches answers to requests. Its producer
and consumer are not used (see `link`). `AIOKafkaConnection`, `aiokafka.protocol` and `aiokafka.record` are the same in
0.13 and 0.14.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportArgumentType=false, reportPrivateUsage=false
# aiokafka has no types for its users, and those it has for itself are wrong in places (0.14).

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

from aiokafka.conn import CloseReason  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]
from aiokafka.protocol.admin import CreateTopicsRequest, DescribeConfigsRequest  # type: ignore[import-untyped]
from aiokafka.protocol.transaction import InitProducerIdRequest  # type: ignore[import-untyped]

from backplane.adapters.kafka.answers import (
    Fetched,
    Position,
    ProduceAnswer,
    ProducerId,
    Topology,
    read_fetched,
    read_offset,
    read_produce_answer,
    read_topology,
)
from backplane.adapters.kafka.checked_connection import CheckedConnection
from backplane.adapters.kafka.codes import error_name
from backplane.adapters.kafka.protocol import FetchLog, FindTopic, ListOffsets, Produce
from backplane.concurrency.fork import close_in_children
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerError, BrokerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from backplane.adapters.kafka.login import Security

__all__ = ["Connection", "ConnectionEndedError"]

_TOPIC: Final = 2
_LONGEST_MS: Final = 2**31 - 1
# aiokafka's own timeouts are not used: they count a pause of this process as silence of the broker.
_NO_LIMIT_MS: Final = 24 * 3600 * 1000


class ConnectionEndedError(BrokerUnavailableError):
    """The connection ended before the answer: whether the broker executed the request is not known."""


class Connection:
    """One connection to one broker, which answers its requests in order.

    Args:
        address: Host and port.
        security: How it is secured, and with which login.
        timeout_seconds: How long the broker may take for an answer; a pause of this process does not count.
        on_end: Called once with the reason when it ends, but not after `abort`. A request without an answer ends it.

    Attributes:
        is_over: It has ended.
        unanswered: Number of requests without an answer.
    """

    def __init__(
        self, address: tuple[str, int], security: Security, timeout_seconds: float, on_end: Callable[[str], None]
    ) -> None:
        self._address = f"{address[0]}:{address[1]}"
        self._on_end = on_end
        self._timeout_seconds = timeout_seconds
        self._transport: asyncio.Transport | None = None
        self._inner = CheckedConnection(
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
        self._timed_out = False
        self._throttled_until = 0.0  # until then a broker whose quota was exceeded does not read this connection
        self._closing: asyncio.Future[None] | None = None
        self.is_over: bool = False
        self.unanswered: int = 0

    async def open(self) -> None:
        """Connect and log in.

        Raises:
            OSError: Nothing listens there, or the host name is invalid.
            KafkaError: The broker closed the connection, or refused the login.
            TimeoutError: No answer in time.
        """
        try:
            async with PatientTimeout(self._timeout_seconds):
                _, writer = await self._inner.connect()
        except BaseException as error:
            self._aborted = self.is_over = True
            self._inner.close()
            if isinstance(error, UnicodeError):  # a label of more than 63 characters
                raise OSError(f"no host can have that name: {error}") from error
            raise
        self._transport = cast("asyncio.Transport", writer.transport)
        close_in_children(self, self._transport)
        if self.is_over:
            raise ConnectionResetError("closed at once")

    @property
    def expires_soon(self) -> bool:
        """Whether its login is about to expire: the broker then ends it at the next request (KIP-368)."""
        return asyncio.get_running_loop().time() >= self._inner.renew_at

    def abort(self) -> None:
        """End it at once; data that is not written yet is discarded."""
        self._aborted = self.is_over = True
        if self._transport is not None:
            self._transport.abort()
        self._closing = self._inner.close(reason=CloseReason.SHUTDOWN) or self._closing

    async def wait_closed(self) -> None:
        """Wait, after `abort`, until the socket is closed."""
        if self._transport is not None and self._closing is not None:
            await asyncio.wait([self._closing])

    async def topology(self, topic: str) -> Topology:
        """Return the topology of `topic`, without creating it."""
        return read_topology(await self._request(FindTopic(topic)))

    async def create_topic(self, topic: str, partitions: int, replicas: int, timeout_ms: int) -> tuple[int, str]:
        """Create `topic`; return Kafka's error code and message."""
        answer = await self._request(CreateTopicsRequest([(topic, partitions, replicas, [], [])], timeout_ms, False))
        _, code, *message = answer.topic_errors[0]
        return code, str(message[0]) if message and message[0] else error_name(code)

    async def topic_config(self, topic: str, names: Sequence[str]) -> dict[str, str]:
        """Return the configs `names` of `topic`; none where the user lacks the right DESCRIBE_CONFIGS."""
        if DescribeConfigsRequest.API_KEY not in self._inner._versions:
            return {}
        answer = await self._request(DescribeConfigsRequest([(_TOPIC, topic, list(names))]))
        return {
            entry[0]: entry[1]
            for code, _, _, _, entries in answer.resources
            if not code
            for entry in entries or ()
            if entry[1] is not None
        }

    async def request_producer_id(self) -> tuple[int, ProducerId]:
        """Request a new id for an idempotent producer; return Kafka's error code with it."""
        answer = await self._request(InitProducerIdRequest(None, _LONGEST_MS))
        return answer.error_code, ProducerId(producer_id=answer.producer_id, epoch=answer.producer_epoch)

    async def produce(self, topic: str, batches: Mapping[int, bytes], timeout_ms: int) -> dict[int, ProduceAnswer]:
        """Publish `batches`; return the answer for each partition, given when every replica in sync has stored it."""
        answer = await self._request(Produce(topic, list(batches.items()), timeout_ms))
        return {fields[0]: read_produce_answer(fields) for _, partitions in answer.topics for fields in partitions}

    async def offsets(self, topic: str, partitions: Mapping[int, int]) -> dict[int, tuple[int, Position]]:
        """Return error code and position of `EARLIEST` or `LATEST`, as requested for each partition."""
        answer = await self._request(ListOffsets(topic, list(partitions.items())))
        return {fields[0]: read_offset(fields) for _, answers in answer.topics for fields in answers}

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
        answer = await self._request(request)
        if code := getattr(answer, "error_code", 0):
            return [Fetched(partition, code, b"", 0) for partition in positions]
        return [read_fetched(fields) for topic_answer in answer.topics for fields in topic_answer[1]]

    async def _request(self, request: object) -> Any:
        """Send a request and return its answer; an exception of aiokafka becomes a `BrokerError`."""
        self.unanswered += 1
        loop = asyncio.get_running_loop()
        throttle_seconds = max(0.0, self._throttled_until - loop.time())
        try:
            async with PatientTimeout(self._timeout_seconds + throttle_seconds):
                answer = await self._inner.send(request)
            self._throttled_until = loop.time() + getattr(answer, "throttle_time_ms", 0) / 1000
            return answer
        except TimeoutError as error:
            self._timed_out = True
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
            self.unanswered -= 1

    def _closed(self, _: object, reason: CloseReason | None) -> None:
        self.is_over = True
        if not self._aborted and self._transport is not None:
            why = "does not answer" if self._timed_out or reason == CloseReason.CONNECTION_TIMEOUT else "ended"
            self._on_end(f"the connection to {self._address} {why}")
