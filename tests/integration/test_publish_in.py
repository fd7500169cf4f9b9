"""`publish_in`: a message goes out if, and only if, the transaction of the application commits."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import asyncpg  # type: ignore[import-untyped]
import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import scoped_session, sessionmaker

from backplane import Backlog, Backplane, ConfigurationError, PayloadTooLargeError
from backplane.sync import SyncBackplane

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from tests.brokers.broker import Broker

    AsyncTransaction = Callable[[str], AbstractAsyncContextManager[Callable[[], AbstractAsyncContextManager[Any]]]]
    Transaction = Callable[[str], AbstractContextManager[Callable[[], AbstractContextManager[Any]]]]

pytestmark = pytest.mark.anyio

_asyncpg: Final[Any] = asyncpg


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop: what is tested is the same on both."""
    return "asyncio", {"use_uvloop": False}


def url_of(broker_url: str, driver: str) -> str:
    """Return the URL for SQLAlchemy."""
    return broker_url.replace("postgres://", f"postgresql+{driver}://")


# -- each library: what opens a transaction, which the end of the block commits ----------------------------------------


@asynccontextmanager
async def bare_asyncpg(url: str) -> AsyncGenerator[Any]:
    """A connection of asyncpg."""
    connection = await _asyncpg.connect(url)

    @asynccontextmanager
    async def begin() -> AsyncGenerator[Any]:
        async with connection.transaction():
            yield connection

    yield begin
    await connection.close()


@asynccontextmanager
async def pooled_asyncpg(url: str) -> AsyncGenerator[Any]:
    """A connection of a pool of asyncpg."""
    async with _asyncpg.create_pool(url, min_size=1, max_size=2) as pool:

        @asynccontextmanager
        async def begin() -> AsyncGenerator[Any]:
            async with pool.acquire() as connection, connection.transaction():
                yield connection

        yield begin


@asynccontextmanager
async def async_psycopg(url: str) -> AsyncGenerator[Any]:
    """A connection of psycopg, whose rows are dictionaries."""
    async with await psycopg.AsyncConnection[Any].connect(url, row_factory=dict_row) as connection:

        @asynccontextmanager
        async def begin() -> AsyncGenerator[Any]:
            async with connection.transaction():
                yield connection

        yield begin


@asynccontextmanager
async def async_cursor(url: str) -> AsyncGenerator[Any]:
    """A cursor of psycopg, in autocommit with a transaction of its own."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:

        @asynccontextmanager
        async def begin() -> AsyncGenerator[Any]:
            async with connection.transaction(), connection.cursor() as cursor:
                yield cursor

        yield begin


def async_sqlalchemy(driver: str, kind: str) -> AsyncTransaction:
    """A session or connection of SQLAlchemy."""

    @asynccontextmanager
    async def opened(url: str) -> AsyncGenerator[Any]:
        engine = create_async_engine(url_of(url, driver))
        sessions = async_sessionmaker(engine)
        scoped: Any = async_scoped_session(sessions, asyncio.current_task)

        @asynccontextmanager
        async def begin_scoped() -> AsyncGenerator[Any]:
            async with scoped.begin():
                yield scoped
            await scoped.remove()

        yield {"session": sessions.begin, "connection": engine.begin, "scoped": begin_scoped}[kind]
        await engine.dispose()

    return opened


@contextmanager
def sync_psycopg(url: str) -> Generator[Any]:
    """A connection of psycopg."""
    with psycopg.connect(url) as connection:

        @contextmanager
        def begin() -> Generator[Any]:
            with connection.transaction():
                yield connection

        yield begin


@contextmanager
def sync_cursor(url: str) -> Generator[Any]:
    """A cursor of psycopg."""
    with psycopg.connect(url) as connection:

        @contextmanager
        def begin() -> Generator[Any]:
            with connection.transaction(), connection.cursor() as cursor:
                yield cursor

        yield begin


def sqlalchemy(kind: str) -> Transaction:
    """A session or connection of SQLAlchemy."""

    @contextmanager
    def opened(url: str) -> Generator[Any]:
        engine = create_engine(url_of(url, "psycopg"))
        sessions = sessionmaker(engine)
        scoped: Any = scoped_session(sessions)

        @contextmanager
        def begin_scoped() -> Generator[Any]:
            with scoped.begin():
                yield scoped
            scoped.remove()

        yield {"session": sessions.begin, "connection": engine.begin, "scoped": begin_scoped}[kind]
        engine.dispose()

    return opened


ASYNC: dict[str, AsyncTransaction] = {
    "asyncpg": bare_asyncpg,
    "asyncpg, pool": pooled_asyncpg,
    "psycopg": async_psycopg,
    "psycopg, cursor": async_cursor,
    "SQLAlchemy session, asyncpg": async_sqlalchemy("asyncpg", "session"),
    "SQLAlchemy session, psycopg": async_sqlalchemy("psycopg", "session"),
    "SQLAlchemy scoped session": async_sqlalchemy("asyncpg", "scoped"),
    "SQLAlchemy connection": async_sqlalchemy("asyncpg", "connection"),
}
SYNC: dict[str, Transaction] = {
    "psycopg": sync_psycopg,
    "psycopg, cursor": sync_cursor,
    "SQLAlchemy session": sqlalchemy("session"),
    "SQLAlchemy scoped session": sqlalchemy("scoped"),
    "SQLAlchemy connection": sqlalchemy("connection"),
}


class RolledBackError(Exception):
    """Ends a transaction by a rollback."""


def end_with(commits: bool) -> None:
    """Roll back the transaction around the call, unless it commits."""
    if not commits:
        raise RolledBackError


class Outcomes:
    """Which of the transactions commit: half of them, at random; each publishes a small message or a large one."""

    def __init__(self, count: int) -> None:
        choose = random.Random(count)
        self.commits = [choose.random() < 0.5 for _ in range(count)]

    def data(self, number: int) -> str:
        """Return the message of a transaction; equal ones are among them."""
        return f"{number // 2}" + ("x" * 20_000 if number % 25 == 0 else "")

    @property
    def expected(self) -> list[str]:
        """The messages of those that commit, in their order."""
        return [self.data(number) for number, commits in enumerate(self.commits) if commits]


async def received_until(messages: Any, last: str) -> list[str]:
    """Return the data of all messages before `last`."""
    found: list[str] = []
    async with asyncio.timeout(60):
        async for item in messages:
            if item.data == last:
                return found
            found.append(item.data)
    raise AssertionError("the subscription ended")


_COUNTS = [40, pytest.param(1000, marks=pytest.mark.full)]


@pytest.mark.parametrize("count", _COUNTS)
@pytest.mark.parametrize("library", list(ASYNC))
async def test_exactly_what_commits_arrives(library: str, count: int, postgres_broker: Broker) -> None:
    """Transactions of which half roll back, through each asynchronous library: the committed ones arrive, in order."""
    outcomes = Outcomes(count)
    async with (
        ASYNC[library](postgres_broker.url) as begin,
        Backplane(postgres_broker.url) as backplane,
        backplane.subscribe("orders", backlog=Backlog(max_messages=2000, max_bytes=2**26)) as messages,
    ):
        for number, commits in enumerate(outcomes.commits):
            try:
                async with begin() as session:
                    await backplane.publish_in(session, "orders", outcomes.data(number))
                    end_with(commits)
            except RolledBackError:
                pass
        await backplane.publish("orders", "last")
        assert await received_until(messages, "last") == outcomes.expected


@pytest.mark.parametrize("count", _COUNTS)
@pytest.mark.parametrize("library", list(SYNC))
async def test_exactly_what_commits_arrives_from_synchronous_code(
    library: str, count: int, postgres_broker: Broker
) -> None:
    """The same in a thread, which has no link of its own."""
    outcomes = Outcomes(count)

    def publish_all() -> None:
        outside = SyncBackplane(postgres_broker.url)
        with SYNC[library](postgres_broker.url) as begin:
            for number, commits in enumerate(outcomes.commits):
                try:
                    with begin() as session:
                        outside.publish_in(session, "orders", outcomes.data(number))
                        end_with(commits)
                except RolledBackError:
                    pass

    async with (
        Backplane(postgres_broker.url) as backplane,
        backplane.subscribe("orders", backlog=Backlog(max_messages=2000, max_bytes=2**26)) as messages,
    ):
        await asyncio.to_thread(publish_all)
        await backplane.publish("orders", "last")
        assert await received_until(messages, "last") == outcomes.expected


async def test_a_savepoint_takes_its_messages_back(postgres_broker: Broker) -> None:
    """A large message, too, is sent whole or not at all."""
    async with (
        bare_asyncpg(postgres_broker.url) as begin,
        Backplane(postgres_broker.url) as backplane,
        backplane.subscribe("orders") as messages,
    ):
        async with begin() as connection:
            await backplane.publish_in(connection, "orders", "before")
            savepoint = connection.transaction()
            await savepoint.start()
            await backplane.publish_in(connection, "orders", "x" * 50_000)
            await savepoint.rollback()
            await backplane.publish_in(connection, "orders", {"after": "it"})
        await backplane.publish("orders", "last")
        assert await received_until(messages, "last") == ["before", '{"after":"it"}']


async def test_a_lost_connection_sends_nothing(postgres_broker: Broker) -> None:
    """Its transaction was not committed."""
    async with Backplane(postgres_broker.url) as backplane, backplane.subscribe("orders") as messages:
        connection = await _asyncpg.connect(postgres_broker.url)
        await connection.execute("BEGIN")
        await backplane.publish_in(connection, "orders", "lost")
        connection.terminate()
        await backplane.publish("orders", "last")
        assert await received_until(messages, "last") == []


async def test_a_backplane_that_is_not_started(postgres_broker: Broker) -> None:
    """It publishes too, from an event loop and through `sync`: nothing but the session is used."""
    unstarted = Backplane(postgres_broker.url)

    def publish() -> None:
        with sync_psycopg(postgres_broker.url) as begin, begin() as connection:
            unstarted.sync.publish_in(connection, "orders", "second")

    async with (
        bare_asyncpg(postgres_broker.url) as begin,
        Backplane(postgres_broker.url) as backplane,
        backplane.subscribe("orders") as messages,
    ):
        async with begin() as connection:
            await unstarted.publish_in(connection, "orders", "first")
        await asyncio.to_thread(publish)
        await backplane.publish("orders", "last")
        assert await received_until(messages, "last") == ["first", "second"]


async def test_a_synchronous_session_in_an_event_loop(postgres_broker: Broker) -> None:
    """It blocks the event loop, as its own statements do, and is no error."""
    async with Backplane(postgres_broker.url) as backplane, backplane.subscribe("orders") as messages:
        with sqlalchemy("session")(postgres_broker.url) as begin, begin() as session:
            await backplane.publish_in(session, "orders", "here")
        await backplane.publish("orders", "last")
        assert await received_until(messages, "last") == ["here"]


async def test_what_is_in_no_transaction_is_refused(postgres_broker: Broker) -> None:
    """It would be sent at once."""
    backplane = Backplane(postgres_broker.url)
    connection = await _asyncpg.connect(postgres_broker.url)
    engine = create_async_engine(url_of(postgres_broker.url, "asyncpg"), isolation_level="AUTOCOMMIT")
    plain = create_async_engine(url_of(postgres_broker.url, "psycopg"))
    async with (
        await psycopg.AsyncConnection.connect(postgres_broker.url, autocommit=True) as other,
        engine.connect() as of_engine,
        plain.connect() as of_connection,
    ):
        autocommit = await of_connection.execution_options(isolation_level="AUTOCOMMIT")
        for session in (connection, other, other.cursor(), of_engine, autocommit):
            with pytest.raises(ConfigurationError, match="is in no transaction"):
                await backplane.publish_in(session, "orders", "x")
    await connection.close()
    await engine.dispose()
    await plain.dispose()


async def test_another_database_is_refused(postgres_broker: Broker) -> None:
    """Notifications stay in their database, so the message would reach no worker."""
    backplane = Backplane(postgres_broker.url.rpartition("/")[0] + "/shop")
    async with bare_asyncpg(postgres_broker.url) as begin, begin() as connection:
        with pytest.raises(ConfigurationError, match="in the database 'postgres', and the workers listen in 'shop'"):
            await backplane.publish_in(connection, "orders", "x")


@pytest.mark.parametrize("session", [object(), None, "postgres://", 5])
async def test_another_object_is_refused(session: object) -> None:
    """The error lists what can be handed in."""
    with pytest.raises(ConfigurationError, match="takes a session or connection of SQLAlchemy, or"):
        await Backplane("postgres://localhost/shop").publish_in(session, "orders", "x")


async def test_another_database_system_is_refused() -> None:
    """A session of SQLite has no part in it."""
    engine = create_engine("sqlite://")
    with engine.begin() as connection, pytest.raises(ConfigurationError, match="and this one is of sqlite"):
        await Backplane("postgres://localhost/shop").publish_in(connection, "orders", "x")
    engine.dispose()


@pytest.mark.parametrize("url", ["memory://", "redis://localhost", "ipc://myapp"])
async def test_another_adapter_is_refused(url: str) -> None:
    """The message cannot be part of the transaction there."""
    with pytest.raises(ConfigurationError, match="publish_in needs postgres://"):
        await Backplane(url).publish_in(object(), "orders", "x")


async def test_an_asynchronous_session_in_synchronous_code(postgres_broker: Broker) -> None:
    """The error names the other method."""
    async with bare_asyncpg(postgres_broker.url) as begin, begin() as connection:
        with pytest.raises(ConfigurationError, match=r"await backplane\.publish_in"):
            SyncBackplane(postgres_broker.url).publish_in(connection, "orders", "x")


async def test_a_message_that_is_too_large_is_refused(postgres_broker: Broker) -> None:
    """Before the transaction is touched, so that it can go on."""
    async with bare_asyncpg(postgres_broker.url) as begin, begin() as connection:
        with pytest.raises(PayloadTooLargeError):
            await Backplane(f"{postgres_broker.url}?max_payload_bytes=100").publish_in(connection, "orders", "x" * 200)
        assert await connection.fetchval("SELECT 1") == 1
