"""`Backplane.overviews`: the figures of all workers, again and again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from backplane.fanout.single_receiver import SingleReceiver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from backplane.concurrency.affinity import LoopAffinity
    from backplane.stats.overview import Overview
    from backplane.stats.reader import StatsReader

__all__ = ["Overviews"]

# What the first item waits for workers that are not known yet, or do not answer.
_FIRST_SECONDS = 6.0


class Overviews:
    """The figures of all workers, as an async iterator that yields an `Overview` every few seconds.

    The first item comes once every worker that is alive has sent its figures; soon after the start of this process that
    is after the first heartbeats, and after 6 seconds in any case. While the link to the broker is lost, items show
    this worker alone, with the others as missing. A consumer that is slow gets the newest ones. One task iterates at a
    time. Cancelling loses nothing.

    Iterating ends when the block of `Backplane.overviews` is left, and when the worker has drained or stops.
    """

    def __init__(
        self, reader: StatsReader, affinity: LoopAffinity, *, interval_seconds: float, with_rates: bool = False
    ) -> None:
        self._reader = reader
        self._affinity = affinity
        self._interval_seconds = interval_seconds
        self._snapshots = 2 if with_rates else 1
        self._due: float | None = None
        self._has_ended = asyncio.Event()
        self._receiver = SingleReceiver()
        reader.hold()

    def end(self) -> None:
        """End: the iteration stops. Ending again changes nothing."""
        if not self._has_ended.is_set():
            self._has_ended.set()
            self._reader.release()

    def __aiter__(self) -> AsyncIterator[Overview]:
        return self

    async def __anext__(self) -> Overview:
        self._affinity.check()
        self._receiver.check_single("these overviews", "open one for each")
        consumer = self._receiver.begin_waiting()
        try:
            if self._due is None:
                await self._first()
            else:
                await self._until(self._due)
        finally:
            self._receiver.end_waiting(consumer)
        if self._has_ended.is_set():
            raise StopAsyncIteration
        self._due = asyncio.get_running_loop().time() + max(self._interval_seconds, self._reader.interval_seconds)
        return self._reader.overview()

    async def _first(self) -> None:
        complete = asyncio.create_task(self._reader.until_complete(_FIRST_SECONDS, snapshots=self._snapshots))
        ended = asyncio.create_task(self._has_ended.wait())
        try:
            await asyncio.wait([complete, ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            complete.cancel()
            ended.cancel()
            await asyncio.wait([complete, ended])

    async def _until(self, due: float) -> None:
        try:
            async with asyncio.timeout_at(due):
                await self._has_ended.wait()
        except TimeoutError:
            pass
