"""`backplane.stats.snapshot`: what a worker sends, and what is taken of what another program sends."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from backplane.stats.snapshot import ChannelFigures, parse_snapshot
from tests.unit.stats.world import snapshot


def test_it_comes_back_as_it_was_sent() -> None:
    """Every field is sent, and read again."""
    sent = snapshot(
        health={"ready": True, "generation": 2, "last_gap_reason": "x", "round_trip_seconds": None},
        statistics={"delivered": 7},
        lag_bounds=(0.1, 1.0),
        lag_counts=(1, 2, 3),
        resident_bytes=1,
        channels=(ChannelFigures(name="a\u2028", subscribers=1, messages=2, size_bytes=3),),
    )
    assert parse_snapshot(sent.encode()) == sent


def test_of_another_version() -> None:
    """What it sends beside is dropped, and what it lacks has a default."""
    parsed = parse_snapshot(json.dumps({"worker": snapshot().worker, "of_tomorrow": [1]}))
    assert parsed is not None
    assert (parsed.pid, parsed.figure("connections"), parsed.channels) == (0, 0, ())


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", "{", '{"worker": 5}', '{"worker": "x"}', '{"worker": "aaaa000000000000", "pid": "many"}'],
)
def test_what_is_no_snapshot(text: str) -> None:
    """Another program can publish anything there."""
    assert parse_snapshot(text) is None


def test_what_is_not_finite_is_none() -> None:
    """A figure that JSON has no number for is sent as none."""
    assert "NaN" not in replace(snapshot(), health={"longest_stall_seconds": math.nan}).encode()


def test_figures_that_are_no_numbers() -> None:
    """A figure that is a text, or missing, counts as 0."""
    sent = snapshot(health={"state": "live", "gaps": 2})
    assert (sent.figure("state"), sent.figure("gaps"), sent.figure("other")) == (0, 2, 0)
