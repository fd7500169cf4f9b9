"""`benchmarks.micro.patterns`: the cost of a message by how many patterns there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.micro import patterns

if TYPE_CHECKING:
    import pytest


def test_each_count_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every count is measured in every round."""
    monkeypatch.setattr(patterns, "COUNTS", (0, 10))
    figures = patterns.run(3, 5)
    assert [len(figure.microseconds) for figure in figures] == [3] * 6
    assert figures[0].name == "0 patterns, a channel without a subscriber"
