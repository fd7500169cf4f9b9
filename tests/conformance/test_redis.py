"""The contract on `redis://`, `rediss://` and `redis+sentinel://`, against real servers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from backplane.testing import BroadcasterConformance, FaultProxy, HistoryConformance, PresenceConformance
from backplane.testing.fault_conformance import FailOver, Strip, TakeAway
from backplane.testing.proxy import PassingWay
from tests.brokers.broker import Broker
from tests.brokers.process import free_port
from tests.brokers.redis import RedisConfig
from tests.brokers.redis_sentinel import SERVICE, sentinel_of
from tests.conftest import StartRedis

# A user with access to any channel but one. Redis has no exclusion, so the patterns name all others.
_ALLOWED = " ".join(f"&{pattern}" for pattern in ("room*", "[^f]*", "f[^o]*"))
_LIMITED = RedisConfig(users=(f"alice on >secret +@all ~* resetchannels {_ALLOWED}",), login="alice:secret")
_LEAST = RedisConfig(
    users=(
        "alice on >secret -@all +subscribe +unsubscribe +publish +ping +role +info resetchannels &shop:* "
        "+evalsha +script|load +get +set +del +rpush +rpop +ltrim +lrange +lindex +pexpire +time ~shop:$backplane/*",
    ),
    login="alice:secret",
)
_TLS = RedisConfig(tls=True, password="secret")


class RedisConformance(BroadcasterConformance):
    """The hooks that the suites for Redis share."""

    @pytest.fixture
    def take_away(self) -> TakeAway:
        """None: Redis cannot."""
        pytest.skip("Redis revokes no subscription: it ends the connections of a user who loses a channel")

    @pytest.fixture
    def crowded(self, private_redis: StartRedis) -> tuple[str, Sequence[str]]:
        """A server that refuses a SUBSCRIBE as a whole, and names none of its channels."""
        return private_redis(_LIMITED).url, [*(f"room-{number}" for number in range(20)), "forbidden", "forest"]

    @pytest.fixture
    def strip_tls(self, private_redis: StartRedis) -> tuple[str, Strip]:
        """A server with TLS, and an answer to its handshake without encryption."""
        return private_redis(_TLS).url, _answer_in_clear

    @pytest.fixture
    def fail_over(self, broker: Broker, proxy: FaultProxy, private_redis: StartRedis) -> FailOver:
        """A new server to which the proxy connects; the old one is demoted, and keeps its clients."""
        new = private_redis(_LIMITED)

        async def fail_over() -> str:
            proxy.lead_to(new.url)
            client: Any = Redis
            async with client.from_url(broker.url) as link:
                await link.replicaof("127.0.0.1", new.url.rpartition(":")[2])
            return new.url

        return fail_over


class TestRedis(RedisConformance):
    """The whole contract, on a server that refuses one channel."""

    @pytest.fixture
    def broker(self, private_redis: StartRedis) -> Broker:
        """A server whose user may use any channel but one."""
        return private_redis(_LIMITED)

    @pytest.fixture
    def url(self, broker: Broker) -> str:
        """Its URL."""
        return broker.url

    @pytest.fixture
    def refused_channel(self) -> str:
        """A channel that no pattern matches."""
        return "forbidden"

    @pytest.fixture
    def prefix_url(self, redis_broker: Broker) -> str:
        """A server without these rules: they permit PSUBSCRIBE for no pattern but those that they name."""
        return redis_broker.url


class TestRedisTls(BroadcasterConformance):
    """The whole contract, over TLS."""

    @pytest.fixture
    def url(self, private_redis: StartRedis) -> str:
        """A server with a self-signed certificate."""
        return private_redis(_TLS).url

    @pytest.fixture(autouse=True)
    def spare_uvloop(self, request: pytest.FixtureRequest, anyio_backend: tuple[str, dict[str, bool]]) -> None:
        """Skip one test on uvloop 0.23, which logs an internal error when TLS is aborted after its handshake."""
        test: str = request.node.originalname
        if anyio_backend[1]["use_uvloop"] and test == "test_cancelling_at_any_moment_leaks_nothing":
            pytest.skip("uvloop 0.23 logs an internal error when TLS is aborted right after its handshake")


class _NamedBySentinel:
    """A server that a sentinel names."""

    @pytest.fixture
    def broker(self, private_redis: StartRedis) -> Broker:
        """The server that the sentinel names."""
        return private_redis()

    @pytest.fixture
    def redis_url(self, broker: Broker) -> str:
        """Its URL."""
        return broker.url

    @pytest.fixture
    def url(self, redis_url: str, tmp_path: Path) -> Iterator[str]:
        """A sentinel that names the server."""
        with sentinel_of(int(redis_url.rpartition(":")[2]), tmp_path, down_after_milliseconds=60_000) as sentinel:
            yield f"redis+sentinel://127.0.0.1:{sentinel.port}/{SERVICE}"

    @pytest.fixture
    def proxy(self, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
        """A proxy before the server, and another sentinel, which names the proxy."""
        port = free_port()
        folder = tmp_path_factory.mktemp("sentinel")
        with sentinel_of(port, folder, down_after_milliseconds=60_000) as sentinel:
            yield _SentinelProxy(redis_url, port, f"redis+sentinel://127.0.0.1:{sentinel.port}/{SERVICE}")


class TestRedisSentinel(_NamedBySentinel, RedisConformance):
    """The whole contract, on a server that a sentinel names; its connections are those of `TestRedis`."""

    one_loop = True


class TestRedisHistory(HistoryConformance):
    """Every promise of a history, for a user who may do no more than the documentation grants."""

    @pytest.fixture
    def url(self, private_redis: StartRedis) -> str:
        """A server whose user has the documented permissions."""
        return f"{private_redis(_LEAST).url}?prefix=shop:"


class TestRedisTlsHistory(HistoryConformance):
    """Every promise of a history, over TLS."""

    @pytest.fixture
    def url(self, private_redis: StartRedis) -> str:
        """A server with a self-signed certificate."""
        return private_redis(_TLS).url

    @pytest.fixture(autouse=True)
    def spare_uvloop(self, request: pytest.FixtureRequest, anyio_backend: tuple[str, dict[str, bool]]) -> None:
        """Skip one test on uvloop 0.23, which logs an internal error when TLS is aborted after its handshake."""
        test: str = request.node.originalname
        if anyio_backend[1]["use_uvloop"] and test == "test_cancelling_history_at_any_moment_leaks_nothing":
            pytest.skip("uvloop 0.23 logs an internal error when TLS is aborted right after its handshake")


class TestRedisSentinelHistory(_NamedBySentinel, HistoryConformance):
    """Every promise of a history, on a server that a sentinel names."""

    one_loop = True


class TestRedisPresence(PresenceConformance):
    """Presence, for a user who may do no more than the documentation grants."""

    @pytest.fixture
    def url(self, private_redis: StartRedis) -> str:
        """A server whose user has the documented permissions."""
        return f"{private_redis(_LEAST).url}?prefix=shop:"


class TestRedisSentinelPresence(_NamedBySentinel, PresenceConformance):
    """Presence, on a server that a sentinel names."""

    one_loop = True


class _SentinelProxy(FaultProxy):
    def __init__(self, redis_url: str, port: int, url: str) -> None:
        super().__init__(redis_url, port)
        self._sentinel_url = url

    @property
    def url(self) -> str:
        return self._sentinel_url


def _answer_in_clear(way: PassingWay, data: bytes) -> bytes:
    return data if way == "to_broker" else b"+OK\r\n+PONG\r\n"
