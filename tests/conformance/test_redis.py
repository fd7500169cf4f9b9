"""The contract on `redis://`, against a real server."""

import pytest

from backplane.testing import BroadcasterConformance


class TestRedis(BroadcasterConformance):
    @pytest.fixture
    def url(self) -> str:
        return "redis://127.0.0.1:6399"
