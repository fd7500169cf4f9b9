"""The contract on `redis+cluster://`, against a cluster of one node, and of three primaries with their replicas."""

from urllib.parse import urlsplit

import pytest

from backplane.adapters.redis_cluster.slots import slot_of
from backplane.testing import BroadcasterConformance, FaultProxy, HistoryConformance, PresenceConformance
from backplane.testing.fault_conformance import FailOver, TakeAway
from backplane.testing.proxy import PassingWay
from tests.brokers.redis import RedisConfig
from tests.brokers.redis_cluster import SingleNode
from tests.conftest import StartRedisNode

# A user with access to any channel but one. Redis has no exclusion, so the patterns name all others.
_ALLOWED = " ".join(f"&{pattern}" for pattern in ("room*", "[^f]*", "f[^o]*"))
_LIMITED = RedisConfig(users=(f"alice on >secret +@all ~* resetchannels {_ALLOWED}",), login="alice:secret")
_LEAST = RedisConfig(
    users=(
        "alice on >secret -@all +ssubscribe +sunsubscribe +spublish +ping +info +cluster|slots +cluster|info "
        "+cluster|nodes +cluster|myid resetchannels &shop:* "
        "+evalsha +script|load +get +set +del +rpush +rpop +ltrim +lrange +lindex +pexpire +time ~shop:$backplane/*",
    ),
    login="alice:secret",
)


class ClusterProxy(FaultProxy):
    """Stands before the only node of a cluster, and announces itself in its place."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._broker_url = url
        self.rewrite(self._announce)

    def heal(self) -> None:
        """End every fault; the address remains changed."""
        super().heal()
        self.rewrite(self._announce)

    def _announce(self, way: PassingWay, data: bytes) -> bytes:
        if way == "to_broker":
            return data
        own, broker = (f":{urlsplit(url).port}\r\n".encode() for url in (self.url, self._broker_url))
        return data.replace(broker, own)  # an integer: of a reply to CLUSTER SLOTS


class TestRedisCluster(BroadcasterConformance):
    """The whole contract, on one node."""

    @pytest.fixture
    def node(self, redis_node: StartRedisNode) -> SingleNode:
        """A node whose user may use any channel but one."""
        return redis_node(_LIMITED)

    @pytest.fixture
    def url(self, node: SingleNode) -> str:
        """Its URL."""
        return node.url

    @pytest.fixture
    def proxy(self, url: str) -> FaultProxy:
        """A proxy that the adapter takes for the node."""
        return ClusterProxy(url)

    @pytest.fixture
    def refused_channel(self) -> str:
        """A channel that no pattern matches."""
        return "forbidden"

    @pytest.fixture
    def take_away(self, node: SingleNode) -> TakeAway:
        """The slot is taken from the node, and given back."""

        async def take_away(channel: str) -> None:
            slot = str(slot_of(channel.encode()))
            node.ask("CLUSTER", "DELSLOTS", slot)
            node.ask("CLUSTER", "ADDSLOTS", slot)

        return take_away

    @pytest.fixture
    def fail_over(self) -> FailOver:
        """None: the map names the node that takes over."""
        pytest.skip("the nodes of a cluster report which of them serves a slot: tests/chaos/test_redis_cluster.py")

    @pytest.fixture
    def crowded(self) -> None:
        """None: a refusal belongs to one channel."""
        pytest.skip("each channel is subscribed by a command of its own")

    @pytest.fixture
    def strip_tls(self) -> None:
        """None here."""
        pytest.skip("the connections are those of TestRedis")


@pytest.mark.full
class TestRedisClusterClassic(TestRedisCluster):
    """The whole contract, with the messages of every node on every node."""

    one_loop = True

    @pytest.fixture
    def url(self, node: SingleNode) -> str:
        """Its URL."""
        return f"{node.url}?pubsub=classic"

    @pytest.fixture
    def prefix_url(self, redis_node: StartRedisNode) -> str:
        """A node without these rules: they permit PSUBSCRIBE for no pattern but those that they name."""
        return f"{redis_node().url}?pubsub=classic"

    @pytest.fixture
    def take_away(self) -> TakeAway:
        """None: a slot has no part in it."""
        pytest.skip("Redis revokes no subscription: it ends the connections of a user who loses a channel")


class TestRedisClusterHistory(HistoryConformance):
    """Every promise of a history, for a user who may do no more than the documentation grants."""

    one_loop = True
    proxy = TestRedisCluster.proxy

    @pytest.fixture
    def url(self, redis_node: StartRedisNode) -> str:
        """A node whose user has the documented permissions."""
        return f"{redis_node(_LEAST).url}?prefix=shop:"


@pytest.mark.full
class TestRedisClusterPresence(PresenceConformance):
    """Presence, for a user who may do no more than the documentation grants."""

    one_loop = True
    proxy = TestRedisCluster.proxy

    @pytest.fixture
    def url(self, redis_node: StartRedisNode) -> str:
        """A node whose user has the documented permissions."""
        return f"{redis_node(_LEAST).url}?prefix=shop:"
