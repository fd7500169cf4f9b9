"""The table of adapters, from what they declare."""

from __future__ import annotations

__all__ = ["adapters"]


def adapters() -> str:
    """Return the table of the adapters."""
    from tests.readme_table import table

    return table()
