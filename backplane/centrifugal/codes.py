"""The numbers of the Centrifugal client protocol: errors of commands, ends of subscriptions, close codes.

Source: centrifugal.dev, "Server error and disconnect codes". A client comes back by itself after close codes 3000 to
3499 and 4000 to 4499, and stays away after 3500 to 3999 and 4500 to 4999. A subscription that ends with a code below
2500 stays ended; after one from 2500 on the client subscribes again at once.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from backplane.close_codes import CloseCode
from backplane.errors import (
    BackplaneError,
    BrokerError,
    ConfigurationError,
    InvalidChannelError,
    InvalidDataError,
    InvalidPositionError,
    InvalidTokenError,
    JoinRefusedError,
    PayloadTooLargeError,
    PermissionExpiredError,
    SubscribeError,
    TooManyChannelsError,
    TooManyPresentError,
)
from backplane.fanout.backlog import TOO_SLOW

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ALREADY_SUBSCRIBED",
    "BAD_REQUEST",
    "INTERNAL",
    "LIMIT_EXCEEDED",
    "METHOD_NOT_FOUND",
    "NOT_AVAILABLE",
    "PERMISSION_DENIED",
    "TOKEN_EXPIRED",
    "TOO_MANY_REQUESTS",
    "UNAVAILABLE",
    "UNRECOVERABLE_POSITION",
    "Answer",
    "CommandError",
    "Disconnect",
    "ProtocolError",
    "Unsubscribe",
    "close_frame",
    "close_of",
    "error_of",
]

_OF_APPLICATIONS: Final = range(400, 2000)


class CommandError(Exception):
    """The answer to a command that fails, for a hook or an RPC to raise.

    Args:
        code: 400 to 1999: the application's own.
        message: Why, for the client.
        temporary: Whether the client should try again. A subscription is tried again by the SDK itself, with back-off.

    Raises:
        ConfigurationError: The code is not one of an application.
    """

    def __init__(self, code: int, message: str, *, temporary: bool = False) -> None:
        unchecked: Any = code
        if isinstance(unchecked, bool) or not isinstance(unchecked, int) or code not in _OF_APPLICATIONS:
            raise ConfigurationError(f"the code of an error of the application is 400 to 1999, not {code!r:.100}")
        super().__init__(message)
        self.code: int = code
        self.message: str = message
        self.temporary: bool = temporary


class ProtocolError(CommandError):
    """An answer that the protocol itself defines."""

    def __init__(self, code: int, message: str, *, temporary: bool = False) -> None:
        Exception.__init__(self, message)
        self.code = code
        self.message = message
        self.temporary = temporary


class Answer(NamedTuple):
    """An answer that the protocol defines; `error` makes what is raised for it, anew each time."""

    code: int
    message: str
    temporary: bool = False

    def error(self) -> ProtocolError:
        """Return an error, to be raised, which is answered by this."""
        return ProtocolError(self.code, self.message, temporary=self.temporary)


INTERNAL: Final = Answer(100, "internal server error", temporary=True)
UNAVAILABLE: Final = Answer(100, "not available at present: try again later", temporary=True)
PERMISSION_DENIED: Final = Answer(103, "permission denied")
METHOD_NOT_FOUND: Final = Answer(104, "method not found")
ALREADY_SUBSCRIBED: Final = Answer(105, "already subscribed")
LIMIT_EXCEEDED: Final = Answer(106, "limit exceeded")
BAD_REQUEST: Final = Answer(107, "bad request")
NOT_AVAILABLE: Final = Answer(108, "not available")
TOKEN_EXPIRED: Final = Answer(109, "token expired")
TOO_MANY_REQUESTS: Final = Answer(111, "too many requests", temporary=True)
UNRECOVERABLE_POSITION: Final = Answer(112, "unrecoverable position")


class Unsubscribe(IntEnum):
    """Why the server ends a subscription."""

    SERVER = 2000
    """The server unsubscribed the client, which stays unsubscribed."""
    INSUFFICIENT_STATE = 2500
    """Messages may be missing: the client subscribes again, and learns whether they could be given back."""
    EXPIRED = 2501
    """The permission ran out: the client subscribes again, with a new token."""


class Disconnect(IntEnum):
    """Close codes of the protocol that the endpoint sends by itself."""

    EXPIRED = 3005
    INVALID_TOKEN = 3500
    BAD_REQUEST = 3501
    STALE = 3502


# Not those of this package that have the same meaning to an SDK by their range, and that applications use.
_CLOSE_FRAMES: Final[Mapping[int, tuple[int, str]]] = {
    CloseCode.INVALID_DATA: (3501, "bad request"),
    CloseCode.MESSAGE_TOO_BIG: (3501, "message too big"),
    CloseCode.INTERNAL_ERROR: (3004, "internal server error"),
    CloseCode.SERVICE_RESTART: (3001, "shutdown"),
    CloseCode.TRY_AGAIN_LATER: (3004, "not available at present"),
    CloseCode.MESSAGES_MISSED: (3010, "insufficient state"),
    CloseCode.EXPIRED: (3005, "connection expired"),
    CloseCode.MAX_AGE: (3011, "reconnect"),
    CloseCode.SILENT: (3012, "no pong"),
    CloseCode.TOO_MANY_MESSAGES: (3013, "too many requests"),
    CloseCode.TOO_MANY_CHANNELS: (3505, "channel limit"),
}


def close_frame(code: int, reason: str) -> tuple[int, str]:
    """Return the code and reason of this protocol for one of this package, and those of an application unchanged."""
    if (code, reason) == (CloseCode.TRY_AGAIN_LATER, TOO_SLOW):
        return 3008, "slow"
    return _CLOSE_FRAMES.get(code) or (code, _without_json(reason))


def _without_json(reason: str) -> str:
    """Return a reason that no SDK takes for JSON, which means advice to it: words, that is."""
    return reason if not reason or (reason[0].isalpha() and reason not in _JSON_WORDS) else f"reason: {reason}"


_JSON_WORDS: Final = frozenset({"true", "false", "null"})


def close_of(command: str, error: Exception) -> tuple[Disconnect, str] | None:
    """Return with which code and reason a client is closed whose command raised `error`; `None` where it is answered.

    An error as the answer to a refresh would keep SDKs away: a client that is closed comes back, and gets a new token.
    """
    if isinstance(error, InvalidTokenError) and command in ("connect", "refresh"):
        return Disconnect.INVALID_TOKEN, "invalid token"
    if isinstance(error, PermissionExpiredError) and command == "refresh":
        return Disconnect.EXPIRED, "connection expired"
    return None


def error_of(error: Exception) -> CommandError | Answer | None:
    """Return the answer to a command that raised `error`; `None` where it is a fault, which is to be logged."""
    match error:
        case CommandError():
            return error
        case JoinRefusedError() | InvalidTokenError():
            return PERMISSION_DENIED
        case PermissionExpiredError():
            return TOKEN_EXPIRED
        case TooManyChannelsError() | TooManyPresentError() | PayloadTooLargeError():
            return LIMIT_EXCEEDED
        case InvalidChannelError() | InvalidDataError() | InvalidPositionError():
            return BAD_REQUEST
        case SubscribeError() if error.refused:
            return PERMISSION_DENIED
        case TimeoutError() | BrokerError():
            return UNAVAILABLE
        case BackplaneError() if not isinstance(error, ConfigurationError):
            return UNAVAILABLE
        case _:
            return None
