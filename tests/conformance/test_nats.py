"""The contract on `nats://`, against a real server."""

from collections.abc import Awaitable, Callable, Sequence

import pytest

from backplane.registry import broadcaster_from_url
from backplane.testing import BroadcasterConformance, RecordingSink
from tests.brokers.broker import Broker
from tests.brokers.nats import NatsProcess
from tests.conftest import StartNats


def permitting(*denied: str) -> str:
    """Return the configuration of a server with one user, who may subscribe to any channel but these."""
    deny = ", ".join(f'"{channel}"' for channel in ("forbidden", *denied))
    user = f"{{user: alice, password: secret, permissions: {{subscribe: {{deny: [{deny}]}}}}}}"
    return f"authorization {{ users: [{user}] }}"


class TestNats(BroadcasterConformance):
    """Every promise, on a server that refuses one channel."""

    @pytest.fixture
    def broker(self, private_nats: StartNats) -> Broker:
        """A user who may subscribe to any channel but one."""
        return private_nats(permitting(), login="alice:secret")

    @pytest.fixture
    def url(self, broker: Broker) -> str:
        """Its URL."""
        return broker.url

    @pytest.fixture
    def refused_channel(self) -> str:
        """The one."""
        return "forbidden"

    @pytest.fixture
    def take_away(self, broker: Broker) -> Callable[[str], Awaitable[None]]:
        """Permissions that are reloaded without the channel, and then with it."""

        async def take_away(channel: str) -> None:
            assert isinstance(broker, NatsProcess)
            watcher, sink = broadcaster_from_url(broker.url), RecordingSink()
            await watcher.start(sink)
            await watcher.subscribe([channel])
            broker.reload(permitting(channel))
            await sink.until(lambda: bool(sink.revocations))
            broker.reload(permitting())
            await watcher.stop()

        return take_away

    @pytest.fixture
    def crowded(self, private_nats: StartNats) -> tuple[str, Sequence[str]]:
        """A server with places for ten subscriptions, which refuses the others without a name."""
        return private_nats("max_subscriptions: 10").url, [f"room-{number}" for number in range(20)]
