"""The map of the package: its rooms, and each module with the first sentence of its docstring."""

from __future__ import annotations

import ast

from mkdocs_hooks.docstrings import summary
from mkdocs_hooks.sources import source_files
from mkdocs_hooks.tables import table

__all__ = ["modules", "rooms"]


def rooms() -> str:
    """Return each room with a table of its modules; those that stand in no room come first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, words in modules().items():
        room, _, module = name.rpartition(".")
        found.setdefault(room, []).append((f"`{module}`", words))
    parts: list[str] = []
    for room, rows in sorted(found.items(), key=lambda item: (item[0].startswith("adapters"), item[0])):
        title = f"`{room.replace('.', '/')}/`" if room else "The package itself"
        lead = next((words for module, words in rows if module == "`__init__`"), "") if room else ""
        shown = [row for row in rows if row[0] != "`__init__`" or not room]
        parts.append(f"### {title} {{ #room-{room.replace('.', '-') or 'top'} }}\n\n{lead}\n")
        if shown:
            parts.append(table(("module", "what it holds"), shown))
    return "\n".join(parts)


def modules() -> dict[str, str]:
    """Return every module of the package, by its name within it, with the first paragraph of its docstring."""
    return {
        name.removesuffix(".py").replace("/", "."): summary(ast.get_docstring(ast.parse(path.read_text("utf-8"))))
        for name, path in source_files().items()
    }
