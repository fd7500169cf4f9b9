"""The contract on `memory://`."""

import pytest

from backplane.testing import BroadcasterConformance, HistoryConformance, PresenceConformance


class TestMemory(BroadcasterConformance):
    """Every promise, within one process."""

    @pytest.fixture
    def url(self) -> str:
        """The only one there is."""
        return "memory://"


class TestMemoryHistory(HistoryConformance):
    """Every promise of a history."""

    @pytest.fixture
    def url(self) -> str:
        """The only one there is."""
        return "memory://"


class TestMemoryPresence(PresenceConformance):
    """Presence among the adapters of one process, which is all that there is."""

    @pytest.fixture
    def url(self) -> str:
        """The only one there is."""
        return "memory://"
