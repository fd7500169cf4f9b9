"""`backplane.cli.top_view`: the order of the rows, narrow terminals, and names that hold control characters."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from backplane import ChannelOverview, Overview, Problem, WorkerOverview
from backplane.cli.top_view import TopOrder, overview_view

WORKER = WorkerOverview(
    worker="web-1/31-9f2c",
    id="9f2c000000000000",
    host="web-1",
    pid=31,
    version="0.3",
    state="live",
    since=0,
    started_at=0,
    draining=False,
    generation=1,
    connections=1_204,
    channels=7,
    subscriptions=0,
    slow=0,
    waiting_bytes=2_048,
    gaps=0,
    rates={"deliveries": 51_200, "publishes": 4.25, "failures": 0, "dropped": 0},
    lag_p99=0.012,
    loop_lag=2.5,
    cpu=0.31,
    resident_bytes=3 * 1024**3,
    clock_offset=-1.5,
    control_received=5,
    age_seconds=0.1,
)
NEW = replace(
    WORKER,
    worker="web-2/9-0000",
    host="web-2",
    pid=9,
    state="degraded",
    connections=2_000,
    rates=None,
    lag_p99=None,
    cpu=None,
    resident_bytes=None,
    clock_offset=None,
)
PROBLEM = Problem(kind="gaps", severity="warning", worker=None, text="Something.", cure="Do it.")
OVERVIEW = Overview(
    at=0,
    asked=2,
    answered=2,
    missing=(),
    verdict="All 2 workers are live.",
    problems=(),
    workers=(WORKER, NEW),
    channels=(),
)


def lines(overview: Overview = OVERVIEW, *, sort: TopOrder = "name", channels: int = 10, width: int = 200) -> list[str]:
    """Return what is shown on a terminal of so many columns."""
    console = Console(file=StringIO(), width=width, highlight=False)
    console.print(overview_view(overview, sort=sort, channels=channels, width=width, url="redis://host"))
    file: Any = console.file
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_all_columns() -> None:
    """What is not known yet is a dash."""
    summary, verdict, _, header, first, second = lines()
    assert summary.endswith("redis://host  2 of 2 workers, 3,204 clients, 51,200 deliveries/s")
    assert verdict == "✓ All 2 workers are live."
    assert header.split() == [
        *("worker", "link", "clients", "channels", "deliv/s", "publ/s", "drop/s", "gaps", "lag", "p99"),
        *("stall", "waits", "cpu", "memory", "clock", "up", "version"),
    ]
    assert first.split()[:7] == ["web-1/31-9f2c", "live", "1,204", "7", "51,200", "4.2", "0"]
    assert "12 ms" in first
    assert "2.50 s" in first
    assert "2 KiB" in first
    assert "31%" in first
    assert "3.0 GiB" in first
    assert "-1.5 s" in first
    assert second.split()[:8] == ["web-2/9-0000", "degraded", "2,000", "7", "-", "-", "-", "0"]


def test_narrow() -> None:
    """At 80 columns every row is one line, and the columns that matter most are there."""
    shown = lines(width=80)
    assert len(shown) == 6
    assert shown[3].split() == ["worker", "link", "clients", "deliv/s", "publ/s", "lag", "p99", "waits", "cpu"]
    assert lines(width=100)[3].split()[5:] == ["gaps", "lag", "p99", "waits", "cpu", "memory"]


@pytest.mark.parametrize(
    ("sort", "first"),
    [
        ("name", "web-1"),
        ("clients", "web-2"),
        ("deliveries", "web-1"),
        ("lag", "web-1"),
        ("waiting", "web-1"),
        ("cpu", "web-1"),
        ("memory", "web-1"),
    ],
)
def test_order(sort: TopOrder, first: str) -> None:
    """Those with the most come first."""
    assert lines(replace(OVERVIEW, workers=(NEW, WORKER)), sort=sort)[4].startswith(first)


def test_problems() -> None:
    """Each is a line with what to do; of many the first five, with how many more."""
    error = replace(PROBLEM, severity="error", text="Worse.")
    shown = lines(replace(OVERVIEW, problems=(error, *[PROBLEM] * 6), missing=("web-3/1-ffff",)))
    assert shown[1:8] == [
        "✗ Worse. Do it.",
        *["! Something. Do it."] * 4,
        "and 2 more",
        "without figures of: web-3/1-ffff",
    ]


def test_not_all_yet() -> None:
    """Before all have answered nothing is marked as well."""
    assert lines(replace(OVERVIEW, missing=("web-3/1-ffff",), verdict="2 of 3."))[1] == "… 2 of 3."


def test_draining() -> None:
    """A worker that is about to end is shown as such."""
    assert " draining " in lines(replace(OVERVIEW, workers=(replace(WORKER, draining=True),)))[4]


def test_channels() -> None:
    """As many as were asked for; control characters of their names are shown, not sent to the terminal."""
    channel = ChannelOverview(
        name="a\x1b[31m\n[bold]b", subscribers=1_000, workers=2, messages_per_second=0.25, bytes_per_second=4_096
    )
    shown = lines(replace(OVERVIEW, channels=(channel, replace(channel, name="other"))), channels=1)
    assert shown[-2].split() == ["channel", "subscribers", "workers", "messages/s", "bytes/s"]
    assert shown[-1].split() == [r"a\x1b[31m\n[bold]b", "1,000", "2", "0.2", "4", "KiB"]
    assert lines(replace(OVERVIEW, channels=(channel,)), channels=0)[0] == lines()[0]
