"""The table of the brokers on which patterns can be subscribed, from what the adapters declare."""

from __future__ import annotations

from mkdocs_hooks.tables import table

__all__ = ["patterns"]


def patterns() -> str:
    """Return a row for each adapter: whether it has patterns."""
    from tests.readme_table import capabilities_of, schemes_by_adapter

    found = {True: "yes", False: "no"}
    rows = [
        (", ".join(f"`{scheme}://`" for scheme in schemes), found[capabilities_of(schemes[0]).patterns])
        for schemes in schemes_by_adapter()
    ]
    return table(("broker", "patterns"), rows)
