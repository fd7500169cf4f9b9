"""The contract on `nats://`, against a real server."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from backplane.broker.registry import broadcaster_from_url
from backplane.testing import BroadcasterConformance, HistoryConformance, PresenceConformance, RecordingSink
from backplane.testing.fault_conformance import FailOver, Strip, TakeAway
from backplane.testing.proxy import PassingWay
from tests.brokers.broker import Broker
from tests.brokers.certificate import self_signed_certificate
from tests.brokers.nats import NatsProcess
from tests.conftest import StartNats


def permitting(*denied: str) -> str:
    """Return the configuration of a server with one user, which may subscribe to any channel but these."""
    deny = ", ".join(f'"{channel}"' for channel in ("forbidden", *denied))
    user = f"{{user: alice, password: secret, permissions: {{subscribe: {{deny: [{deny}]}}}}}}"
    return f"authorization {{ users: [{user}] }}"


class TestNats(BroadcasterConformance):
    """The whole contract, on a server that refuses one channel."""

    @pytest.fixture
    def broker(self, private_nats: StartNats) -> Broker:
        """A server whose user may subscribe to any channel but one."""
        return private_nats(permitting(), login="alice:secret")

    @pytest.fixture
    def url(self, broker: Broker) -> str:
        """Its URL."""
        return broker.url

    @pytest.fixture
    def refused_channel(self) -> str:
        """The channel that is refused."""
        return "forbidden"

    @pytest.fixture
    def prefix_url(self, nats_broker: Broker) -> str:
        """A server with JetStream, for what is kept."""
        return nats_broker.url

    @pytest.fixture
    def take_away(self, broker: Broker) -> TakeAway:
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
        """A server with room for ten subscriptions, which refuses further ones without naming them."""
        return private_nats("max_subscriptions: 10").url, [f"room-{number}" for number in range(20)]

    @pytest.fixture
    def fail_over(self) -> FailOver:
        """None: NATS has no primary."""
        pytest.skip(
            "no NATS server is replaced while it runs: the servers of a cluster are equal, and announce their end"
        )

    @pytest.fixture
    def strip_tls(self, private_nats: StartNats, tmp_path: Path) -> tuple[str, Strip]:
        """A server that accepts clients without TLS too, and a proxy that removes TLS from its offer."""
        certificate = self_signed_certificate(tmp_path)
        tls = f'tls {{ cert_file: "{certificate}", key_file: "{tmp_path / "key.pem"}" }}\nallow_non_tls: true\n'
        login = "authorization { user: alice, password: secret }"
        url = private_nats(tls + login, login="alice:secret").url
        return f"{url}?tls_ca_certs={certificate}".replace("nats:", "tls:", 1), _without_tls


class TestNatsHistory(HistoryConformance):
    """The history, in files."""

    @pytest.fixture
    def url(self, private_nats: StartNats) -> str:
        """A server with JetStream."""
        return private_nats(jetstream=True).url


class TestNatsHistoryInMemory(HistoryConformance):
    """The history, in memory, which is the server's affair alone."""

    one_loop = True

    @pytest.fixture
    def url(self, private_nats: StartNats) -> str:
        """A server with JetStream."""
        return f"{private_nats(jetstream=True).url}?history_storage=memory"


class TestNatsPresence(PresenceConformance):
    """Presence."""

    one_loop = True

    @pytest.fixture
    def url(self, private_nats: StartNats) -> str:
        """A server of the test's own."""
        return private_nats().url


def _without_tls(way: PassingWay, data: bytes) -> bytes:
    return data.replace(b'"tls_available":true,', b"") if way == "to_client" else data
