"""The last notable events of all workers: `Backplane.recent_events`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from backplane.control.messages import Selector

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from backplane.cluster_types import Answers
    from backplane.control.messages import Command
    from backplane.journal.journal import Journal
    from backplane.worker.cluster import Cluster

__all__ = ["KIND", "MOST", "answer_with", "ask_events"]

KIND: Final = "events"
"""The command that asks a worker."""

MOST: Final = 200
"""How many events one worker answers with at most, some 300 bytes each."""


async def ask_events(cluster: Cluster, limit: int, seconds: float) -> Answers:
    """Ask every worker."""
    return await cluster.requests.ask(KIND, Selector(), {"limit": limit}, seconds)


def answer_with(journal: Journal) -> Callable[[Command], Coroutine[Any, Any, Any]]:
    """Return what answers the question of another worker, from what this one remembers."""

    async def answer(command: Command) -> Any:
        limit = command.arguments.get("limit")
        return journal.recent(limit=min(limit, MOST) if isinstance(limit, int) and limit > 0 else MOST)

    return answer
