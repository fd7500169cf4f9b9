"""The list of design decisions, from the first line of each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

__all__ = ["decisions"]

_FOLDER: Final = Path(__file__).parents[1] / "docs" / "architecture" / "decisions"


def decisions() -> str:
    """Return a list of all decisions, for a page in their folder."""
    lines: list[str] = []
    for page in sorted(_FOLDER.glob("[0-9]*.md")):
        title = re.match(r"# (.*)", page.read_text(encoding="utf-8"))
        assert title is not None, page
        lines.append(f"- [{title[1]}]({page.name})")
    return "\n".join(lines) + "\n"
