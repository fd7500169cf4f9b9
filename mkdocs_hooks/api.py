"""Names whose module the pages do not repeat: found in the package, for mkdocstrings."""

from __future__ import annotations

import ast
from functools import cache

from mkdocs_hooks.sources import source_files

__all__ = ["api", "where"]


def api(name: str) -> str:
    """Return the mark that mkdocstrings replaces by the documentation of `name`."""
    return f"::: {where(name)}"


def where(name: str) -> str:
    """Return the full name of a public function or class, found by its own name.

    Raises:
        LookupError: No module defines it, or several do.
    """
    found = [f"{module}.{name}" for module, names in _defined().items() if name in names]
    if len(found) != 1:
        raise LookupError(f"{name} is defined in {len(found)} modules")
    return found[0]


@cache
def _defined() -> dict[str, frozenset[str]]:
    return {
        f"backplane.{name.removesuffix('.py').replace('/', '.')}": frozenset(
            node.name
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        )
        for name, path in source_files().items()
    }
