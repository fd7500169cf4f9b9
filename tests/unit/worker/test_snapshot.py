"""`backplane.worker.snapshot`: what a worker sends of itself, in a bounded size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from backplane import Backplane, History, Presence, Settings
from backplane.worker.snapshot import shared_settings, take_snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from backplane.worker.runtime import Runtime

pytestmark = pytest.mark.anyio


def runtime_of(backplane: Backplane) -> Runtime:
    """Return the parts of a started backplane."""
    runtime = backplane._runtime  # pyright: ignore[reportPrivateUsage]
    assert runtime is not None
    return runtime


async def test_what_it_holds() -> None:
    """The figures of health and statistics, and what is known of the process."""
    async with Backplane("memory://", cluster=True) as backplane, backplane.subscribe("a", "b"):
        await backplane.publish("a", "x")
        (worker,) = await backplane.workers()
        taken = take_snapshot(runtime_of(backplane), (), 2.5)
    assert (taken.worker, taken.host, taken.pid, taken.version) == (worker.id, worker.host, worker.pid, worker.version)
    assert (taken.state, taken.adapter, taken.interval_seconds) == ("live", "memory", 2.5)
    assert (taken.statistics["published"], taken.figure("subscriptions")) == (1, 1)
    assert taken.state_seconds >= 0
    assert len(taken.lag_counts) == len(taken.lag_bounds) + 1
    assert sum(taken.lag_counts) == taken.statistics["offered"] == 1
    assert taken.cpu_seconds > 0
    assert taken.resident_bytes is None or taken.resident_bytes > 1_000_000


async def test_without_a_proc_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the memory of a process cannot be read it is not known."""

    def refuse(_: Path) -> bytes:
        raise FileNotFoundError

    async with Backplane("memory://", cluster=True) as backplane:
        monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
        assert take_snapshot(runtime_of(backplane), (), 2).resident_bytes is None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("worker_heartbeat_seconds", {"settings": Settings(worker_heartbeat_seconds=2)}),
        ("worker_down_seconds", {"settings": Settings(worker_down_seconds=20)}),
        ("history", {"history": {"a": History()}}),
        ("presence", {"presence": {"a": Presence()}}),
    ],
)
async def test_settings_that_must_be_alike(name: str, options: dict[str, Any]) -> None:
    """Each of them changes the hash, and is named."""
    async with (
        Backplane("memory://", cluster=True) as usual,
        Backplane("memory://", cluster=True) as same,
        Backplane("memory://", cluster=True, **options) as other,
    ):
        hashes = [take_snapshot(runtime_of(each), (), 2).settings for each in (usual, same, other)]
        assert hashes[0] == hashes[1] != hashes[2]
        first, second = shared_settings(runtime_of(usual)), shared_settings(runtime_of(other))
        assert [key for key in first if first[key] != second[key]] == [name]
