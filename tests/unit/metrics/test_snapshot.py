"""`backplane.metrics.snapshot`: all metrics as JSON."""

from __future__ import annotations

import json
import os
import time

import pytest

from backplane import Backplane
from backplane.metrics.metric import Distribution, Metric
from backplane.metrics.snapshot import snapshot
from backplane.metrics.table import METRICS

pytestmark = pytest.mark.anyio


async def test_snapshot() -> None:
    """It holds every metric with its labels, is JSON, and names the process."""
    async with Backplane("memory://") as backplane:
        before = time.time()
        taken = snapshot(backplane)
    assert json.loads(json.dumps(taken, allow_nan=False)) == taken
    assert taken["worker"] == str(os.getpid())
    assert before <= taken["at"] <= time.time()
    assert list(taken["metrics"]) == [metric.name for metric in METRICS]
    assert taken["metrics"]["backplane_link_up"] == [[[], 1]]
    assert [["ok"], 0] in taken["metrics"]["backplane_publishes_total"]


def test_histogram(monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution is an object with its bounds, counts and total."""
    row = Metric(
        name="backplane_round_seconds",
        kind="histogram",
        help="How long.",
        labels=("stage",),
        read=lambda _: [(("received",), Distribution((0.1, 1.0), (3, 2, 1), 4.5))],
    )
    monkeypatch.setattr("backplane.metrics.snapshot.METRICS", (row,))
    assert snapshot(Backplane("memory://"))["metrics"] == {
        "backplane_round_seconds": [[["received"], {"bounds": [0.1, 1.0], "counts": [3, 2, 1], "total": 4.5}]]
    }
