"""The table of what each adapter promises of a history, from what the adapters declare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mkdocs_hooks.tables import table

if TYPE_CHECKING:
    from backplane.broadcaster import Capabilities

__all__ = ["histories", "history_row"]

_KEPT: Final = {
    "process": ("in the memory of the process", "the return of a client; it ends with the process"),
    "host": ("in files of the host", "the end of every process"),
    "server": ("on the broker", "the end of every worker and of its host"),
}


def histories() -> str:
    """Return a row for each adapter: where its history is, what that survives, and whether it drops repetitions."""
    from tests.readme_table import capabilities_of, schemes_by_adapter

    rows = [(f"`{schemes[0]}://`", *history_row(capabilities_of(schemes[0]))) for schemes in schemes_by_adapter()]
    return table(("adapter", "the history is", "it survives", "after a lost link", "`idempotency_key`"), rows)


def history_row(capabilities: Capabilities) -> tuple[str, str, str, str]:
    """Return the cells of an adapter: where, what it survives, how a lost link is repaired, and idempotency keys."""
    if capabilities.keeps == "nothing":
        return "not kept", "\N{EN DASH}", "a `Gap`", "refused"
    where, survives = _KEPT[capabilities.keeps]
    if capabilities.resumes:
        repair = "the adapter continues where it was"
    elif capabilities.brokered:
        repair = "the worker reads what it missed"
    else:
        repair = "\N{EN DASH}"
    return where, survives, repair, "300 seconds" if capabilities.deduplicates else "refused"
