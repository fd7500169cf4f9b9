"""`redis://`, `rediss://` and `unix://`: Redis pub/sub; `valkey://` and `valkeys://` are the same.

redis-py connects, does the TLS handshake and logs in; then its socket is taken over, because its own `PubSub`
reconnects without a notification, and messages in between are lost unnoticed.

There are two connections: one publishes, in order and many commands per write; the other, opened with the first
subscription, receives. Messages are missed only while the receiving one is down, so its end is a lost link. Where the
publishing one ends and the other is up, no message was missed, and it is replaced without a report.

At most once: Redis keeps no message for a subscriber that is away (https://redis.io/docs/latest/develop/pubsub/). For a
channel with a history a script publishes the message and stores it: see `scripts`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar
from zlib import crc32

import hiredis

from backplane.adapters.redis.connect import Endpoint, Resolve, resolve
from backplane.adapters.redis.errors import (
    classify_reply,
    error_text,
    is_denied,
    is_read_only,
    publish_error,
    recall_error,
    unavailable,
)
from backplane.adapters.redis.history import KEYS_PREFIX, RedisHistory, load_scripts
from backplane.adapters.redis.inspection import describe_server, inspect_server, other_prefixes
from backplane.adapters.redis.link import RedisLink
from backplane.adapters.redis.options import MAX_PREFIX, RedisOptions, check_options
from backplane.adapters.redis.patterns import escape_glob
from backplane.adapters.redis.primary import COMPARE_SECONDS, Primary
from backplane.adapters.redis.publisher_link import PublisherLink
from backplane.adapters.redis.server_info import info_fields
from backplane.adapters.redis.subscriber_link import SubscriberLink
from backplane.broadcaster import Broadcaster, Capabilities
from backplane.errors import BrokerError, BrokerUnavailableError, ConfigurationError, SubscribeError
from backplane.journal.events import ADAPTER_FAULT, BROKER_DETAIL, BROKER_MISFIT
from backplane.journal.writing import write
from backplane.option_checks import most_alike

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from backplane.broadcaster import BrokerUrl, Options, Recalled, Sink
    from backplane.findings import Finding
    from backplane.history_rules import History, HistoryRules
    from backplane.message import Position, Receipt

__all__ = ["RedisBroadcaster", "RedisOptions"]

logger: Final = logging.getLogger("backplane.adapters.redis.broadcaster")

_DEFAULT_PORT: Final = 6379
# A publishing connection that ends as soon as it is open must not be replaced in a busy loop.
_REPLACE_SECONDS: Final = 1.0
# How often about a hundred keys are looked at, in the order of the server's hash table, so at random.
_SAMPLES: Final = 10

_L = TypeVar("_L", bound=RedisLink)


class RedisBroadcaster(Broadcaster):
    """One link to one Redis or Valkey server, which must be a primary.

    Args:
        url: Where it connects.
        options: The validated options.
        compare_seconds: How often a new connection is opened to the address in use, to see whether it still leads to
            the same server.
        resolve: Returns the addresses of a name. Defaults to those that the system's resolver returns.
    """

    options_class: ClassVar[type[Options]] = RedisOptions
    options: RedisOptions
    _replica_hint: ClassVar[str] = "the URL must lead to the primary, or to sentinels that know it (redis+sentinel://)"

    def __init__(
        self,
        url: BrokerUrl,
        options: RedisOptions,
        *,
        compare_seconds: float = COMPARE_SECONDS,
        resolve: Resolve = resolve,
    ) -> None:
        super().__init__(url, options)
        check_options(url, options)
        self._database: int = options.db
        self._resolve = resolve
        self._primary = Primary(
            self._read_url(), url, options, replica_hint=self._replica_hint, compare_seconds=compare_seconds
        )
        self._history = RedisHistory(options, url.username)
        self._sink: Sink | None = None
        self._publisher: PublisherLink | None = None
        self._subscriber: SubscriberLink | None = None
        self._subscriber_opening = asyncio.Lock()  # a new one at each start: a lock belongs to one event loop
        self._replacing: asyncio.Task[None] | None = None
        self._replaced_at = float("-inf")
        self._looked_for_others = False
        if self._database:
            write(
                logger,
                BROKER_MISFIT,
                "%(url)s names database %(database)d, and Redis pub/sub has no databases: other applications on this "
                "server share its channels. The option prefix separates them: ?prefix=myapp:",
                url=url,
                database=self._database,
            )

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return Capabilities(
            brokered=True,
            reach="network",
            publish_returns="accepted",
            max_payload_bytes=self.options.max_payload_bytes,
            keeps="server",
            deduplicates=True,
            patterns=True,
        )

    async def start(self, sink: Sink) -> None:
        """Open the connection that publishes; the one that receives is opened with the first subscription."""
        self._subscriber_opening = asyncio.Lock()
        publisher = await self._primary.open_publisher()
        publisher.adopt(self._publisher_lost)
        self._sink = sink
        self._publisher = publisher
        await self._look_for_others(publisher)

    async def stop(self) -> None:
        """Close both connections; publishes without a reply raise `PublishOutcomeUnknownError`."""
        self._sink = None
        if self._replacing is not None:
            self._replacing.cancel()
            await asyncio.wait([self._replacing])
            self._replacing = None
        links = [link for link in (self._publisher, self._subscriber) if link is not None]
        self._publisher = self._subscriber = None
        for link in links:
            link.end("the link is closed")
        for link in links:
            await link.closed.wait()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish; returns when the server has answered.

        Raises:
            PublishError: The server refused it; `retriable` where it accepts no commands at present, or where too much
                awaits its answer.
        """
        await _required(self._publisher).publish(self._encode(channel), payload)

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe; where an ACL denies one channel, the others are subscribed."""
        subscriber = await self._require_subscriber()
        names = {self._encode(channel): channel for channel in channels}
        refused: dict[str, str] = {}
        unconfirmed: dict[str, str] = {}
        await self._subscribe(subscriber, names, list(names), refused, unconfirmed)
        if refused or unconfirmed:
            raise SubscribeError(refused, unconfirmed=unconfirmed, adapter="redis")

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Drop `channels`, here at once and then at the server."""
        await _required(self._subscriber).unsubscribe([self._encode(channel) for channel in channels])

    async def subscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Subscribe, by one PSUBSCRIBE for each prefix that begins with no other; each is work for every publish."""
        subscriber = await self._require_subscriber()
        refused: dict[str, str] = {}
        unconfirmed: dict[str, str] = {}
        for prefix, error in (await subscriber.subscribe_prefixes(prefixes)).items():
            if classify_reply(error) == "refused":
                refused[prefix] = f"{error}{self._grant_hint(prefix, error)}"
            else:
                unconfirmed[prefix] = str(error)
        if refused or unconfirmed:
            raise SubscribeError(refused, unconfirmed=unconfirmed, adapter="redis")

    async def unsubscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Drop `prefixes`; those that begin with one of them, and are still wanted, are subscribed to before."""
        await _required(self._subscriber).unsubscribe_prefixes(prefixes)

    async def prepare(self, rules: HistoryRules) -> None:
        """Load the scripts that keep and recall, and check that the server permits what they do.

        Raises:
            ConfigurationError: The option `wire_format=plain` is given, which excludes a history.
            BrokerError: The server cannot keep messages, or an ACL denies it; not retriable, with the line to grant.
            BrokerUnavailableError: The link is lost, or leads to a replica.
        """
        await self._history.prepare(_required(self._publisher), self._primary.endpoint.where)

    async def keep(self, channel: str, payload: bytes, rule: History, *, key: bytes | None = None) -> Receipt:
        """Publish and store by one script, which the server runs as a whole, or not at all.

        What the server has confirmed, a failover can lose, as every write to Redis: the replicas are not awaited. A
        position of what was lost is not found afterwards; one from before it is, as if nothing had been published.

        Raises:
            BrokerUnavailableError: Certainly not published. The server is a replica now, so the link is lost; or it had
                lost its scripts, and a later publish was executed before they were loaded again.
            PublishError: The server refused it; `retriable` where it accepts none at present (out of memory), or where
                too much awaits its answer.
        """
        check = crc32(payload)
        command = self._history.keep(channel, payload, check, rule, key)
        try:
            reply = await _required(self._publisher).keep(command)
        except hiredis.ReplyError as error:
            self._leave_replica(error)
            raise publish_error(error) from error
        return self._history.receipt(reply, check)

    async def recall(
        self, channel: str, rule: History, *, after: Position | None, limit: int, max_bytes: int
    ) -> Recalled:
        """Read by one script, at the server as a whole: it holds back other commands for some microseconds a message.

        Raises:
            BrokerUnavailableError: The link is lost, or the server accepts no commands at present.
            BrokerError: The server refuses.
        """
        command = self._history.recall(channel, rule, after, limit, max_bytes)
        try:
            reply = await _required(self._publisher).recall(command)
        except hiredis.ReplyError as error:
            self._leave_replica(error)
            raise recall_error(error, "server") from error
        return self._history.recalled(reply, after)

    async def check(self) -> None:
        """Check that both connections answer, and that they lead to the primary that the name leads to.

        Raises:
            BrokerUnavailableError: They do not.
        """
        await self._check_connections()
        await self._primary.compare(_required(self._publisher))

    async def describe(self) -> str:
        """Return name and version, as `INFO server` reports them; an ACL can deny it."""
        return await describe_server(_required(self._publisher))

    async def inspect(self, subscribers: Mapping[str, int]) -> list[Finding]:
        """Return what of the server's limits can cut links, and whether as many workers have subscribed as should."""
        return await inspect_server(
            _required(self._publisher),
            self.options.prefix,
            subscribers,
            expects_cluster=self.url.scheme.endswith("+cluster"),
        )

    async def others(self, channel: str, most: int) -> list[Broadcaster]:
        """Return adapters with the other prefixes under which a reserved channel has subscribers on this server."""
        publisher = _required(self._publisher)
        try:
            prefixes = await other_prefixes(publisher, self.options.prefix, channel)
        except hiredis.ReplyError:  # an ACL denies it
            return []
        usable = (prefix for prefix in prefixes if len(prefix) <= MAX_PREFIX)
        return [self._with_prefix(prefix) for prefix in most_alike(self.options.prefix, usable, most)]

    def _with_prefix(self, prefix: str) -> Broadcaster:
        # Without the database, which separates no channels, and which another adapter would warn of once more.
        url = replace(self.url, path="") if self.url.path[1:].isdecimal() else self.url
        other = type(self)(url, self.options.model_copy(update={"prefix": prefix, "db": 0}))
        other._looked_for_others = True
        return other

    async def _look_for_others(self, publisher: PublisherLink) -> None:
        """Warn, once, where other applications seem to use the server, and no prefix separates their channels."""
        if self.options.prefix or self._looked_for_others:
            return
        self._looked_for_others = True
        try:
            keyspace = info_fields(await publisher.ask(b"INFO", b"keyspace"))
            others = [name for name in keyspace if name.startswith("db")]
            is_shared = await self._has_foreign_keys(publisher) if others == ["db0"] else bool(others)
        except hiredis.ReplyError:  # an ACL denies it
            return
        if is_shared:
            write(
                logger,
                BROKER_MISFIT,
                "%(url)s holds keys, so others seem to use it: what they publish to a channel of the same name reaches "
                "your clients, and yours theirs. The option prefix keeps them apart: ?prefix=myapp:",
                url=self.url,
            )

    @staticmethod
    async def _has_foreign_keys(publisher: PublisherLink) -> bool:
        """Return whether the first database has keys that belong to no history, as far as a sample shows it."""
        cursor = b"0"
        for _ in range(_SAMPLES):
            cursor, keys = await publisher.ask(b"SCAN", cursor, b"COUNT", b"100")
            if not all(key.startswith(KEYS_PREFIX.encode()) for key in keys):
                return True
            if cursor == b"0":
                break
        return False

    def _read_url(self) -> Endpoint:
        """Return where to connect."""
        path, netloc = self.url.path, self.url.netloc
        if self.url.scheme == "unix":
            if netloc or not path.strip("/"):
                raise ConfigurationError("redis: the path of a socket begins with a slash: unix:///run/redis.sock")
            return Endpoint(path, str(self.url), self.url, self.options)
        if "," in netloc:
            raise ConfigurationError(
                f"redis: {self.url.scheme}:// leads to one server, not to {netloc!r}: give a name with several "
                "addresses, or redis+sentinel://one:26379,two:26379/mymaster"
            )
        if path.strip("/") and not path[1:].isdecimal():
            raise ConfigurationError(f"redis: the path of the URL is a database number, not {path!r}")
        self._database = int(path.strip("/") or self._database)
        (target,) = self.url.servers(_DEFAULT_PORT, adapter="redis")
        return Endpoint(target, str(self.url), self.url, self.options, resolve=self._resolve)

    async def _check_connections(self) -> None:
        """Check that both connections answer, and that the one that publishes leads to a primary."""
        publisher, subscriber = _required(self._publisher), self._subscriber
        if publisher.is_adopted:
            try:
                await self._primary.check_role(publisher)
            except BrokerUnavailableError:
                if self._publisher is publisher or self._sink is None:
                    raise  # otherwise it ended meanwhile and is being replaced
        if subscriber is not None:
            try:
                await subscriber.check(b"PING")
            except hiredis.ReplyError as error:
                words = "the server refuses PING, which is an answer all the same: %(reason)s"
                write(logger, BROKER_DETAIL, words, reason=error)
            await subscriber.repeat_unsubscribes()

    async def _subscribe(
        self,
        subscriber: SubscriberLink,
        channels: Mapping[bytes, str],
        names: Sequence[bytes],
        refused: dict[str, str],
        unconfirmed: dict[str, str],
    ) -> None:
        """Subscribe to `names`. A server refuses a SUBSCRIBE as a whole, so a refused one is repeated in two halves."""
        try:
            await subscriber.subscribe({name: channels[name] for name in names})
        except hiredis.ReplyError as error:
            if classify_reply(error) != "refused":
                unconfirmed |= dict.fromkeys((channels[name] for name in names), str(error))
            elif len(names) == 1:
                refused[channels[names[0]]] = str(error)
            else:
                middle = len(names) // 2
                await self._subscribe(subscriber, channels, names[:middle], refused, unconfirmed)
                await self._subscribe(subscriber, channels, names[middle:], refused, unconfirmed)

    async def _require_subscriber(self) -> SubscriberLink:
        """Return the connection that receives; the first call opens it."""
        async with self._subscriber_opening:
            publisher, sink = self._publisher, self._sink
            if publisher is None or sink is None:
                raise unavailable("the link is closed")
            if self._subscriber is None:
                subscriber = SubscriberLink(sink, self.options.prefix)
                await self._primary.open_beside(subscriber, publisher)
                subscriber.adopt(self._lost)
                self._subscriber = subscriber
            return self._subscriber

    def _publisher_lost(self, error: BrokerError) -> None:
        """Replace the connection that publishes while the one that receives is up; otherwise the link is lost.

        Without a `run_id` a new connection cannot be compared with the other one, so it could lead to another server.
        """
        subscriber, publisher = self._subscriber, self._publisher
        if self._sink is None:
            return
        if publisher is None or subscriber is None or subscriber.loss is not None or not publisher.server.run_id:
            self._lost(error)
            return
        self._publisher = PublisherLink(self.options.max_pending_bytes)  # publishes wait in it until it is adopted
        self._publisher.inherit(publisher)
        self._publisher.server, self._publisher.address = publisher.server, publisher.address
        self._replacing = asyncio.create_task(self._replace(self._publisher, subscriber), name="backplane-redis")
        write(logger, BROKER_DETAIL, "the connection that publishes is replaced: %(reason)s", reason=error)

    async def _replace(self, publisher: PublisherLink, subscriber: SubscriberLink) -> None:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(self._replaced_at + _REPLACE_SECONDS - loop.time())
            self._replaced_at = loop.time()
            await self._primary.open_beside(publisher, subscriber)
            if self._history.is_prepared:
                with suppress(hiredis.ReplyError):  # then the commands that need them fail, with the reason
                    await load_scripts(publisher)
            publisher.adopt(self._publisher_lost)
        except BrokerError as error:
            self._lost(error)
        except Exception as error:
            words = "unexpected error while connecting to %(url)s"
            write(logger, ADAPTER_FAULT, words, url=self._primary.endpoint.where, exc_info=error)
            self._lost(unavailable(f"the connection that publishes ended: {error!r}"))

    def _leave_replica(self, error: hiredis.ReplyError) -> None:
        """Report the link as lost where `error` shows that it leads to a replica: a primary was demoted.

        Raises:
            BrokerUnavailableError: It does.
        """
        if is_read_only(error):
            demoted = unavailable(f"{self._primary.endpoint.where} is a replica now: {error_text(error)}")
            self._lost(demoted)
            raise demoted from error

    def _grant_hint(self, prefix: str, error: hiredis.ReplyError) -> str:
        """Return what to grant where an ACL denies PSUBSCRIBE, which it permits for a pattern that it has literally."""
        if not is_denied(error):
            return ""
        pattern = escape_glob(self.options.prefix + prefix)
        return f"; grant it: ACL SETUSER {self.url.username or 'default'} +psubscribe +punsubscribe &{pattern}*"

    def _encode(self, channel: str) -> bytes:
        return (self.options.prefix + channel).encode()

    def _lost(self, error: BrokerError) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.lost(error)


def _required(link: _L | None) -> _L:
    if link is None:
        raise unavailable("the link is closed")
    return link
