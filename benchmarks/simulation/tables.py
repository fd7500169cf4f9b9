"""The tables of docs/operations/scale.md: brokers, and every case for three fleets with two sorts of settings."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness.candidate import ROOT
from benchmarks.simulation.brokers import COSTS, WORKERS
from benchmarks.simulation.cases import CASES, simulate
from benchmarks.simulation.fleet import STEPS_PER_SECOND, Setup

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.simulation.fleet import Outcome

__all__ = ["PAGE", "brokers", "describe", "recommended", "rewritten", "storms", "tables", "variants"]

PAGE: Final = ROOT / "docs" / "operations" / "scale.md"
"""The page that shows the tables."""

FLEETS: Final = (
    Setup(clients=10_000, workers=4),
    Setup(clients=100_000, workers=10),
    Setup(clients=1_000_000, workers=50, replaced_at_once=5),
)

_STORMS: Final[tuple[tuple[str, dict[str, Any], str], ...]] = (
    ("rolling", {"balance": "even"}, "rolling deployment, balancer takes turns"),
    ("rolling", {"balance": "least"}, "rolling deployment, fewest connections first"),
    ("killed", {"balance": "even"}, "one worker killed, balancer takes turns"),
    ("killed", {"balance": "least"}, "one worker killed, fewest connections first"),
    ("gap", {"balance": "even"}, "a gap closes all"),
    ("all", {"balance": "even"}, "all connections lost"),
)
_VARIANTS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"lost_pause_seconds": 5.0},
    {"lost_pause_seconds": 25.0},
    {"lost_pause_seconds": 50.0},
    {"patience_seconds": 10.0},
    {"patience_seconds": 10.0, "lost_pause_seconds": 25.0},
    {"workers": 25},
    {"workers": 100},
)
_BLOCK: Final = re.compile(r"^(<!-- simulation: (\w+) -->\n)(.*?)(^<!-- end -->)", re.DOTALL | re.MULTILINE)
_BROKER_COLUMNS: Final = (
    "broker",
    "subscribed workers",
    "connections of a server",
    "one message at a time",
    "64 in flight",
    "messages a second and core, one at a time",
    "64 in flight",
)
_STORM_COLUMNS: Final = (
    "clients, workers",
    "what happens",
    "most handshakes asked of a worker in a second",
    "longest wait for one",
    "tries refused",
    "99 % back after",
    "all back after",
)
_VARIANT_COLUMNS: Final = (
    "workers",
    "first pause up to",
    "longest pause up to",
    "patience",
    *_STORM_COLUMNS[2:4],
    "handshakes in vain",
    *_STORM_COLUMNS[-2:],
)


def recommended(setup: Setup) -> Setup:
    """Return the setup with `drain_seconds` so long that the clients of one worker keep another one half busy.

    From 10,000 clients a worker on, a client whose connection was lost without a close frame pauses for up to 5 s.
    """
    each = setup.clients / setup.workers
    seconds = math.ceil(each / (setup.handshakes_per_second / 2) / 5) * 5.0
    return replace(setup, drain_seconds=seconds, lost_pause_seconds=5.0 if each >= 10_000 else setup.lost_pause_seconds)


def storms() -> str:
    """Return the table of all cases; a cell has the figure with the defaults, and the one with what is recommended."""
    rows: list[Iterable[str]] = []
    for fleet in FLEETS:
        for case, given, title in _STORMS:
            plain = _cells(simulate(case, replace(fleet, **given)))
            better = _cells(simulate(case, replace(recommended(fleet), **given)))
            cells = (f"{a} → {b}" if a != b else a for a, b in zip(plain, better, strict=True))
            rows.append((f"{fleet.clients:,}, {fleet.workers}", title, *cells))
    return _markdown(_STORM_COLUMNS, rows, left=2)


def variants() -> str:
    """Return the table of a million lost connections, with other pauses, patience and numbers of workers."""
    rows: list[Iterable[str]] = []
    for given in _VARIANTS:
        setup = replace(FLEETS[-1], **{"balance": "even", **given})
        outcome = simulate("all", setup)
        busiest, wait, _, most, every = _cells(outcome)
        times = (setup.lost_pause_seconds, setup.longest_pause_seconds, setup.patience_seconds)
        pauses = (times[0], max(times[:2]), times[2])
        rows.append(
            (
                str(setup.workers),
                *(f"{each:g} s" for each in pauses),
                busiest,
                wait,
                f"{outcome.abandoned:,}",
                most,
                every,
            )
        )
    return _markdown(_VARIANT_COLUMNS, rows, left=0)


def brokers() -> str:
    """Return the table of what a message costs a broker."""
    rows: list[Iterable[str]] = []
    for costs in COSTS:
        for workers in WORKERS:
            figures = [costs.microseconds(workers, is_busy=is_busy) for is_busy in (False, True)]
            rates = [costs.messages_per_second(workers, is_busy=is_busy) for is_busy in (False, True)]
            rows.append(
                (
                    costs.title,
                    f"{workers:,}",
                    f"{workers * costs.connections:,}",
                    *(f"{figure:,.0f} µs" if figure >= 10 else f"{figure:,.1f} µs" for figure in figures),
                    *(f"{float(f'{rate:.2g}'):,.0f}" for rate in rates),
                )
            )
    return _markdown(_BROKER_COLUMNS, rows, left=1)


_TABLES: Final = {"brokers": brokers, "storms": storms, "variants": variants}


def tables() -> dict[str, str]:
    """Return each table by the name of its place on the page."""
    return {name: make() for name, make in _TABLES.items()}


def rewritten(page: str) -> str:
    """Return the page with the tables of today.

    Raises:
        ValueError: A table has no place there, or a place no table.
    """
    if sorted(found[2] for found in _BLOCK.finditer(page)) != sorted(_TABLES):
        raise ValueError(f"the page needs one block for each of {', '.join(_TABLES)}")
    made = tables()
    return _BLOCK.sub(lambda found: found[1] + made[found[2]] + found[4], page)


def describe(case: str, outcome: Outcome) -> str:
    """Return the outcome of one case as lines of text."""
    busiest, wait, refused, most, every = _cells(outcome)
    lines = {
        "case": CASES[case][0],
        "clients back": f"{outcome.returns.total():,}",
        "tries": f"{outcome.tries:,}",
        "tries refused": refused,
        "handshakes in vain": f"{outcome.abandoned:,}",
        "most handshakes asked of a worker in a second": busiest,
        "longest wait for one": wait,
        "99 % back after": most,
        "all back after": every,
        "over after": "never" if outcome.steps is None else f"{outcome.steps / STEPS_PER_SECOND:,.1f} s",
    }
    return "\n".join(f"{name:<46}{value}" for name, value in lines.items())


def _cells(outcome: Outcome) -> tuple[str, str, str, str, str]:
    def back(share: float) -> str:
        seconds = outcome.back_seconds(share)
        return "never" if seconds is None else f"{seconds:.1f} s"

    return (
        f"{outcome.busiest:,}",
        f"{outcome.longest_wait_steps / STEPS_PER_SECOND:.1f} s",
        f"{outcome.refused / outcome.tries:.1%}".replace("%", " %"),
        back(0.99),
        back(1.0),
    )


def _markdown(columns: Iterable[str], rows: Iterable[Iterable[str]], *, left: int) -> str:
    names = list(columns)
    marks = ["---" if number < left else "--:" for number in range(len(names))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (names, marks, *rows))
