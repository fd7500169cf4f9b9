"""The README's table of adapters, made from what they declare: `python -m tests.readme_table` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from backplane.broker import registry
from backplane.broker.registry import broadcaster_from_url
from backplane.cli.diagnosis import describe_reach, describe_return, format_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["table", "written_table"]

_README = Path(__file__).parents[1] / "README.md"
_TABLE = re.compile(r"(?<=<!-- table: adapters -->\n).*?(?=<!-- end -->)", re.DOTALL)
_COLUMNS = ("adapter", "reaches", "when `publish` returns", "after a lost link", "largest message", "extra")
_NOTHING = "\N{EN DASH}"
_NAMED = {
    "ipc": "ipc://name",
    "redis+sentinel": "redis+sentinel://host,host/service",
}


def table() -> str:
    """Return the table as the adapters declare it, one row for each; their brokers are not asked.

    Raises:
        MissingDependencyError: The client library of an adapter is not installed.
    """
    schemes: dict[str, list[str]] = {}
    for scheme, (target, _) in _built_in().items():
        schemes.setdefault(target, []).append(scheme)
    head = f"{_line(_COLUMNS)}{'|---' * len(_COLUMNS)}|\n"
    return head + "".join(_line(_row(names)) for names in schemes.values())


def written_table() -> str:
    """Return the table that stands in the README."""
    (found,) = _TABLE.findall(_README.read_text(encoding="utf-8"))
    return str(found)


def _built_in() -> Mapping[str, tuple[str, str | None]]:
    return registry._BUILT_IN  # pyright: ignore[reportPrivateUsage]


def _row(schemes: Sequence[str]) -> tuple[str, ...]:
    capabilities = broadcaster_from_url(_NAMED.get(schemes[0], f"{schemes[0]}://localhost")).capabilities
    recovers = "goes on where it was" if capabilities.resumes else "heals, and tells a `Gap`"
    extra = _built_in()[schemes[0]][1]
    return (
        ", ".join(f"`{_NAMED.get(scheme, f'{scheme}://')}`" for scheme in schemes),
        describe_reach(capabilities),
        describe_return(capabilities),
        recovers if capabilities.brokered else _NOTHING,
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
