"""The contract on `ipc://`."""

import pytest

from backplane.testing import BroadcasterConformance, HistoryConformance, PresenceConformance


class TestIpc(BroadcasterConformance):
    """Every promise, over Unix sockets."""

    @pytest.fixture
    def url(self, ipc_url: str) -> str:
        """A name and a folder of the test's own."""
        return ipc_url


class TestIpcHistory(HistoryConformance):
    """Every promise of a history, over one log for the host."""

    @pytest.fixture
    def url(self, ipc_url: str) -> str:
        """A name and a folder of the test's own."""
        return ipc_url


class TestIpcPresence(PresenceConformance):
    """Presence, over Unix sockets."""

    one_loop = True

    @pytest.fixture
    def url(self, ipc_url: str) -> str:
        """A name and a folder of the test's own."""
        return ipc_url
