"""`nats://` and `tls://`: core NATS pub/sub, one server or a cluster.

nats-py connects, authenticates (password, token, credentials file, NKey) and speaks TLS; then its socket is taken over.
Its own reconnect hides the gap and sends what was published into the outage, its `flush` writes the PING in front of
what it should confirm (2.16), and it holds a task per subscription.

At most once: core NATS keeps nothing for a subscriber that is away (https://docs.nats.io/nats-concepts/core-nats).
"""

from __future__ import annotations

import re
import ssl
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from nats.aio.client import Client
from nats.errors import AuthorizationError, Error
from pydantic import Field

from backplane.adapters.nats_link import NatsLink, unavailable
from backplane.broadcaster import Broadcaster, Capabilities, Options
from backplane.errors import (
    BrokerAuthenticationError,
    BrokerError,
    ConfigurationError,
    SubscribeError,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.broadcaster import BrokerUrl, Sink

__all__ = ["NatsBroadcaster", "NatsOptions", "encode_channel"]

_MEBIBYTE: Final = 1024 * 1024
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+")
_SPECIAL: Final = re.compile(rb"[^A-Za-z0-9_-]")
_PREFIX: Final = re.compile(r"([A-Za-z0-9_-]+\.)*")
_AUTHENTICATION_WORDS: Final = ("authorization", "authentication", "user authentication", "credentials", "nkey")


class NatsOptions(Options):
    """Options of `nats://` and `tls://`."""

    prefix: str = ""
    """Tokens in front of every subject, each ended by a dot (`shop.`): to share the server, or to fit a permission."""
    connect_timeout_seconds: float = Field(default=3.0, gt=0)
    """How long connecting to one server, TLS and authentication may take."""
    max_payload_bytes: int = Field(default=_MEBIBYTE, gt=0, le=64 * _MEBIBYTE)
    """Largest payload, in bytes. A server that allows less (`max_payload`, 1 MiB by default) lowers it."""
    max_pending_bytes: int = Field(default=64 * _MEBIBYTE, gt=0)
    """Most bytes published and not yet confirmed; one message is always taken. Over it `publish` raises."""
    client_name: str | None = None
    """Name in the server's monitoring."""
    user_credentials: str | None = None
    """File with a user's JWT and NKey (`.creds`)."""
    nkeys_seed: str | None = None
    """File with an NKey seed."""
    tls_ca_certs: str | None = None
    """File of the authorities to trust. Defaults to the system's."""
    tls_certfile: str | None = None
    """File of the client's certificate."""
    tls_keyfile: str | None = None
    """File of the client's key."""


class NatsBroadcaster(Broadcaster):
    """One link to one NATS server, of several that the URL may name: `nats://one:4222,two:4222`.

    A channel becomes one token of a subject: letters, digits, `_` and `-` stay, every other byte of its UTF-8 is
    written `=XX`. So no channel name is a wildcard or leads into another account's subjects, and `nats pub chat hello`
    reaches the channel `chat`.

    Not guaranteed: in a cluster a server confirms a subscription before the others know of it, so a publish elsewhere,
    in the milliseconds after `subscribe` has returned, can be missed without a gap.
    """

    options_class = NatsOptions
    options: NatsOptions

    def __init__(self, url: BrokerUrl, options: NatsOptions) -> None:
        # A lone user name is a token, and a secret.
        token = url.username if url.password is None else None
        super().__init__(replace(url, username=None, password=token) if token else url, options)
        self._token = token
        if url.path.strip("/"):
            raise ConfigurationError(f"nats: a URL has no path, this one has {url.path!r}")
        if not _PREFIX.fullmatch(options.prefix):
            raise ConfigurationError(
                f"nats: a prefix is made of tokens, each ended by a dot (shop.), not {options.prefix!r}"
            )
        self._servers = [_server(url.scheme, address) for address in url.netloc.split(",")]
        self._sink: Sink | None = None
        self._link: NatsLink | None = None
        self._server_max_payload_bytes = options.max_payload_bytes
        self._description = "NATS"

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do; the largest payload is known for certain once it has started."""
        return Capabilities(
            brokered=True,
            reach="network",
            publish_returns="accepted",
            max_payload_bytes=min(self.options.max_payload_bytes, self._server_max_payload_bytes),
        )

    async def start(self, sink: Sink) -> None:
        """Connect to the first server that answers."""
        self._sink = sink
        client = Client()
        words: list[Exception] = []
        try:
            await self._connect(client, words)
            link = NatsLink(sink, self._lost, self.options.max_pending_bytes)
            _hand_over(client, link)
        except (Error, OSError, TimeoutError, ValueError) as error:
            _abort(client)
            raise self._connect_error(words[-1] if words else error) from error
        except BaseException:
            _abort(client)
            raise
        self._link = link
        self._server_max_payload_bytes = client.max_payload
        version = client.connected_server_version
        self._description = f"NATS {version.major}.{version.minor}.{version.patch}"

    async def stop(self) -> None:
        """Close the connection; publishes without a confirmation raise `PublishOutcomeUnknownError`."""
        self._sink = None
        link, self._link = self._link, None
        if link is not None:
            link.abort()
            await link.closed.wait()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish; returns when the server has confirmed that it took it.

        Raises:
            PublishError: The server refused it, or too much awaits its confirmation (`retriable`).
        """
        await self._require_link().publish(encode_channel(self.options.prefix, channel), payload)

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe; a channel that the permissions deny does not take the others with it."""
        subjects = {encode_channel(self.options.prefix, channel): channel for channel in channels}
        refused = await self._require_link().subscribe(subjects)
        if refused:
            raise SubscribeError({subjects[name]: words for name, words in refused.items()}, adapter="nats")

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Drop `channels`, here at once and then at the server."""
        await self._require_link().unsubscribe(channels)

    async def describe(self) -> str:
        """Return the server's name and version."""
        self._require_link()
        return self._description

    def _require_link(self) -> NatsLink:
        if self._link is None:
            raise unavailable("the link is closed")
        return self._link

    def _lost(self, error: BrokerError) -> None:
        if self._sink is not None:
            self._sink.lost(error)

    async def _connect(self, client: Client, words: list[Exception]) -> None:
        async def keep(error: Exception) -> None:
            words.append(error)

        settings: dict[str, Any] = {
            "servers": self._servers,
            "name": self.options.client_name,
            "error_cb": keep,
            "connect_timeout": self.options.connect_timeout_seconds,
            # One link, and the core opens the next one: nats-py would reconnect in secret.
            "allow_reconnect": False,
            # Each server twice, without a pause; 0 would mean without end.
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0,
            "user": self.url.username,
            "password": None if self._token else self.url.password,
            "token": self._token,
            "user_credentials": self.options.user_credentials,
            "nkeys_seed": self.options.nkeys_seed,
            "tls": self._tls_context(),
        }
        await client.connect(**settings)

    def _tls_context(self) -> ssl.SSLContext | None:
        options = self.options
        if self.url.scheme != "tls" and not (options.tls_ca_certs or options.tls_certfile):
            return None
        context = ssl.create_default_context(cafile=options.tls_ca_certs)
        if options.tls_certfile:
            context.load_cert_chain(options.tls_certfile, options.tls_keyfile)
        return context

    def _connect_error(self, error: Exception) -> BrokerError:
        words = str(error).removeprefix("nats: ") or type(error).__name__
        if isinstance(error, ssl.SSLCertVerificationError):
            return BrokerError(f"{self.url} shows a certificate that is not trusted: {words}", adapter="nats")
        if isinstance(error, AuthorizationError) or any(word in words.lower() for word in _AUTHENTICATION_WORDS):
            return BrokerAuthenticationError(f"{self.url} refused the credentials: {words}", adapter="nats")
        return unavailable(f"cannot reach {self.url}: {words}")


@lru_cache(maxsize=10_000)
def encode_channel(prefix: str, channel: str) -> bytes:
    """Return the subject of a channel: one token behind the prefix, of at most three bytes per byte of the name.

    Two channels never share a subject.
    """
    if _PLAIN.fullmatch(channel):
        return (prefix + channel).encode()
    return prefix.encode() + _SPECIAL.sub(lambda found: b"=%02X" % found[0][0], channel.encode())


def _server(scheme: str, address: str) -> str:
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname or "localhost", parts.port or 4222
    except ValueError as error:
        raise ConfigurationError(f"nats: {address!r} is not host:port: {error}") from None
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _hand_over(client: Client, link: NatsLink) -> None:
    """Take the socket from `client`, whose own tasks have not had a turn yet.

    Its private names in use are those of its three tasks, of its transport, and the stream reader's buffer.
    """
    parts: Any = client
    for task in (parts._reading_task, parts._ping_interval_task, parts._flusher_task):
        task.cancel()
    stream = parts._transport
    link.take_over(stream._io_writer.transport, bytes(stream._io_reader._buffer), client)


def _abort(client: Client) -> None:
    parts: Any = client
    stream = parts._transport
    if stream is not None and stream._io_writer is not None:
        stream._io_writer.transport.abort()
