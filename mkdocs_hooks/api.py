"""Names whose module the pages do not repeat: found in the package, for mkdocstrings."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from mkdocs_hooks.sources import source_files

__all__ = ["api", "api_others", "exports", "load", "where"]

_PAGE: Final = Path(__file__).parents[1] / "docs" / "reference" / "api.md"


def api(name: str) -> str:
    """Return the mark that mkdocstrings replaces by the documentation of `name`."""
    return f"::: {where(name)}"


def exports(module: str) -> str:
    """Return the marks of the names that a module exports; of a suite without its tests."""
    without = "\n    options: { members: false }"
    names: list[str] = import_module(module).__all__
    return "\n\n".join(f"::: {module}.{name}" + without * name.endswith("Conformance") for name in names)


def api_others() -> str:
    """Return the marks of the exported names that the page of the API does not hold by name: types of signatures."""
    import backplane
    from mkdocs_hooks.errors import error_classes

    page = _PAGE.read_text(encoding="utf-8")
    named = {*re.findall(r"^::: backplane\.(\w+)$", page, re.MULTILINE), *(error.__name__ for error in error_classes())}
    return "\n\n".join(f"::: backplane.{name}" for name in backplane.__all__ if name not in named)


def load(name: str) -> Any:
    """Return a public class or function of the package by its own name."""
    return getattr(import_module(where(name).rpartition(".")[0]), name)


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
