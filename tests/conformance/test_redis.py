"""The contract on `redis://`, `rediss://` and `redis+sentinel://`, against real servers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from backplane.testing import BroadcasterConformance, FaultProxy
from tests.brokers.process import free_port
from tests.brokers.redis import RedisConfig
from tests.brokers.redis_sentinel import SERVICE, sentinel_of
from tests.conftest import StartRedis


class TestRedis(BroadcasterConformance):
    """Every promise, on a server that refuses one channel."""

    @pytest.fixture
    def url(self, private_redis: StartRedis) -> str:
        """A user who may use any channel but one; Redis knows no exception, so all the others are named."""
        allowed = " ".join(f"&{pattern}" for pattern in ("room*", "[^f]*", "f[^o]*"))
        rules = f"alice on >secret +@all ~* resetchannels {allowed}"
        return private_redis(RedisConfig(users=(rules,), login="alice:secret")).url

    @pytest.fixture
    def refused_channel(self) -> str:
        """What none of the patterns matches."""
        return "forbidden"


class TestRedisTls(BroadcasterConformance):
    """Every promise, over TLS."""

    @pytest.fixture
    def url(self, private_redis: StartRedis) -> str:
        """A server with a certificate of its own making."""
        return private_redis(RedisConfig(tls=True)).url

    @pytest.fixture(autouse=True)
    def spare_uvloop(self, request: pytest.FixtureRequest, anyio_backend: tuple[str, dict[str, bool]]) -> None:
        """Skip one test on uvloop 0.23, which logs an error of its own when TLS is aborted behind its handshake."""
        test: str = request.node.originalname
        if anyio_backend[1]["use_uvloop"] and test == "test_cancelling_at_any_moment_leaks_nothing":
            pytest.skip("uvloop 0.23 fails by itself when TLS is aborted right behind its handshake")


class TestRedisSentinel(BroadcasterConformance):
    """Every promise, on a server that a sentinel names."""

    @pytest.fixture
    def redis_url(self, private_redis: StartRedis) -> str:
        """The server behind the sentinel."""
        return private_redis().url

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


class _SentinelProxy(FaultProxy):
    def __init__(self, redis_url: str, port: int, url: str) -> None:
        super().__init__(redis_url, port)
        self._sentinel_url = url

    @property
    def url(self) -> str:
        return self._sentinel_url
