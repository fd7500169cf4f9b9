"""Docstrings as the generated pages use them: what a class states, and what it states about each of its fields."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass
from textwrap import dedent
from typing import Final

__all__ = ["Docstring", "field_docs", "one_line", "parse", "summary"]

_SECTION: Final = re.compile(r"^(Args|Attributes|Raises|Returns|Yields|Example|Note):\n", re.MULTILINE)
_ATTRIBUTE: Final = re.compile(r"^    (\w+)(?: \([^)]*\))?: (.*(?:\n(?: {5,}.*|\s*(?=\n)))*)", re.MULTILINE)

# Bases whose fields are no fields of this package.
_FOREIGN: Final = frozenset({"abc", "builtins", "enum", "pydantic", "typing"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Docstring:
    """The parts of a Google-style docstring that the pages show.

    Attributes:
        text: The summary and the paragraphs in front of the first section.
        attributes: The section `Attributes`, by name.
    """

    text: str
    attributes: dict[str, str]


def parse(text: str) -> Docstring:
    """Return the parts of a docstring."""
    body, *sections = _SECTION.split(inspect.cleandoc(text))
    attributes: dict[str, str] = {}
    for title, section in zip(sections[::2], sections[1::2], strict=True):
        if title == "Attributes":
            attributes = {name: one_line(words) for name, words in _ATTRIBUTE.findall(section)}
    return Docstring(text=body.strip(), attributes=attributes)


def field_docs(owner: type) -> dict[str, str]:
    """Return what is documented about each field of a class, those of its bases included.

    A field is documented in the section `Attributes` of the class, or by a string after it.
    """
    found: dict[str, str] = {}
    for cls in reversed(owner.__mro__):
        if cls.__module__.partition(".")[0] in _FOREIGN:
            continue
        found |= parse(cls.__doc__ or "").attributes
        (tree,) = ast.parse(dedent(inspect.getsource(cls))).body
        assert isinstance(tree, ast.ClassDef)
        for field, string in zip(tree.body, tree.body[1:], strict=False):
            name = _assigned(field)
            if name and isinstance(string, ast.Expr) and isinstance(string.value, ast.Constant):
                found[name] = one_line(str(string.value.value))
    return found


def _assigned(node: ast.stmt) -> str | None:
    match node:
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
            return name
        case _:
            return None


def summary(text: str | None) -> str:
    """Return the first paragraph of a docstring, in one line."""
    return one_line(inspect.cleandoc(text or "").partition("\n\n")[0])


def one_line(text: str) -> str:
    """Return `text` with every run of spaces and line ends as one space."""
    return " ".join(text.split())
