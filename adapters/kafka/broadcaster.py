"""`kafka://`: Apache Kafka, one topic for all channels.

A record's key is the channel and its value the payload. Every process reads every partition from the end, without a
consumer group, and picks what its channels are: to subscribe and to unsubscribe costs the broker nothing. After an
outage it goes on at its offsets: nothing is lost and nothing comes twice, unless the broker deleted it meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field

from backplane.adapters.kafka.connect_error import unavailable
from backplane.adapters.kafka.link import KafkaLink, Learned, Target
from backplane.adapters.kafka.login import Token, ask_password, ask_token
from backplane.adapters.kafka.producer import KafkaProducer
from backplane.adapters.kafka.reader import KafkaReader, NotReadableError, Pace
from backplane.adapters.kafka.wire import Security
from backplane.adapters.shared.credentials import CREDENTIALS_PATTERN
from backplane.adapters.shared.tls import client_context
from backplane.broadcaster import Broadcaster, Capabilities, Options, malformed_address
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerError, ConfigurationError, SubscribeError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Collection, Coroutine
    from typing import Any

    from backplane.broadcaster import BrokerUrl, Sink

__all__ = ["KafkaBroadcaster", "KafkaOptions"]

logger = logging.getLogger("backplane.kafka")

_DEFAULT_PORT: Final = 9092
_PACES: Final = {
    "low": Pace(wait_ms=500),
    "balanced": Pace(wait_ms=500, pause_seconds=0.005),
    "cheap": Pace(wait_ms=500, pause_seconds=0.025),
}


class KafkaOptions(Options):
    """Options of `kafka://`."""

    topic: str = "backplane"
    """The topic of all channels. Give it a short retention: what is older than the longest outage helps nobody."""
    create_topic: bool = True
    """Whether to create the topic where it does not exist; needs the permission CREATE."""
    partitions: int = Field(default=8, gt=0)
    """How many partitions it is created with. Each costs every process a little per request."""
    replication_factor: int = Field(default=-1, ge=-1)
    """On how many brokers it is created. -1: on three, or on all that are up where those are fewer."""
    latency: Literal["low", "balanced", "cheap"] = "low"
    """`low`: each message at once; `balanced`: up to 5 ms later, and `cheap`: up to 25 ms, for less CPU per message."""
    max_payload_bytes: int = Field(default=1_000_000, gt=0, le=256 * 1024 * 1024)
    """Largest payload, in bytes. Where the user may DESCRIBE_CONFIGS the topic, it is lowered to what the topic takes:
    400 bytes below its `max.message.bytes` (1,048,588 by default)."""
    max_pending_bytes: int = Field(default=64 * 1024 * 1024, gt=0)
    """Most bytes published and not yet answered; one message is always taken. Over it `publish` raises."""
    connect_timeout_seconds: float = Field(default=5.0, gt=0)
    """How long opening a link may take: connecting, TLS, login, finding or creating the topic."""
    request_timeout_seconds: float = Field(default=10.0, gt=1)
    """How long the broker may take for an answer; a link without answers is lost."""
    metadata_max_age_seconds: float = Field(default=30.0, gt=0)
    """How often to look for new partitions."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = "PLAIN"
    """How to log in, where the URL holds a user name and password, or `credentials` hands them out. `PLAIN` and
    `OAUTHBEARER` without TLS show them to the network."""
    credentials: str = Field(default="", pattern=rf"^$|{CREDENTIALS_PATTERN}")
    """A function of the application, `package.module:function`, sync or async, that is called at each login and returns
    `(username, password)`, or a token for `OAUTHBEARER`. Defaults to what the URL holds."""
    tls: bool = False
    """Whether to speak TLS."""
    ssl_ca_certs: str | None = None
    """File of the authorities to trust, for TLS. Defaults to the system's."""
    ssl_certfile: str | None = None
    """File of the client's certificate."""
    ssl_keyfile: str | None = None
    """File of the client's key."""
    ssl_check_hostname: bool = True
    """Whether the broker's certificate must name its host."""


class KafkaBroadcaster(Broadcaster):
    """One link to one Kafka cluster; the brokers in the URL are those to ask first.

    Where a link was lost, `resume` goes on with what `start` began: the positions, and publishes without an answer.
    """

    options_class = KafkaOptions
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
            servers=_servers(url),
            topic=options.topic,
            partitions=options.partitions if options.create_topic else None,
            replicas=options.replication_factor,
            connect_timeout_seconds=options.connect_timeout_seconds,
            request_timeout_seconds=options.request_timeout_seconds,
        )
        self._learned = Learned()
        self._max_payload_bytes = options.max_payload_bytes
        self._warned = False
        self._sink: Sink | None = None
        self._link: KafkaLink | None = None
        self._producer: KafkaProducer | None = None
        self._reader: KafkaReader | None = None
        self._reader_opening = asyncio.Lock()  # anew with each link: a lock belongs to one event loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._reported = False

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return Capabilities(
            brokered=True,
            reach="network",
            publish_returns="stored",
            resumes=True,
            max_payload_bytes=self._max_payload_bytes,
        )

    async def start(self, sink: Sink) -> None:
        """Find the topic and connect to its leaders; reading begins with the first subscription, at the end."""
        options = self.options
        self._warned = False
        self._producer = KafkaProducer(options.max_payload_bytes, options.max_pending_bytes, self._spawn)
        self._reader = KafkaReader(_PACES[options.latency], self._spawn)
        await self._open(sink)

    async def suspend(self) -> None:
        """Close the link and keep the positions, and the publishes that have no answer, for `resume`."""
        self._sink = None
        link, self._link = self._link, None
        for part in (self._reader, self._producer):
            if part is not None:
                part.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if link is not None:
            link.abort()
        if tasks:
            await asyncio.wait(tasks)
        if link is not None:
            await link.wait_gone()

    async def resume(self, sink: Sink, channels: Collection[str]) -> None:
        """Open the link again, deliver what came on `channels` meanwhile, send what had no answer."""
        if self._reader is None:
            raise unavailable("the adapter is stopped")
        self._reader.channels = {channel.encode(): channel for channel in channels}
        await self._open(sink)
        if channels:
            try:
                await self._require_reader()
            except NotReadableError as error:
                logger.warning("%s", error)  # which `subscribe` raises to those whom it concerns

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
        """Publish; returns when every replica in sync has it (acks=all).

        Sent again, after a lost link, only under a number by which the broker drops the repetition.

        Raises:
            PublishError: The broker refused it, or too much awaits its answer (`retriable`).
        """
        if self._producer is None:
            raise unavailable("the link is closed")
        await self._producer.publish(channel.encode(), payload)

    async def subscribe(self, channels: Collection[str]) -> None:
        """Pick `channels` from now on; the first call finds the end of every partition and begins to read."""
        try:
            reader = await self._require_reader()
        except NotReadableError as error:
            raise SubscribeError(dict.fromkeys(channels, str(error)), adapter="kafka") from error
        for channel in channels:
            reader.channels[channel.encode()] = channel

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Drop `channels`, at once."""
        if self._link is None or self._reader is None:
            raise unavailable("the link is closed")
        for channel in channels:
            self._reader.channels.pop(channel.encode(), None)

    async def describe(self) -> str:
        """Say which cluster; a broker does not tell clients its version."""
        if self._link is None:
            raise unavailable("the link is closed")
        await self._link.refresh()
        topology = self._link.topology
        return (
            f"Kafka cluster {topology.cluster or '(id not granted)'}, {len(topology.addresses)} broker(s), "
            f"topic {self.options.topic!r} with {len(topology.leaders)} partitions"
        )

    async def _open(self, sink: Sink) -> None:
        assert self._producer is not None
        self._sink, self._reported = sink, False
        self._reader_opening = asyncio.Lock()
        link = self._link = KafkaLink(self._target, await self._prepare_login(), self._learned, self._spawn, self._lost)
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
        self._spawn(self._watch(link), "kafka-watch")

    async def _prepare_login(self) -> Callable[[], Coroutine[Any, Any, Security]]:
        """Return what makes a `Security` for each connection, with credentials that are fresh."""
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
        if limits.is_compacted and not self._warned:
            self._warned = True
            logger.warning(
                "topic %r is compacted: the broker deletes each message that a later one of its channel has replaced, "
                "so a worker that was away misses some, with a gap; set cleanup.policy=delete",
                self.options.topic,
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
                    raise unavailable("the brokers do not tell where the topic ends") from None
            return self._reader

    async def _watch(self, link: KafkaLink) -> None:
        """Look for new partitions now and then."""
        while True:
            await asyncio.sleep(self.options.metadata_max_age_seconds)
            await link.refresh()
            if self._producer is not None:
                await self._producer.follow(link)
            if self._reader is not None:
                await self._reader.follow()

    def _spawn(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"backplane-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, BrokerError):
            logger.error("unexpected error on the link to %s", self.url, exc_info=error)
            error = unavailable(f"unexpected error: {error!r}")
        self._lost(error)

    def _lost(self, error: BrokerError) -> None:
        if self._sink is not None and not self._reported:
            self._reported = True
            self._sink.lost(error)


def _servers(url: BrokerUrl) -> list[tuple[str, int]]:
    try:
        parts = [urlsplit(f"//{server}") for server in url.netloc.split(",")]
        return [(part.hostname or "localhost", part.port or _DEFAULT_PORT) for part in parts]
    except ValueError:
        raise malformed_address(url.netloc, adapter="kafka") from None


def _ssl_context(options: KafkaOptions) -> ssl.SSLContext:
    context = client_context(options.ssl_ca_certs, options.ssl_certfile, options.ssl_keyfile, adapter="kafka")
    context.check_hostname = options.ssl_check_hostname
    return context
