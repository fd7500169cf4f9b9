"""Log lines that can come in bursts: the first at once, those that follow as one line.

A lost broker concerns every client of a worker in the same second, and a stranger can repeat a refused request as often
as it likes. Neither may fill the log. So whatever a client, a publisher or a neighbour on the host can cause is logged
through `LogBursts`, and what it has sent is not repeated there: see `place_of`.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import logging

__all__ = ["LogBursts", "place_of"]

_WINDOW_SECONDS: Final = 10.0


class LogBursts:
    """Logs an event at once, and counts those of the same kind that follow within the window; its end logs the count.

    So a kind writes one line a window, whatever its rate, and every event is in the log by number. The kinds are the
    log messages before their arguments, each at its level, hence few. A timer exists only while something counted is
    not logged yet.

    Must be used in an event loop.

    Args:
        window_seconds: For how long events are counted. Defaults to 10.
    """

    __slots__ = ("_bursts", "_window_seconds")

    def __init__(self, *, window_seconds: float = _WINDOW_SECONDS) -> None:
        self._window_seconds = window_seconds
        self._bursts: dict[tuple[str, int, str], _Burst] = {}

    def log(
        self, logger: logging.Logger, level: int, message: str, *args: object, exc_info: BaseException | None = None
    ) -> None:
        """Log `message % args` with `logger`, or count it. A traceback is logged with the first event alone."""
        if not logger.isEnabledFor(level):
            return
        now = asyncio.get_running_loop().time()
        burst = self._bursts.get((logger.name, level, message))
        if burst is None:
            burst = self._bursts[logger.name, level, message] = _Burst(logger, level, message)
        if now < burst.ends_at:
            burst.count(args)
        else:
            burst.ends_at = now + self._window_seconds
            burst.window_seconds = self._window_seconds
            logger.log(level, message, *args, exc_info=exc_info, stacklevel=2)

    def flush(self) -> None:
        """Log what was counted, and leave no timer."""
        for burst in self._bursts.values():
            burst.flush()


def place_of(error: BaseException) -> str:
    """Return an error's type and where it was raised, `KeyError at shop.py:12`, for a function of the application.

    Its words and its traceback are left out: they can repeat the message that the function was called with.
    """
    name, raised = type(error).__name__, error.__traceback__
    while raised is not None and raised.tb_next is not None:
        raised = raised.tb_next
    return (
        name if raised is None else f"{name} at {PurePath(raised.tb_frame.f_code.co_filename).name}:{raised.tb_lineno}"
    )


class _Burst:
    """The events of one kind.

    Attributes:
        ends_at: When the window ends, by the event loop's clock.
        window_seconds: Its length.
    """

    __slots__ = ("_args", "_count", "_level", "_logger", "_message", "_timer", "ends_at", "window_seconds")

    def __init__(self, logger: logging.Logger, level: int, message: str) -> None:
        self._logger = logger
        self._level = level
        self._message = message
        self._count = 0
        self._args: tuple[object, ...] = ()
        self._timer: asyncio.TimerHandle | None = None
        self.ends_at = float("-inf")
        self.window_seconds = 0.0

    def count(self, args: tuple[object, ...]) -> None:
        self._count += 1
        self._args = args
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(self.ends_at, self._end_window, context=Context())

    def flush(self) -> None:
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        last = self._message % self._args if self._args else self._message
        self._logger.log(self._level, "%d more within %g s, the last one: %s", self._count, self.window_seconds, last)
        self._count, self._args = 0, ()

    def _end_window(self) -> None:
        self.flush()
        self.ends_at = asyncio.get_running_loop().time() + self.window_seconds
