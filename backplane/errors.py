"""Every error this package raises.

No exception of a broker's client library crosses an adapter: it is the `__cause__` of one of these. A client that
disconnects is an ordinary end and no error. No message, `repr` or log line contains a password.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "AuthorizeTimeoutError",
    "BackplaneError",
    "BrokerAuthenticationError",
    "BrokerError",
    "BrokerUnavailableError",
    "ClosedError",
    "ConfigurationError",
    "InvalidChannelError",
    "InvalidDataError",
    "InvalidMessageError",
    "InvalidPositionError",
    "InvalidTokenError",
    "JoinRefusedError",
    "LifecycleError",
    "MissingDependencyError",
    "NotStartedError",
    "OriginRefusedError",
    "PayloadTooLargeError",
    "PermissionExpiredError",
    "PublishError",
    "PublishOutcomeUnknownError",
    "RefusedError",
    "SlowConsumerError",
    "SubscribeError",
    "TokenCheckUnavailableError",
    "TokenExpiredError",
    "TooManyChannelsError",
    "TooManyConnectionsError",
    "TooManyPresentError",
    "WrongLoopError",
]


class BackplaneError(Exception):
    """Base of every error of this package. Never raised itself."""


class ConfigurationError(BackplaneError, ValueError):
    """A URL, an option or a limit is invalid. The message names the known ones, and the one that was probably meant.

    Raised when the object is made, by the start, or by a publish whose `exclude` the option `wire_format=plain` does
    not allow, or whose `idempotency_key` the channel or the adapter does not; nothing was published. Correct the
    configuration: another try fails in the same way.
    """


class MissingDependencyError(ConfigurationError, ImportError):
    """A package that the URL or the feature needs is not installed. The message names the extra to install.

    Raised when the `Backplane` is made, or when a module of `backplane.server` is imported; nothing was published.
    """


class LifecycleError(BackplaneError, RuntimeError):
    """An object was used in the wrong order: started twice, accepted twice, received from by two tasks.

    Raised at once, with nothing done and nothing published. The message names the remedy, which is a change of the
    application's code.
    """


class NotStartedError(LifecycleError):
    """The backplane was used before it was started.

    Nothing was published. Start it with `lifespan=backplane.lifespan` or `async with backplane`; a script or a task
    queue publishes with `SyncBackplane` or `backplane.sync.publish`.
    """


class ClosedError(LifecycleError):
    """The backplane, the connection or the subscription was used after its end, or while the worker drains.

    Nothing was published. In the handler of a client, return, or let the error end it: the client is closed, and comes
    back to another worker where this one drains. After a stop, start the backplane again.
    """


class TooManyPresentError(BackplaneError):
    """A channel has more connections than its `Presence(max_entries=...)`, so that its users are not known.

    Raised by `PresenceView.users`. Show `connections`, which is known, or raise `max_entries` in every process: each
    entry takes some 300 bytes in every worker that watches the channel.

    Attributes:
        connections: How many connections are in the channel.
    """

    def __init__(self, connections: int) -> None:
        super().__init__(
            f"the channel has {connections:,} connections, and is over the max_entries of its Presence rule: its users "
            "are not known, only `connections` is"
        )
        self.connections: int = connections

    def __reduce__(self) -> tuple[Any, ...]:  # a process pool pickles errors
        return type(self), (self.connections,)


class WrongLoopError(LifecycleError):
    """A started `Backplane`, or an object that belongs to it, was used outside the event loop that started it.

    From another event loop, as `asyncio.run` makes one, from another thread, or from a forked process. Raised at once,
    with nothing done and nothing published. Publish with `backplane.sync.publish` or `SyncBackplane` there; the message
    names the remedy for each case.
    """


class InvalidChannelError(BackplaneError, ValueError):
    """A channel name is not valid: see `backplane.channels` for the rules.

    Raised by a publish, a join and a subscription before anything is sent; nothing was published. Another try fails in
    the same way. Where clients name channels, close theirs or answer them with an error.
    """


class InvalidDataError(BackplaneError, TypeError):
    """The data to publish or to send is neither text, nor bytes, nor anything JSON; or an argument cannot be used.

    Raised before anything is sent; nothing was published. Encode the data first, or publish another type. Of `exclude`
    and `idempotency_key` the message states what is taken.
    """


class InvalidMessageError(BackplaneError):
    """A client sent a message that is not what the application expects.

    Raised by `Connection.receive(model)` for one message; the next one can be received. Send `answer` to the client, or
    let the error end the handler: the client is closed with code 1007, after which it stays away.

    Attributes:
        details: What is invalid, one entry each, with `loc`, `msg` and `type` as pydantic names them.
        reason: The first entry as text.
    """

    def __init__(self, details: Sequence[Mapping[str, Any]]) -> None:
        first: Mapping[str, Any] = details[0] if details else {}
        place = ".".join(str(part) for part in first.get("loc", ()))
        self.reason: str = f"{place + ': ' if place else ''}{first.get('msg', '')}"
        super().__init__(f"invalid message: {self.reason}")
        self.details: list[dict[str, Any]] = [dict(detail) for detail in details]

    @property
    def answer(self) -> dict[str, Any]:
        """What may be sent to the client, as JSON: `{"error": "invalid message", "details": [...]}`."""
        return {"error": "invalid message", "details": self.details}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.details,)


class InvalidPositionError(BackplaneError, ValueError):
    """A text is no position, or none that this version reads; or `rewind` is negative.

    Raised by `Position.parse` and `Backplane.history` at once. At a join a malformed `since` counts as a position that
    is not there any more, and only a negative `rewind` raises it: a handshake, and an event stream, is then answered
    with 400. Begin without a position, as on a first visit.
    """


class PayloadTooLargeError(BackplaneError, ValueError):
    """A message is larger than the adapter, or the server it is linked to, accepts.

    Raised before anything is sent; nothing was published. Another try fails in the same way: publish a reference
    instead, or raise the limit.

    Attributes:
        size_bytes: What the message would take on the broker, header included.
        limit_bytes: What the adapter accepts.
    """

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"the message takes {size_bytes:,} bytes on the broker and the limit is {limit_bytes:,}: "
            "publish a reference to it instead, or raise the adapter's limit if it has an option for that"
        )
        self.size_bytes: int = size_bytes
        self.limit_bytes: int = limit_bytes

    def __reduce__(self) -> tuple[Any, ...]:  # a process pool pickles errors
        return type(self), (self.size_bytes, self.limit_bytes)


class SlowConsumerError(BackplaneError):
    """A subscription with the policy `close` was not read fast enough: its outbox was full, and it has ended.

    Raised by the iteration of `Backplane.subscribe`. Messages are missing: reload the state, then subscribe again. A
    connection is closed with code 1013 instead, and comes back by itself.
    """


class RefusedError(BackplaneError):
    """Base of the refusals of a client by a rule of the application or of the settings.

    Raised by `connect` and `sse`, or by a join. Let it end the handler: the client then gets the close code or the
    status that belongs to it. `BackplaneError` covers it, `BrokerError` does not.
    """


class OriginRefusedError(RefusedError):
    """A page of another site wanted to connect (cross-site WebSocket hijacking), or by another host name.

    Raised by `connect`, in the handshake, and by `sse` for a host name that is none of `allowed_hosts`. If the site or
    the name is one of yours, allow it with `allowed_origins` or `allowed_hosts`; the message names it.
    """


class TooManyConnectionsError(RefusedError):
    """The worker, this client on this worker, or this user on all workers, has as many connections as are allowed.

    Raised by `connect` and `sse`: `Settings.max_connections`, `Limits.max_connections_per_client` (each worker counts
    its own), `Limits.max_connections_per_user`. The client is closed with a code that makes it try again
    later. If it happens to ordinary clients, raise the limit, start more workers, or pass `client_key`: behind a proxy
    that hides addresses all clients count as one.
    """


class TooManyChannelsError(RefusedError):
    """A connection wanted to join more channels than are allowed.

    Raised by the join, which had no effect; the connection goes on with the channels it has.
    """


class JoinRefusedError(RefusedError):
    """The application's `authorize` did not allow a connection to join a channel.

    Raised by the join, which had no effect; the connection goes on with the channels it has. In `connect` and `sse` it
    refuses the client.
    """


class PermissionExpiredError(RefusedError):
    """The permission of a client (`expires_at`) had ended before the client was accepted.

    Raised by `connect` and `sse`. The client needs a new token.
    """


class TokenExpiredError(PermissionExpiredError):
    """The token of a client has expired.

    Raised by what checks tokens for the Centrifugal endpoint, `JwtTokens` or the application's own: the SDK then gets a
    new token, and tries again.
    """


class InvalidTokenError(RefusedError):
    """The token of a client is not valid, or not for what it is used for. It never holds the token.

    Raised by what checks tokens for the Centrifugal endpoint, `JwtTokens` or the application's own. A client that
    connects with it is closed and stays away; a subscription is refused, and the client goes on without it.
    """


class TokenCheckUnavailableError(BackplaneError):
    """A token cannot be checked at the moment: the keys of its issuer cannot be fetched, a service does not answer.

    Raised by what checks tokens for the Centrifugal endpoint, `JwtTokens` or the application's own: the SDK tries
    again, with a pause that grows.
    """


class AuthorizeTimeoutError(BackplaneError):
    """The application's `authorize` did not answer within `Settings.authorize_timeout_seconds`.

    Raised by a join, which had no effect, and by `connect` and `sse`, which close the client with a code that makes it
    try again later. Look for what `authorize` waits for.
    """


class BrokerError(BackplaneError):
    """The broker, or the link to it, failed.

    Base of the errors below. Raised itself by a start, for a failure that is none of them, such as a certificate that
    is not trusted.

    Attributes:
        adapter: Name of the adapter, as in its URL: `redis`; empty for an error of the core.
        reason: The message without the name of the adapter.
        retriable: Whether the same call can succeed later with nothing changed on this side.
    """

    retriable: bool = False

    def __init__(self, message: str, *, adapter: str = "", retriable: bool | None = None) -> None:
        super().__init__(f"{adapter}: {message}" if adapter else message)
        self.adapter: str = adapter
        self.reason: str = message
        if retriable is not None:
            self.retriable = retriable


class BrokerUnavailableError(BrokerError):
    """The broker cannot be reached, or cannot do what was asked at the moment. It was certainly not done.

    Raised by a publish: the message was not published, and publishing it again does not duplicate it. The link is
    rebuilt in the background, and the publish has already waited for it: answer 503, or try again later. Raised by a
    join or a subscription: the broker did not confirm the channel in time. Raised by a start: no broker answered.
    """

    retriable = True


class BrokerAuthenticationError(BrokerError):
    """The broker refused the credentials.

    Raised by the start. Correct the user name, the password or the token, or the broker's rules.
    """


class PublishError(BrokerError):
    """The broker refused a message. It was certainly not published.

    The message of the error holds the broker's reason, such as a missing permission. With `retriable`, too many
    messages wait for the broker's answer: publish more slowly, and try again.
    """


class PublishOutcomeUnknownError(PublishError):
    """The link ended, or time ran out, between the sending of a message and the broker's answer.

    The message may or may not have been published. It is not published again automatically, since that could duplicate
    it. Where a duplicate does no harm, publish again; where it does, publish with an `idempotency_key` from the start,
    or give messages an id that receivers compare.
    """


class SubscribeError(BrokerError):
    """The broker did not confirm one or more channels; every other channel of the same call is subscribed.

    Raised by a join and by `Backplane.subscribe` with refused channels only: a channel without a final answer is
    subscribed to again until the time of the join is up, which raises `BrokerUnavailableError`. Correct the broker's
    rules, or use other channels.

    Attributes:
        refused: The channels that the broker refused, each with the broker's reason. Another try fails until the
            broker's rules change.
        unconfirmed: The channels without a final answer, each with the reason: the broker reported a passing state (a
            script runs, it is loading its data, a failover is in progress), or its refusal named no channel.
    """

    def __init__(
        self, refused: Mapping[str, str], *, unconfirmed: Mapping[str, str] | None = None, adapter: str = ""
    ) -> None:
        self.refused: dict[str, str] = dict(refused)
        self.unconfirmed: dict[str, str] = dict(unconfirmed or {})
        parts = [_listed("subscription refused", self.refused), _listed("not confirmed yet", self.unconfirmed)]
        super().__init__("; ".join(filter(None, parts)), adapter=adapter, retriable=not self.refused)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), unconfirmed=self.unconfirmed, adapter=self.adapter), (self.refused,)


def _listed(title: str, channels: Mapping[str, str]) -> str:
    """Return up to five channels with their reasons, in one line."""
    if not channels:
        return ""
    shown = "; ".join(f"{channel!r}: {reason}" for channel, reason in list(channels.items())[:5])
    more = f" (and {len(channels) - 5} more)" if len(channels) > 5 else ""
    return f"{title}: {shown}{more}"
