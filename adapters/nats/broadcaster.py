"""`nats://` and `tls://`: core NATS pub/sub, one server or a cluster, with JetStream for channels with a history.

At most once without a history: core NATS keeps no message for a subscriber that is away
(https://docs.nats.io/nats-concepts/core-nats).
"""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Final

from backplane.adapters.nats.connect import NatsConnector
from backplane.adapters.nats.errors import unavailable
from backplane.adapters.nats.history import NatsHistory
from backplane.adapters.nats.inspection import inspect_server
from backplane.adapters.nats.login import NatsLogin
from backplane.adapters.nats.options import NatsOptions, check_options
from backplane.adapters.nats.subjects import encode_channel, reserved_subjects
from backplane.adapters.shared.error_chain import reason_of
from backplane.broadcaster import Broadcaster, Capabilities
from backplane.channels import RESERVED_PREFIX
from backplane.errors import (
    BrokerError,
    ConfigurationError,
    PayloadTooLargeError,
    PublishError,
    PublishOutcomeUnknownError,
    SubscribeError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from backplane.adapters.nats.link import NatsLink
    from backplane.broadcaster import BrokerUrl, Options, Recalled, Sink
    from backplane.findings import Finding
    from backplane.history_rules import History, HistoryRules
    from backplane.message import Position, Receipt

__all__ = ["NatsBroadcaster", "NatsOptions"]

# The workers of a server in lame duck mode do not leave it at the same time.
_LEAVE_SPREAD_SECONDS: Final = 1.0
_LEAVE_RETRY_SECONDS: Final = 1.0
_SETTLE_SECONDS: Final = 1.0


class NatsBroadcaster(Broadcaster):
    """One link to one NATS server, of several that the URL may name: `nats://one:4222,two:4222`.

    The servers of which a cluster notifies its clients are remembered for as long as this object lives, and tried in
    turn with those of the URL. A server in lame duck mode is left as soon as another one accepts the login.

    A channel becomes one token of a subject (`backplane.adapters.nats.subjects`), and `nats pub chat hello` reaches the
    channel `chat`. The package's own channels have one token per part: `=24backplane.>` grants them all.

    With `tls://`, or any TLS option, nothing is sent to a server that offers no TLS.

    Not guaranteed: in a cluster a server confirms a subscription before the other servers know of it, so a publish at
    another one, in the milliseconds after `subscribe` has returned, can be missed without a gap.
    """

    options_class: ClassVar[type[Options]] = NatsOptions
    options: NatsOptions

    def __init__(self, url: BrokerUrl, options: NatsOptions) -> None:
        login = NatsLogin(url, options)
        if url.username and url.password is None and options.password_file is None:
            url = replace(url, username=None, password=url.username)  # a token is a secret, as a password is
        super().__init__(url, options)
        check_options(url, options)
        self._history = NatsHistory(options)
        self._connector = NatsConnector(
            url, options, login, on_lost=self._lost, on_info=self._info_received, logs=self._history.logs
        )
        self._sink: Sink | None = None
        self._link: NatsLink | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._max_payload_bytes: int = options.max_payload_bytes

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do; the largest payload is known for certain once it has started."""
        return Capabilities(
            brokered=True,
            reach="network",
            publish_returns="accepted",
            max_payload_bytes=self._max_payload_bytes,
            keeps="server",
            deduplicates=True,
            live_may_skip=True,
            patterns=True,
        )

    async def start(self, sink: Sink) -> None:
        """Connect to the first server that accepts the login."""
        link = await self._connector.connect(sink)
        if not link.is_open:  # it ended before `_lost` could attribute its end to this start
            raise unavailable(f"cannot reach {self.url}: the connection ended")
        self._sink, self._link = sink, link
        self._follow_info(link)

    async def stop(self) -> None:
        """Close the connection; publishes without a confirmation raise `PublishOutcomeUnknownError`.

        A server in lame duck mode still confirms what was published before it was left, so it is waited for.
        """
        self._sink = None
        link, self._link = self._link, None
        leaving, self._leaving = self._leaving, None
        if leaving is not None:
            leaving.cancel()
        try:
            if link is not None and link.info.ldm:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_SETTLE_SECONDS):
                        await link.settle()
        finally:
            if link is not None:
                link.abort()
                await link.closed.wait()
            await self._history.stop()
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
        if channel in self._history.order:
            await self._history.order.enter_publish(channel)
        try:
            await self._require_link().publish(encode_channel(self.options.prefix, channel), payload)
        except PublishOutcomeUnknownError:
            raise
        except PublishError as error:
            hint = self._permission_hint(channel, str(error))
            if not hint:
                raise
            raise PublishError(f"{reason_of(error)}{hint}", adapter="nats") from error

    async def prepare(self, rules: HistoryRules) -> None:
        """Find or create the stream of each pattern.

        A stream that exists is used as it is, even if it was created with other limits: it is logged once.

        Raises:
            BrokerError: The server has no JetStream, the user may not use it, or a stream of this name has other
                subjects; not retriable, and the message states what to do.
        """
        await self._history.prepare(self._require_link(), rules)

    async def keep(self, channel: str, payload: bytes, rule: History, *, key: bytes | None = None) -> Receipt:
        """Publish to the stream of the channel; returns when the stream has stored it.

        Where the stream is missing it is created again, and this raises `BrokerUnavailableError`.

        Raises:
            PayloadTooLargeError: The server, or the account, accepts less. With a key, 60 bytes of headers count.
        """
        if len(payload) > self._max_payload_bytes:
            raise PayloadTooLargeError(len(payload), self._max_payload_bytes)
        return await self._history.keep(self._require_link(), channel, payload, key=key)

    async def recall(
        self, channel: str, rule: History, *, after: Position | None, limit: int, max_bytes: int
    ) -> Recalled:
        """Read from the stream of the channel.

        What has expired cannot be resumed, unless this adapter is subscribed to the channel and has received it.
        """
        return await self._history.recall(self._require_link(), channel, after=after, limit=limit, max_bytes=max_bytes)

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe; where the permissions deny one channel, the others are subscribed.

        Over the server's or the account's limit of subscriptions, channels are unconfirmed, because other clients may
        unsubscribe. The package's own channels are refused then: over a probe that stays unconfirmed the core would
        rebuild the link again and again.
        """
        subjects = {encode_channel(self.options.prefix, channel): channel for channel in channels}
        result = await self._require_link().subscribe(subjects)
        if result.refused or result.unconfirmed:
            reserved = {name for name in result.unconfirmed if name.startswith(RESERVED_PREFIX)}
            result.refused.update((name, result.unconfirmed.pop(name)) for name in reserved)
            refused = {name: reason + self._permission_hint(name, reason) for name, reason in result.refused.items()}
            raise SubscribeError(refused, unconfirmed=result.unconfirmed, adapter="nats")

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Drop `channels`, here at once and then at the server."""
        await self._require_link().unsubscribe(channels)

    async def subscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Subscribe to the wildcard of all channels, and drop here what begins with no prefix that is wanted."""
        result = await self._require_link().subscribe_prefixes(prefixes)
        if result.refused or result.unconfirmed:
            hint = f"; grant subscribe to {self.options.prefix}*"
            refused = {prefix: reason + hint for prefix, reason in result.refused.items()}
            raise SubscribeError(refused, unconfirmed=result.unconfirmed, adapter="nats")

    async def unsubscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Drop `prefixes`, here at once, and the wildcard with the last of them."""
        await self._require_link().unsubscribe_prefixes(prefixes)

    async def describe(self) -> str:
        """Return the server's name and version."""
        version = re.match(r"[0-9A-Za-z.+-]{1,40}", self._require_link().info.version)
        return f"NATS {version[0] if version else '(version not granted)'}"

    async def inspect(self, subscribers: Mapping[str, int]) -> list[Finding]:
        """Return whether the server accepts payloads as large as they may be, and whether it is about to end."""
        return inspect_server(self._require_link().info, self.options.max_payload_bytes)

    def _permission_hint(self, channel: str, reason: str) -> str:
        """Return what to permit where one of the package's own channels was denied; empty otherwise."""
        if not channel.startswith(RESERVED_PREFIX) or "permissions" not in reason.lower():
            return ""
        subjects = reserved_subjects(self.options.prefix)
        return f'; the package\'s own subjects are "{subjects}": allow them for publish and subscribe'

    def _require_link(self) -> NatsLink:
        if self._link is None:
            raise unavailable("the link is closed")
        return self._link

    def _info_received(self, link: NatsLink) -> None:
        if link is self._link:
            self._follow_info(link)

    def _follow_info(self, link: NatsLink) -> None:
        """Follow what the server in use announces: its largest payload, and its end."""
        self._max_payload_bytes = min(self.options.max_payload_bytes, link.max_payload_bytes)
        if link.info.ldm and self._leaving is None:
            self._leaving = asyncio.create_task(self._leave(link), name="backplane-nats-leave")

    async def _leave(self, link: NatsLink) -> None:
        """Report a server in lame duck mode as lost before it closes the link, once another one accepts the login."""
        await asyncio.sleep(random.uniform(0, _LEAVE_SPREAD_SECONDS))  # noqa: S311  # spreads load, hides nothing
        while self._sink is not None:
            self._connector.servers.failed(link.server)
            with suppress(BrokerError, ConfigurationError):  # the latter by a callable that provides credentials
                other = await self._connector.connect(self._sink)
                other.abort()
                if other.info.server_id != link.info.server_id and not other.info.ldm:
                    return self._lost(link, unavailable("the server is about to close (lame duck mode)"))
            await asyncio.sleep(_LEAVE_RETRY_SECONDS)

    def _lost(self, link: NatsLink, error: BrokerError) -> None:
        if link is self._link and self._sink is not None:
            sink, self._sink = self._sink, None
            sink.lost(error)
