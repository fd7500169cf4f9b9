"""The contract on `nats://`, against a real server."""

import pytest

from backplane.testing import BroadcasterConformance
from tests.conftest import StartNats

_PERMISSIONS = """
authorization {
  users = [{user: alice, password: secret, permissions: {subscribe: {deny: "forbidden"}}}]
}
"""


class TestNats(BroadcasterConformance):
    """Every promise, on a server that refuses one channel."""

    @pytest.fixture
    def url(self, private_nats: StartNats) -> str:
        """A user who may subscribe to any channel but one."""
        return private_nats(_PERMISSIONS, login="alice:secret").url

    @pytest.fixture
    def refused_channel(self) -> str:
        """The one."""
        return "forbidden"
