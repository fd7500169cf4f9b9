"""The last notable events of all workers: `Backplane.recent_events`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from backplane.control.messages import Selector
from backplane.journal.ring import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine

    from backplane.cluster_types import Answers
    from backplane.control.messages import Command
    from backplane.journal.journal import Journal
    from backplane.journal.ring import Kept
    from backplane.worker.cluster import Cluster

__all__ = ["KIND", "MOST", "answer_with", "ask_events"]

KIND: Final = "events"
"""The command that asks a worker."""

MOST: Final = 200
"""How many events one worker answers with at most, some 300 bytes each."""


async def ask_events(cluster: Cluster, kinds: Collection[str], limit: int, seconds: float) -> Answers:
    """Ask every worker."""
    return await cluster.requests.ask(KIND, Selector(), {"limit": limit, "kinds": list(kinds)}, seconds)


def answer_with(journal: Journal) -> Callable[[Command], Coroutine[Any, Any, Any]]:
    """Return what answers the question of another worker, from what this one remembers."""

    async def answer(command: Command) -> Any:
        limit, kinds = command.arguments.get("limit"), command.arguments.get("kinds")
        known: list[Kept] = [kind for kind in KINDS if isinstance(kinds, list) and kind in kinds]
        return journal.recent(*known, limit=min(limit, MOST) if isinstance(limit, int) and limit > 0 else MOST)

    return answer
