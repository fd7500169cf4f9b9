"""`redis://` and `rediss://`: Redis pub/sub, Valkey too.

redis-py connects, authenticates and speaks TLS; then its socket is taken over, because its own `PubSub` reconnects in
secret and loses messages without a word. Two connections: one publishes, in order and many commands per write; the
other, opened with the first subscription, receives. Either one lost is the link lost.

At most once: Redis keeps nothing for a subscriber that is away (https://redis.io/docs/latest/develop/pubsub/).
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError

from backplane.adapters.redis_link import PublisherLink, RedisLink, RefusedError, SubscriberLink, abort, unavailable
from backplane.broadcaster import Broadcaster, Capabilities, Options
from backplane.errors import (
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    ConfigurationError,
    SubscribeError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from backplane.broadcaster import BrokerUrl, Sink

__all__ = ["RedisBroadcaster", "RedisOptions", "connect_error", "host_and_port"]

_DEFAULT_PORT: Final = 6379


class RedisOptions(Options):
    """Options of `redis://` and `rediss://`."""

    prefix: str = ""
    """Put in front of every channel name on the server, to share it among applications or to fit an ACL."""
    connect_timeout_seconds: float = Field(default=3.0, gt=0)
    """How long connecting, TLS and authentication may take."""
    max_payload_bytes: int = Field(default=16 * 1024 * 1024, gt=0, le=512 * 1024 * 1024)
    """Largest payload, in bytes. Redis itself takes 512 MiB (`proto-max-bulk-len`)."""
    max_pending_bytes: int = Field(default=64 * 1024 * 1024, gt=0)
    """Most bytes published and not yet answered; one message is always taken. Over it `publish` raises."""
    client_name: str | None = None
    """Name in `CLIENT LIST`. Needs the permission for `CLIENT SETNAME`."""
    ssl_ca_certs: str | None = None
    """File of the authorities to trust, for `rediss://`. Defaults to the system's."""
    ssl_certfile: str | None = None
    """File of the client's certificate."""
    ssl_keyfile: str | None = None
    """File of the client's key."""
    ssl_cert_reqs: Literal["required", "optional", "none"] = "required"
    """Whether the server must show a valid certificate."""
    ssl_check_hostname: bool = True
    """Whether its certificate must name the host."""


class RedisBroadcaster(Broadcaster):
    """One link to one Redis or Valkey server. The path of the URL is the database number, which pub/sub ignores."""

    options_class = RedisOptions
    options: RedisOptions

    def __init__(self, url: BrokerUrl, options: RedisOptions) -> None:
        super().__init__(url, options)
        self._address = ("", 0)
        self._where = str(url)  # for the words of an error
        self._database = 0
        self._read_url()
        self._sink: Sink | None = None
        self._publisher: PublisherLink | None = None
        self._subscriber: SubscriberLink | None = None
        self._subscriber_opening = asyncio.Lock()  # anew with each start: a lock belongs to one event loop

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return Capabilities(
            brokered=True,
            reach="network",
            publish_returns="accepted",
            max_payload_bytes=self.options.max_payload_bytes,
        )

    async def start(self, sink: Sink) -> None:
        """Open the connection that publishes; the other one opens with the first subscription."""
        self._sink = sink
        self._subscriber_opening = asyncio.Lock()
        self._publisher = PublisherLink(self._lost, self.options.max_pending_bytes)
        await self._open(self._publisher)

    async def stop(self) -> None:
        """Close both connections; publishes without an answer raise `PublishOutcomeUnknownError`."""
        self._sink = None
        links = [link for link in (self._publisher, self._subscriber) if link is not None]
        self._publisher = self._subscriber = None
        for link in links:
            link.abort()
        for link in links:
            await link.closed.wait()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish; returns when the server has answered.

        Raises:
            PublishError: The server refused it, or too much awaits its answer (`retriable`).
        """
        if self._publisher is None:
            raise unavailable("the link is closed")
        await self._publisher.publish(self._encode(channel), payload)

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe; one channel that an ACL denies does not take the others with it."""
        subscriber = await self._require_subscriber()
        names = {self._encode(channel): channel for channel in channels}
        refused: dict[str, str] = {}
        await self._subscribe(subscriber, names, list(names), refused)
        if refused:
            raise SubscribeError(refused, adapter="redis")

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Drop `channels`, here at once and then at the server."""
        if self._subscriber is None:
            raise unavailable("the link is closed")
        await self._subscriber.unsubscribe([self._encode(channel) for channel in channels])

    async def describe(self) -> str:
        """Return name and version, as `INFO server` has them; it can be denied by an ACL."""
        if self._publisher is None:
            raise unavailable("the link is closed")
        lines = (await self._publisher.server_info()).splitlines()
        told = dict(line.split(":", 1) for line in lines if ":" in line)
        if "valkey_version" in told:  # it names the Redis it is compatible with too
            return f"Valkey {told['valkey_version']}"
        return f"Redis {told.get('redis_version', '(version not granted)')}"

    def _read_url(self) -> None:
        """Take from the URL where to connect."""
        self._address = host_and_port(self.url.netloc, _DEFAULT_PORT)
        path = self.url.path
        if path.strip("/") and not path[1:].isdecimal():
            raise ConfigurationError(f"redis: the path of the URL is a database number, not {path!r}")
        self._database = int(path.strip("/") or 0)

    async def _subscribe(
        self, subscriber: SubscriberLink, channels: dict[bytes, str], names: Sequence[bytes], refused: dict[str, str]
    ) -> None:
        try:
            await subscriber.subscribe({name: channels[name] for name in names})
        except RefusedError as error:
            # The server refuses a SUBSCRIBE as a whole: halve it until the culprit stands alone.
            if len(names) == 1:
                refused[channels[names[0]]] = str(error)
                return
            middle = len(names) // 2
            await self._subscribe(subscriber, channels, names[:middle], refused)
            await self._subscribe(subscriber, channels, names[middle:], refused)

    async def _require_subscriber(self) -> SubscriberLink:
        async with self._subscriber_opening:
            if self._sink is None:
                raise unavailable("the link is closed")
            if self._subscriber is None:
                subscriber = SubscriberLink(self._lost, self._sink)
                await self._open(subscriber)
                self._subscriber = subscriber
            return self._subscriber

    async def _open(self, link: RedisLink) -> None:
        connection = self._connection(
            self._address,
            self.url.username,
            self.url.password,
            db=self._database,
            client_name=self.options.client_name,
        )
        try:
            async with asyncio.timeout(self.options.connect_timeout_seconds):
                await connection.connect()  # type: ignore[no-untyped-call]
                link.take_over(connection)
                await link.check()
        except TimeoutError:
            abort(connection)
            raise unavailable(
                f"{self._where} did not answer within {self.options.connect_timeout_seconds:g} s"
            ) from None
        except (RedisError, OSError) as error:
            abort(connection)
            raise connect_error(error, self._where) from error
        except BaseException:
            abort(connection)
            raise

    def _connection(
        self, address: tuple[str, int], username: str | None, password: str | None, **more: object
    ) -> Connection:
        settings: dict[str, Any] = {
            "host": address[0],
            "port": address[1],
            "username": username,
            "password": password,
            # RESP2: every server speaks it, and a reply tells itself apart from a message.
            "protocol": 2,
            "socket_connect_timeout": self.options.connect_timeout_seconds,
            "socket_timeout": self.options.connect_timeout_seconds,
            "socket_keepalive": True,
            # redis-py 8 would try ten times for four seconds, a wrong password too.
            "retry": Retry(NoBackoff(), 0),
            **more,
        }
        if not self.url.scheme.startswith("rediss"):
            return Connection(**settings)
        tls = {name: value for name, value in self.options.model_dump().items() if name.startswith("ssl_")}
        return SSLConnection(**settings, **tls)

    def _encode(self, channel: str) -> bytes:
        return (self.options.prefix + channel).encode()

    def _lost(self, error: BrokerError) -> None:
        if self._sink is not None:
            self._sink.lost(error)


def host_and_port(text: str, default_port: int) -> tuple[str, int]:
    """Split `host:port`, either of which may be missing.

    Raises:
        ConfigurationError: It is something else.
    """
    try:
        parts = urlsplit(f"//{text}")
        return parts.hostname or "localhost", parts.port or default_port
    except ValueError as error:
        raise ConfigurationError(f"redis: {text!r} is not host:port: {error}") from None


def connect_error(error: Exception, where: str) -> BrokerError:
    """Return what to raise for an error of redis-py, or of the system, while connecting to `where`."""
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
        return BrokerAuthenticationError(f"{where} refused the credentials: {error}", adapter="redis")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return BrokerError(
                f"{where} shows a certificate that is not trusted: {cause}", adapter="redis", retriable=False
            )
        cause = cause.__cause__ or cause.__context__
    return BrokerUnavailableError(f"cannot reach {where}: {error}", adapter="redis")
