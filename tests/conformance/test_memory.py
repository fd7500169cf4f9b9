"""The contract on `memory://`."""

import pytest

from backplane.testing import BroadcasterConformance


class TestMemory(BroadcasterConformance):
    @pytest.fixture
    def url(self) -> str:
        return "memory://"
