"""The figures of this worker, and lists of its channels and clients, for a process that asks."""

from __future__ import annotations

import asyncio
import platform
import resource
import sys
from heapq import nsmallest
from typing import TYPE_CHECKING, Any, Final

from backplane.channels import RESERVED_PREFIX
from backplane.stats.source import StatsSource
from backplane.worker.client_description import describe_client, name_of
from backplane.worker.configuration import configuration_of
from backplane.worker.process import open_fds
from backplane.worker.snapshot import shared_settings, take_snapshot
from backplane.worker.top_channels import TopChannels

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.stats.queries import ChannelQuery, ConnectionOrder, ConnectionQuery
    from backplane.stats.snapshot import WorkerSnapshot
    from backplane.worker.clients import LocalClient
    from backplane.worker.runtime import Runtime

__all__ = ["RuntimeStats"]

_ASGI_INSTRUMENTATION: Final = "opentelemetry.instrumentation.asgi"
# Clients in one pass of the event loop: to look at one takes a microsecond.
_SLICE: Final = 2_000
_FEW_ROWS: Final = 10
_CHANNELS_OF_FEW: Final = 100
_CHANNELS_OF_MANY: Final = 5


class RuntimeStats(StatsSource):
    """Reads what a worker counts.

    Args:
        runtime: The worker, a member of a cluster.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._top_channels = TopChannels(runtime.hub.channels)

    def snapshot(self, interval_seconds: float, /) -> WorkerSnapshot:
        """Return its figures, and after how many seconds the next ones follow."""
        return take_snapshot(self._runtime, self._top_channels.take(), interval_seconds)

    def watched(self, is_watched: bool, /) -> None:
        """Forget, at the end of a watch, which messages the last snapshot had counted."""
        if not is_watched:
            self._top_channels.forget()

    def channels(self, query: ChannelQuery, /) -> dict[str, Any]:
        """Return a part of its channels and patterns, without the channels of this package itself."""
        names = None if query.names is None else frozenset(query.names)
        hub = self._runtime.hub
        counts = {name: len(subscribers) for name, subscribers in hub.channels.items()}
        for pattern, subscribers in hub.patterns.subscribed.items():  # a channel can have the same text
            counts[pattern] = counts.get(pattern, 0) + len(subscribers)
        found = [
            (name, count)
            for name, count in counts.items()
            if name.startswith(query.prefix)
            and not name.startswith(RESERVED_PREFIX)
            and (names is None or name in names)
            and (query.after is None or name > query.after)
        ]
        order: Callable[[tuple[str, int]], Any] = _by_name if query.sort == "name" else _by_subscribers
        rows = [{"name": name, "subscribers": count} for name, count in nsmallest(query.limit, found, key=order)]
        return {"total": len(found), "rows": rows}

    def describe(self, *, in_full: bool = False) -> dict[str, Any]:
        """Return what the worker is configured with; in full with all settings, limits and options."""
        runtime = self._runtime
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        described: dict[str, Any] = {
            "settings": shared_settings(runtime),
            "python": platform.python_version(),
            "loop": type(runtime.affinity.loop).__module__.partition(".")[0],
            "open_files": open_fds(),
            "max_files": soft,
            "max_connections": runtime.settings.max_connections,
            "asgi_instrumentation": _ASGI_INSTRUMENTATION in sys.modules,
        }
        if in_full:
            described["configuration"] = configuration_of(runtime)
        return described

    async def connections(self, query: ConnectionQuery, /) -> dict[str, Any]:
        """Return a part of its clients: the first ones of the order, found in several passes of the event loop."""
        after, total = query.begins_after(), 0
        best: list[tuple[float, str, LocalClient]] = []
        clients = tuple(self._runtime.clients.connected)
        for begin in range(0, len(clients), _SLICE):
            if begin:
                await asyncio.sleep(0)
            for client in clients[begin : begin + _SLICE]:
                if client.is_over or not self._is_meant(client, query):
                    continue
                total += 1
                place = -self._value(client, query.sort), client.id
                if after is None or place > after:
                    best.append((*place, client))
            best = nsmallest(query.limit, best, key=_place)
        most = _CHANNELS_OF_FEW if query.limit <= _FEW_ROWS else _CHANNELS_OF_MANY
        return {"total": total, "rows": [self._row(client, value, most) for value, _, client in best]}

    @staticmethod
    def _is_meant(client: LocalClient, query: ConnectionQuery) -> bool:
        return (query.channel is None or query.channel in client.channels or query.channel in client.patterns) and (
            query.client is None or query.client in (client.id, name_of(client))
        )

    def _value(self, client: LocalClient, order: ConnectionOrder) -> float:
        match order:
            case "waiting":
                return client.outbox.size_bytes
            case "dropped":
                return client.outbox.dropped
            case "channels":
                return len(client.channels) + len(client.patterns)
            case "opened":
                return self._opened_at(client)

    def _opened_at(self, client: LocalClient) -> float:
        index = self._runtime.clients.index
        return (None if index is None else index.opened_at(client.id)) or 0.0

    def _row(self, client: LocalClient, value: float, most_channels: int) -> dict[str, Any]:
        return {
            **describe_client(client, self._runtime.affinity.loop.time()),
            "position": f"{value!r}:{client.id}",
            "opened_at": self._opened_at(client),
            "channel_count": len(client.channels) + len(client.patterns),
            "channels": sorted({*client.channels, *client.patterns})[:most_channels],
        }


def _by_name(channel: tuple[str, int]) -> str:
    return channel[0]


def _by_subscribers(channel: tuple[str, int]) -> tuple[int, str]:
    return -channel[1], channel[0]


def _place(row: tuple[float, str, LocalClient]) -> tuple[float, str]:
    return row[:2]
