"""What is PostgreSQL's own: sessions and their settings, poolers, standbys, foreign notifications, large messages."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest

from backplane import (
    Backlog,
    Backplane,
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    ConfigurationError,
    Gap,
    Message,
    PublishError,
    Settings,
)
from backplane.adapters.postgres import PostgresBroadcaster, broadcaster
from backplane.adapters.postgres.options import PostgresOptions
from backplane.adapters.postgres.wire import MAX_NOTIFICATION_BYTES, encode_channel
from backplane.broadcaster import BrokerUrl
from backplane.broker.registry import broadcaster_from_url
from backplane.testing import FaultProxy
from backplane.testing.fault_conformance import passes_through
from backplane.testing.recording import RecordingSink
from tests.brokers.broker import Broker
from tests.brokers.pgbouncer import PgBouncer
from tests.brokers.postgres import PostgresConfig, PostgresProcess
from tests.brokers.process import free_port
from tests.conftest import StartPostgres

pytestmark = pytest.mark.anyio

_asyncpg: Any = asyncpg
_QUICK = Settings(probe_interval_seconds=0.2, max_backoff_seconds=0.2)


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop: the conformance suite runs on both."""
    return "asyncio", {"use_uvloop": False}


@asynccontextmanager
async def session(url: str) -> AsyncGenerator[Any]:
    """A session of the test's own."""
    connection = await _asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def received(messages: Any, count: int) -> list[Any]:
    """Return the data of the next messages."""
    async with asyncio.timeout(30):
        return [item.data async for item in _first(messages, count)]


async def _first(messages: Any, count: int) -> AsyncIterator[Message]:
    for _ in range(count):
        item = await anext(messages)
        assert isinstance(item, Message), item
        yield item


# -- poolers -----------------------------------------------------------------------------------------------------------


async def test_a_pooler_in_transaction_mode_is_named_at_the_start(postgres_broker: Broker, tmp_path: Path) -> None:
    """LISTEN succeeds there and receives nothing, so the start fails, and the error states where to connect."""
    with (
        PgBouncer(postgres_broker.url, "transaction", tmp_path) as pooler,
        pytest.raises(BrokerError, match="pooler in transaction mode, such as PgBouncer") as raised,
    ):
        await Backplane(f"{pooler.url}?connect_timeout_seconds=1").start()
    assert not raised.value.retriable


async def test_a_pooler_in_session_mode_is_used(postgres_broker: Broker, tmp_path: Path) -> None:
    """Each session keeps its connection of the pool, so it receives."""
    with PgBouncer(postgres_broker.url, "session", tmp_path) as pooler:
        async with Backplane(pooler.url) as backplane, backplane.subscribe("room") as messages:
            await backplane.publish("room", "hello")
            assert await received(messages, 1) == ["hello"]


# -- servers -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def standby(private_postgres: StartPostgres, tmp_path: Path) -> Iterator[tuple[Broker, PostgresProcess]]:
    """A primary, and a standby that follows it."""
    primary = private_postgres()
    if not isinstance(primary, PostgresProcess):
        pytest.skip("a standby needs the programs of PostgreSQL")
    with primary.standby(tmp_path) as standby:
        yield primary, standby


async def test_the_primary_of_several_servers_is_used(standby: tuple[Broker, PostgresProcess]) -> None:
    """A closed port and a standby are passed over; a standby alone is named, and may be promoted later."""
    primary, second = standby
    with pytest.raises(BrokerUnavailableError, match="is a standby, which takes neither LISTEN nor NOTIFY"):
        await Backplane(second.url, settings=Settings(start_timeout_seconds=1)).start()
    servers = f"127.0.0.1:{free_port()},127.0.0.1:{second.port},{primary.url.rpartition('@')[2]}"
    async with Backplane(f"postgres://postgres@{servers}") as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", "hello")
        assert await received(messages, 1) == ["hello"]


async def test_a_read_only_server_is_refused_where_the_url_demands_another(private_postgres: StartPostgres) -> None:
    """`target_session_attrs=read-write`, as libpq has it; a NOTIFY needs no right to write."""
    url = private_postgres(PostgresConfig(settings=("default_transaction_read_only=on",))).url
    with pytest.raises(BrokerUnavailableError, match="read-only"):
        await Backplane(f"{url}?target_session_attrs=read-write", settings=Settings(start_timeout_seconds=1)).start()
    async with Backplane(url) as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", "hello")
        assert await received(messages, 1) == ["hello"]


async def test_a_server_that_was_replaced_is_left(private_postgres: StartPostgres) -> None:
    """A new session shows that the address leads to another server now, while the old one still answers."""
    old, new = private_postgres(), private_postgres()
    async with FaultProxy(old.url) as proxy:
        adapter = PostgresBroadcaster(BrokerUrl.parse(proxy.url), PostgresOptions(), compare_seconds=0)
        async with Backplane(adapter, settings=_QUICK) as backplane, backplane.subscribe("room") as messages:
            proxy.lead_to(new.url)
            async with asyncio.timeout(30):
                assert isinstance(await anext(messages), Gap)
            async with Backplane(new.url) as outside:
                await passes_through(outside, messages)


# -- logins ------------------------------------------------------------------------------------------------------------

_ALICE = PostgresConfig(sql=("CREATE ROLE alice LOGIN PASSWORD 'secret'",), login="alice:secret")


async def test_a_wrong_password_fails_the_start_at_once(private_postgres: StartPostgres) -> None:
    """It is not tried again, and the error shows no password."""
    url = private_postgres(_ALICE).url
    with pytest.raises(BrokerAuthenticationError, match="refused the login") as raised:
        await Backplane(url.replace("secret", "guessed")).start()
    assert "guessed" not in str(raised.value)


async def test_a_database_that_does_not_exist_fails_the_start_at_once(postgres_broker: Broker) -> None:
    """Another try does not help."""
    with pytest.raises(BrokerError, match='database "nowhere" does not exist') as raised:
        await Backplane(postgres_broker.url.rpartition("/")[0] + "/nowhere").start()
    assert not raised.value.retriable


async def test_a_server_without_a_free_session_is_unavailable(private_postgres: StartPostgres) -> None:
    """All sessions are taken: that passes."""
    url = private_postgres(PostgresConfig(settings=("max_connections=4", "superuser_reserved_connections=0"))).url
    held = [await _asyncpg.connect(url) for _ in range(4)]
    adapter = broadcaster_from_url(url)
    with pytest.raises(BrokerUnavailableError, match="too many clients"):
        await adapter.start(RecordingSink())
    for connection in held:
        await connection.close()


async def test_credentials_are_asked_for_at_each_session(
    private_postgres: StartPostgres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A callable gives user and password."""
    (tmp_path / "handed_out_postgres.py").write_text("def login():\n    return 'alice', 'secret'\n")
    monkeypatch.syspath_prepend(tmp_path)  # pyright: ignore[reportUnknownMemberType]
    url = private_postgres(_ALICE).url.replace("alice:secret@", "") + "?credentials=handed_out_postgres:login"
    async with Backplane(url) as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", "hello")
        assert await received(messages, 1) == ["hello"]


async def test_tls(private_postgres: StartPostgres) -> None:
    """The server is checked where its authority is given; a server that is not trusted is named."""
    broker = private_postgres(PostgresConfig(tls=True))
    async with Backplane(broker.url) as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", "hello")
        assert await received(messages, 1) == ["hello"]
    bare = broker.url.partition("?")[0]
    with pytest.raises(BrokerError, match="certificate that is not trusted"):
        await Backplane(f"{bare}?sslmode=verify-full").start()
    async with Backplane(f"{bare}?sslmode=require") as backplane:  # as with libpq, not checked
        await backplane.publish("room", "hello")


async def test_tls_that_the_server_does_not_speak(postgres_broker: Broker) -> None:
    """A URL that demands TLS gets an error."""
    with pytest.raises(BrokerError, match="TLS"):
        await Backplane(f"{postgres_broker.url}?sslmode=require", settings=Settings(start_timeout_seconds=1)).start()


async def test_a_unix_socket(postgres_broker: Broker) -> None:
    """The option `host` names its folder; the settings of TCP have no effect there."""
    assert isinstance(postgres_broker, PostgresProcess)
    url = f"postgres://postgres@:{postgres_broker.port}/postgres?host={postgres_broker.data.parent}"
    async with Backplane(url) as backplane:
        await backplane.publish("room", "hello")


# -- sessions ----------------------------------------------------------------------------------------------------------


async def test_an_idle_session_is_not_ended(private_postgres: StartPostgres) -> None:
    """The server ends idle sessions of others, and not those of a worker."""
    url = private_postgres(PostgresConfig(settings=("idle_session_timeout=100ms",))).url
    async with Backplane(url) as backplane, backplane.subscribe("room") as messages:
        other = await _asyncpg.connect(url)
        ended = asyncio.Event()
        other.add_termination_listener(lambda _connection: ended.set())  # pyright: ignore[reportUnknownLambdaType]
        async with asyncio.timeout(30):
            await ended.wait()
        await backplane.publish("room", "hello")
        assert await received(messages, 1) == ["hello"]
        assert (await backplane.health()).generation == 1


async def test_a_process_that_only_publishes_listens_to_nothing(private_postgres: StartPostgres) -> None:
    """It has one session, and its subscription opens another one."""
    url = private_postgres().url
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backplane'"
    async with session(url) as watching, Backplane(url, settings=Settings(path_test=False)) as backplane:
        await backplane.publish("room", "hello")
        assert await watching.fetchval(query) == 1
        async with backplane.subscribe("room"):
            assert await watching.fetchval(query) == 2


async def test_a_full_queue_of_notifications_is_reported(
    postgres_broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It fills where a session that listens does not read: reported once, before publishes fail."""
    caplog.set_level(logging.WARNING, "backplane.adapters.postgres")
    monkeypatch.setattr(broadcaster, "_CHECK", "SELECT false, 0.25::float8")
    adapter = broadcaster_from_url(postgres_broker.url)
    assert isinstance(adapter, PostgresBroadcaster)
    await adapter.start(RecordingSink())
    await adapter.check()
    await adapter.check()
    await adapter.stop()
    (record,) = caplog.records
    assert "is 25% full" in record.getMessage()


async def test_what_the_server_refuses_is_not_published(
    private_postgres: StartPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller gets the reason, and the link goes on."""
    broker = private_postgres(
        PostgresConfig(
            sql=(
                "REVOKE EXECUTE ON FUNCTION pg_notify FROM PUBLIC",
                "CREATE ROLE alice LOGIN PASSWORD 'secret'",
            ),
            login="alice:secret",
        )
    )
    async with Backplane(broker.url) as backplane:
        for _ in range(2):
            with pytest.raises(PublishError, match="permission denied for function pg_notify"):
                await backplane.publish("room", "hello")
        assert (await backplane.health()).generation == 1


# -- messages ----------------------------------------------------------------------------------------------------------


async def test_a_foreign_notification_is_received_as_text(postgres_broker: Broker) -> None:
    """From any client, and from a trigger: the channel, the end of the line, the text."""
    async with (
        Backplane(postgres_broker.url) as backplane,
        backplane.subscribe("orders") as messages,
        session(postgres_broker.url) as other,
    ):
        await other.execute("""NOTIFY backplane, E'orders\\n{"id": 1}'""")
        await other.execute("NOTIFY backplane, 'nothing that could be meant'")
        await other.execute("NOTIFY another, E'orders\\nnot for us'")
        await other.execute("""
            CREATE TEMPORARY TABLE sold (id int);
            CREATE FUNCTION pg_temp.announce() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_notify('backplane', E'orders\\n' || row_to_json(NEW)); RETURN NULL; END $$;
            CREATE TRIGGER announce AFTER INSERT ON sold FOR EACH ROW EXECUTE FUNCTION pg_temp.announce();
            INSERT INTO sold VALUES (2);
        """)
        assert await received(messages, 2) == ['{"id": 1}', '{"id":2}']


async def test_large_messages_among_small_ones(postgres_broker: Broker) -> None:
    """One of a megabyte takes many notifications, of one transaction: it arrives whole and in its place."""
    large = bytes(range(256)) * 4_000
    async with (
        Backplane(postgres_broker.url) as backplane,
        Backplane(postgres_broker.url) as other,
        backplane.subscribe("room", backlog=Backlog(max_bytes=16 * len(large))) as messages,
    ):
        async with asyncio.TaskGroup() as group:
            for number in range(60):
                group.create_task(backplane.publish("room", large if number % 20 == 0 else str(number)))
                group.create_task(other.publish("another", large if number % 20 == 7 else str(number)))
        expected = [large if number % 20 == 0 else str(number) for number in range(60)]
        assert await received(messages, 60) == expected


async def test_equal_messages_of_one_batch_all_arrive(postgres_broker: Broker) -> None:
    """PostgreSQL itself delivers equal notifications of one transaction once."""
    async with Backplane(postgres_broker.url) as backplane, backplane.subscribe("room") as messages:
        await asyncio.gather(*(backplane.publish("room", "same") for _ in range(100)))
        assert await received(messages, 100) == ["same"] * 100


@pytest.mark.parametrize("channel", ["r", "ü" * 127])
async def test_sizes_around_the_limit_of_a_notification(channel: str, postgres_broker: Broker) -> None:
    """No message is a byte too long for one, whatever its channel adds in its encoding.

    https://github.com/socketio/socket.io-postgres-adapter/pull/17,
    https://github.com/danidee10/channels_postgres/issues/84
    """
    room = MAX_NOTIFICATION_BYTES - len(encode_channel(channel))
    sizes = [*range(room * 3 // 4 - 60, room * 3 // 4 + 10), 2 * room * 3 // 4, 8_000, 7_999]
    async with Backplane(postgres_broker.url) as backplane, backplane.subscribe(channel) as messages:
        await asyncio.gather(*(backplane.publish(channel, b"x" * size) for size in sizes))
        assert [len(data) for data in await received(messages, len(sizes))] == sizes


async def test_a_session_that_crashes(private_postgres: StartPostgres) -> None:
    """The server ends all sessions, recovers, and refuses new ones meanwhile: a gap, and the link is back.

    https://github.com/graphile/worker/issues/541
    """
    url = private_postgres().url
    async with Backplane(url, settings=_QUICK) as backplane, backplane.subscribe("room") as messages:
        async with session(url) as other:
            os.kill(await other.fetchval("SELECT pg_backend_pid()"), signal.SIGKILL)
        async with asyncio.timeout(30):
            assert isinstance(await anext(messages), Gap)
        await passes_through(backplane, messages)


async def test_a_role_whose_limits_are_meant_for_queries(private_postgres: StartPostgres) -> None:
    """Its time limits and its isolation do not apply to the sessions of a worker."""
    limits = ("statement_timeout=20ms", "lock_timeout=1ms", "default_transaction_isolation=serializable")
    url = private_postgres(PostgresConfig(settings=limits)).url
    async with Backplane(url) as backplane, backplane.subscribe("room") as messages:
        await asyncio.gather(*(backplane.publish("room", "x" * 100_000) for _ in range(5)))
        assert len(await received(messages, 5)) == 5


async def test_too_much_that_waits_is_refused(postgres_broker: Broker) -> None:
    """Over the option a publish raises, and can be tried again."""
    async with Backplane(f"{postgres_broker.url}?max_pending_bytes=1000") as backplane:
        results = await asyncio.gather(
            *(backplane.publish("room", "x" * 600) for _ in range(3)), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, PublishError)]
        assert len(refused) == 2
        assert all(error.retriable for error in refused)
        await backplane.publish("room", "x" * 600)


async def test_applications_are_separated_by_the_option(postgres_broker: Broker) -> None:
    """Another PostgreSQL channel is another application."""
    async with (
        Backplane(postgres_broker.url) as backplane,
        Backplane(f"{postgres_broker.url}?notify=shop") as shop,
        backplane.subscribe("room") as messages,
    ):
        await shop.publish("room", "not here")
        await backplane.publish("room", "here")
        assert await received(messages, 1) == ["here"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgres://localhost/db?notify=Shop", "notify"),
        ("postgres://localhost/db/more", "name of a database"),
        ("postgres://localhost:port/db", "host:port"),
        ("postgres://localhost/db?host=%2Frun", "give one of both"),
        ("postgres://me:secret@localhost/db?credentials=a:b", "give one of both"),
        ("postgres://localhost/db?sslkey=key.pem", "sslkey needs sslcert"),
        ("postgres://localhost/db?sslmode=prefer&sslrootcert=ca.pem", "protect nothing"),
    ],
)
async def test_a_url_that_cannot_be_meant(url: str, reason: str) -> None:
    """It is refused before anything is opened."""
    with pytest.raises(ConfigurationError, match=reason) as raised:
        Backplane(url)
    assert "secret" not in str(raised.value)


async def test_a_server_that_accepts_and_is_silent(postgres_broker: Broker) -> None:
    """Connecting takes no longer than its limit."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        adapter = broadcaster_from_url(f"postgres://postgres@127.0.0.1:{port}/db?connect_timeout_seconds=0.2")
        with pytest.raises(BrokerUnavailableError, match=r"no answer within 0\.2 s"):
            await adapter.start(RecordingSink())
