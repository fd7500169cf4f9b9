"""`tests.unit.doubles`: the doubles pass the conformance suites of what they replace."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from backplane.testing import BroadcasterConformance, HandOverConformance
from tests.unit.doubles import FakeHandedOverLane, FakeLane, until_idle

if TYPE_CHECKING:
    from pathlib import Path

    from backplane.testing.hand_over_conformance import HandOverSite


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
    """A `HandOverSite` whose client is part of the lane's double."""

    def __init__(self) -> None:
        self.lane = FakeLane()
        self.lane.accepted = False
        self.lane.strict = False

    async def accept(self) -> None:
        """Accept the handshake."""
        self.lane.accepted = True

    @property
    def _present_lane(self) -> FakeLane:
        return self.lane.successor or self.lane

    def stop_reading(self) -> None:
        """Fill the transport at the third write."""
        self._present_lane.takes = 3

    def resume_reading(self) -> None:
        """Empty the transport."""
        self._present_lane.resume()

    async def send(self, text: str) -> None:
        """Receive from the client, within the limit."""
        lane = self._present_lane
        lane.last_received_at = asyncio.get_running_loop().time()
        lane.is_read_from = True
        if lane.max_message_bytes is not None and len(text) > lane.max_message_bytes:
            lane.close_code = 1009
            await self.close()
        elif isinstance(lane, FakeHandedOverLane):
            lane.arrive(text)

    async def close(self) -> None:
        """End the connection."""
        lane = self._present_lane
        if isinstance(lane, FakeHandedOverLane):
            lane.leave()
        else:
            lane.end()

    async def received(self, count: int) -> list[str | bytes]:
        """Return what was written."""
        await until_idle()
        return self._present_lane.written[:count]

    async def application_receives(self) -> str:
        """Return the end."""
        assert self.lane.successor is not None
        return "websocket.disconnect"

    async def application_sends(self, text: str) -> None:
        """Drop it."""

    async def end_application(self) -> None:
        """Do nothing: there is no application."""

    async def closed(self) -> tuple[int, str]:
        """Return the close frame."""
        lane = self._present_lane
        assert isinstance(lane, FakeHandedOverLane)
        assert lane.closed_with is not None
        return lane.closed_with


class TestFakeLane(HandOverConformance):
    """The contract of a lane that can be handed over, for its double."""

    @pytest.fixture
    def site(self) -> HandOverSite:
        """A client that is not accepted yet."""
        return FakeSite()
