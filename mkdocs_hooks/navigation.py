"""The site's navigation: the folders of docs/ in a fixed order, and each page that stands in one of them.

It is made from the files, so that a new page is never forgotten: a page without a place of its own comes last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SECTIONS", "navigation", "page_names"]

SECTIONS: Final[dict[str, tuple[str, ...]]] = {
    "tutorial": ("index", "first-room", "two-workers", "redis", "lost-link"),
    "concepts": (
        "index",
        "channels",
        "patterns",
        "delivery",
        "gaps",
        "history",
        "slow-clients-and-outbox",
        "connections",
        "drain",
        "outages",
    ),
    "guides": (
        "index",
        "applications",
        "authorization-and-limits",
        "clients-that-listen",
        "slow-clients",
        "typed-channels",
        "server-sent-events",
        "browser-clients",
        "sdk-clients",
        "sdk-clients-tokens-and-rpc",
        "synchronous-code",
        "transactions",
        "messages-of-others",
        "command-line",
        "testing",
    ),
    "adapters": (
        "index",
        "memory",
        "ipc",
        "redis",
        "redis-cluster",
        "nats",
        "kafka",
        "postgres",
        "amqp",
        "write-an-adapter",
        "wire-format",
    ),
    "operations": (
        "index",
        "deployment",
        "health-and-metrics",
        "metrics",
        "logs",
        "live-page",
        "monitoring",
        "runbook",
        "why",
        "sizing",
        "scale",
        "history",
        "servers",
        "proxies",
        "direct-lane",
        "upgrading",
        "security",
    ),
    "reference": (
        "index",
        "api",
        "settings",
        "limits",
        "backlog",
        "adapter-options",
        "close-codes",
        "json-envelope",
        "errors",
        "statistics",
        "metrics",
        "log-events",
        "command-line",
    ),
    "migration": (
        "index",
        "from-connection-manager",
        "from-broadcaster",
        "from-channels",
        "from-litestar",
        "from-socketio",
    ),
    "architecture": ("index", "walks"),
    "project": (),
}
"""Each folder, with the order of its pages; a page that is not listed follows those that are, by name."""

_TITLES: Final = {"decisions": "Decisions"}

Entry = str | dict[str, "str | list[Entry]"]


def navigation(docs: Path) -> list[Entry]:
    """Return the navigation of the pages in `docs`, in the form of mkdocs' option `nav`."""
    top: list[Entry] = [page.name for page in sorted(docs.glob("*.md"))]
    folders = sorted((path for path in docs.iterdir() if path.is_dir()), key=lambda path: _place(path.name))
    return top + [{_title(folder): pages} for folder in folders if (pages := _pages(docs, folder))]


def page_names(folder: Path) -> list[str]:
    """Return the names of the pages of a folder in their order."""
    order = SECTIONS.get(folder.name, ("index",))
    return sorted((path.stem for path in folder.glob("*.md")), key=lambda name: _position(order, name))


def _pages(docs: Path, folder: Path) -> list[Entry]:
    pages: list[Entry] = [f"{folder.relative_to(docs).as_posix()}/{name}.md" for name in page_names(folder)]
    inner = (path for path in sorted(folder.iterdir()) if path.is_dir())
    return pages + [{_title(path): found} for path in inner if (found := _pages(docs, path))]


def _place(name: str) -> tuple[int, str]:
    return _position(tuple(SECTIONS), name)


def _position(order: tuple[str, ...], name: str) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order), name)


def _title(folder: Path) -> str:
    return _TITLES.get(folder.name, folder.name.capitalize())
