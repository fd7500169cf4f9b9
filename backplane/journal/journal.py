"""What a worker logs: of a burst the first lines and a count, and the last notable events in memory.

A lost broker concerns every client of a worker in the same second, and a client can repeat a refused request without
end. Neither may fill the log. So every event that a client, a publisher or another process on the host can cause is
logged through a `Journal`, without the data that it sent: see `place_of`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextvars import Context
from typing import TYPE_CHECKING, Final

from backplane.journal.fields import flat
from backplane.journal.ring import Ring, rings_of_loop
from backplane.journal.writing import write_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backplane.journal.events import Event
    from backplane.journal.fields import Value
    from backplane.journal.ring import Entry, Kept

__all__ = ["Journal"]

_WINDOW_SECONDS: Final = 10.0
_BURST: Final = 5

_MORE: Final = "%(suppressed)d more within %(window_seconds)g s, the last one: %(last)s"
_ALL: Final = "%(suppressed)d within %(window_seconds)g s, the last one: %(last)s"


class Journal:
    """Logs the first events of a burst at once, counts those that follow within a window, logs the count at its end.

    So each kind writes few lines per window, whatever its rate, and every event is counted in the log. Those that are
    counted are logged one by one where the level DEBUG is on. A kind is a message before its fields are put in, at one
    level of one logger; so there are few. A timer exists only while a count is not logged yet. Of what happens to all
    clients for one reason, which has its own line, only the count is logged (`of_many`).

    What an operator looks for later is kept in memory too, whatever the level of the log: see `recent`.

    To be used in an event loop.

    Args:
        worker: Names the worker in each line. Defaults to not at all.
        burst: How many events of a kind are logged at once. Defaults to 5.
        window_seconds: How long events are counted. Defaults to 10.
    """

    __slots__ = ("_burst", "_bursts", "_ring", "_window_seconds", "_worker")

    def __init__(self, *, worker: str = "", burst: int = _BURST, window_seconds: float = _WINDOW_SECONDS) -> None:
        self._burst = burst
        self._window_seconds = window_seconds
        self._bursts: dict[tuple[str, int, str], _Burst] = {}
        self._ring = Ring()
        self._worker: Mapping[str, Value] = {"worker": worker} if worker else {}

    def log(
        self,
        logger: logging.Logger,
        event: Event,
        message: str,
        /,
        *,
        level: int | None = None,
        exc_info: BaseException | None = None,
        of_many: bool = False,
        **fields: object,
    ) -> None:
        """Log an event, or count it; and keep it, if it is of a kind that is kept.

        Args:
            logger: Of the module that logs.
            event: What has happened.
            message: The sentence, into which fields are put: `"closing connection %(connection)s: %(reason)s"`.
            level: Instead of that of the event.
            exc_info: An error; its traceback is logged with the events that are logged at once.
            of_many: The same happens to many clients at a time, for one reason: they are counted from the first one on,
                and one line at the end of the window has their number.
            **fields: What a program can read: texts, numbers, errors (as texts); `None` is left out.
        """
        level = event.level if level is None else level
        is_logged = logger.isEnabledFor(level)
        if not is_logged and event.kept is None:
            return
        values = flat(fields)
        if event.kept is not None:
            for ring in (self._ring,) if self._worker else (self._ring, *rings_of_loop()):
                ring.add(event.kept, time.time(), event.name, level, message, values)
        if not is_logged:
            return
        most = 0 if of_many else self._burst
        burst = self._bursts.get((logger.name, level, message))
        if burst is None:
            burst = self._bursts[logger.name, level, message] = _Burst(logger, level, message, self._worker)
        if burst.passes(most, self._window_seconds):
            write_line(logger, level, event.name, message, values, more=self._worker, exc_info=exc_info, stacklevel=2)
            return
        burst.count(event.name, values)
        if logger.isEnabledFor(logging.DEBUG):
            write_line(logger, logging.DEBUG, event.name, message, values, more=self._worker, stacklevel=2)

    def recent(self, *kinds: Kept, after: int = 0, limit: int | None = None) -> list[Entry]:
        """Return the last events of this worker, the oldest first, as dicts that can be sent as JSON.

        Names in them are as they are, whatever `Settings.log_names`.

        Args:
            *kinds: Which kinds: `gaps` (with slow clients) and `ended` (connections) and `refusals`, of which 200 are
                kept, `states` (of the link, of the drain), `actions` (of administrators), `faults` and `broker` (what
                an adapter found), of which 100 are, and 50 `details`. Defaults to all.
            after: Only those whose `number` is higher. Defaults to all.
            limit: Only so many of the newest. Defaults to all.
        """
        return self._ring.recent(*kinds, after=after, limit=limit)

    def open(self) -> None:
        """Keep what parts of this event loop log that know no worker, such as the adapter, until `close`."""
        self._ring.open()

    def close(self) -> None:
        """Keep no more of it, and log every count."""
        self._ring.close()
        self.flush()

    def flush(self) -> None:
        """Log every count at once, and cancel the timers."""
        for burst in self._bursts.values():
            burst.flush()


class _Burst:
    """The events of one kind."""

    __slots__ = (
        "_count",
        "_ends_at",
        "_event",
        "_fields",
        "_left",
        "_level",
        "_logger",
        "_message",
        "_most",
        "_timer",
        "_window_seconds",
        "_worker",
    )

    def __init__(self, logger: logging.Logger, level: int, message: str, worker: Mapping[str, Value]) -> None:
        self._logger = logger
        self._level = level
        self._message = message
        self._worker = worker
        self._event = ""
        self._fields: Mapping[str, Value] = {}
        self._count = 0
        self._left = 0
        self._most = 0
        self._ends_at = float("-inf")
        self._window_seconds = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def passes(self, most: int, window_seconds: float) -> bool:
        """Return whether an event is logged at once: `most` are in a window."""
        now = asyncio.get_running_loop().time()
        if now >= self._ends_at:
            self._ends_at = now + window_seconds
            self._window_seconds = window_seconds
            self._left = self._most = most
        self._left -= 1
        return self._left >= 0

    def count(self, event: str, fields: Mapping[str, Value]) -> None:
        self._count += 1
        self._event, self._fields = event, fields
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(self._ends_at, self._end_window, context=Context())

    def flush(self) -> None:
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        fields = {**self._fields, "suppressed": self._count, "window_seconds": self._window_seconds}
        fields["last"] = self._message % fields
        message = _MORE if self._most else self._message if self._count == 1 else _ALL
        write_line(self._logger, self._level, self._event, message, fields, more=self._worker)
        self._count, self._fields = 0, {}

    def _end_window(self) -> None:
        self.flush()
        self._ends_at = asyncio.get_running_loop().time() + self._window_seconds
        self._left = 0
