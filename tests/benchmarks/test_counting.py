"""`benchmarks.micro.counting`: the hub and the lane with and without counting, in one run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.micro import counting

if TYPE_CHECKING:
    from benchmarks.micro.figure import Figure

NAMES = ["floor: not counted", "counted, with lag"]


def shape(figures: list[Figure]) -> list[tuple[str, int]]:
    """Return the names of the figures, each with its number of rounds."""
    return [(figure.name, len(figure.microseconds)) for figure in figures]


@pytest.mark.parametrize(("subscribers", "messages"), [(1, 1), (1, 16), (450, 2)])
def test_hub(subscribers: int, messages: int) -> None:
    """Both take turns; the benchmark itself checks that each message and delivery was counted once."""
    assert shape(counting.hub(subscribers, 3, messages)) == [(name, 3) for name in NAMES]


def test_lane() -> None:
    """Every client on the lane gets each message once, counted or not."""
    assert shape(counting.lane(3, 2)) == [(name, 2) for name in NAMES]


def test_publish() -> None:
    """What a publish counts is measured by itself."""
    assert shape(counting.publish(3)) == [("floor: nothing", 3), ("what a publish counts", 3)]


def test_counting_costs_a_part_of_a_message() -> None:
    """By the fastest round of each, in one run: an eighth of what the hub takes for a message was measured."""
    without, counted = (min(figure.microseconds) for figure in counting.hub(1, 200, 1))
    assert counted < 1.3 * without
