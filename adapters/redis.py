"""`redis://` and `rediss://`: Redis pub/sub, Valkey too.

redis-py connects, authenticates and speaks TLS; then its socket is taken over, because its own `PubSub` reconnects in
secret and loses messages without a word. Two connections: one publishes, in order and many commands per write; the
other, opened with the first subscription, receives. Either one lost is the link lost.

At most once: Redis keeps nothing for a subscriber that is away (https://redis.io/docs/latest/develop/pubsub/).
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Literal, cast
from urllib.parse import urlsplit

import hiredis
from pydantic import Field
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError

from backplane.broadcaster import Broadcaster, Capabilities, Options
from backplane.errors import (
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    ConfigurationError,
    PublishError,
    PublishOutcomeUnknownError,
    SubscribeError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from backplane.broadcaster import BrokerUrl, Sink

__all__ = ["RedisBroadcaster", "RedisOptions"]

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
        self._host, self._port = _host_and_port(url)
        if url.path.strip("/") and not url.path[1:].isdecimal():
            raise ConfigurationError(f"redis: the path of the URL is a database number, not {url.path!r}")
        self._sink: Sink | None = None
        self._publisher: _Publisher | None = None
        self._subscriber: _Subscriber | None = None
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
        self._publisher = _Publisher(self._lost, self.options.max_pending_bytes)
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
            raise _unavailable("the link is closed")
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
            raise _unavailable("the link is closed")
        await self._subscriber.unsubscribe([self._encode(channel) for channel in channels])

    async def _subscribe(
        self, subscriber: _Subscriber, channels: dict[bytes, str], names: Sequence[bytes], refused: dict[str, str]
    ) -> None:
        try:
            await subscriber.subscribe({name: channels[name] for name in names})
        except _RefusedError as error:
            # The server refuses a SUBSCRIBE as a whole: halve it until the culprit stands alone.
            if len(names) == 1:
                refused[channels[names[0]]] = str(error)
                return
            middle = len(names) // 2
            await self._subscribe(subscriber, channels, names[:middle], refused)
            await self._subscribe(subscriber, channels, names[middle:], refused)

    async def _require_subscriber(self) -> _Subscriber:
        async with self._subscriber_opening:
            if self._sink is None:
                raise _unavailable("the link is closed")
            if self._subscriber is None:
                subscriber = _Subscriber(self._lost, self._sink)
                await self._open(subscriber)
                self._subscriber = subscriber
            return self._subscriber

    async def _open(self, link: _Resp) -> None:
        connection = self._connection()
        try:
            async with asyncio.timeout(self.options.connect_timeout_seconds):
                await connection.connect()  # type: ignore[no-untyped-call]
                link.take_over(connection)
                await link.check()
        except TimeoutError:
            _abort(connection)
            raise _unavailable(f"{self.url} did not answer within {self.options.connect_timeout_seconds:g} s") from None
        except (RedisError, OSError) as error:
            _abort(connection)
            raise _connect_error(error, self.url) from error
        except BaseException:
            _abort(connection)
            raise

    def _connection(self) -> Connection:
        settings: dict[str, Any] = {
            "host": self._host,
            "port": self._port,
            "username": self.url.username,
            "password": self.url.password,
            "db": int(self.url.path.strip("/") or 0),
            "client_name": self.options.client_name,
            # RESP2: every server speaks it, and a reply tells itself apart from a message.
            "protocol": 2,
            "socket_connect_timeout": self.options.connect_timeout_seconds,
            "socket_timeout": self.options.connect_timeout_seconds,
            "socket_keepalive": True,
            # redis-py 8 would try ten times for four seconds, a wrong password too.
            "retry": Retry(NoBackoff(), 0),
        }
        if self.url.scheme != "rediss":
            return Connection(**settings)
        tls = {name: value for name, value in self.options.model_dump().items() if name.startswith("ssl_")}
        return SSLConnection(**settings, **tls)

    def _encode(self, channel: str) -> bytes:
        return (self.options.prefix + channel).encode()

    def _lost(self, error: BrokerError) -> None:
        if self._sink is not None:
            self._sink.lost(error)


class _RefusedError(Exception):
    """The server answered a command with an error."""


class _Resp(asyncio.Protocol):
    """One authenticated connection, speaking RESP2 without redis-py.

    `_reader` and `_writer` of a redis-py connection are its only private names in use; they are the same from 5.0 to
    8.1.
    """

    def __init__(self, on_lost: Callable[[BrokerError], None]) -> None:
        self._on_lost = on_lost
        self._parser = hiredis.Reader()
        self._connection: Connection | None = None
        self._transport: asyncio.Transport | None = None
        self._checked: asyncio.Future[None] | None = None
        self.closed = asyncio.Event()
        self.closed.set()

    @property
    def is_open(self) -> bool:
        return not self.closed.is_set()

    def take_over(self, connection: Connection) -> None:
        """Make `connection`'s socket ours. The object is kept: collected, it would close the socket."""
        writer = connection._writer
        assert writer is not None
        transport = cast("asyncio.Transport", writer.transport)
        transport.set_protocol(self)
        self._connection = connection
        self._transport = transport
        self.closed.clear()

    async def check(self) -> None:
        """Ask for one answer: a server that wants a password nobody gave says so only now.

        Raises:
            AuthenticationError: The server wants one.
        """
        self._checked = asyncio.get_running_loop().create_future()
        self.write(b"*1\r\n$4\r\nPING\r\n")
        await self._checked

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def abort(self) -> None:
        if self._connection is not None:
            _abort(self._connection)

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        parser.feed(data)
        try:
            while (reply := parser.gets()) is not False:
                if self._checked is None:
                    self.reply_received(reply)
                else:
                    self._check_received(reply)
        except hiredis.ProtocolError as error:
            self._end(f"the server sent what is not RESP: {error}")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection ended{f': {exc}' if exc else ''}")
        self.abort()
        self.closed.set()

    def reply_received(self, reply: Any) -> None:
        """Take one reply, or one message."""
        raise NotImplementedError

    def fail_pending(self, words: str) -> None:
        """Tell whoever waits for a reply that none will come, and why."""
        raise NotImplementedError

    def _check_received(self, reply: Any) -> None:
        checked, self._checked = self._checked, None
        if checked is None or checked.done():
            return
        words = str(reply) if isinstance(reply, hiredis.ReplyError) else ""
        if words.startswith("NOAUTH"):
            checked.set_exception(AuthenticationError(words))
        elif words.startswith(("LOADING", "MASTERDOWN")):
            checked.set_exception(ConnectionRefusedError(words))
        else:  # any other word, a PING that an ACL denies too, is a server that answers
            checked.set_result(None)

    def _end(self, words: str) -> None:
        if self._checked is not None and not self._checked.done():
            self._checked.set_exception(ConnectionResetError(words))
        self.fail_pending(words)
        self._on_lost(_unavailable(words))


class _Publisher(_Resp):
    """Sends what is published in one pass of the event loop in one write; answers come back in order."""

    def __init__(self, on_lost: Callable[[BrokerError], None], max_pending_bytes: int) -> None:
        super().__init__(on_lost)
        self._max_pending_bytes = max_pending_bytes
        self._pending_bytes = 0
        self._unsent: list[bytes] = []
        self._unanswered: deque[tuple[asyncio.Future[None], int]] = deque()

    async def publish(self, name: bytes, payload: bytes) -> None:
        if not self.is_open:
            raise _unavailable("the link is lost")
        size = len(name) + len(payload)
        if self._pending_bytes and self._pending_bytes + size > self._max_pending_bytes:
            raise PublishError(
                f"{self._pending_bytes:,} bytes await the server's answer; publish slower, or raise max_pending_bytes",
                adapter="redis",
                retriable=True,
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if not self._unsent:
            loop.call_soon(self._flush)
        self._unsent.append(
            b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(payload), payload)
        )
        self._unanswered.append((future, size))
        self._pending_bytes += size
        await future

    def reply_received(self, reply: Any) -> None:
        if not self._unanswered:  # a word nobody asked for, such as a farewell
            return
        future, size = self._unanswered.popleft()
        self._pending_bytes -= size
        if future.done():  # cancelled
            return
        if isinstance(reply, hiredis.ReplyError):
            future.set_exception(PublishError(str(reply), adapter="redis"))
        else:
            future.set_result(None)

    def fail_pending(self, words: str) -> None:
        unsent = len(self._unsent)
        self._unsent.clear()
        while self._unanswered:
            future, _ = self._unanswered.popleft()
            if not future.done():
                sent = len(self._unanswered) >= unsent
                future.set_exception(_unknown(words) if sent else _unavailable(words))
        self._pending_bytes = 0

    def _flush(self) -> None:
        if self._unsent:
            commands = b"".join(self._unsent)
            self._unsent.clear()
            self.write(commands)


class _Subscriber(_Resp):
    """Receives messages; SUBSCRIBE and UNSUBSCRIBE are confirmed name by name, in the order they were sent."""

    def __init__(self, on_lost: Callable[[BrokerError], None], sink: Sink) -> None:
        super().__init__(on_lost)
        self._sink = sink
        self._channels: dict[bytes, str] = {}
        self._asked: deque[_Asked] = deque()

    async def subscribe(self, names: dict[bytes, str]) -> None:
        """Subscribe to all of `names`, or to none.

        Raises:
            _RefusedError: The server refused.
        """
        self._channels.update(names)
        try:
            await self._ask(b"SUBSCRIBE", list(names))
        except _RefusedError:
            for name in names:
                self._channels.pop(name, None)
            raise

    async def unsubscribe(self, names: list[bytes]) -> None:
        for name in names:
            self._channels.pop(name, None)
        await self._ask(b"UNSUBSCRIBE", names)

    async def _ask(self, verb: bytes, names: list[bytes]) -> None:
        if not self.is_open:
            raise _unavailable("the link is lost")
        if not names:  # a bare UNSUBSCRIBE would drop every channel
            return
        asked = _Asked(len(names))
        self._asked.append(asked)
        self.write(_pack(verb, names))
        await asked.answered

    def reply_received(self, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            if self._asked:
                self._asked.popleft().refuse(_RefusedError(str(reply)))
        elif reply[0] == b"message":
            channel = self._channels.get(reply[1])
            if channel is not None:
                self._sink.deliver(channel, reply[2])
        elif self._asked and self._asked[0].confirm():
            self._asked.popleft()

    def fail_pending(self, words: str) -> None:
        while self._asked:
            self._asked.popleft().refuse(_unavailable(words))


class _Asked:
    """One SUBSCRIBE or UNSUBSCRIBE on its way."""

    def __init__(self, count: int) -> None:
        self._left = count
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def confirm(self) -> bool:
        """Count one confirmed name; returns whether it was the last."""
        self._left -= 1
        if self._left == 0 and not self.answered.done():
            self.answered.set_result(None)
        return self._left == 0

    def refuse(self, error: Exception) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)


def _pack(verb: bytes, names: list[bytes]) -> bytes:
    command = cast("tuple[bytes]", (verb, *names))  # its stub knows one argument only
    return hiredis.pack_command(command)


def _host_and_port(url: BrokerUrl) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{url.netloc}")
        return parts.hostname or "localhost", parts.port or _DEFAULT_PORT
    except ValueError as error:
        raise ConfigurationError(f"redis: {url.netloc!r} is not host:port: {error}") from None


def _abort(connection: Connection) -> None:
    """Close the socket at once, and leave redis-py nothing to warn about."""
    writer = connection._writer
    if writer is not None:
        writer.transport.abort()
    connection._reader = connection._writer = None


def _unavailable(words: str) -> BrokerUnavailableError:
    return BrokerUnavailableError(words, adapter="redis")


def _unknown(words: str) -> PublishOutcomeUnknownError:
    return PublishOutcomeUnknownError(
        f"{words}, before the server's answer; it may have been published", adapter="redis"
    )


def _connect_error(error: Exception, url: BrokerUrl) -> BrokerError:
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
        return BrokerAuthenticationError(f"{url} refused the credentials: {error}", adapter="redis")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return BrokerError(
                f"{url} shows a certificate that is not trusted: {cause}", adapter="redis", retriable=False
            )
        cause = cause.__cause__ or cause.__context__
    return BrokerUnavailableError(f"cannot reach {url}: {error}", adapter="redis")
