"""`redis://`, `rediss://` and `unix://`: Redis pub/sub; `valkey://` and `valkeys://` are the same.

redis-py connects, speaks TLS and logs in; then its socket is taken over, because its own `PubSub` reconnects in secret
and loses messages without a word. Two connections: one publishes, in order and many commands per write; the other,
opened with the first subscription, receives. The one that receives is the link: with it messages are missed, and its
end is a lost link. One that publishes is replaced in silence where the other stands, for then nobody missed anything.

PUBLISH works on a replica, and on a primary that was replaced, and reaches only those who are there. So both
connections must lead to one primary, and `check` asks again and again whether they still do.

At most once: Redis keeps nothing for a subscriber that is away (https://redis.io/docs/latest/develop/pubsub/).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

import hiredis

from backplane.adapters.redis.connect import Endpoint, first_usable, identify, info_lines, primary_of, text
from backplane.adapters.redis.error import meaning, unavailable
from backplane.adapters.redis.link import Address, PublisherLink, RedisLink, SubscriberLink
from backplane.adapters.redis.options import RedisOptions, check_options, host_and_port, login
from backplane.broadcaster import Broadcaster, Capabilities
from backplane.errors import BrokerError, BrokerUnavailableError, ConfigurationError, SubscribeError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from backplane.broadcaster import BrokerUrl, Options, Sink

__all__ = ["RedisBroadcaster", "RedisOptions"]

logger: Final = logging.getLogger("backplane.adapters.redis.broadcaster")

_DEFAULT_PORT: Final = 6379
# A publishing connection that is ended as soon as it stands must not be replaced in a circle.
_REPLACE_SECONDS: Final = 1.0
# How often a new connection is made to the address in use, to see whether it still leads to the same server: the
# address of a load balancer stays. Where the name has other addresses, that is seen at each check.
_COMPARE_SECONDS: Final = 60.0

_L = TypeVar("_L", bound=RedisLink)


class RedisBroadcaster(Broadcaster):
    """One link to one Redis or Valkey server, which must be a primary."""

    options_class: ClassVar[type[Options]] = RedisOptions
    options: RedisOptions
    _where_to_go: ClassVar[str] = "the URL must lead to the primary, or to sentinels that know it (redis+sentinel://)"

    def __init__(self, url: BrokerUrl, options: RedisOptions) -> None:
        super().__init__(url, options)
        check_options(url, options)
        self._database = options.db
        self._endpoint = self._read_url()
        self._sink: Sink | None = None
        self._publisher: PublisherLink | None = None
        self._subscriber: SubscriberLink | None = None
        self._subscriber_opening = asyncio.Lock()  # anew with each start: a lock belongs to one event loop
        self._replacing: asyncio.Task[None] | None = None
        self._replaced_at = self._compared_at = float("-inf")
        self._warned = False
        self._looked_for_others = False
        if self._database:
            logger.warning(
                "%s names database %d, and Redis pub/sub knows no databases: other applications on this server share "
                "its channels. The option prefix separates them: ?prefix=myapp:",
                url,
                self._database,
            )

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
        self._subscriber_opening = asyncio.Lock()
        publisher = await self._open_publisher(await self._endpoint.addresses())
        publisher.adopt(self._publisher_lost)
        self._sink = sink
        self._publisher = publisher
        self._compared_at = asyncio.get_running_loop().time()
        await self._look_for_others(publisher)

    async def stop(self) -> None:
        """Close both connections; publishes without an answer raise `PublishOutcomeUnknownError`."""
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
            PublishError: The server refused it; `retriable` where it takes no commands at present, or where too much
                awaits its answer.
        """
        await _required(self._publisher).publish(self._encode(channel), payload)

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe; one channel that an ACL denies does not take the others with it."""
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

    async def check(self) -> None:
        """See that both connections answer, and that they lead to the primary that the name leads to.

        Raises:
            BrokerUnavailableError: They do not.
        """
        await self._check_connections()
        await self._compare()

    async def describe(self) -> str:
        """Return name and version, as `INFO server` has them; it can be denied by an ACL."""
        publisher = _required(self._publisher)
        try:
            fields = info_lines(await publisher.ask(b"INFO", b"server"))
        except hiredis.ReplyError:
            fields = {}
        if "valkey_version" in fields:  # it names the Redis it is compatible with too
            return f"Valkey {fields['valkey_version']}"
        return f"Redis {fields.get('redis_version', '(version not granted)')}"

    async def _look_for_others(self, publisher: PublisherLink) -> None:
        """Warn, once, where others seem to use the server, and nothing keeps their channels apart from ours."""
        if self.options.prefix or self._looked_for_others:
            return
        self._looked_for_others = True
        try:
            keyspace = info_lines(await publisher.ask(b"INFO", b"keyspace"))
        except hiredis.ReplyError:  # not granted
            return
        if any(name.startswith("db") for name in keyspace):
            logger.warning(
                "%s holds keys, so others seem to use it: what they publish to a channel of the same name reaches your "
                "clients, and yours theirs. The option prefix keeps them apart: ?prefix=myapp:",
                self.url,
            )

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
        return Endpoint(host_and_port(netloc, _DEFAULT_PORT), str(self.url), self.url, self.options)

    async def _check_connections(self) -> None:
        publisher, subscriber = _required(self._publisher), self._subscriber
        if publisher.is_adopted:
            try:
                await self._check_role(publisher)
            except BrokerUnavailableError:
                if self._publisher is publisher or self._sink is None:
                    raise  # else it was ended and is being replaced
        if subscriber is not None:
            try:
                await subscriber.check(b"PING")
            except hiredis.ReplyError as error:
                logger.debug("an answer all the same: %s", error)
            await subscriber.unsubscribe_abandoned()

    async def _check_role(self, publisher: PublisherLink) -> None:
        server = publisher.server
        try:
            # An ACL that denies ROLE would log each denial.
            answer = await publisher.check(b"ROLE" if server.role else b"PING")
        except hiredis.ReplyError as error:
            logger.debug("the role was not reported: %s", error)
            return
        if (primary := primary_of(answer)) and not server.is_cluster:
            raise unavailable(f"{self._endpoint.where} became a replica of {primary}")

    async def _compare(self) -> None:
        """See that a new connection leads to the server in use: names and load balancers can move while it goes on.

        Raises:
            BrokerUnavailableError: It leads to another primary.
        """
        server, address = _required(self._publisher).server, _required(self._publisher).address
        if not server.run_id or server.role != "master" or server.is_cluster:
            return
        now = asyncio.get_running_loop().time()
        try:
            addresses = await self._endpoint.addresses()
            if address in addresses:
                if now - self._compared_at < _COMPARE_SECONDS:
                    return
                addresses = [address]
            self._compared_at = now
            other = await self._open_publisher(addresses)
        except (BrokerError, ConfigurationError) as error:  # nobody there, or no primary: no better place than here
            logger.debug("nothing to compare the link with: %s", error)
            return
        other.end("it was compared")
        await other.closed.wait()
        if other.server.run_id not in ("", server.run_id):
            raise unavailable(f"{self._endpoint.where} leads to another primary now, {text(other.address)}")

    async def _subscribe(
        self,
        subscriber: SubscriberLink,
        channels: dict[bytes, str],
        names: Sequence[bytes],
        refused: dict[str, str],
        unconfirmed: dict[str, str],
    ) -> None:
        try:
            await subscriber.subscribe({name: channels[name] for name in names})
        except hiredis.ReplyError as error:
            if meaning(error) != "refused":
                unconfirmed |= dict.fromkeys((channels[name] for name in names), str(error))
            elif len(names) == 1:
                refused[channels[names[0]]] = str(error)
            else:  # the server refuses a SUBSCRIBE as a whole: halve it until the culprit stands alone
                middle = len(names) // 2
                await self._subscribe(subscriber, channels, names[:middle], refused, unconfirmed)
                await self._subscribe(subscriber, channels, names[middle:], refused, unconfirmed)

    async def _require_subscriber(self) -> SubscriberLink:
        async with self._subscriber_opening:
            publisher, sink = self._publisher, self._sink
            if publisher is None or sink is None:
                raise unavailable("the link is closed")
            if self._subscriber is None:
                subscriber = SubscriberLink(sink)
                await self._open(subscriber, publisher.address)
                self._require_same_server(subscriber, publisher)
                subscriber.adopt(self._lost)
                self._subscriber = subscriber
            return self._subscriber

    async def _open_publisher(self, addresses: Collection[Address]) -> PublisherLink:
        """Return a connection to the first of `addresses` that is a primary, not adopted."""

        async def opened(address: Address) -> PublisherLink:
            link = PublisherLink(self.options.max_pending_bytes)
            await self._open(link, address)
            return link

        link: PublisherLink = await first_usable(addresses, opened)
        return link

    async def _open(self, link: RedisLink, address: Address) -> None:
        """Connect `link`, and see that it leads to a primary."""
        try:
            await self._endpoint.connect(link, address, await login(self.url, self.options))
            link.server = await identify(link)
            self._require_primary(link)
        except BaseException:
            link.end("it was given up")
            raise

    def _require_primary(self, link: RedisLink) -> None:
        server, where = link.server, self._endpoint.where
        if server.role == "slave" and not server.is_cluster:
            raise unavailable(
                f"{where} is a replica of {server.primary}, and what is published there reaches its own subscribers "
                f"only: {self._where_to_go}"
            )
        if server.role == "sentinel":
            raise BrokerError(
                f"{where} is a sentinel: redis+sentinel:// asks it for the primary", adapter="redis", retriable=False
            )
        if not (server.role and server.run_id) and not self._warned:
            self._warned = True
            logger.warning(
                "%s does not let this user ask ROLE and INFO: that the server was demoted, or that the name leads to "
                "another one, will go unnoticed. Grant them: ACL SETUSER %s +role +info",
                where,
                self.url.username or "default",
            )

    def _require_same_server(self, link: RedisLink, other: RedisLink) -> None:
        one, two = link.server, other.server
        if one.run_id and two.run_id and one.run_id != two.run_id and not one.is_cluster:
            link.end("it leads to another server")
            raise unavailable(
                f"{self._endpoint.where} leads to more than one server: two connections to it found two primaries"
            )

    def _publisher_lost(self, error: BrokerError) -> None:
        """Replace the connection that publishes where the other one stands: its subscribers missed nothing."""
        subscriber, publisher = self._subscriber, self._publisher
        if self._sink is None:
            return
        if publisher is None or subscriber is None or subscriber.loss is not None or not publisher.server.run_id:
            self._lost(error)
            return
        self._publisher = PublisherLink(self.options.max_pending_bytes)  # what is published meanwhile waits in it
        self._publisher.inherit(publisher)
        self._publisher.server, self._publisher.address = publisher.server, publisher.address
        self._replacing = asyncio.create_task(self._replace(self._publisher, subscriber), name="backplane-redis")
        logger.debug("the connection that publishes is replaced: %s", error)

    async def _replace(self, publisher: PublisherLink, subscriber: SubscriberLink) -> None:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(self._replaced_at + _REPLACE_SECONDS - loop.time())
            self._replaced_at = loop.time()
            await self._open(publisher, subscriber.address)
            self._require_same_server(publisher, subscriber)
            publisher.adopt(self._publisher_lost)
        except BrokerError as error:
            self._lost(error)
        except Exception as error:
            logger.exception("unexpected error while connecting to %s", self._endpoint.where)
            self._lost(unavailable(f"the connection that publishes ended: {error!r}"))

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
