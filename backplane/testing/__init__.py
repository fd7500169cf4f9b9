"""What a third party needs to test an adapter or a lane: conformance suites, a recording sink and a fault proxy.

The suite needs pytest and the pytest plugin of anyio (which Starlette brings). In a test file:

    from backplane.testing import BroadcasterConformance

    class TestMyAdapter(BroadcasterConformance):
        @pytest.fixture
        def url(self) -> str:
            return "myscheme://localhost"

An adapter that keeps messages (`SupportsHistory`) runs `HistoryConformance` too, in the same way. Presence, commands
and surveys need no more than a `Broadcaster`: every adapter runs `PresenceConformance`.
"""

import pytest

pytest.register_assert_rewrite(
    "backplane.testing.conformance",
    "backplane.testing.fault_conformance",
    "backplane.testing.hand_over_conformance",
    "backplane.testing.history_conformance",
    "backplane.testing.lane_conformance",
    "backplane.testing.prefix_conformance",
    "backplane.testing.presence_conformance",
    "backplane.testing.resume_conformance",
)

from backplane.testing.conformance import BroadcasterConformance  # noqa: E402  # its asserts must be rewritten
from backplane.testing.hand_over_conformance import HandOverConformance  # noqa: E402
from backplane.testing.history_conformance import HistoryConformance  # noqa: E402
from backplane.testing.lane_conformance import LaneConformance  # noqa: E402
from backplane.testing.presence_conformance import PresenceConformance  # noqa: E402
from backplane.testing.proxy import FaultProxy  # noqa: E402
from backplane.testing.recording import RecordingSink  # noqa: E402

__all__ = [
    "BroadcasterConformance",
    "FaultProxy",
    "HandOverConformance",
    "HistoryConformance",
    "LaneConformance",
    "PresenceConformance",
    "RecordingSink",
]
