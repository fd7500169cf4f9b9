"""The layers of the package, from the contract that import-linter checks."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

from mkdocs_hooks.rooms import modules
from mkdocs_hooks.tables import table

__all__ = ["contract", "layers"]

_PYPROJECT: Final = Path(__file__).parents[1] / "pyproject.toml"


def layers() -> str:
    """Return each layer from the top down, with what its rooms and modules hold."""
    known = modules()
    rows: list[tuple[str, str]] = []
    for layer in contract():
        held = [known.get(f"{name}.__init__") or known.get(name, "") for name in layer]
        rows.append((", ".join(f"`{name}`" for name in layer), "<br>".join(held)))
    return table(("layer", "what it holds"), rows)


def contract() -> list[list[str]]:
    """Return the names of each layer, from the top down."""
    contracts = tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (found,) = [entry for entry in contracts if entry["type"] == "layers"]
    return [[name.strip() for name in layer.split("|")] for layer in found["layers"]]
