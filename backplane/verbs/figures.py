"""What the workers count and have: the verbs of a `Backplane` that show all of them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from backplane.errors import ConfigurationError
from backplane.journal.ring import KINDS
from backplane.option_checks import check_number
from backplane.stats.queries import ChannelQuery, ConnectionQuery
from backplane.worker.recent_events import MOST, ask_events

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection

    from backplane.cluster_types import Answers
    from backplane.stats.lists import ChannelList, ConnectionList
    from backplane.stats.overviews import Overviews
    from backplane.stats.queries import ChannelOrder, ConnectionOrder
    from backplane.worker.lifecycle import Lifecycle

__all__ = ["FigureVerbs"]


class FigureVerbs:
    """Figures, lists and events of all workers. They need `Backplane(cluster=True)`."""

    _lifecycle: Lifecycle

    @asynccontextmanager
    async def overviews(self, *, interval_seconds: float = 2.0, with_rates: bool = False) -> AsyncGenerator[Overviews]:
        """Watch the figures of all workers: `async with backplane.overviews() as overviews: async for overview in ...`.

        Workers send their figures only while a process watches: each sends some 4 KB every 2 seconds to all that watch,
        however many these are; above 50 workers less often, so that those that watch receive no more than 25 of them a
        second.

        Args:
            interval_seconds: The time between two items, which is at least the one in which the workers send. Defaults
                to 2.
            with_rates: Wait with the first item until it has the rates of all workers, some 2 seconds.

        Raises:
            ConfigurationError: Without `cluster`, or `interval_seconds` is not a number more than 0.
            NotStartedError, ClosedError: The backplane is not running.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        check_number("interval_seconds", interval_seconds)
        cluster = self._lifecycle.running().members()
        overviews = cluster.overviews(interval_seconds=interval_seconds, with_rates=with_rates)
        try:
            yield overviews
        finally:
            cluster.end_watch(overviews)

    async def list_channels(
        self,
        *,
        sort: ChannelOrder = "subscribers",
        prefix: str = "",
        limit: int = 50,
        after: str | None = None,
        timeout_seconds: float = 2.0,
    ) -> ChannelList:
        """Ask all workers for their channels, one page at a time; `missing` names those that did not answer.

        Where there are more channels than `limit`, workers are asked twice.

        Args:
            sort: `subscribers`: those with the most first. `name`: by name, and then `after` gives the next page.
            prefix: Only channels that start with it.
            limit: Most rows, at most 200. Defaults to 50.
            after: The name of the last row of the page before.
            timeout_seconds: How long to wait for answers, each time. Defaults to 2.

        Raises:
            ConfigurationError: Without `cluster`, or an argument cannot be used.
            BrokerError, NotStartedError, ClosedError, WrongLoopError: As in `survey`.
        """
        check_number("timeout_seconds", timeout_seconds)
        query = ChannelQuery(sort=sort, prefix=prefix, limit=limit, after=after)
        return await self._lifecycle.running().members().lists.channels(query, timeout_seconds)

    async def list_connections(
        self,
        *,
        worker: str | None = None,
        channel: str | None = None,
        client: str | None = None,
        sort: ConnectionOrder = "waiting",
        limit: int = 50,
        after: str | None = None,
        timeout_seconds: float = 2.0,
    ) -> ConnectionList:
        """Ask all workers for their clients, one page at a time; `missing` names those that did not answer.

        Args:
            worker: The id of a worker (`Worker.id`): only its clients.
            channel: Only clients that have joined it.
            client: Only the one with this id, or those of this user.
            sort: Those with the most first: bytes that are `waiting`, `dropped` messages, `channels`; or the newest
                (`opened`).
            limit: Most rows, at most 200. Defaults to 50.
            after: The `position` of the last row of the page before.
            timeout_seconds: How long to wait for answers. Defaults to 2.

        Raises:
            ConfigurationError: Without `cluster`, or an argument cannot be used.
            BrokerError, NotStartedError, ClosedError, WrongLoopError: As in `survey`.
        """
        check_number("timeout_seconds", timeout_seconds)
        query = ConnectionQuery(channel=channel, client=client, sort=sort, limit=limit, after=after)
        return await self._lifecycle.running().members().lists.connections(query, worker, timeout_seconds)

    async def recent_events(
        self, *, kinds: Collection[str] = (), limit: int = 100, timeout_seconds: float = 2.0
    ) -> Answers:
        """Ask all workers for their last notable events: gaps, slow clients, refusals, ends, changes of links, faults.

        Each worker keeps the last of each kind in memory, and answers with a list, the oldest first. An event is a
        `dict` with `number`, `at` (seconds since the epoch, by the clock of the worker), `event`, `level`, `text` and
        `fields`, as in [the log](../operations/logs.md). Names of channels and clients are in it as they are.

        Args:
            kinds: Only events of these kinds: 200 each are kept of `gaps` (with slow clients), `ended` (clients) and
                `refusals`; 100 each of `states` (of the link, of the drain), `actions` (on the live page), `faults` and
                `broker` (what the adapter found there); 50 `details` of it. Defaults to all.
            limit: Most events of one worker, at most 200; the newest. Defaults to 100.
            timeout_seconds: How long to wait for answers. Defaults to 2.

        Raises:
            ConfigurationError: Without `cluster`, an argument is not a number in its bounds, or a kind is not known.
            BrokerError, NotStartedError, ClosedError, WrongLoopError: As in `survey`.
        """
        check_number("timeout_seconds", timeout_seconds)
        check_number("limit", limit, whole=True)
        if limit > MOST:
            raise ConfigurationError(f"limit must be at most {MOST}, not {limit}")
        if not set(kinds) <= set(KINDS):
            raise ConfigurationError(f"kinds are some of {', '.join(KINDS)}, not {kinds!r:.100}")
        return await ask_events(self._lifecycle.running().members(), kinds, limit, timeout_seconds)
