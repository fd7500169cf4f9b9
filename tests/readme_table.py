"""The README's table of adapters, made from what they declare: `python -m tests.readme_table` rewrites it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from backplane.broker import registry
from backplane.broker.registry import broadcaster_from_url
from backplane.cli.diagnosis import describe_reach, describe_return, format_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backplane.broadcaster import Capabilities

__all__ = ["capabilities_of", "schemes_by_adapter", "table", "written_table"]

_README = Path(__file__).parents[1] / "README.md"
_TABLE = re.compile(r"(?<=<!-- table: adapters -->\n).*?(?=<!-- end -->)", re.DOTALL)
_COLUMNS = ("adapter", "reaches", "when `publish` returns", "after a lost link", "history", "largest message", "extra")
_NOTHING = "\N{EN DASH}"
_HISTORY = {"nothing": _NOTHING, "process": "in the process", "host": "on the host", "server": "on the broker"}
_NAMED = {
    "ipc": "ipc://name",
    "redis+sentinel": "redis+sentinel://host,host/service",
    "redis+cluster": "redis+cluster://host,host",
}
# Options with which an adapter promises more: a row of its own.
_VARIANTS = {"postgres": "postgres://host/db?durable=true", "amqp": "amqp://host?durable=true"}


def table() -> str:
    """Return the table as the adapters declare it, one row for each; their brokers are not asked.

    Raises:
        MissingDependencyError: The client library of an adapter is not installed.
    """
    head = f"{_line(_COLUMNS)}{'|---' * len(_COLUMNS)}|\n"
    return head + "".join(_line(row) for schemes in schemes_by_adapter() for row in _rows(schemes))


def schemes_by_adapter() -> list[list[str]]:
    """Return the schemes of each adapter of the package, in the order of the registry."""
    schemes: dict[str, list[str]] = {}
    for scheme, (target, _) in _built_in().items():
        schemes.setdefault(target, []).append(scheme)
    return list(schemes.values())


def capabilities_of(scheme: str) -> Capabilities:
    """Return what the adapter of a scheme declares; its broker is not asked."""
    return broadcaster_from_url(_NAMED.get(scheme, f"{scheme}://localhost")).capabilities


def written_table() -> str:
    """Return the table that stands in the README."""
    (found,) = _TABLE.findall(_README.read_text(encoding="utf-8"))
    return str(found)


def _built_in() -> Mapping[str, tuple[str, str | None]]:
    return registry._BUILT_IN  # pyright: ignore[reportPrivateUsage]


def _rows(schemes: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the row of an adapter, and that of the option with which it promises more."""
    extra = _built_in()[schemes[0]][1]
    rows = [_row([_NAMED.get(scheme, f"{scheme}://") for scheme in schemes], capabilities_of(schemes[0]), extra)]
    if (url := _VARIANTS.get(schemes[0])) is not None:
        rows.append(_row([url], broadcaster_from_url(url).capabilities, extra))
    return rows


def _row(urls: Sequence[str], capabilities: Capabilities, extra: str | None) -> tuple[str, ...]:
    gap = "is rebuilt; a `Gap`" if capabilities.keeps == "nothing" else "is rebuilt; a `Gap`, except with a history"
    recovers = "continues where it was" if capabilities.resumes else gap
    if capabilities.parts:
        recovers = "one node that fails: a `Gap` for its channels alone, except with a history"
    return (
        ", ".join(f"`{url}`" for url in urls),
        describe_reach(capabilities),
        describe_return(capabilities),
        recovers if capabilities.brokered else _NOTHING,
        _HISTORY[capabilities.keeps],
        format_size(capabilities.max_payload_bytes),
        f"`{extra}`" if extra else _NOTHING,
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _rewrite() -> None:
    made = table()
    _README.write_text(_TABLE.sub(lambda _: made, _README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    _rewrite()
