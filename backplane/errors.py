"""Every error this package raises.

No exception of a broker's client library crosses an adapter: it stands as `__cause__` of one of these. A client that
went away is an ordinary end and no error. No message, `repr` or log line contains a password.
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
    "TooManyChannelsError",
    "TooManyConnectionsError",
    "WrongLoopError",
]


class BackplaneError(Exception):
    """Base of every error of this package.

    What to do: catch it where every failure of this package gets the same answer; otherwise catch one of those below.
    """


class ConfigurationError(BackplaneError, ValueError):
    """A URL, an option or a limit is wrong; the message names what is known.

    Published: no.

    What to do: correct the URL, the option or the argument that the message names. It is raised when the value is
    given, so a start finds it.
    """


class MissingDependencyError(ConfigurationError, ImportError):
    """The adapter of this URL needs a package that is not installed; the message names the extra that brings it.

    What to do: install the extra that the message names, such as `pip install 'fastapi-backplane[redis]'`.
    """


class LifecycleError(BackplaneError, RuntimeError):
    """Something was used out of its order: twice started, already accepted.

    Published: no.

    What to do: correct the order of the calls; the message names the mistake.
    """


class NotStartedError(LifecycleError):
    """The backplane was used before it was started.

    What to do: start it by `lifespan=backplane.lifespan` or `async with backplane:`; see that the server runs the
    lifespan.
    """


class ClosedError(LifecycleError):
    """The backplane, or the connection, was used after its end.

    What to do: let the handler end: a `connect` block ends by it like by any other end of the connection.
    """


class WrongLoopError(LifecycleError):
    """A started `Backplane`, or what belongs to it, was used outside the event loop that started it.

    From another event loop, as `asyncio.run` makes one, from another thread, or from a forked process. Raised at once,
    with nothing done; the message names the cure.

    What to do: call it in the event loop that started it, or publish by `backplane.sync.publish(...)` from synchronous
    code.
    """


class InvalidChannelError(BackplaneError, ValueError):
    """A channel name is not legal (see `backplane.channels`).

    Published: no.

    What to do: build channel names from values that were checked, or by a typed channel.
    """


class InvalidDataError(BackplaneError, TypeError):
    """What was to be published is neither text, nor bytes, nor anything JSON.

    Published: no.

    What to do: publish text, bytes, or a value that JSON can hold.
    """


class InvalidMessageError(BackplaneError):
    """What a client sent is not what the application expects.

    What to do: send `answer` to the client, as `Connection.iter` does by itself.

    Attributes:
        details: What is wrong, one entry each, with `loc`, `msg` and `type` as pydantic names them.
    """

    def __init__(self, details: Sequence[Mapping[str, Any]]) -> None:
        first: Mapping[str, Any] = details[0] if details else {}
        place = ".".join(str(part) for part in first.get("loc", ()))
        super().__init__(f"invalid message: {place + ': ' if place else ''}{first.get('msg', '')}")
        self.details = [dict(detail) for detail in details]

    @property
    def answer(self) -> dict[str, Any]:
        """What may be sent to the client, as JSON: `{"error": "invalid message", "details": [...]}`."""
        return {"error": "invalid message", "details": self.details}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.details,)


class PayloadTooLargeError(BackplaneError, ValueError):
    """A message is larger than the adapter takes. Raised before anything is sent.

    Published: no.

    What to do: publish a reference to the data, or raise the adapter's `max_payload_bytes` where the broker takes more.

    Attributes:
        size_bytes: What the message would take on the broker, header included.
        limit_bytes: What the adapter takes.
    """

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"the message takes {size_bytes:,} bytes on the broker and the limit is {limit_bytes:,}: "
            "publish a reference to it instead, or raise the adapter's limit if it has an option for that"
        )
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes

    def __reduce__(self) -> tuple[Any, ...]:  # a process pool pickles errors
        return type(self), (self.size_bytes, self.limit_bytes)


class SlowConsumerError(BackplaneError):
    """More waited for a subscriber with the policy `close` than its outbox allows, and it was cut.

    What to do: load the state again and subscribe again; raise the bounds, or choose another policy, where it recurs.
    """


class RefusedError(BackplaneError):
    """A rule of the application does not let this client do that.

    What to do: nothing in the handler: the client is refused or closed with the code of its reason.
    """


class OriginRefusedError(RefusedError):
    """A page of another site wanted to connect (cross-site WebSocket hijacking); the message names how to allow it.

    What to do: list the site in `allowed_origins` if it is yours.
    """


class TooManyConnectionsError(RefusedError):
    """The worker, or this client, has as many connections as are allowed.

    What to do: raise the bound, or start more workers; the client comes back by itself.
    """


class TooManyChannelsError(RefusedError):
    """A connection wanted to join more channels than are allowed.

    What to do: join fewer channels for one connection, or raise `Limits.max_channels`.
    """


class JoinRefusedError(RefusedError):
    """The application's `authorize` did not let a connection join a channel.

    What to do: nothing where the rule is right; let it leave the block, which closes the client with 4503.
    """


class PermissionExpiredError(RefusedError):
    """The permission of a client had run out before it was let in (`connect(expires_at=...)`).

    What to do: nothing on the server; the client gets a new token and comes back.
    """


class AuthorizeTimeoutError(BackplaneError):
    """The application's `authorize` did not answer within `Settings.authorize_timeout_seconds`: try again later.

    What to do: find out what `authorize` waits for; the client comes back by itself.
    """


class BrokerError(BackplaneError):
    """The broker, or the way to it, failed.

    Published: no, with one exception: `PublishOutcomeUnknownError`.

    What to do: let it leave the `connect` block, which closes the client with 1013 in its turn, or catch it where the
    handler should go on. In an HTTP route install `broker_error_response`.

    Attributes:
        adapter: Name of the adapter, as in its URL: `redis`.
        retriable: Whether the same call can succeed later with nothing changed on this side.
    """

    retriable: bool = False

    def __init__(self, message: str, *, adapter: str = "", retriable: bool | None = None) -> None:
        super().__init__(f"{adapter}: {message}" if adapter else message)
        self.adapter = adapter
        if retriable is not None:
            self.retriable = retriable


class BrokerUnavailableError(BrokerError):
    """The broker cannot be reached. What was asked was certainly not done.

    Published: no: a retry cannot publish it twice.

    What to do: try again later, or set `outage="buffer"` where a request should not wait.
    """

    retriable = True


class BrokerAuthenticationError(BrokerError):
    """The broker refused the credentials.

    What to do: correct the credentials in the URL, or what `credentials` returns.
    """


class PublishError(BrokerError):
    """The broker refused a message. It was certainly not published.

    Published: no.

    What to do: correct the rights, or the message; the same publish would be refused again unless `retriable` is true.
    """


class PublishOutcomeUnknownError(PublishError):
    """The link ended, or time ran out, between sending a message and the broker's answer.

    The message may or may not have been published. Publishing it again can duplicate it.

    Published: unknown.

    What to do: publish again only where receiving it twice does no harm; otherwise ask the receiver, or report it.
    """


class SubscribeError(BrokerError):
    """The broker did not confirm one or more channels; every other channel of the same call is subscribed.

    What `Connection.join` and `Backplane.subscribe` raise holds refused channels only: a channel without a final answer
    is asked for again until the join's time is up, which raises `BrokerUnavailableError`.

    Published: no message is concerned.

    What to do: grant the channel at the broker. A client whose join was refused is closed with 4503.

    Attributes:
        refused: The channels that the broker refused, each with the broker's words. Asking again does not help until
            the broker's rules are changed.
        unconfirmed: The channels without a final answer, each with the reason: the broker named a passing state (a
            script runs, it is loading its data, a failover is under way), or its refusal named no channel.
    """

    def __init__(
        self, refused: Mapping[str, str], *, unconfirmed: Mapping[str, str] | None = None, adapter: str = ""
    ) -> None:
        self.refused = dict(refused)
        self.unconfirmed = dict(unconfirmed or {})
        parts = [_listed("subscription refused", self.refused), _listed("not confirmed yet", self.unconfirmed)]
        super().__init__("; ".join(filter(None, parts)), adapter=adapter, retriable=not self.refused)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), unconfirmed=self.unconfirmed, adapter=self.adapter), (self.refused,)


def _listed(title: str, channels: Mapping[str, str]) -> str:
    """Return up to five channels with their reasons, in one line."""
    if not channels:
        return ""
    words = "; ".join(f"{channel!r}: {reason}" for channel, reason in list(channels.items())[:5])
    more = f" (and {len(channels) - 5} more)" if len(channels) > 5 else ""
    return f"{title}: {words}{more}"
