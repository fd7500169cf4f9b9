"""The contract of an adapter.

An adapter is one link to one broker and nothing more. It connects when asked to, reports a lost link once, and is
then stopped and started again. Everything else lives in the core and is the same for every broker: reference counts,
batches, back-off, subscribing again after a reconnect, the delivery probe, gaps, queues, encoding.

What every adapter is judged by, beside the promises of each method:

- An answer that cannot be attributed to a channel makes every channel it may concern unconfirmed, or is a gap.
- Silence is judged by what arrived, not by our own clock: use `backplane.concurrency.timeouts.PatientTimeout`.
- A link that answers is not yet one that leads to the right place: see `SupportsLinkCheck`.
- A position carries the identity of its log, and a hole in a log is a gap.
- What one message or one name does, no other pays for, and no reconnect pays for again.
- A passing state of the broker is reported as such and tried again; only a refusal is a refusal.
- Use from another event loop, thread or process raises at once and names the cure.

`backplane.testing.BroadcasterConformance` pins each promise below; a new adapter runs it in a few lines.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict

from backplane.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.errors import BrokerError
    from backplane.message import All, Position

__all__ = [
    "Broadcaster",
    "BrokerUrl",
    "Capabilities",
    "Options",
    "Sink",
    "SupportsDescribe",
    "SupportsLinkCheck",
    "SupportsResume",
    "WireFormat",
    "malformed_address",
]

WireFormat = Literal["header", "plain"]
"""What a payload on the broker is; `backplane.fanout.codec` reads both, whichever it writes.

- `header`: the data after a short header (docs/wire-format.md).
- `plain`: the data alone, for subscribers that know no header: workers that still run another library, services in
  another language. `exclude` cannot work, and binary data that is valid UTF-8 is received as text.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an adapter can do, as data: the conformance suite and the README's table read it, prose cannot rot.

    Attributes:
        brokered: A server stands between publisher and subscriber, so the way there and back can go silent: the core
            sends itself a probe along it.
        reach: How far a message gets: the `process`, the processes of one `host`, or every host of the `network`.
        publish_returns: What is certain when `publish` returns: `delivered` (handed to every subscriber of the process
            or to the kernel for each peer), `accepted` (the broker has answered), `sent` (written towards the broker,
            no answer exists: in a process without channels nothing finds a silent link), `stored` (the broker has it on
            disk or on its replicas).
        resumes: After a lost link the adapter goes on where it was (it is a `SupportsResume`), so the core reports no
            gap of its own for it.
        max_payload_bytes: Largest payload `publish` takes, header of the core included.
    """

    brokered: bool
    reach: Literal["process", "host", "network"]
    publish_returns: Literal["delivered", "sent", "accepted", "stored"]
    resumes: bool = False
    max_payload_bytes: int


class Options(BaseModel):
    """Options of an adapter, filled from the query string of its URL.

    A subclass declares one field per option, with a default; what it does not know is refused with the names it does.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)

    wire_format: WireFormat = "header"
    """What is written to the broker, on every adapter; the core's concern, not the adapter's. Defaults to `header`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerUrl:
    """A broker's URL in its parts, without the query (which became `Options`). `str` and `repr` mask the password."""

    scheme: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    netloc: str = ""
    path: str = ""

    @classmethod
    def parse(cls, url: str) -> BrokerUrl:
        """Split `url`; percent-escapes in user name, password and path are resolved.

        Of several servers each may repeat scheme and user: `nats://me:secret@one,nats://me:secret@two`.

        Raises:
            ValueError: It is not a URL. The message holds no part of it: it can be a password.
        """
        url = _without_repetitions(url)
        try:
            parts = urlsplit(url)
        except ValueError:
            raise ValueError("this is not a URL") from None
        if "@" in parts.path + parts.query + parts.fragment:
            raise ValueError("an @ behind the host must be written %40, and / ? # in a password %2F %3F %23")
        userinfo, _, netloc = parts.netloc.rpartition("@")
        username, colon, password = userinfo.partition(":")
        return cls(
            scheme=parts.scheme,
            username=unquote(username) or None,
            password=unquote(password) if colon else None,
            netloc=netloc,
            path=unquote(parts.path),
        )

    def __str__(self) -> str:
        password = ":***" if self.password is not None else ""
        userinfo = f"{self.username or ''}{password}@" if self.username or password else ""
        return f"{self.scheme}://{userinfo}{self.netloc}{self.path}"


def malformed_address(text: str, *, adapter: str) -> ConfigurationError:
    """Return the error for what should be `host:port` and is not.

    What follows the first colon is not repeated: in `redis://user:password`, which lacks its host, it is a secret.
    """
    host, colon, _ = text.partition(":")
    return ConfigurationError(f"{adapter}: '{host}{colon and ':…'}' is not host:port, with a port of 0 to 65535")


def _without_repetitions(url: str) -> str:
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
    """Where an adapter reports to. Every method is synchronous, returns at once and never raises."""

    def deliver(self, channel: str, payload: bytes, position: Position | None = None) -> None:
        """Hand over one payload received on a subscribed channel, in the order of its channel."""
        ...

    def gap(self, channels: Collection[str] | All, reason: str) -> None:
        """Say that messages of `channels` may be missing here, though the link stands (a queue overran, say)."""
        ...

    def revoked(self, channels: Collection[str], reason: str) -> None:
        """Report that the broker took away these subscriptions, which it had confirmed, while the link stands.

        The core opens a gap on them and subscribes again; subscribers are notified of the gap once the broker has
        confirmed or refused. Channels that are not subscribed are ignored.
        """
        ...

    def lost(self, error: BrokerError) -> None:
        """Say that the link is gone: once per `start`, and after it nothing more until the next `start`."""
        ...


class Broadcaster(ABC):
    """One link to one broker; subclassed by every adapter.

    An adapter that spreads over several connections is one link all the same. It may rebuild one of them by itself: it
    reports `Sink.gap` for the channels of that part once they are confirmed again, and `Sink.lost` only when no part is
    left, or when it cannot heal.

    Constructed without any I/O, outside any event loop. `start` and `stop` may alternate any number of times, and a
    `stop` leaves nothing behind: no task, no socket, no subscription. All methods are called from one event loop.

    Cancelling any awaited method is safe: what was asked may or may not have been done, and nothing leaks.

    Attributes:
        options_class: The options its URL takes.
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
        """What this adapter, as configured, can do."""

    @abstractmethod
    async def start(self, sink: Sink) -> None:
        """Open the link: one try, no back-off. The core bounds the time by cancelling.

        Opens only what publishing needs where that is less: a process that only publishes should hold no subscription.

        Raises:
            BrokerUnavailableError: No broker there.
            BrokerAuthenticationError: It refused the credentials.
            BrokerError: Anything else; `retriable` says whether another try can help.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Close the link, or what is left of a lost one. Never raises; calling it again does nothing."""

    @abstractmethod
    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish `payload`, intact, to every process subscribed to `channel`, this one included, one copy each.

        Payloads of one channel arrive in the order of the calls, whether or not the caller awaits one before the next.
        Returns when the broker has it as firmly as `capabilities.publish_returns` says. Never retried in secret. Many
        publishes at once are answered as the broker works them off, not all together at the end: the core takes a
        queue that does not move for a silent link.

        Raises:
            BrokerUnavailableError: It was certainly not published: the link is gone, or, where it stands, the broker is
                in a passing state, which reaches the caller as an error that can be retried.
            PublishError: The broker refused it, or (`retriable`) too much awaits its answer.
            PublishOutcomeUnknownError: The link ended before the broker's answer.
        """

    @abstractmethod
    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe to `channels`; the core passes some hundreds at a time, none twice.

        When it returns the broker has confirmed: every later publish is delivered, or a gap or a loss is reported.
        An answer that cannot be attributed to a channel confirms none: the adapter reports every channel that it may
        concern as unconfirmed. Where the link ends again and again while the same channels are asked for, the core asks
        for them in ever smaller batches, until the one over which it ends is alone and refused.

        Raises:
            SubscribeError: The broker refused the channels in `refused`, and has given no final answer on those in
                `unconfirmed`, which the core asks for again with back-off; the others are subscribed.
            BrokerUnavailableError: The link is gone.
        """

    @abstractmethod
    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Drop `channels`. When it returns, nothing more arrives for them.

        Raises:
            BrokerUnavailableError: The link is gone, and with it every subscription.
        """


@runtime_checkable
class SupportsLinkCheck(Protocol):
    """An optional ability of a `Broadcaster`: to see that a link which carries leads to the wrong place all the same.

    For brokers where a server that was replaced goes on answering those who stayed on it: the probe of the core comes
    back there, and nobody else receives it. Implementing the method is enough to enable it.
    """

    async def check(self) -> None:
        """Check whether this link still leads to the right place; raises where it does not.

        Called between `start` and `stop`, once per probe interval, whether or not messages flow. It asks over the
        connections that stand, over each of several, or beside them, and it may act: an adapter of several parts may
        rebuild one that leads elsewhere, as described at `Broadcaster`. The core bounds the time by cancelling after
        one interval. Two checks in a row without an answer are a silent link, like two probes. Where the question is
        not allowed, or its answer does not decide, it returns. After it has raised the core rebuilds the link as if it
        were lost.

        Raises:
            BrokerUnavailableError: It leads elsewhere, or it is gone.
        """
        ...


@runtime_checkable
class SupportsDescribe(Protocol):
    """An optional ability of a `Broadcaster`: to say what it is linked to. To have the method announces it."""

    async def describe(self) -> str:
        """Return the name of the broker and its version, in one line for a person: `Redis 7.0.15`, `NATS 2.10.29`.

        Called between `start` and `stop`, by `backplane check` and never on the way of a message. It asks the broker
        over the link that stands and changes nothing there; the core bounds the time by cancelling. Where the broker
        keeps its version to itself, that is no error: `Redis (version not granted)`. No part of the URL stands in it.

        Raises:
            BrokerUnavailableError: The link is gone.
        """
        ...


@runtime_checkable
class SupportsResume(Protocol):
    """An optional ability of a `Broadcaster`: to lose nothing with a link. `capabilities.resumes` announces it.

    The core calls these two instead of `stop` and `start` when it rebuilds a link, whoever found that it was lost.
    `stop` and `start` remain the end and the beginning of a life: what `suspend` kept, `stop` drops.
    """

    async def suspend(self) -> None:
        """Close a lost link as `stop` does, and keep what `resume` goes on with.

        From the call on it delivers nothing: the core no longer listens. A publish without an answer may go on waiting,
        to be sent again by `resume` where the broker can discard the repetition. Never raises; calling it again does
        nothing.
        """
        ...

    async def resume(self, sink: Sink, channels: Collection[str]) -> None:
        """Open the link again, one try, and go on where `suspend` ended: deliver what came on `channels` meanwhile.

        `channels` is all that is wanted now; what was subscribed before and is not among them is dropped. The core
        subscribes to them once more when this has returned. Where something may be missing, `sink.gap` says so before
        the next message.

        Raises:
            BrokerError: As `start`; what was kept is kept for the next try.
        """
        ...
