"""The contract on `memory://`."""

import pytest

from backplane.testing import BroadcasterConformance


class TestMemory(BroadcasterConformance):
    """Every promise, within one process."""

    @pytest.fixture
    def url(self) -> str:
        """The only one there is."""
        return "memory://"
