"""`tests.unit.doubles`: the doubles pass the conformance suites of what they replace."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from backplane.testing import BroadcasterConformance, LaneConformance
from tests.unit.doubles import FakeLane, until_idle

if TYPE_CHECKING:
    from pathlib import Path

    from backplane.testing.lane_conformance import LaneSite


class TestControlledBroadcaster(BroadcasterConformance):
    """The contract of an adapter, for its double, which behaves alike on both event loops."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        """One event loop."""
        return "asyncio"

    @pytest.fixture
    def url(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """A private bus, with the adapter registered as by an installed package."""
        declared = "[backplane.adapters]\ncontrolled = tests.unit.doubles:ControlledBroadcaster\n"
        (tmp_path / "controlled-1.0.dist-info").mkdir()
        (tmp_path / "controlled-1.0.dist-info" / "entry_points.txt").write_text(declared)
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        return f"controlled://{tmp_path.name}"


class FakeSite:
    """A `LaneSite` whose client is part of the lane's double."""

    def __init__(self) -> None:
        self.lane = FakeLane()
        self.lane.accepted = False
        self.lane.strict = False

    async def accept(self) -> None:
        """Accept the handshake."""
        self.lane.accepted = True

    def stop_reading(self) -> None:
        """Fill the transport at the third write."""
        self.lane.takes = 3

    def resume_reading(self) -> None:
        """Empty the transport."""
        self.lane.resume()

    async def send(self, text: str) -> None:
        """Receive from the client, within the limit."""
        limit = self.lane.max_message_bytes
        self.lane.last_received_at = asyncio.get_running_loop().time()
        if limit is not None and len(text) > limit:
            self.lane.close_code = 1009
            self.lane.end()

    async def close(self) -> None:
        """End the connection."""
        self.lane.end()

    async def received(self, count: int) -> list[str | bytes]:
        """Return what was written."""
        await until_idle()
        return self.lane.written[:count]


class TestFakeLane(LaneConformance):
    """The contract of a lane, for its double."""

    @pytest.fixture
    def site(self) -> LaneSite:
        """A client that is not accepted yet."""
        return FakeSite()
