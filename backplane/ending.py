"""With which close code a client is closed when its handler, or a task beside it, ends by an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from backplane.closing import CloseCode
from backplane.errors import BrokerError, ClosedError, JoinRefusedError, SubscribeError, TooManyChannelsError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["close_code", "reasons"]

# What a group of errors ends with: the first of these that one of them ends with.
_ORDER: Final = (
    None,
    CloseCode.INTERNAL_ERROR,
    CloseCode.FORBIDDEN,
    CloseCode.TOO_MANY_CHANNELS,
    CloseCode.TRY_AGAIN_LATER,
    CloseCode.NORMAL,
)


def close_code(error: BaseException | None, *, is_over: bool) -> CloseCode | None:
    """Return the code, or `None` where the client is not notified: the handler was cancelled.

    Every code but `INTERNAL_ERROR` is an ordinary end, in which nobody made a mistake: the error goes no further. That
    is a broker that failed (`TRY_AGAIN_LATER`), a channel that the application or the broker refused, and a connection
    used after its end. A group of errors, as `asyncio.TaskGroup` raises, is ordinary where each of them is.

    Args:
        error: What was raised, if anything.
        is_over: Whether the connection has ended: a `ClosedError` speaks of it only then.
    """
    codes = {_close_code(leaf, is_over=is_over) for leaf in _leaves(error)}
    return next(code for code in _ORDER if code in codes)


def reasons(error: BaseException | None) -> str:
    """Return the errors in words, for a log: of a group, each kind of words once, up to three."""
    words = list(dict.fromkeys(str(leaf) for leaf in _leaves(error)))
    return "; ".join(words[:3]) + (f" (and {len(words) - 3} more)" if len(words) > 3 else "")


def _close_code(error: BaseException | None, *, is_over: bool) -> CloseCode | None:
    match error:
        case None:
            return CloseCode.NORMAL
        case ClosedError() if is_over:
            return CloseCode.NORMAL
        case JoinRefusedError():
            return CloseCode.FORBIDDEN
        case SubscribeError() if error.refused:
            return CloseCode.FORBIDDEN
        case TooManyChannelsError():
            return CloseCode.TOO_MANY_CHANNELS
        case BrokerError():
            return CloseCode.TRY_AGAIN_LATER
        case Exception():
            return CloseCode.INTERNAL_ERROR
        case _:
            return None


def _leaves(error: BaseException | None) -> Iterator[BaseException | None]:
    if isinstance(error, BaseExceptionGroup):
        for part in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(part)
    else:
        yield error
