"""`backplane.metrics.snapshot`: all metrics as JSON."""

from __future__ import annotations

import json
import os
import time

import pytest

from backplane import Backplane
from backplane.histogram import Exemplar
from backplane.metrics.metric import Distribution, Metric
from backplane.metrics.snapshot import parse_snapshot, samples_in, snapshot
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


def test_exemplars(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read again as they were sent."""
    exemplar = Exemplar("f" * 32, 0.05, 1_700_000_000.5)
    row = Metric(
        name="backplane_round_seconds",
        kind="histogram",
        help="How long.",
        read=lambda _: [((), Distribution((0.1, 1.0), (3, 2, 1), 4.5, {0: exemplar}))],
    )
    monkeypatch.setattr("backplane.metrics.snapshot.METRICS", (row,))
    read = parse_snapshot(json.dumps(snapshot(Backplane("memory://"))).encode(), "1")
    assert samples_in(read, row) == [((), Distribution((0.1, 1.0), (3, 2, 1), 4.5, {0: exemplar}))]


@pytest.mark.parametrize(
    "exemplar",
    ["x", [], [0, "f", 1], [0, "f", 1, 2, 3], [0, 7, 1, 2], [0, "f" * 33, 1, 2], ["x", "f", 1, 2], [0, "f", "x", 2]],
)
def test_no_exemplar(exemplar: object) -> None:
    """A sibling that sends anything else as one has another version."""
    value = {"bounds": [1], "counts": [1, 0], "total": 0.5, "exemplars": [exemplar]}
    text = json.dumps({"at": 1, "metrics": {"backplane_publish_seconds": [[[], value]]}})
    with pytest.raises(ValueError):  # noqa: PT011  # of Python, or with the reason
        parse_snapshot(text.encode(), "1")


async def test_read_again() -> None:
    """What another process sends is read with its labels and values, under the process id that its socket names."""
    async with Backplane("memory://") as backplane:
        taken = snapshot(backplane)
    read = parse_snapshot(json.dumps({**taken, "worker": 'x"} 1', "more": [1]}).encode(), "123")
    assert read == {**taken, "worker": "123"}
    by_name = {metric.name: metric for metric in METRICS}
    assert samples_in(read, by_name["backplane_link_up"]) == [((), 1)]
    assert (("ok",), 0) in samples_in(read, by_name["backplane_publishes_total"])


def test_read_of_another_version() -> None:
    """A metric that the other process does not have is absent, and one that this process does not know is left out."""
    read = parse_snapshot(b'{"at": 1, "metrics": {"backplane_new_total": [[["x"], 1]]}}', "1")
    assert [samples_in(read, metric) for metric in METRICS] == [[] for _ in METRICS]


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b"1", b"null", b"\xff\xfe", b'{"at": 1}', b'{"metrics": {}}', b'{"at": "x", "metrics": {}}',
        b'{"at": 1, "metrics": [1]}', b'{"at": 1, "metrics": "x"}', b"[" * 100_000,
        *(
            b'{"at": 1, "metrics": {"backplane_link_up": %s}}' % value
            for value in (b"1", b"[1]", b"[[[]]]", b'[[["x"], 1]]', b'[[[], "1"]]', b"[[[], [1]]]", b"[[[], null]]")
        ),
        b'{"at": 1, "metrics": {"backplane_publishes_total": [[[1], 1]]}}',
        b'{"at": 1, "metrics": {"backplane_publishes_total": [["ok", 1]]}}',
        b'{"at": 1' + b"0" * 400 + b', "metrics": {}}',
    ],
)  # fmt: skip
def test_garbage(text: bytes) -> None:
    """What is no snapshot is refused as a whole, with one kind of error."""
    with pytest.raises(ValueError):  # noqa: PT011  # of json, or with the reason
        parse_snapshot(text, "1")


@pytest.mark.parametrize(
    "value",
    [1, [], {"bounds": [1.0], "counts": [1], "total": 1}, {"bounds": [2.0, 1.0], "counts": [1, 1, 1], "total": 1},
     {"bounds": ["x"], "counts": [1, 1], "total": 1}, {"bounds": [1.0], "counts": [1, 1]}],
)  # fmt: skip
def test_garbage_for_a_histogram(value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds and counts have to fit."""
    row = Metric(name="backplane_x_seconds", kind="histogram", help="X.", read=lambda _: (), unit="seconds")
    monkeypatch.setattr("backplane.metrics.snapshot.METRICS", (row,))
    good = {"bounds": [1.0], "counts": [1, 2], "total": 3.5}

    def sent(value: object) -> bytes:
        return json.dumps({"at": 1, "metrics": {"backplane_x_seconds": [[[], value]]}}).encode()

    assert samples_in(parse_snapshot(sent(good), "1"), row) == [((), Distribution((1.0,), (1, 2), 3.5))]
    with pytest.raises(ValueError):  # noqa: PT011
        parse_snapshot(sent(value), "1")
