"""`nats://` and `tls://`: core NATS pub/sub, one server or a cluster.

At most once: core NATS keeps nothing for a subscriber that is away (https://docs.nats.io/nats-concepts/core-nats).
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
from collections import deque
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Final

from pydantic import Field

from backplane.adapters.nats.group import unavailable
from backplane.adapters.nats.link import NatsLink
from backplane.adapters.nats.login import NatsLogin, Tls
from backplane.adapters.nats.servers import Server, Servers
from backplane.adapters.shared.credentials import CREDENTIALS_PATTERN
from backplane.adapters.shared.tls import client_context
from backplane.broadcaster import Broadcaster, Capabilities, Options, malformed_address
from backplane.channels import RESERVED_PREFIX
from backplane.errors import (
    BrokerAuthenticationError,
    BrokerError,
    ConfigurationError,
    PayloadTooLargeError,
    PublishError,
    PublishOutcomeUnknownError,
    SubscribeError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from backplane.broadcaster import BrokerUrl, Sink

__all__ = ["NatsBroadcaster", "NatsOptions", "encode_channel"]

_MEBIBYTE: Final = 1024 * 1024
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+")
_SPECIAL: Final = re.compile(rb"[^A-Za-z0-9_-]")
_PREFIX: Final = re.compile(r"([A-Za-z0-9_-]+\.)*")
# "Authentication Timeout" is none of them: the server was waiting for this process.
# And "no credentials" is what the application's own callable could not provide.
_CREDENTIALS_REFUSED: Final = re.compile(
    r"^(?!no credentials: ).*(authorization violation|authentication (expired|revoked)|credentials)", re.I
)
# The workers of a server in lame duck mode do not move at the same time.
_LEAVE_SPREAD_SECONDS: Final = 1.0
_LEAVE_RETRY_SECONDS: Final = 1.0
_SETTLE_SECONDS: Final = 1.0
# How long a server that does not answer is waited for alone: a host that is gone refuses nothing.
_NEXT_SERVER_SECONDS: Final = 1.0


class NatsOptions(Options):
    """Options of `nats://` and `tls://`."""

    prefix: str = ""
    """Tokens in front of every subject, each ended by a dot (`shop.`): to share the server, or to fit a permission."""
    connect_timeout_seconds: float = Field(default=3.0, gt=0)
    """How long connecting to one server, TLS and authentication may take."""
    max_payload_bytes: int = Field(default=_MEBIBYTE, gt=0, le=64 * _MEBIBYTE)
    """Largest payload, in bytes. A server, or an account, that allows less (`max_payload`) lowers it."""
    max_pending_bytes: int = Field(default=64 * _MEBIBYTE, gt=0)
    """Most bytes published and not yet confirmed; one message is always taken. Over it `publish` raises."""
    client_name: str | None = None
    """Name in the server's monitoring."""
    password_file: str | None = None
    """File with the password of the URL's user, or with a token where the URL names none. Read at each login."""
    credentials: str | None = Field(default=None, pattern=CREDENTIALS_PATTERN)
    """`package.module:callable`, called at each login for what expires: returns a token, `(username, password)`, or the
    text of a `.creds` file; async, or run in a thread."""
    user_credentials: str | None = None
    """File with a user's JWT and NKey (`.creds`). Read at each login."""
    nkeys_seed: str | None = None
    """File with an NKey seed. Read at each login."""
    tls_ca_certs: str | None = None
    """File of the authorities to trust. Defaults to the system's. Each TLS option asks for TLS as `tls://` does."""
    tls_certfile: str | None = None
    """File of the client's certificate."""
    tls_keyfile: str | None = None
    """File of the client's key. Defaults to the certificate's file."""
    tls_first: bool = False
    """Start with the TLS handshake, as a server with `handshake_first` expects it. Defaults to false."""


class NatsBroadcaster(Broadcaster):
    """One link to one NATS server, of several that the URL may name: `nats://one:4222,two:4222`.

    The servers of which a cluster notifies its clients are remembered for as long as this object lives, and tried in
    turn with those of the URL. A server in lame duck mode is left as soon as another one accepts the login.

    A channel becomes one token of a subject: letters, digits, `_` and `-` stay, every other byte of its UTF-8 is
    written `=XX`. So no channel name is a wildcard or leads into another account's subjects, and `nats pub chat hello`
    reaches the channel `chat`. The package's own channels have one token per part: `=24backplane.>` grants them all.

    With `tls://`, or any TLS option, a server that offers no TLS is left before anything is sent to it.

    Not guaranteed: in a cluster a server confirms a subscription before the others know of it, so a publish elsewhere,
    in the milliseconds after `subscribe` has returned, can be missed without a gap.
    """

    options_class: ClassVar[type[Options]] = NatsOptions
    options: NatsOptions

    def __init__(self, url: BrokerUrl, options: NatsOptions) -> None:
        self._login = NatsLogin(url, options)
        if url.username and url.password is None and options.password_file is None:
            url = replace(url, username=None, password=url.username)  # a token is a secret like a password
        super().__init__(url, options)
        if "//" in url.path:
            raise ConfigurationError(f"nats: all servers of a URL have its scheme: {url.scheme}://one:4222,two:4222")
        if url.path.strip("/"):
            raise ConfigurationError(f"nats: a URL has no path, this one has {url.path!r}")
        if not _PREFIX.fullmatch(options.prefix):
            raise ConfigurationError(
                f"nats: a prefix is made of tokens, each ended by a dot (shop.), not {options.prefix!r}"
            )
        if options.tls_keyfile and not options.tls_certfile:
            raise ConfigurationError("nats: tls_keyfile needs tls_certfile")
        self._servers = Servers([_server(address) for address in url.netloc.split(",")])
        tls_options = (options.tls_ca_certs, options.tls_certfile, options.tls_first)
        self._tls = Tls(
            required=url.scheme == "tls" or any(tls_options),
            first=options.tls_first,
            make_context=self._tls_context,
        )
        self._line_limits: dict[str, int] = {}
        self._sink: Sink | None = None
        self._link: NatsLink | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._max_payload_bytes = options.max_payload_bytes

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do; the largest payload is known for certain once it has started."""
        return Capabilities(
            brokered=True,
            reach="network",
            publish_returns="accepted",
            max_payload_bytes=self._max_payload_bytes,
        )

    async def start(self, sink: Sink) -> None:
        """Connect to the first server that accepts the login."""
        link = await self._connect(sink)
        if not link.is_open:  # ended before anybody could be notified
            raise unavailable(f"cannot reach {self.url}: the connection ended")
        self._sink, self._link = sink, link
        self._adapt(link)

    async def stop(self) -> None:
        """Close the connection; publishes without a confirmation raise `PublishOutcomeUnknownError`."""
        self._sink = None
        link, self._link = self._link, None
        leaving, self._leaving = self._leaving, None
        if leaving is not None:
            leaving.cancel()
        try:
            if link is not None and link.info.ldm:  # left in time: what was asked of it is still answered
                with suppress(TimeoutError):
                    async with asyncio.timeout(_SETTLE_SECONDS):
                        await link.settle()
        finally:
            if link is not None:
                link.abort()
                await link.closed.wait()
            if leaving is not None:
                await asyncio.wait([leaving])

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish; returns when the server has confirmed that it accepted it.

        Raises:
            PayloadTooLargeError: The server, or the account, accepts less; nothing was sent.
            PublishError: The server refused it, or too much awaits its confirmation (`retriable`).
        """
        if len(payload) > self._max_payload_bytes:  # a server can lower it at any time
            raise PayloadTooLargeError(len(payload), self._max_payload_bytes)
        try:
            await self._require_link().publish(encode_channel(self.options.prefix, channel), payload)
        except PublishOutcomeUnknownError:
            raise
        except PublishError as error:
            hint = self._hint(channel, str(error))
            if not hint:
                raise
            raise PublishError(f"{str(error).removeprefix('nats: ')}{hint}", adapter="nats") from error

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe; a channel that the permissions deny does not take the others with it.

        Over the server's or the account's limit of subscriptions channels are unconfirmed, for places get free.
        Only the package's own are refused then: an application does not pay for a probe with its link.
        """
        subjects = {encode_channel(self.options.prefix, channel): channel for channel in channels}
        answer = await self._require_link().subscribe(subjects)
        if answer.refused or answer.unconfirmed:
            own = {name for name in answer.unconfirmed if name.startswith(RESERVED_PREFIX)}
            answer.refused.update((name, answer.unconfirmed.pop(name)) for name in own)
            refused = {name: words + self._hint(name, words) for name, words in answer.refused.items()}
            raise SubscribeError(refused, unconfirmed=answer.unconfirmed, adapter="nats")

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Drop `channels`, here at once and then at the server."""
        await self._require_link().unsubscribe(channels)

    async def describe(self) -> str:
        """Return the server's name and version."""
        version = re.match(r"[0-9A-Za-z.+-]{1,40}", self._require_link().info.version)
        return f"NATS {version[0] if version else '(version not granted)'}"

    def _hint(self, channel: str, words: str) -> str:
        """Return what to permit where one of the package's own channels was denied."""
        if not channel.startswith(RESERVED_PREFIX) or "permissions" not in words.lower():
            return ""
        subjects = encode_channel(self.options.prefix, f"{RESERVED_PREFIX}x").decode().removesuffix("x") + ">"
        return f'; the package\'s own subjects are "{subjects}": allow them for publish and subscribe'

    def _require_link(self) -> NatsLink:
        if self._link is None:
            raise unavailable("the link is closed")
        return self._link

    async def _connect(self, sink: Sink) -> NatsLink:
        """Return a link to the first server that accepts the login; one that is slow to answer holds up no other."""
        failures: list[tuple[NatsLink, Exception]] = []
        opening: set[asyncio.Task[NatsLink | None]] = set()
        servers = deque(self._servers.in_order())
        try:
            while servers or opening:
                if servers:
                    opening.add(asyncio.create_task(self._open(servers.popleft(), sink, failures)))
                seconds = _NEXT_SERVER_SECONDS if servers else None
                await asyncio.wait(opening, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in opening if task.done()]:
                    opening.remove(task)
                    if (link := task.result()) is not None:
                        return await _first(link, opening)
        finally:
            await _abandon(opening)
        raise self._most_telling(failures) from failures[-1][1]

    async def _open(self, server: Server, sink: Sink, failures: list[tuple[NatsLink, Exception]]) -> NatsLink | None:
        """Return a link to `server`, or add why there is none to `failures`."""
        link = NatsLink(
            sink,
            server,
            on_lost=self._lost,
            on_info=self._informed,
            max_pending_bytes=self.options.max_pending_bytes,
            line_limits=self._line_limits,
        )
        try:
            await self._login.open(link, self._tls)
        except (OSError, BrokerError) as error:
            failures.append((link, error))
            return None
        finally:
            if link.is_up:
                self._servers.reached(server)
            else:  # failed, or cancelled
                link.abort()
                self._servers.failed(server)
        return link

    def _informed(self, link: NatsLink) -> None:
        """Remember which servers there are, and follow what the server in use announces."""
        verified = link.is_encrypted or not self._tls.required
        self._servers.learn(link.info.connect_urls or (), link.server, verified=verified)
        if link is self._link:
            self._adapt(link)

    def _adapt(self, link: NatsLink) -> None:
        self._max_payload_bytes = min(self.options.max_payload_bytes, link.max_payload_bytes)
        if link.info.ldm and self._leaving is None:
            self._leaving = asyncio.create_task(self._leave(link), name="backplane-nats-leave")

    async def _leave(self, link: NatsLink) -> None:
        """Report a server in lame duck mode as lost before it closes the link, once another one accepts the login."""
        await asyncio.sleep(random.uniform(0, _LEAVE_SPREAD_SECONDS))  # noqa: S311  # spreads, hides nothing
        while self._sink is not None:
            self._servers.failed(link.server)
            with suppress(BrokerError, ConfigurationError):  # the latter by a callable that provides credentials
                other = await self._connect(self._sink)
                other.abort()
                if other.info.server_id != link.info.server_id and not other.info.ldm:
                    return self._lost(link, unavailable("the server is about to close (lame duck mode)"))
            await asyncio.sleep(_LEAVE_RETRY_SECONDS)

    def _lost(self, link: NatsLink, error: BrokerError) -> None:
        if link is self._link and self._sink is not None:
            sink, self._sink = self._sink, None
            sink.lost(error)

    def _tls_context(self) -> ssl.SSLContext:
        options = self.options
        return client_context(options.tls_ca_certs, options.tls_certfile, options.tls_keyfile, adapter="nats")

    def _most_telling(self, failures: Sequence[tuple[NatsLink, Exception]]) -> BrokerError:
        """Return the error of a start: a refusal before silence, for another try does not help against it."""
        for link, error in failures:
            words = str(error).removeprefix("nats: ")
            if isinstance(error, ssl.SSLCertVerificationError):
                return BrokerError(f"{self.url} shows a certificate that is not trusted: {words}", adapter="nats")
            if isinstance(error, BrokerError) and not error.retriable:
                return BrokerError(f"{self.url}, server {link.server}: {words}", adapter="nats")
            if isinstance(error, BrokerError) and _CREDENTIALS_REFUSED.search(words):
                return BrokerAuthenticationError(f"{self.url} refused the credentials: {words}", adapter="nats")
        return unavailable(f"cannot reach {self.url}: {'; '.join(self._reason(*failure) for failure in failures)}")

    def _reason(self, link: NatsLink, error: Exception) -> str:
        words = str(error).removeprefix("nats: ") or f"no answer within {self.options.connect_timeout_seconds:g} s"
        greeted = link.info.server_id or not isinstance(error, (TimeoutError, ssl.SSLError, BrokerError))
        if self._tls.required and not greeted:
            other = "false" if self._tls.first else "true"
            words += f"; no INFO came, as from a server that wants tls_first={other} (its handshake_first)"
        return words if str(link.server) == self.url.netloc else f"{link.server}: {words}"


async def _first(link: NatsLink, opening: Collection[asyncio.Task[NatsLink | None]]) -> NatsLink:
    """Return `link` once nothing else is being opened; cancelled meanwhile, end it too."""
    try:
        await _abandon(opening)
    except BaseException:
        link.abort()
        raise
    return link


async def _abandon(opening: Collection[asyncio.Task[NatsLink | None]]) -> None:
    """End what is still opening a link, and a link that was opened in the same moment as another one."""
    for task in opening:
        task.cancel()
    if opening:
        await asyncio.wait(opening)
    for task in opening:
        if not task.cancelled() and (link := task.result()) is not None:
            link.abort()


@lru_cache(maxsize=10_000)
def encode_channel(prefix: str, channel: str) -> bytes:
    """Return the subject of a channel: one token after the prefix, of at most three bytes per byte of the name.

    A reserved channel has a token for each of its parts, so that one wildcard permits them all, random ends included.
    Two channels never share a subject.
    """
    if _PLAIN.fullmatch(channel):
        return (prefix + channel).encode()
    if channel.startswith(RESERVED_PREFIX):
        return prefix.encode() + b".".join(_token(part) or b"=" for part in channel.split("/"))
    return prefix.encode() + _token(channel)


def _token(name: str) -> bytes:
    return _SPECIAL.sub(lambda found: b"=%02X" % found[0][0], name.encode())


def _server(address: str) -> Server:
    try:
        return Server.parse(address)
    except ValueError:
        raise malformed_address(address, adapter="nats") from None
