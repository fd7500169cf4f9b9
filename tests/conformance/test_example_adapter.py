"""The contract on `example://`, an adapter of another package: docs/adapters/write-an-adapter.md shows this file."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backplane.testing import BroadcasterConformance, PresenceConformance
from backplane.testing.fault_conformance import TakeAway
from backplane.testing.harness import started_worker
from tests.conformance.example_broker import example_broker


class TestExample(BroadcasterConformance):
    """Every promise, over TCP, with a broker that lives in the test."""

    @pytest.fixture
    async def url(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
        """A broker of the test's own, and the adapter registered as an installed package registers it."""
        declared = "[backplane.adapters]\nexample = tests.conformance.example_adapter:ExampleBroadcaster\n"
        (tmp_path / "example-1.0.dist-info").mkdir()
        (tmp_path / "example-1.0.dist-info" / "entry_points.txt").write_text(declared)
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        async with example_broker() as url:
            yield url

    @pytest.fixture
    def refused_channel(self) -> str:
        """What the broker refuses."""
        return "forbidden"

    @pytest.fixture
    def take_away(self, url: str) -> TakeAway:
        """The broker's own way of taking subscriptions away."""

        async def take_away(channel: str) -> None:
            async with started_worker(url) as worker:
                await worker.broadcaster.publish("revoke", channel.encode())

        return take_away


class TestExamplePresence(PresenceConformance):
    """Presence, on an adapter that does not know of it."""

    one_loop = True

    url = TestExample.url
