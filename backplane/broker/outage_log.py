"""How an outage that lasts is logged."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from backplane.broker.probe import SilentLinkError
from backplane.errors import BrokerError, BrokerUnavailableError
from backplane.journal.events import LINK_RETRY
from backplane.journal.writing import write

if TYPE_CHECKING:
    from backplane.broadcaster import BrokerUrl

__all__ = ["FIRST_LINE_SECONDS", "OutageLog"]

logger: Final = logging.getLogger("backplane.broker.outage_log")

FIRST_LINE_SECONDS: Final = 60.0
"""After how long an outage is logged again by default; the interval doubles from then on."""


class OutageLog:
    """Logs the failed tries of one outage: a new kind of error at once, known kinds in intervals that double.

    The errors of an ordinary outage are known from the beginning, since the line that reports the loss shows one.

    Args:
        first_line_seconds: After how long known kinds are logged for the first time.
    """

    def __init__(self, *, first_line_seconds: float = FIRST_LINE_SECONDS) -> None:
        self._loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._began_at: float = self._loop.time()
        self._known: set[type[Exception]] = {BrokerUnavailableError, SilentLinkError}
        self._next_line_seconds = first_line_seconds
        self._tries = 0

    @property
    def seconds(self) -> float:
        """How long the outage has lasted."""
        return self._loop.time() - self._began_at

    def log(self, error: Exception, url: BrokerUrl) -> None:
        """Log that a try to reach `url` failed with `error`, or count it for the next line."""
        self._tries += 1
        is_new = type(error) not in self._known
        if not is_new and self.seconds < self._next_line_seconds:
            words = "still no link to %(url)s: %(reason)s"
            return write(logger, LINK_RETRY, words, level=logging.DEBUG, url=url, reason=error)
        self._known.add(type(error))
        while self.seconds >= self._next_line_seconds:
            self._next_line_seconds *= 2
        fault = None if isinstance(error, BrokerError) else error  # a fault of an adapter: its traceback shows where
        write(
            logger,
            LINK_RETRY,
            "still no link to %(url)s after %(seconds).0f s, tries: %(tries)d: %(reason)s",
            url=url,
            seconds=self.seconds,
            tries=self._tries,
            reason=error,
            exc_info=fault,
        )
