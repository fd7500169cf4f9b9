"""`kafka://`: Apache Kafka, one topic for all channels.

A record's key is the channel and its value the payload. Every process reads every partition from the end, without a
consumer group, and delivers the records of its channels: subscribing costs the broker nothing. After an outage it
continues at its offsets: no message is lost or duplicated, unless the broker deleted it meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, ClassVar, Final, Literal
from zlib import crc32

from pydantic import Field

from backplane.adapters.kafka.connect_error import unavailable
from backplane.adapters.kafka.history import KafkaHistory
from backplane.adapters.kafka.inspection import INSPECTED_CONFIGS, inspect_topic
from backplane.adapters.kafka.link import KafkaLink
from backplane.adapters.kafka.login import Security, Token, ask_password, ask_token
from backplane.adapters.kafka.producer import KafkaProducer
from backplane.adapters.kafka.reader import FetchPolicy, KafkaReader, NotReadableError
from backplane.adapters.kafka.ring import HistoryRings, LogIdentity, Query
from backplane.adapters.kafka.target import KnownBrokers, Target
from backplane.adapters.shared.credentials import CREDENTIALS_PATTERN
from backplane.adapters.shared.link_tasks import LinkTasks
from backplane.adapters.shared.tls import client_context
from backplane.broadcaster import Broadcaster, Capabilities, Options
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerError, ConfigurationError, PublishError, SubscribeError
from backplane.header import path_test_id
from backplane.journal.events import BROKER_MISFIT
from backplane.journal.writing import write
from backplane.message import Position, Receipt

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Collection, Coroutine, Mapping
    from typing import Any

    from backplane.broadcaster import BrokerUrl, Recalled, Sink
    from backplane.findings import Finding
    from backplane.history_rules import History, HistoryRules

__all__ = ["KafkaBroadcaster", "KafkaOptions"]

logger: Final = logging.getLogger("backplane.adapters.kafka.broadcaster")

_DEFAULT_PORT: Final = 9092
_FETCH_POLICIES: Final = {
    "low": FetchPolicy(wait_ms=500),
    "balanced": FetchPolicy(wait_ms=500, pause_seconds=0.005),
    "cheap": FetchPolicy(wait_ms=500, pause_seconds=0.025),
}


class KafkaOptions(Options):
    """Options of `kafka://`."""

    topic: str = "backplane"
    """The topic of all channels. Give it a short retention: messages older than the longest outage are not needed."""
    create_topic: bool = True
    """Whether to create the topic if it does not exist; needs the right CREATE."""
    partitions: int = Field(default=8, gt=0)
    """Number of partitions of a created topic. Each adds a small cost to every request of every process."""
    replication_factor: int = Field(default=-1, ge=-1)
    """Number of brokers that store a created topic. -1: three, or all that are up if those are fewer."""
    latency: Literal["low", "balanced", "cheap"] = "low"
    """When messages are delivered. `low`: at once; `balanced`: up to 5 ms later, `cheap`: up to 25 ms later, which take
    less CPU time per message."""
    max_ring_bytes: int = Field(default=32 * 1024 * 1024, gt=0)
    """How many bytes each worker keeps of the newest messages of channels with a history, all of them together. What is
    older is read from the topic when a client asks for it."""
    max_payload_bytes: int = Field(default=1_000_000, gt=0, le=256 * 1024 * 1024)
    """Largest payload, in bytes. If the user has the right DESCRIBE_CONFIGS, it is lowered to what the topic accepts:
    400 bytes below its `max.message.bytes` (1,048,588 by default)."""
    max_pending_bytes: int = Field(default=64 * 1024 * 1024, gt=0)
    """How many bytes may be published and not answered yet; above that `publish` raises. One message is always
    accepted."""
    connect_timeout_seconds: float = Field(default=5.0, gt=0)
    """How long opening a link may take, with TLS, the login, and finding or creating the topic."""
    request_timeout_seconds: float = Field(default=10.0, gt=1)
    """How long the broker may take for an answer; after that the link is lost."""
    metadata_max_age_seconds: float = Field(default=30.0, gt=0)
    """How often to look for new partitions."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = "PLAIN"
    """How to log in, if the URL has a user name and password, or `credentials` is set. Without TLS, `PLAIN` and
    `OAUTHBEARER` send the secret unencrypted."""
    credentials: str = Field(default="", pattern=rf"^$|{CREDENTIALS_PATTERN}")
    """A function of the application, `package.module:function`, sync or async, that is called at each login and returns
    `(username, password)`, or a token for `OAUTHBEARER`. Defaults to the user name and password of the URL."""
    tls: bool = False
    """Whether to speak TLS."""
    ssl_ca_certs: str | None = None
    """File of the certificate authorities to trust. Defaults to those of the system."""
    ssl_certfile: str | None = None
    """File of the client's certificate."""
    ssl_keyfile: str | None = None
    """File of the client's key."""
    ssl_check_hostname: bool = True
    """Whether the broker's certificate must match its host name."""


class KafkaBroadcaster(Broadcaster):
    """One link to one Kafka cluster; the brokers in the URL are tried first.

    After a lost link, `resume` continues with the state since `start`: positions, and publishes without an answer.
    """

    options_class: ClassVar[type[Options]] = KafkaOptions
    options: KafkaOptions

    def __init__(self, url: BrokerUrl, options: KafkaOptions) -> None:
        super().__init__(url, options)
        if url.path.strip("/"):
            raise ConfigurationError(f"kafka: a URL has no path; the topic is an option: ?topic={url.path.strip('/')}")
        if not options.tls and (
            ignored := sorted(name for name in options.model_fields_set if name.startswith("ssl_"))
        ):
            raise ConfigurationError(f"kafka: {', '.join(ignored)} given without tls=true: nothing would be encrypted")
        if options.ssl_keyfile and not options.ssl_certfile:
            raise ConfigurationError("kafka: ssl_keyfile is given without ssl_certfile")
        if options.credentials and url.username is not None:
            raise ConfigurationError("kafka: credentials is given, and a user name in the URL too")
        if options.sasl_mechanism == "OAUTHBEARER" and not options.credentials:
            raise ConfigurationError("kafka: OAUTHBEARER needs credentials=package.module:function, for a token")
        self._target = Target(
            url=str(url),
            servers=url.servers(_DEFAULT_PORT, adapter="kafka"),
            topic=options.topic,
            partitions=options.partitions if options.create_topic else None,
            replicas=options.replication_factor,
            connect_timeout_seconds=options.connect_timeout_seconds,
            request_timeout_seconds=options.request_timeout_seconds,
        )
        self._known_brokers = KnownBrokers()
        self._max_payload_bytes = options.max_payload_bytes
        self._warned_of_compaction = False
        self._sink: Sink | None = None
        self._link: KafkaLink | None = None
        self._producer: KafkaProducer | None = None
        self._reader: KafkaReader | None = None
        self._history: KafkaHistory | None = None
        self._reader_opening = asyncio.Lock()  # replaced with each link: a lock belongs to one event loop
        self._tasks = LinkTasks(url, "kafka", self._lost)
        self._loss_reported = False

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return Capabilities(
            brokered=True,
            reach="network",
            publish_returns="stored",
            resumes=True,
            max_payload_bytes=self._max_payload_bytes,
            keeps="server",
            patterns=True,
        )

    async def start(self, sink: Sink) -> None:
        """Find the topic and connect to its leaders; the first subscription starts reading, from the end."""
        options = self.options
        self._warned_of_compaction = False
        self._producer = KafkaProducer(options.max_payload_bytes, options.max_pending_bytes, self._tasks.spawn)
        self._reader = KafkaReader(_FETCH_POLICIES[options.latency], self._tasks.spawn)
        await self._open(sink)

    async def suspend(self) -> None:
        """Close the link; keep positions and publishes without an answer for `resume`."""
        self._sink = self._history = None
        link, self._link = self._link, None
        for part in (self._reader, self._producer):
            if part is not None:
                part.close()
        tasks = self._tasks.cancel()
        if link is not None:
            link.abort()
        if tasks:
            await asyncio.wait(tasks)
        if link is not None:
            await link.wait_closed()

    async def resume(self, sink: Sink, channels: Collection[str]) -> None:
        """Open the link again, deliver what was published to `channels` meanwhile, send what had no answer."""
        if self._reader is None:
            raise unavailable("the adapter is stopped")
        wanted = self._reader.wanted
        wanted.names.clear()
        wanted.add(channels)
        await self._open(sink)
        if wanted:
            try:
                await self._require_reader()
            except NotReadableError as error:
                write(logger, BROKER_MISFIT, "%(reason)s", reason=error)  # the next `subscribe` raises it

    async def stop(self) -> None:
        """Close the link; publishes without an answer raise `PublishOutcomeUnknownError`."""
        producer, self._producer = self._producer, None
        reader, self._reader = self._reader, None
        if producer is not None:
            producer.close()
            producer.fail("the adapter was stopped")
        if reader is not None:
            reader.close()
        await self.suspend()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish; return when every replica in sync has stored it (acks=all).

        After a lost link it is sent again, with a sequence number by which the broker discards the repetition.

        Raises:
            PublishError: The broker refused it, or too many bytes are not answered yet (`retriable`). Or it is a path
                test, and the topic is compacted: the broker would delete the newest message of the channel for it.
        """
        if self._producer is None:
            raise unavailable("the link is closed")
        if self._link is not None and self._link.limits.is_compacted and path_test_id(payload) is not None:
            raise PublishError(
                f"topic {self.options.topic!r} is compacted: a path test would replace the newest message of its "
                "channel; set cleanup.policy=delete to test the path",
                adapter="kafka",
            )
        await self._producer.publish(channel.encode(), payload)

    async def prepare(self, rules: HistoryRules) -> None:
        """Note which channels have a history. The topic keeps everything anyway, as long as its retention."""
        if self._reader is None:
            raise unavailable("the link is closed")
        if rules and self._reader.rings is None:
            self._reader.keep(HistoryRings(self.options.max_ring_bytes, rules))

    async def keep(self, channel: str, payload: bytes, rule: History, *, key: bytes | None = None) -> Receipt:
        """Publish as `publish` does, and return the position of the record.

        The receipt has no position if the broker had stored the message before, over a link that was lost before the
        answer, and does not remember where.

        Raises:
            ConfigurationError: A `key` was passed: Kafka cannot discard a message that another process has published.
        """
        if key is not None:
            raise ConfigurationError("kafka: idempotency_key is not supported: publish without it")
        if self._producer is None:
            raise unavailable("the link is closed")
        encoded = channel.encode()
        partition, offset = await self._producer.publish(encoded, payload)
        link = self._link
        if offset is None or link is None:
            return Receipt()
        epoch = LogIdentity.of(link.topology, self.options.topic).epoch(partition, encoded)
        return Receipt(position=Position(epoch, offset + 1, crc32(payload)))

    async def recall(
        self, channel: str, rule: History, *, after: Position | None, limit: int, max_bytes: int
    ) -> Recalled:
        """Read the history of `channel`: from memory if the reader has it, else by reading the end of its partition.

        At most 16 MiB are read back, once for all that wait; what is older is not found. The number of messages and
        their age are limited here; when the broker deletes them is up to the topic.

        Raises:
            BrokerError: The user lacks the right READ on the topic, or its codec is not installed.
        """
        if self._history is None:
            raise unavailable("the link is closed")
        return await self._history.recall(Query(channel.encode(), rule, after, limit, max_bytes))

    async def subscribe(self, channels: Collection[str]) -> None:
        """Deliver `channels` from now on; the first call finds the end of every partition and starts reading."""
        try:
            reader = await self._require_reader()
        except NotReadableError as error:
            raise SubscribeError(dict.fromkeys(channels, str(error)), adapter="kafka") from error
        reader.wanted.add(channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Stop delivering `channels`, at once."""
        if self._link is None or self._reader is None:
            raise unavailable("the link is closed")
        self._reader.wanted.remove(channels)

    async def subscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Deliver every channel that begins with one of `prefixes` from now on: the topic is read anyway."""
        try:
            reader = await self._require_reader()
        except NotReadableError as error:
            raise SubscribeError(dict.fromkeys(prefixes, str(error)), adapter="kafka") from error
        reader.wanted.add_prefixes(prefixes)

    async def unsubscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Stop delivering channels because of `prefixes`, at once."""
        if self._link is None or self._reader is None:
            raise unavailable("the link is closed")
        self._reader.wanted.remove_prefixes(prefixes)

    async def describe(self) -> str:
        """Return a description of the cluster; clients cannot read a broker's version."""
        if self._link is None:
            raise unavailable("the link is closed")
        await self._link.refresh()
        topology = self._link.topology
        return (
            f"Kafka cluster {topology.cluster or '(id not granted)'}, {len(topology.addresses)} broker(s), "
            f"topic {self.options.topic!r} with {len(topology.leaders)} partitions"
        )

    async def inspect(self, subscribers: Mapping[str, int]) -> list[Finding]:
        """Return whether the topic keeps messages for as long as an outage can last, and how it is partitioned."""
        if self._link is None:
            raise unavailable("the link is closed")
        await self._link.refresh()
        config = await self._link.topic_config(INSPECTED_CONFIGS)
        return inspect_topic(self.options.topic, self._link.topology, config)

    async def _open(self, sink: Sink) -> None:
        assert self._producer is not None
        self._sink, self._loss_reported = sink, False
        self._reader_opening = asyncio.Lock()
        link = self._link = KafkaLink(
            self._target, await self._prepare_login(), self._known_brokers, self._tasks.spawn, self._lost
        )
        seconds = self.options.connect_timeout_seconds
        try:
            async with PatientTimeout(seconds):
                await link.open()
                self._apply_limits(link)
                await self._producer.open(link)
        except TimeoutError:
            link.abort()
            raise unavailable(f"{self.url} did not answer within {seconds:g} s") from None
        except BaseException:
            link.abort()
            raise
        assert self._reader is not None
        self._history = KafkaHistory(link, self._reader, self._tasks.spawn)
        self._tasks.spawn(self._watch(link), "kafka-watch")

    async def _prepare_login(self) -> Callable[[], Coroutine[Any, Any, Security]]:
        """Return a function that makes a `Security` with current credentials, for each connection."""
        options, url = self.options, self.url
        context = await asyncio.to_thread(_ssl_context, options) if options.tls else None
        credentials = options.credentials

        async def login() -> Security:
            mechanism, username, password, token = options.sasl_mechanism, url.username, url.password or "", None
            if credentials and mechanism == "OAUTHBEARER":
                token = Token(await ask_token(credentials))
            elif credentials:
                username, password = await ask_password(credentials, mechanism)
            return Security(ssl_context=context, mechanism=mechanism, username=username, password=password, token=token)

        return login

    def _apply_limits(self, link: KafkaLink) -> None:
        assert self._producer is not None
        limits, wanted = link.limits, self.options.max_payload_bytes
        self._max_payload_bytes = min(wanted, limits.max_payload_bytes or wanted)
        self._producer.max_payload_bytes = self._max_payload_bytes
        if limits.is_compacted and not self._warned_of_compaction:
            self._warned_of_compaction = True
            write(
                logger,
                BROKER_MISFIT,
                "topic %(topic)r is compacted: the broker deletes each message that a later one of its channel has "
                "replaced, so a worker that was away misses some, with a gap; set cleanup.policy=delete",
                topic=self.options.topic,
            )

    async def _require_reader(self) -> KafkaReader:
        async with self._reader_opening:
            if self._link is None or self._link.is_over or self._reader is None or self._sink is None:
                raise unavailable("the link is closed")
            if not self._reader.is_open:
                try:
                    async with PatientTimeout(self.options.connect_timeout_seconds):
                        await self._reader.open(self._link, self._sink)
                except TimeoutError:
                    raise unavailable("the brokers did not answer with the end of the topic in time") from None
            return self._reader

    async def _watch(self, link: KafkaLink) -> None:
        """Look for new partitions, and for granted rights, at intervals."""
        while True:
            await asyncio.sleep(self.options.metadata_max_age_seconds)
            await link.refresh()
            if self._producer is not None:
                await self._producer.retry_authorization(link)
            if self._reader is not None:
                await self._reader.update_partitions()

    def _lost(self, error: BrokerError) -> None:
        if self._sink is not None and not self._loss_reported:
            self._loss_reported = True
            self._sink.lost(error)


def _ssl_context(options: KafkaOptions) -> ssl.SSLContext:
    context = client_context(options.ssl_ca_certs, options.ssl_certfile, options.ssl_keyfile, adapter="kafka")
    context.check_hostname = options.ssl_check_hostname
    return context
