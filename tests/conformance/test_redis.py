"""The contract on `redis://` and `rediss://`, against a real server."""

import pytest

from backplane.testing import BroadcasterConformance
from tests.brokers.redis import RedisConfig
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
