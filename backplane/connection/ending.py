"""With which close code, which reason and which log line a client is closed when its handler, or a task of it, ends."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, cast

from backplane.close_codes import CloseCode, close_reason, comes_back
from backplane.errors import (
    AuthorizeTimeoutError,
    BrokerError,
    ClosedError,
    InvalidChannelError,
    InvalidMessageError,
    InvalidPositionError,
    InvalidTokenError,
    JoinRefusedError,
    OriginRefusedError,
    PayloadTooLargeError,
    PermissionExpiredError,
    SlowConsumerError,
    SubscribeError,
    TokenCheckUnavailableError,
    TooManyChannelsError,
    TooManyConnectionsError,
)
from backplane.fanout.backlog import TOO_SLOW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Ending", "ending", "has_a_line", "reasons", "refusal", "what_was_refused"]

_CODES: Final = (
    ((JoinRefusedError, InvalidTokenError, InvalidChannelError, InvalidPositionError), CloseCode.FORBIDDEN),
    ((TooManyChannelsError,), CloseCode.TOO_MANY_CHANNELS),
    ((PermissionExpiredError,), CloseCode.EXPIRED),
    ((InvalidMessageError,), CloseCode.INVALID_DATA),
    ((PayloadTooLargeError,), CloseCode.MESSAGE_TOO_BIG),
    (
        (AuthorizeTimeoutError, SlowConsumerError, BrokerError, TokenCheckUnavailableError),
        CloseCode.TRY_AGAIN_LATER,
    ),
)

_WHAT: Final = (
    ((OriginRefusedError,), "origin"),
    ((TooManyConnectionsError,), "connection"),
    ((JoinRefusedError, AuthorizeTimeoutError), "join"),
    ((TooManyChannelsError, SubscribeError, InvalidChannelError, InvalidPositionError), "channel"),
    ((PermissionExpiredError, InvalidTokenError, TokenCheckUnavailableError), "token"),
    ((ClosedError,), "draining"),
    ((BrokerError,), "broker"),
)
# Refusals that are logged where they are decided.
_LOGGED: Final = (
    OriginRefusedError,
    TooManyConnectionsError,
    JoinRefusedError,
    AuthorizeTimeoutError,
    TooManyChannelsError,
    ClosedError,
)

_WORKER_ENDS: Final = "this worker is about to end: connect again, to another one"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a client is closed.

    Attributes:
        code: The close code.
        reason: Why, in words; empty for the name of the code. The broker's own words are never among them.
        error: What was raised; of a group, the gravest of its errors.
        is_fault: The error is not foreseen: it goes on. Any other one is an ordinary end, and goes no further.
        raised: What was raised, the whole group where it is one.
    """

    code: int
    reason: str = ""
    error: BaseException | None = None
    is_fault: bool = False
    raised: BaseException | None = field(default=None, compare=False)

    @property
    def gravity(self) -> int:
        """Which of several counts: a fault, else what keeps the client away, else what the client reconnects after."""
        if self.is_fault:
            return 3
        return 0 if self.code == CloseCode.NORMAL_CLOSURE else 1 if comes_back(self.code) else 2

    @property
    def is_logged(self) -> bool:
        """Whether it has a log line: not if the handler just ended, nor for a fault, whose error goes on to the log."""
        return not self.is_fault and self.code != CloseCode.NORMAL_CLOSURE

    @property
    def is_broker_failure(self) -> bool:
        """Whether the broker failed, as for many connections at once."""
        return isinstance(self.error, BrokerError) and self.code == CloseCode.TRY_AGAIN_LATER

    @property
    def is_for_operators(self) -> bool:
        """Whether it points at a bound that does not fit: of the broker, of `authorize`."""
        return self.code in (CloseCode.MESSAGE_TOO_BIG, CloseCode.TRY_AGAIN_LATER)


def ending(
    error: BaseException | None,
    *,
    is_over: bool,
    of_framework: Callable[[BaseException], Ending | None] = lambda _: None,
) -> Ending | None:
    """Return how the client is closed, or `None` where it gets no close frame: the handler was cancelled.

    Ordinary is what is no defect of the application: a broker that failed; a channel, a token or a permission that was
    refused; what the client caused by what it sent (no channel name, no valid message, one that the broker does not
    accept); a connection used after its end; and what the web framework has errors for. A group of errors, as
    `asyncio.TaskGroup` raises, is ordinary where each of them is.

    Args:
        error: What was raised, if anything.
        is_over: Whether the connection has ended: only then a `ClosedError` can be about it.
        of_framework: Returns the ending for an error of the web framework, and `None` for any other.
    """
    endings = [_ending(leaf, is_over, of_framework) for leaf in _leaves(error)]
    known = [found for found in endings if found is not None]
    if len(known) < len(endings):
        return None
    return replace(max(known, key=lambda found: found.gravity), raised=error)


def refusal(
    error: BaseException,
    of_framework: Callable[[BaseException], Ending | None],
    closed_with: tuple[int, str] | None = None,
) -> Ending | None:
    """Return how a client is closed whose handshake is refused; a full worker, one that ends, an origin are no faults.

    Args:
        error: What was raised.
        of_framework: As above.
        closed_with: With which code and reason the client was closed in its handshake, if it was.
    """
    match error:
        case ClosedError():
            code, reason = closed_with or (CloseCode.SERVICE_RESTART, _WORKER_ENDS)
            return Ending(code, reason, error if comes_back(code) else JoinRefusedError(close_reason(code, reason)))
        case TooManyConnectionsError():
            return Ending(CloseCode.TRY_AGAIN_LATER, str(error), error)
        case OriginRefusedError():
            return Ending(CloseCode.FORBIDDEN, str(error), error)
        case _:
            return ending(error, is_over=False, of_framework=of_framework)


def what_was_refused(error: BaseException | None) -> str:
    """Return what a client was refused by, or of, as the log has it: `origin`, `join`, `channel` ..."""
    return next((what for kinds, what in _WHAT if isinstance(error, kinds)), "connection")


def has_a_line(error: BaseException | None) -> bool:
    """Return whether a refusal is logged where it is decided, so that its handshake need not."""
    return isinstance(error, _LOGGED)


def reasons(error: BaseException | None) -> str:
    """Return the errors in words, for a log: of a group, each kind of words once, up to three."""
    words = list(dict.fromkeys(str(leaf) for leaf in _leaves(error)))
    return "; ".join(words[:3]) + (f" (and {len(words) - 3} more)" if len(words) > 3 else "")


def _ending(
    error: BaseException | None, is_over: bool, of_framework: Callable[[BaseException], Ending | None]
) -> Ending | None:
    if error is None or (isinstance(error, ClosedError) and is_over):
        return Ending(CloseCode.NORMAL_CLOSURE, "", error)
    if not isinstance(error, Exception):
        return None
    if isinstance(error, SubscribeError) and error.refused:
        return Ending(CloseCode.FORBIDDEN, "this channel is not allowed", error)
    for kinds, code in _CODES:
        if isinstance(error, kinds):
            return Ending(code, _words(error), error)
    try:
        found = of_framework(error)
    except Exception:  # of the error itself, such as in its `__str__`: its client is closed all the same
        found = None
    return Ending(CloseCode.INTERNAL_ERROR, "", error, True) if found is None else replace(found, error=error)


def _words(error: Exception) -> str:
    if isinstance(error, BrokerError):
        return "the broker is not available: try again later"
    if isinstance(error, TokenCheckUnavailableError):  # its text names the issuer
        return "not available at present: try again later"
    if isinstance(error, SlowConsumerError):
        return TOO_SLOW
    if isinstance(error, PayloadTooLargeError):
        return f"a message may take {error.limit_bytes:,} bytes on the broker"
    return str(error)


def _leaves(error: BaseException | None) -> Iterator[BaseException | None]:
    if isinstance(error, BaseExceptionGroup):
        for part in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(part)
    else:
        yield error
