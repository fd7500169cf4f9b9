"""The contract of an adapter.

An adapter is one link to one broker and nothing more. It connects when it is started, reports a lost link once, and is
then stopped and started again. Everything else is in the core, and the same for every broker: reference counts,
batches, back-off, subscribing again after a reconnect, the delivery probe, gaps, queues, encoding.

Beside the promises of each method, these rules hold for every adapter:

- An answer that cannot be attributed to a channel leaves every channel that it may concern unconfirmed, or is a gap.
- A broker is silent when nothing arrives while this process runs, not when a timer of this process expires: use
  `backplane.concurrency.timeouts.PatientTimeout`.
- A link that answers can lead to the wrong server: see `SupportsLinkCheck`.
- A position names the log that it belongs to, and a hole in a log is a gap.
- One message or one channel name that fails must not affect other messages and channels, and must not fail again after
  each reconnect.
- A passing state of the broker is reported as unavailable or unconfirmed, and tried again. Only a refusal is reported
  as a refusal.
- A use from another event loop, thread or process raises at once, and the error names the remedy.

`backplane.testing.BroadcasterConformance` tests each promise below; a new adapter runs it in a few lines.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple, Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict

from backplane.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from backplane.errors import BrokerError
    from backplane.findings import Finding
    from backplane.history_rules import History, HistoryRules
    from backplane.message import All, Place, Position, Receipt
    from backplane.transaction import Statement

__all__ = [
    "Broadcaster",
    "BrokerUrl",
    "Capabilities",
    "KeptMessage",
    "Options",
    "Recalled",
    "Sink",
    "SupportsDescribe",
    "SupportsHistory",
    "SupportsInspect",
    "SupportsLinkCheck",
    "SupportsOthers",
    "SupportsPrefixes",
    "SupportsResume",
    "SupportsSchema",
    "SupportsTransactions",
    "WireFormat",
    "malformed_address",
    "split_address",
]

WireFormat = Literal["header", "plain"]
"""Format of the payloads on the broker. Both are read, whichever is written.

- `header`: the data after a short header (docs/adapters/wire-format.md).
- `plain`: the data alone, for subscribers that do not read the header: workers that still run another library, services
  in another language. `exclude` cannot be used, and binary data that is valid UTF-8 is received as text.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an adapter can do, as data that the conformance suite tests and the documentation is generated from.

    Attributes:
        brokered: Messages pass a server, so the link can become silent without an error: the core publishes a delivery
            probe to itself.
        reach: How far a message gets: the `process`, the processes of one `host`, or every host of the `network`.
        publish_returns: What is certain when `publish` returns.
            `delivered`: every subscriber of this process has the message, or the kernel has it for each peer.
            `stored`: the broker has it on disk or on its replicas.
            `accepted`: the broker has confirmed it.
            `sent`: it was written to the connection, and the broker does not answer. A process that is subscribed to
            nothing cannot detect a silent link then.
        resumes: The adapter continues without loss after a lost link (it is a `SupportsResume`), so the core reports no
            gap of its own.
        max_payload_bytes: Largest payload that `publish` accepts, header of the core included.
        keeps: Where the history of a channel is, and so what it survives. It is gone with the `process`, or with the
            `host` (every process of it may end), or it is kept by the `server`. `nothing`: the adapter keeps none;
            every other value means that it is a `SupportsHistory`.
        deduplicates: `SupportsHistory.keep` drops the second message with the same key.
        parts: The link has parts that fail one at a time, such as the shards of a cluster. The adapter finds a silent
            part by itself, in `SupportsLinkCheck.check` and by a limit of its own on every command, and reports it for
            the channels of that part alone. The core then takes the link for silent only where `check` does: a delivery
            probe, or publishes, without an answer show no more than that one part is silent.
        live_may_skip: A message that was stored can, rarely, never be delivered live, without an error and without a
            later message that shows it (NATS at a change of the leader): the core compares quiet channels from time to
            time.
        patterns: The adapter, as it is configured, delivers every channel that begins with a prefix (it is a
            `SupportsPrefixes`), so that subscriptions to patterns can be offered.
    """

    brokered: bool
    reach: Literal["process", "host", "network"]
    publish_returns: Literal["delivered", "sent", "accepted", "stored"]
    resumes: bool = False
    max_payload_bytes: int
    keeps: Literal["nothing", "process", "host", "server"] = "nothing"
    deduplicates: bool = False
    parts: bool = False
    live_may_skip: bool = False
    patterns: bool = False


class Options(BaseModel):
    """Options of an adapter, filled from the query string of its URL.

    A subclass declares one field per option, with a default. An unknown option is refused with an error that lists the
    known ones.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)

    wire_format: WireFormat = "header"
    """Format of the payloads. The core writes and reads it, on every adapter. Defaults to `header`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerUrl:
    """A broker's URL in parts, without the query (which became `Options`). `str` and `repr` mask the password.

    Attributes:
        scheme: `redis`, in small letters.
        username: User name, or `None`.
        password: Password, or `None`.
        netloc: Host and port, or several of them, separated by commas.
        path: What follows, with its first slash.
    """

    scheme: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    netloc: str = ""
    path: str = ""

    @classmethod
    def parse(cls, url: str) -> BrokerUrl:
        """Split `url`; percent-escapes in user name, password and path are resolved.

        In a list of servers, each may repeat scheme and user: `nats://me:secret@one,nats://me:secret@two`.

        Raises:
            ValueError: It is not a URL. The message holds no part of it, since that can be a password.
        """
        url = _without_repetitions(url)
        try:
            parts = urlsplit(url)
        except ValueError:
            raise ValueError("this is not a URL") from None
        if "@" in parts.path + parts.query + parts.fragment:
            raise ValueError("an @ after the host must be written %40, and / ? # in a password %2F %3F %23")
        userinfo, _, netloc = parts.netloc.rpartition("@")
        if "," in userinfo.partition("@")[2]:
            raise ValueError(
                "user and password stand once, in front of the first host, and an @ in them is written %40"
            )
        username, colon, password = userinfo.partition(":")
        return cls(
            scheme=parts.scheme,
            username=unquote(username) or None,
            password=unquote(password) if colon else None,
            netloc=netloc,
            path=unquote(parts.path),
        )

    def servers(self, default_port: int, *, adapter: str) -> list[tuple[str, int]]:
        """Return host and port of each server: `one:5432,two` has two. A host that is missing is `localhost`.

        Args:
            default_port: The port of a server without one.
            adapter: Name of the adapter, for the error.

        Raises:
            ConfigurationError: One of them is something else, or an empty one stands between commas.
        """
        texts = self.netloc.split(",")
        if len(texts) > 1 and "" in texts:
            raise malformed_address("", adapter=adapter)
        found: list[tuple[str, int]] = []
        for text in texts:
            try:
                found.append(split_address(text, default_port))
            except ValueError:
                raise malformed_address(text, adapter=adapter) from None
        return found

    def __str__(self) -> str:
        password = ":***" if self.password is not None else ""
        userinfo = f"{self.username or ''}{password}@" if self.username or password else ""
        return f"{self.scheme}://{userinfo}{self.netloc}{self.path}"


# In brackets `%` precedes the zone of an IPv6 address; in a name an escape would be taken as a part of the name.
_ADDRESS: Final = re.compile(r"(\[[^\[\]\s]*\]|[^\[\]\s%\x00-\x1f\x7f]*)(:\d*)?")


def split_address(text: str, default_port: int) -> tuple[str, int]:
    """Return host and port of `host:port`, of which either may be missing: the host is `localhost` then.

    Raises:
        ValueError: It is something else.
    """
    parts = urlsplit(f"//{text}")
    if parts.path or parts.query or parts.fragment or parts.username is not None:
        raise ValueError("more than host and port")
    if not _ADDRESS.fullmatch(text):
        raise ValueError("no name of a host, and no address")
    return parts.hostname or "localhost", parts.port or default_port


def malformed_address(text: str, *, adapter: str) -> ConfigurationError:
    """Return the error for a text that should be `host:port` and is not.

    What follows the first colon is left out: in `redis://user:password`, which lacks the host, it is a secret.
    """
    host, colon, _ = text.partition(":")
    return ConfigurationError(f"{adapter}: '{host}{colon and ':…'}' is not host:port, with a port of 0 to 65535")


def _without_repetitions(url: str) -> str:
    """Return `url` with scheme and user of a list of servers written once, in front of the first."""
    scheme, _, rest = url.partition("://")
    user = re.match(r"[^,/?#]*@", rest)
    first, *others = re.split(rf",{re.escape(scheme)}://", url, flags=re.IGNORECASE)
    for place, other in enumerate(others):
        own = re.match(r"[^,/?#]*@", other)
        if own is not None and (user is None or own[0] != user[0]):
            raise ValueError("all servers of a list share one user: write it once, in front of the first")
        others[place] = other[own.end() :] if own else other
    return ",".join((first, *others))


class Sink(Protocol):
    """What an adapter reports to. Every method is synchronous, returns at once and never raises.

    To be called in the event loop that started the adapter; from another thread the methods raise `WrongLoopError`.
    Reports that arrive after the core has called `stop` or `suspend` are ignored.
    """

    def deliver(self, channel: str, payload: bytes, place: Place | None = None) -> None:
        """Report one payload that was received on a subscribed channel, in the order of its channel.

        Args:
            channel: The channel it was published to.
            payload: Exactly the bytes that were published.
            place: Its place in the channel's history, where it was published by `SupportsHistory.keep`. A payload
                without one is delivered, and is in no history.
        """
        ...

    def gap(self, channels: Collection[str] | All, reason: str) -> None:
        """Report that messages of `channels` may be missing at this place, while the link stays open.

        For example, a queue of the client library overflowed. To be called after the last message before the stretch
        and before the first one after it: subscribers are notified in that order.

        Args:
            channels: The channels concerned, or `ALL`. Channels that are not subscribed are ignored.
            reason: Why, in words, for a log and for `Gap.reason`. Must hold no password.
        """
        ...

    def revoked(self, channels: Collection[str], reason: str) -> None:
        """Report that the broker revoked these subscriptions, which it had confirmed, while the link stays open.

        The core opens a gap on the channels and subscribes again. Subscribers are notified of the gap once the broker
        has confirmed or refused. Channels that are not subscribed are ignored.
        """
        ...

    def lost(self, error: BrokerError) -> None:
        """Report that the link is lost, once per `start`; report nothing more until the next `start`.

        The core then calls `stop` (or `suspend`), and `start` (or `resume`) after a back-off.
        """
        ...


class Broadcaster(ABC):
    """One link to one broker. Every adapter is a subclass.

    A link can consist of several connections. The adapter may then rebuild one of them by itself. It reports `Sink.gap`
    for the channels of that part once they are confirmed again; or it reports them to `Sink.revoked` at once, and the
    core subscribes to them again, with back-off, and reports the gap then. It reports `Sink.lost` only when no part is
    left, or when it cannot rebuild one. `Capabilities.parts` declares parts that can be down for long while others
    work. Meanwhile, and at once, `publish` raises `BrokerUnavailableError` for the channels of that part, and
    `subscribe` reports them as unconfirmed.

    The constructor does no I/O and runs outside any event loop. After it, `start` and `stop` alternate any number of
    times, and `stop` leaves no task, socket or subscription. All methods are called in one event loop.

    Cancelling any of the awaited methods is safe: what was requested may or may not have been done, and nothing leaks.

    Attributes:
        options_class: The options that the URL accepts.
        url: Where it connects.
        options: The validated options.
    """

    options_class: ClassVar[type[Options]] = Options
    url: BrokerUrl
    options: Any

    def __init__(self, url: BrokerUrl, options: Options) -> None:
        self.url = url
        self.options = options

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What this adapter, as it is configured, can do. A server can change `max_payload_bytes` with each link."""

    @abstractmethod
    async def start(self, sink: Sink) -> None:
        """Open the link, in one try and without back-off. The core limits the time by cancelling.

        Opens only what publishing needs where that is less: a process that only publishes must hold no subscription.

        Raises:
            BrokerUnavailableError: No broker answers there.
            BrokerAuthenticationError: The broker refused the credentials.
            BrokerError: Anything else; `retriable` decides whether the core tries again.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Close the link, or what is left of a lost one. Never raises; a second call does nothing."""

    @abstractmethod
    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish `payload` to every process that is subscribed to `channel`, this one included, one copy each.

        The payload arrives unchanged. Payloads of one channel arrive in the order of the calls, even if the caller does
        not await one before it makes the next call. Returns when the broker has the payload as firmly as
        `capabilities.publish_returns` declares. The adapter does not publish it a second time, unless the broker can
        discard the duplicate.

        Many publishes at once are answered one after the other as the broker processes them, and not all together at
        the end: the core takes a queue of publishes that does not move for a silent link.

        Raises:
            BrokerUnavailableError: Certainly not published. Either the link is lost, and the core publishes it on the
                next one; or the link stays open and the broker is in a passing state, and the caller gets the error.
            PublishError: The broker refused it, or (`retriable`) too many publishes wait for an answer.
            PublishOutcomeUnknownError: The link ended before the broker's answer.
        """

    @abstractmethod
    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe to `channels`; the core passes some hundreds at a time, none twice.

        When it returns, the broker has confirmed: every later publish is delivered, or a gap or a loss is reported.

        An answer that cannot be attributed to a channel confirms none: the adapter reports every channel that it may
        concern as unconfirmed. If the link ends each time the same channels are subscribed, the core subscribes to them
        in ever smaller batches, until the one that ends the link is alone and is refused.

        Raises:
            SubscribeError: The broker refused the channels in `refused`, and gave no final answer on those in
                `unconfirmed`, to which the core subscribes again with back-off; the others are subscribed.
            BrokerUnavailableError: The link is lost.
        """

    @abstractmethod
    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Unsubscribe from `channels`. When it returns, nothing more is delivered on them.

        Raises:
            BrokerUnavailableError: The link is lost, and with it every subscription.
        """


@runtime_checkable
class SupportsLinkCheck(Protocol):
    """An optional ability of a `Broadcaster`: to detect that a working link leads to the wrong server.

    For brokers where a server that was replaced goes on answering the clients that are still connected to it. The
    delivery probe of the core comes back on such a link, while no other worker receives what is published. Implementing
    the method is enough to enable it.
    """

    async def check(self) -> None:
        """Check that this link still leads to the right server.

        Called between `start` and `stop`, once per probe interval, whether or not messages arrive. It may ask on the
        open connections, on each of several, or on another one. It may act: an adapter of several parts may rebuild one
        that leads to the wrong server, as `Broadcaster` describes. The core limits the time to one interval by
        cancelling; two checks in a row without an answer are a silent link, like two probes.

        Returns where the question is not permitted, or its answer is not conclusive. If it raises, the core rebuilds
        the link as if it were lost.

        Raises:
            BrokerUnavailableError: The link leads to the wrong server, or is lost.
        """
        ...


@runtime_checkable
class SupportsDescribe(Protocol):
    """An optional ability of a `Broadcaster`: to describe what it is linked to.

    Implementing the method is enough to enable it.
    """

    async def describe(self) -> str:
        """Return the name of the broker and its version in one line: `Redis 7.0.15`, `NATS 2.10.29`.

        Called between `start` and `stop` by `backplane check`, never for a message. It asks the broker on the open link
        and changes nothing there; the core limits the time by cancelling. A broker that does not reveal its version is
        no error: `Redis (version not granted)`. The line must hold no part of the URL.

        Raises:
            BrokerUnavailableError: The link is lost.
        """
        ...


@runtime_checkable
class SupportsInspect(Protocol):
    """An optional ability of a `Broadcaster`: to look for what in the broker's configuration can go wrong.

    Implementing the method is enough to enable it.
    """

    async def inspect(self, subscribers: Mapping[str, int]) -> list[Finding]:
        """Return what was found, one entry for each check, those without a fault included.

        Called between `start` and `stop` by `backplane doctor`, never for a message. It asks the broker on the open
        link and changes nothing there; the core limits the time by cancelling. What the broker does not allow to read
        is an entry with the level `skipped`. No entry holds a secret.

        Args:
            subscribers: How many workers should have subscribed to a channel, for brokers that can state how many have.

        Raises:
            BrokerUnavailableError: The link is lost.
        """
        ...


@runtime_checkable
class SupportsOthers(Protocol):
    """An optional ability of a `Broadcaster`: to find what else shares the broker, as with another prefix by mistake.

    Implementing the method is enough to enable it.
    """

    async def others(self, channel: str, most: int) -> list[Broadcaster]:
        """Return adapters of the same kind, not started, each under another name or prefix that seems to be in use.

        Those first whose name or prefix is most like the one of this adapter: on a broker that many share, only these
        are of interest.

        Called between `start` and `stop` by `Backplane.explain`, where no worker has what is looked for. It asks the
        broker on the open link and changes nothing there; the core limits the time by cancelling. What the broker does
        not allow to read is not returned.

        Args:
            channel: One that every worker of a cluster has subscribed to.
            most: How many at most.

        Raises:
            BrokerError: The broker could not be asked.
        """
        ...


@runtime_checkable
class SupportsPrefixes(Protocol):
    """An optional ability of a `Broadcaster`: to deliver every channel that begins with a prefix.

    `capabilities.patterns` declares it. The core offers patterns on top: it passes the literal prefix of each pattern,
    what is before its first `*`, and matches the whole pattern itself. The empty prefix stands for every channel.

    Prefixes and channels are subscribed to and unsubscribed from independently of each other. A message of a channel
    that is subscribed by its name, by a prefix, or by several of them is delivered exactly once, in the order of its
    channel, also while one of them is added or removed. What `SupportsHistory.keep` publishes is delivered as well,
    with its place.

    The core passes each prefix that is wanted, also one that begins with another one that is wanted: the adapter
    decides what it asks its broker for. Channels of this package, which begin with `$backplane/`, may be delivered for
    the empty prefix: the core ignores those that it has not subscribed to by name.

    As subscriptions of channels, those of prefixes end with `stop` or a lost link, and the core passes them again after
    the next `start`. A `SupportsResume` keeps them over `suspend` and `resume`, which delivers what it missed of them
    too; afterwards the core passes those that are wanted once more, and unsubscribes from the others. After a gap of
    one channel on a prefix alone, `Sink.gap` names that channel, or `ALL` where the channels are not known. A prefix
    cannot be reported to `Sink.revoked`: report the link as lost, or subscribe again and report a gap of `ALL`.
    """

    async def subscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Subscribe to every channel that begins with one of `prefixes`; the core passes some hundreds, none twice.

        When it returns, every later publish of any worker to such a channel is delivered, whether or not the channel
        was used before, or a gap or a loss is reported.

        Raises:
            SubscribeError: As for `Broadcaster.subscribe`, with prefixes in the place of channels.
            BrokerUnavailableError: The link is lost.
        """
        ...

    async def unsubscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Unsubscribe from `prefixes`. When it returns, nothing more is delivered because of them alone.

        Raises:
            BrokerUnavailableError: The link is lost, and with it every subscription.
        """
        ...


@runtime_checkable
class SupportsResume(Protocol):
    """An optional ability of a `Broadcaster`: to rebuild a link without loss. `capabilities.resumes` declares it.

    The core calls `suspend` and `resume` in place of `stop` and `start` when it rebuilds a link, whether the adapter or
    the core found that it was lost. The first link is opened by `start`, and the last one closed by `stop`, which also
    drops what `suspend` kept.
    """

    async def suspend(self) -> None:
        """Close a lost link as `stop` does, and keep what `resume` needs to continue.

        Delivers nothing from the call on: the core ignores it. A publish without an answer may go on waiting, and be
        sent again by `resume` if the broker can discard the duplicate. Never raises; a second call does nothing.
        """
        ...

    async def resume(self, sink: Sink, channels: Collection[str]) -> None:
        """Open the link again, in one try, and deliver what was published to `channels` since `suspend`.

        `channels` is everything that is wanted now; other subscriptions are dropped. The core subscribes to all of them
        once more when this has returned. Where messages may be missing, the adapter calls `sink.gap` before it delivers
        the next one.

        Raises:
            BrokerError: As for `start`; what was kept is kept for the next try.
        """
        ...


@runtime_checkable
class SupportsSchema(Protocol):
    """An optional ability of a `Broadcaster`: to keep messages in tables, which must be created once.

    Implementing the method is enough to enable it.
    """

    def schema(self) -> str:
        """Return the SQL that creates what the adapter needs, for `backplane schema`; again it changes nothing."""
        ...


@runtime_checkable
class SupportsTransactions(Protocol):
    """An optional ability of a `Broadcaster`: to publish by a statement in a transaction of the application.

    For brokers that are the application's database. Implementing the method is enough to enable it.
    """

    def transaction_statement(
        self, channel: str, payload: bytes, rule: History | None = None, *, key: bytes | None = None
    ) -> Statement:
        """Return the statement that publishes `payload` when, and only when, the transaction around it commits.

        Does no I/O, and is called in any thread, whether or not the adapter is started. A payload over
        `capabilities.max_payload_bytes` never gets here.

        Args:
            channel: Where to.
            payload: What.
            rule: How much of this channel is kept, where it has a history: only of an adapter that is a
                `SupportsHistory`, and the message gets its position at the commit.
            key: As of `SupportsHistory.keep`.
        """
        ...


class KeptMessage(NamedTuple):
    """One message of a channel's history.

    Attributes:
        payload: Exactly the bytes that were published.
        place: Its position; `before` and `before_check` where the broker states them.
    """

    payload: bytes
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled:
    """What `SupportsHistory.recall` has read.

    Attributes:
        items: The messages, oldest first, without a hole between them.
        top: Position of the newest message of the channel when it was read; of a channel without any message the one
            with offset 0. The broker can have messages after the last of `items`.
        found: Whether `after` can be resumed; `True` without `after`.
        more: Whether the history holds more messages than `items`: newer ones with `after`, older ones without.
    """

    items: list[KeptMessage] = field(default_factory=list[KeptMessage])
    top: Position
    found: bool = True
    more: bool = False


@runtime_checkable
class SupportsHistory(Protocol):
    """An optional ability of a `Broadcaster`: to keep messages, and to read again what was kept.

    `capabilities.keeps` declares it. A broker numbers the messages of a channel that `keep` publishes in one order, the
    same for every process, and `Sink.deliver` gets each with its `Place`. What `publish` publishes is not kept.

    A position can be resumed while the message it names is still kept, by offset and check; or it is the newest there
    ever was; or the message after it is kept and names it, by offset and check. Limits and age drop the oldest messages
    first, so then nothing after it is missing. The broker keeps one message more than `max_messages`, so that a client
    that missed as many finds its position. A position of another channel, of another broker or made up is not found,
    whatever its numbers are.
    """

    async def prepare(self, rules: HistoryRules) -> None:
        """Prepare the broker for channels with these rules. Called after each `start` or `resume`, before `subscribe`.

        Raises:
            BrokerError: The server cannot keep messages as it is configured, or does not permit it; not retriable, and
                the message states what to configure or to grant.
            BrokerUnavailableError: The link is lost.
        """
        ...

    async def keep(self, channel: str, payload: bytes, rule: History, *, key: bytes | None = None) -> Receipt:
        """Publish and store `payload`, both or neither; else as `Broadcaster.publish`, in one order with it.

        Args:
            channel: Where to.
            payload: What.
            rule: How much the broker keeps of this channel.
            key: A second call with the same key on this channel, within 300 seconds and by any process, publishes
                nothing, and returns the receipt of the first with `duplicate`. Only where `capabilities.deduplicates`.

        Raises:
            BrokerUnavailableError, PublishError, PublishOutcomeUnknownError: As for `Broadcaster.publish`.
        """
        ...

    async def recall(
        self, channel: str, rule: History, *, after: Position | None, limit: int, max_bytes: int
    ) -> Recalled:
        """Read from the history of `channel`, whether or not it is subscribed to.

        Reads at least up to the newest message whose `keep` had returned, or that was delivered live, when this was
        called. The first `recall` of a channel that was never used gives it its epoch, so that "nothing yet" and "lost,
        and begun anew" differ. Many calls at once are pipelined.

        Args:
            channel: The channel.
            rule: Its rule.
            after: Return the messages after this position, from the oldest on. With `None` the newest ones. Its check
                can be a `ShortCheck`: compare it by `==`, and return it nowhere.
            limit: Most messages; with 0 only `top` and `found` are read.
            max_bytes: Stop after the message with which the payloads exceed this together, and set `more`.

        Raises:
            BrokerUnavailableError: The link is lost, or the broker is in a passing state.
            BrokerError: The broker refuses.
        """
        ...
