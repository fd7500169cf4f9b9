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
    """Base of every error of this package."""


class ConfigurationError(BackplaneError, ValueError):
    """A URL, an option or a limit is wrong; the message names what is known."""


class MissingDependencyError(ConfigurationError, ImportError):
    """The adapter of this URL needs a package that is not installed; the message says which extra brings it."""


class LifecycleError(BackplaneError, RuntimeError):
    """Something was used out of its order: twice started, already accepted."""


class NotStartedError(LifecycleError):
    """The backplane was used before it was started."""


class ClosedError(LifecycleError):
    """The backplane, or the connection, was used after its end."""


class WrongLoopError(LifecycleError):
    """A started `Backplane`, or what belongs to it, was used outside the event loop that started it.

    From another event loop, as `asyncio.run` makes one, from another thread, or from a forked process. Raised at once,
    with nothing done; the message names the cure.
    """


class InvalidChannelError(BackplaneError, ValueError):
    """A channel name is not legal (see `backplane.channels`)."""


class InvalidDataError(BackplaneError, TypeError):
    """What was to be published is neither text, nor bytes, nor anything JSON."""


class InvalidMessageError(BackplaneError):
    """What a client said is not what the application expects.

    Attributes:
        details: What is wrong, one entry each, with `loc`, `msg` and `type` as pydantic names them.
    """

    def __init__(self, details: Sequence[Mapping[str, Any]]) -> None:
        first: Mapping[str, Any] = details[0] if details else {}
        place = ".".join(str(part) for part in first.get("loc", ()))
        super().__init__(f"invalid message: {place + ': ' if place else ''}{first.get('msg', '')}")
        self.details: list[dict[str, Any]] = [dict(detail) for detail in details]

    @property
    def answer(self) -> dict[str, Any]:
        """What may be sent to the client, as JSON: `{"error": "invalid message", "details": [...]}`."""
        return {"error": "invalid message", "details": self.details}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.details,)


class PayloadTooLargeError(BackplaneError, ValueError):
    """A message is larger than the adapter takes. Raised before anything is sent.

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
    """A subscriber with the policy `close` was further behind than its outbox allows, and was cut."""


class RefusedError(BackplaneError):
    """A rule of the application does not let this client do that."""


class OriginRefusedError(RefusedError):
    """A page of another site wanted to connect (cross-site WebSocket hijacking); the message says how to allow it."""


class TooManyConnectionsError(RefusedError):
    """The worker, or this client, has as many connections as are allowed."""


class TooManyChannelsError(RefusedError):
    """A connection wanted to join more channels than are allowed."""


class JoinRefusedError(RefusedError):
    """The application's `authorize` did not let a connection join a channel."""


class PermissionExpiredError(RefusedError):
    """The permission of a client had run out before it was let in (`connect(expires_at=...)`)."""


class AuthorizeTimeoutError(BackplaneError):
    """The application's `authorize` did not answer within `Settings.authorize_timeout_seconds`: try again later."""


class BrokerError(BackplaneError):
    """The broker, or the way to it, failed.

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
    """The broker cannot be reached. What was asked was certainly not done."""

    retriable = True


class BrokerAuthenticationError(BrokerError):
    """The broker refused the credentials."""


class PublishError(BrokerError):
    """The broker refused a message. It was certainly not published."""


class PublishOutcomeUnknownError(PublishError):
    """The link ended, or time ran out, between sending a message and the broker's answer.

    The message may or may not have been published. Publishing it again can duplicate it.
    """


class SubscribeError(BrokerError):
    """The broker did not confirm one or more channels; every other channel of the same call is subscribed.

    What `Connection.join` and `Backplane.subscribe` raise holds refused channels only: a channel without a final answer
    is asked for again until the join's time is up, which raises `BrokerUnavailableError`.

    Attributes:
        refused: The channels that the broker refused, each with the broker's words. Asking again does not help until
            somebody changes the broker's rules.
        unconfirmed: The channels without a final answer, each with the reason: the broker named a passing state (a
            script runs, it is loading its data, a failover is under way), or its refusal named no channel.
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
    words = "; ".join(f"{channel!r}: {reason}" for channel, reason in list(channels.items())[:5])
    more = f" (and {len(channels) - 5} more)" if len(channels) > 5 else ""
    return f"{title}: {words}{more}"
