"""A list of the pages of a folder, each with its description, or with the sentence it begins with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from mkdocs_hooks.docstrings import one_line
from mkdocs_hooks.navigation import page_names
from mkdocs_hooks.tables import table

__all__ = ["pages"]

_DOCS: Final = Path(__file__).parents[1] / "docs"
_BEGINNING: Final = re.compile(
    r"(?:---\ndescription: (?P<description>.+)\n---\n+)?# (?P<title>.+)\n+(?P<first>(?:.+\n)+)"
)


def pages(folder: str) -> str:
    """Return the pages of a folder as a table, in the order of the navigation."""
    rows: list[tuple[str, str]] = []
    for name in page_names(_DOCS / folder):
        found = _BEGINNING.match((_DOCS / folder / f"{name}.md").read_text(encoding="utf-8"))
        assert found is not None, name
        if name != "index":
            rows.append((f"[{found['title']}]({name}.md)", found["description"] or _sentence(found["first"])))
    return table(("page", "about"), rows)


def _sentence(paragraph: str) -> str:
    sentence = re.split(r"(?<=[.:]) ", one_line(paragraph), maxsplit=1)[0]
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", sentence).rstrip(".:")
