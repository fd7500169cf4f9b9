"""`backplane check` and `backplane doctor` on each scheme: what they state of a broker, and of what is none.

Each case is one line of a table: the URL that a user gives by mistake, and the words that lead to the right one.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import pytest

from backplane.broker.registry import broadcaster_from_url
from backplane.cli.diagnosis import diagnose
from backplane.cli.doctor_broker import inspect_broker, inspect_configuration
from tests.brokers.broker import BrokerMissingError
from tests.brokers.pgbouncer import PgBouncer
from tests.brokers.postgres import PostgresConfig
from tests.brokers.process import free_port
from tests.brokers.rabbitmq import RabbitProcess
from tests.brokers.redis import RedisConfig

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from tests.brokers.broker import Broker
    from tests.conftest import StartNats, StartPostgres, StartRedis, StartRedisNode

pytestmark = pytest.mark.anyio

SECRET: Final = "hunter2"
PATIENT: Final = "connect_timeout_seconds=30"
"""Where something answers: no broker is too slow for it."""
HASTY: Final = "connect_timeout_seconds=0.3"
"""Where nothing answers."""
LOGIN: Final = f"alice:{SECRET}"


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested does not depend on it."""
    return "asyncio", {"use_uvloop": True}


async def problem(url: str) -> str:
    """Return what is wrong; it holds no password, and `doctor` states the same."""
    found = (await diagnose(url, messages=1)).problem
    assert found is not None
    assert SECRET not in found
    (finding,) = [finding async for finding in inspect_broker(url, lambda _: None)]
    assert (finding.check, finding.level) == ("broker", "error")
    assert found.startswith(finding.text)
    return found


async def description(url: str) -> str:
    """Return how the broker describes itself."""
    found = await diagnose(url, messages=1)
    assert (found.problem, len(found.round_trips_seconds)) == (None, 1)
    return found.broker or ""


async def findings(url: str) -> dict[str, str]:
    """Return the level of what `doctor` finds in the broker's configuration, by check."""
    return {finding.check: finding.level for finding in await inspect_configuration(url, {})}


@asynccontextmanager
async def listening(answer: bytes = b"") -> AsyncGenerator[int]:
    """Accept connections on a port, and answer what comes with bytes that no broker sends; yields the port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1024):
            writer.write(answer)
            if answer:
                break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


DOWN: Final = [
    f"redis://:{SECRET}@",
    f"redis+cluster://:{SECRET}@",
    f"nats://{LOGIN}@",
    "kafka://",
    f"postgres://{LOGIN}@",
    f"amqp://{LOGIN}@",
]
"""The schemes, each with a login where that needs no more options."""


@pytest.mark.parametrize("start", DOWN, ids=lambda start: start.partition(":")[0])
async def test_a_broker_that_is_down(start: str) -> None:
    """The address is named, and what the system states."""
    port = free_port()
    found = await problem(f"{start}127.0.0.1:{port}?{PATIENT}")
    assert "cannot reach" in found
    assert str(port) in found
    assert "is the broker running, does this host reach it, and is this its port?" in found


@pytest.mark.parametrize("start", DOWN, ids=lambda start: start.partition(":")[0])
async def test_a_port_of_something_else(start: str) -> None:
    """A web server, or one that waits for the client to go on, is no broker: the hint names the port."""
    async with listening() as silent, listening(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n") as web:
        for port in (silent, web):
            found = await problem(f"{start}127.0.0.1:{port}?{HASTY}")
            assert "is this its port?" in found or "or is no PostgreSQL" in found


@pytest.mark.parametrize("start", DOWN, ids=lambda start: start.partition(":")[0])
async def test_a_host_that_does_not_exist(start: str) -> None:
    """The name is in the error."""
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("broker.invalid", 1)
    assert "broker.invalid" in await problem(f"{start}broker.invalid:1?{PATIENT}")


# --- Redis ---


async def test_redis_and_cluster(private_redis: StartRedis, redis_node: StartRedisNode) -> None:
    """Each scheme on the server of the other: a single server is refused, a node is a finding."""
    node = redis_node()
    assert "Redis" in await description(private_redis().url)
    assert "a cluster of 1" in await description(node.url)
    as_server = node.url.replace("redis+cluster:", "redis:")
    assert "Redis" in await description(as_server)
    assert (await findings(as_server))["redis_cluster"] == "warning"
    as_cluster = private_redis().url.replace("redis:", "redis+cluster:")
    assert "the scheme of a single server is redis://" in await problem(f"{as_cluster}?{PATIENT}")
    assert "redis_cluster" not in await findings(private_redis().url)


async def test_redis_passwords(private_redis: StartRedis, redis_node: StartRedisNode) -> None:
    """One that is wrong, and one that is missing, on a server and on a cluster."""
    for url in (
        private_redis(RedisConfig(password="right")).url,
        redis_node(RedisConfig(password="right")).url,
    ):
        assert "refused the credentials" in await problem(url.replace("right", SECRET))
        assert "wants a password and the URL has none" in await problem(url.replace(":right@", ""))


# --- NATS ---


async def test_nats_passwords(private_nats: StartNats) -> None:
    """One that is wrong, and one that is missing."""
    config = "authorization { user: alice, password: right }"
    url = private_nats(config, login="alice:right").url
    assert "NATS" in await description(url)
    assert "check the user and the password" in await problem(url.replace("right", SECRET))
    assert "check the user and the password" in await problem(url.replace("alice:right@", ""))


# --- PostgreSQL ---


async def test_postgres(private_postgres: StartPostgres) -> None:
    """A wrong password, a database that does not exist, and a durable mode without its tables."""
    create = ("CREATE ROLE alice LOGIN PASSWORD 'right'",)
    url = private_postgres(PostgresConfig(sql=create, login="alice:right")).url
    assert "PostgreSQL" in await description(url)
    assert set((await findings(url)).values()) <= {"ok", "skipped"}
    assert 'password authentication failed for user "alice"' in await problem(url.replace("right", SECRET))
    assert 'database "nowhere" does not exist' in await problem(url.replace("/postgres", "/nowhere"))
    assert "print the SQL by `backplane schema postgres`" in await problem(f"{url}?durable=true")


async def test_postgres_at_a_pooler(postgres_broker: Broker, tmp_path: Path) -> None:
    """PgBouncer in transaction mode is named: its sessions receive nothing."""
    try:
        pooler = PgBouncer(postgres_broker.url, "transaction", tmp_path)
    except BrokerMissingError as error:
        pytest.skip(f"Tests on pgbouncer were skipped: {error}.")
    with pooler:
        found = await problem(pooler.url)
    assert "pooler" in found
    assert "transaction" in found


async def test_postgres_at_a_server_of_another_kind(amqp_broker: Broker) -> None:
    """RabbitMQ answers what PostgreSQL never does."""
    found = await problem(f"postgres://{amqp_broker.url.rpartition('@')[2]}?{PATIENT}")
    assert "or is no PostgreSQL" in found


# --- RabbitMQ ---


async def test_rabbitmq(amqp_broker: Broker) -> None:
    """A wrong password, a virtual host that does not exist, and the scheme without TLS at the port with it."""
    url = amqp_broker.url
    assert "RabbitMQ" in await description(url)
    assert "check the user and the password" in await problem(url.replace(":guest@", f":{SECRET}@"))
    assert (await findings(url))["amqp_server"] == "ok"
    assert "vhost nowhere not found" in await problem(f"{url}/nowhere")
    tls = url.replace("amqp:", "amqps:")
    assert "where this port speaks no TLS, the scheme is amqp://" in await problem(f"{tls}?{PATIENT}")
    if isinstance(amqp_broker, RabbitProcess):
        plain = amqp_broker.tls_url.replace("amqps:", "amqp:").partition("?")[0]
        assert "where this port speaks TLS, the scheme is amqps://" in await problem(f"{plain}?{PATIENT}")


def test_every_scheme_of_a_broker_is_here() -> None:
    """The table has one scheme of each adapter that has a broker; test_redis_sentinel.py has that of sentinels."""
    from tests.readme_table import capabilities_of, schemes_by_adapter

    brokered = [schemes[0] for schemes in schemes_by_adapter() if capabilities_of(schemes[0]).brokered]
    tested = {start.partition(":")[0] for start in DOWN}
    brokered.remove("redis+sentinel")
    assert [scheme for scheme in brokered if scheme not in tested] == []
    assert {broadcaster_from_url(f"{start}127.0.0.1").url.scheme for start in DOWN} == tested
