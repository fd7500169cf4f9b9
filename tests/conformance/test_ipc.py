"""The contract on `ipc://`."""

import pytest

from backplane.testing import BroadcasterConformance


class TestIpc(BroadcasterConformance):
    """Every promise, over Unix sockets."""

    @pytest.fixture
    def url(self, ipc_url: str) -> str:
        """A name and a folder of the test's own."""
        return ipc_url
