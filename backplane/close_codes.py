"""Close codes: why a connection was closed, as a number for its client and as a reason for the log."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from backplane.errors import ConfigurationError

__all__ = ["MAX_REASON_BYTES", "CloseCode", "check_close", "close_reason", "comes_back"]

MAX_REASON_BYTES: Final = 123
"""Longest reason of a close frame, in bytes of UTF-8 (RFC 6455 section 5.5)."""

# Of the codes of RFC 6455 and its registry, those after which the same client can succeed at its next try: it or the
# server goes away, was cut, failed, restarts, is busy, or has no upstream.
_TEMPORARY: Final = frozenset({1001, 1005, 1006, 1011, 1012, 1013, 1014})

# What an endpoint may put into a close frame (RFC 6455 section 7.4): 1004 has no meaning, 1005, 1006 and 1015 report
# an end without a close frame, and the rest below 3000 is reserved.
_SENDABLE: Final = (range(1000, 1004), range(1007, 1015), range(3000, 5000))


class CloseCode(IntEnum):
    """Close codes that this package sends: those of RFC 6455 section 7.4.1 and its registry below 4000, ours above.

    Ours are in the ranges on which client libraries agree (Centrifugo's and those that follow it): after 4000 to 4499
    a client reconnects by itself, after 4500 to 4999 it does not. `reconnect` is derived from that.

    A client that reconnects does so after a random pause that grows with every try, and loads again what it shows:
    what was published while it was not connected is not sent to it.
    """

    NORMAL_CLOSURE = 1000
    """The handler ended. Whether to reconnect is up to the application."""
    INVALID_DATA = 1007
    """The client sent a message that does not validate, and the application closes in that case. Do not reconnect: the
    same message would have the same result. (A standard code: servers send it too, for a text that is not UTF-8.)"""
    MESSAGE_TOO_BIG = 1009
    """The client sent a larger message than is allowed, or than the broker accepts. Do not reconnect: the same message
    would have the same result. (A standard code: servers send it too.)"""
    INTERNAL_ERROR = 1011
    """The handler, or a task beside it, raised. Reconnect later."""
    SERVICE_RESTART = 1012
    """The worker ends. Reconnect: another worker takes the connection."""
    TRY_AGAIN_LATER = 1013
    """The client received more slowly than its backlog allows, and was cut; or the broker failed while the handler
    published or joined; or the worker had no room for the client. The reason states which. Reconnect."""
    MESSAGES_MISSED = 4000
    """Messages may have been missed on the way to this worker; those since have been sent. Reconnect."""
    EXPIRED = 4001
    """The client's permission ran out (a token expired). Get a new one, then reconnect: this is the usual course of a
    session and not a refusal."""
    MAX_AGE = 4010
    """The connection has reached its largest age. Reconnect: another worker may have more room."""
    SILENT = 4011
    """The client did not answer heartbeats. Reconnect: a client that receives this code is reachable after all."""
    TOO_MANY_MESSAGES = 4029
    """The client sent more messages per second than are allowed. Reconnect, and send fewer."""
    FORBIDDEN = 4503
    """The client may not do what it asked for. Do not reconnect: the answer stays the same."""
    IDLE = 4508
    """The client sent nothing for too long. Do not reconnect automatically, or the limit would save nothing; connect
    when there is something to send."""
    TOO_MANY_CHANNELS = 4513
    """The client joined more channels than are allowed. Do not reconnect: it would join the same channels."""

    @property
    def reconnect(self) -> bool:
        """Whether the client should reconnect by itself."""
        return comes_back(self)


def comes_back(code: int) -> bool:
    """Return whether a client reconnects by itself after `code`, any code that can be received.

    From 3000 on the range decides: after the first half of each thousand a client reconnects, after the second half it
    does not. Below, a code that reports a fault of the client (1002, 1003, 1007, 1008, 1009, 1010), or the end (1000),
    is final.
    """
    return code % 1000 < 500 if code >= 3000 else code in _TEMPORARY


def check_close(code: object, reason: object) -> None:
    """Check the code and the reason with which an application closes a connection.

    Raises:
        ConfigurationError: `code` is not a number that a close frame may carry, or `reason` is not text.
    """
    if isinstance(code, bool) or not isinstance(code, int) or not any(code in codes for codes in _SENDABLE):
        raise ConfigurationError(
            f"a close code is 1000-1003, 1007-1014 or 3000-4999, and an application's own 4000-4999, not {code!r}"
        )
    if not isinstance(reason, str):
        raise ConfigurationError(f"the reason of a close is a str, not {type(reason).__name__}")


def close_reason(code: int, reason: str = "") -> str:
    """Return `reason` as a close frame carries it: never empty, of at most `MAX_REASON_BYTES` in UTF-8.

    A longer one is cut after a character and ends with an ellipsis. An empty one is replaced by the name of `code`:
    client libraries reconnect after a final code whose reason is empty.
    """
    text = reason if reason.strip() else _NAMES.get(code, "closed by the application")
    encoded = text.encode(errors="replace")  # a lone surrogate cannot be sent
    if len(encoded) <= MAX_REASON_BYTES:
        return encoded.decode()
    ellipsis = "…"
    return encoded[: MAX_REASON_BYTES - len(ellipsis.encode())].decode(errors="ignore") + ellipsis


_NAMES: Final = {int(code): code.name.lower().replace("_", " ") for code in CloseCode}
