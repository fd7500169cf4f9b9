"""The close codes, from `CloseCode` and the docstring of each."""

from __future__ import annotations

from mkdocs_hooks.docstrings import field_docs
from mkdocs_hooks.tables import table

__all__ = ["close_codes"]


def close_codes() -> str:
    """Return every close code with its name, whether its client comes back, and its meaning."""
    from backplane import CloseCode

    docs = field_docs(CloseCode)
    return table(
        ("code", "name", "the client", "meaning"),
        [
            (
                str(code.value),
                f"`{code.name}`{{ #{code.name.lower()} }}",
                "comes back" if code.reconnect else "stays away",
                docs[code.name],
            )
            for code in sorted(CloseCode)
        ],
    )
