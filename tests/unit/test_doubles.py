"""`tests.unit.doubles`: the doubles keep the promises of what they stand for, as the real ones do."""

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
    """The contract of an adapter, on the double of one, which does the same on each event loop."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        """One event loop."""
        return "asyncio"

    @pytest.fixture
    def url(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """A bus of the test's own, and the adapter registered as an installed package registers it."""
        declared = "[backplane.adapters]\ncontrolled = tests.unit.doubles:ControlledBroadcaster\n"
        (tmp_path / "controlled-1.0.dist-info").mkdir()
        (tmp_path / "controlled-1.0.dist-info" / "entry_points.txt").write_text(declared)
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        return f"controlled://{tmp_path.name}"


class FakeSite:
    """A `LaneSite` whose client lives in the lane's double."""

    def __init__(self) -> None:
        self.lane = FakeLane()
        self.lane.accepted = False
        self.lane.strict = False

    async def accept(self) -> None:
        """Accept the handshake."""
        self.lane.accepted = True

    def stop_reading(self) -> None:
        """Fill the transport with the third write."""
        self.lane.takes = 3

    def resume_reading(self) -> None:
        """Empty it."""
        self.lane.resume()

    async def send(self, text: str) -> None:
        """Receive from the client, within the limit."""
        limit = self.lane.max_message_bytes
        self.lane.last_received_at = asyncio.get_running_loop().time()
        if limit is not None and len(text) > limit:
            self.lane.close_code = 1009
            self.lane.end()

    async def close(self) -> None:
        """End."""
        self.lane.end()

    async def received(self, count: int) -> list[str | bytes]:
        """Return what was written."""
        await until_idle()
        return self.lane.written[:count]


class TestFakeLane(LaneConformance):
    """The contract of a lane, on the double of one."""

    @pytest.fixture
    def site(self) -> LaneSite:
        """A client that is not accepted yet."""
        return FakeSite()
