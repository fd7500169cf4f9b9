"""`?credentials=` on every adapter with a login: the callable is asked at each connect, so secrets rotate.

test_kafka.py has its own: a listener with a login takes a server of its own, and its tokens end by themselves.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit, urlunsplit

import pytest

from backplane import Backplane, Gap, Settings
from backplane.broker.registry import broadcaster_from_url
from backplane.testing import FaultProxy
from tests.brokers.postgres import PostgresConfig
from tests.brokers.redis import RedisConfig
from tests.readme_table import capabilities_of, schemes_by_adapter

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from backplane import Subscription
    from tests.brokers.broker import Broker

pytestmark = pytest.mark.anyio

SECRET: Final = "hunter2"
WAIT_SECONDS: Final = 60.0
OPTION: Final = "credentials=handed_out_here:current"
SETTINGS: Final = Settings(max_backoff_seconds=0.1, start_timeout_seconds=30)


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested does not depend on it."""
    return "asyncio", {"use_uvloop": True}


@dataclass(slots=True)
class Vault:
    """What the application's callable returns.

    Attributes:
        user: The user.
        password: The password from now on.
        asked: What each call has returned.
    """

    user: str = "alice"
    password: str = SECRET
    asked: int = 0

    def current(self) -> tuple[str, str]:
        """Return user and password."""
        self.asked += 1
        return self.user, self.password

    async def asked_again(self) -> None:
        """Wait until it was asked once more, and for the connect after that."""
        before = self.asked
        async with asyncio.timeout(WAIT_SECONDS):
            while self.asked < before + 2:
                await asyncio.sleep(0.01)


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> Vault:
    """The module of the application that `credentials` names."""
    found, module = Vault(), ModuleType("handed_out_here")
    vars(module)["current"] = found.current
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return found


def _broker(request: pytest.FixtureRequest, adapter: str, vault: Vault) -> Broker:
    """Return a server with a login."""
    if adapter == "amqp":
        broker: Broker = request.getfixturevalue("amqp_broker")
        login = urlsplit(broker.url)
        vault.user, vault.password = login.username or "", login.password or ""
        return broker
    start = request.getfixturevalue("redis_node" if adapter == "redis+cluster" else f"private_{adapter}")
    if adapter == "nats":
        found: Broker = start(f"authorization {{ user: alice, password: {SECRET} }}")
    elif adapter == "postgres":
        sql = (f"CREATE ROLE alice LOGIN PASSWORD '{SECRET}'",)
        found = start(PostgresConfig(sql=sql, login=f"alice:{SECRET}"))
    else:
        found = start(RedisConfig(users=(f"alice on >{SECRET} +@all ~* &*",)))
    return found


@asynccontextmanager
async def _cuttable(broker: Broker, adapter: str) -> AsyncGenerator[tuple[str, Callable[[], None]]]:
    """Yield the URL without a login, and what ends the link: a proxy, or a restart where a node states its address."""
    parts = urlsplit(broker.url)
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
    if adapter == "redis+cluster":

        def restart() -> None:
            broker.kill9()
            broker.start()

        yield f"{bare}?{OPTION}", restart
        return
    async with FaultProxy(bare) as proxy:
        yield f"{proxy.url}?{OPTION}", proxy.cut


async def _received(messages: Subscription, text: str) -> None:
    """Wait for a message; gaps in front of it are those of the lost link."""
    async with asyncio.timeout(WAIT_SECONDS):
        async for message in messages:
            if not isinstance(message, Gap):
                assert message.data == text
                return


@pytest.mark.parametrize("adapter", ["redis", "redis+cluster", "nats", "postgres", "amqp"])
async def test_rotation(
    adapter: str, vault: Vault, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """What the callable returns is used at the next connect: a wrong password keeps the link down, a right one not."""
    broker = _broker(request, adapter, vault)
    right = vault.password
    async with (
        _cuttable(broker, adapter) as (url, cut),
        Backplane(url, settings=SETTINGS) as backplane,
        backplane.subscribe("room") as messages,
    ):
        await backplane.publish("room", "before")
        await _received(messages, "before")
        vault.password = f"{right}-of-yesterday"
        cut()
        await vault.asked_again()
        assert backplane.state != "live"
        vault.password = right
        async with asyncio.timeout(WAIT_SECONDS):
            while str(backplane.state) != "live":
                await asyncio.sleep(0.01)
        await backplane.publish("room", "after")
        await _received(messages, "after")
    assert f"{right}-of-yesterday" not in caplog.text


def test_every_adapter_with_a_broker_has_the_option() -> None:
    """Each scheme of each of them."""
    schemes = [scheme for each in schemes_by_adapter() for scheme in each if capabilities_of(each[0]).brokered]
    assert "kafka" in schemes
    for scheme in schemes:
        host = "one/service" if "sentinel" in scheme else "" if scheme == "unix" else "one"
        options = "&sasl_mechanism=OAUTHBEARER" if scheme == "kafka" else ""
        url = f"{scheme}://{host}{'/run/redis.sock' if scheme == 'unix' else ''}?{OPTION}{options}"
        broadcaster = broadcaster_from_url(url)
        assert broadcaster.options.credentials == "handed_out_here:current"
