"""Why a connection was closed, as a number that tells its client what to do."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["CloseCode"]


class CloseCode(IntEnum):
    """Close codes this package sends: RFC 6455 section 7.4.1 and its registry below 4000, our own from there on.

    A client that reconnects does so after a random pause that grows with every try, and loads again what it shows:
    what was published while it was away is not sent to it.
    """

    NORMAL = 1000
    """The handler ended. The application knows whether to come back."""
    INVALID_DATA = 1007
    """The client sent what does not validate, where the application closes for that. Do not reconnect."""
    TOO_BIG = 1009
    """The client sent a larger message than is allowed. Do not reconnect."""
    INTERNAL_ERROR = 1011
    """The handler, or a task beside it, raised. Reconnect later."""
    SERVICE_RESTART = 1012
    """The worker ends. Reconnect: another one is there."""
    TRY_AGAIN_LATER = 1013
    """The client read more slowly than its outbox allows, and was cut; or the broker failed while its handler published
    or joined. The reason names which. Reconnect."""
    MESSAGES_MISSED = 4000
    """Messages may have been missed on the way to this worker; those since have been sent. Reconnect."""
    EXPIRED = 4001
    """The client's permission ran out (a token expired). Get a new one, then reconnect."""
    FORBIDDEN = 4003
    """The client may not do what it asked for. Do not reconnect."""
    IDLE = 4008
    """The client said nothing for too long. Reconnect when there is something to say."""
    MAX_AGE = 4010
    """The connection has reached its largest age. Reconnect."""
    SILENT = 4011
    """The client did not answer heartbeats. Whoever reads this is there after all: reconnect."""
    TOO_MANY_CHANNELS = 4013
    """The client joined more channels than are allowed. Do not reconnect."""
    TOO_MANY_MESSAGES = 4029
    """The client sent more messages per second than are allowed. Reconnect, and send less."""

    @property
    def reconnect(self) -> bool:
        """Whether the client should come back by itself."""
        return self not in _FINAL


_FINAL = {
    CloseCode.NORMAL,
    CloseCode.INVALID_DATA,
    CloseCode.TOO_BIG,
    CloseCode.FORBIDDEN,
    CloseCode.TOO_MANY_CHANNELS,
}
