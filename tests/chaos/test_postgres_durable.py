"""`postgres://...?durable=true` under load: killed sessions, a killed server, a promoted standby."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import asyncpg  # type: ignore[import-untyped]
import pytest

from backplane import Backlog, Backplane, BrokerError, Gap, History, PublishOutcomeUnknownError, Settings
from tests.brokers.postgres import DURABLE, PostgresProcess

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from tests.conftest import StartPostgres

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(170)]

_asyncpg: Final[Any] = asyncpg
# What asyncpg raises after a session was killed.
_ENDED: Final[tuple[type[Exception], ...]] = (
    OSError,
    _asyncpg.PostgresError,
    _asyncpg.InterfaceError,
    _asyncpg.InternalClientError,
)
_SETTINGS: Final = Settings(probe_interval_seconds=0.5, max_backoff_seconds=0.1, publish_timeout_seconds=5)
_BACKLOG: Final = Backlog(max_messages=1_000_000, max_bytes=2**30)
_WORKERS: Final = 3
_END: Final = "end"


class Load:
    """Publishers, of which some publish inside transactions that roll back or stay open, and subscribers.

    Args:
        url: Where to.
        is_kept: The channel has a history.

    Attributes:
        confirmed: What was certainly published.
        unknown: What may have been.
        refused: What certainly was not: by a rollback, or by an error.
        received: What each subscriber has received, gaps as `None`.
    """

    def __init__(self, url: str, *, is_kept: bool = False) -> None:
        self._url = url
        self._history = {"room": History(max_messages=100_000)} if is_kept else None
        self._over = asyncio.Event()
        self.confirmed: list[str] = []
        self.unknown: set[str] = set()
        self.refused: set[str] = set()
        self.received: list[list[str | None]] = [[] for _ in range(_WORKERS)]

    async def run(self, faults: Any) -> None:
        """Run the load until `faults` has ended, and each subscriber has received a last message."""
        async with AsyncExitStack() as stack:
            workers = [
                await stack.enter_async_context(Backplane(self._url, settings=_SETTINGS, history=self._history))
                for _ in range(_WORKERS)
            ]
            subscriptions = [
                await stack.enter_async_context(worker.subscribe("room", backlog=_BACKLOG)) for worker in workers
            ]
            async with asyncio.TaskGroup() as receiving:
                for messages, received in zip(subscriptions, self.received, strict=True):
                    receiving.create_task(self._receive(messages, received))
                async with asyncio.TaskGroup() as publishing:
                    for number, worker in enumerate(workers):
                        publishing.create_task(self._publish(worker, f"p{number}"))
                    for number in range(2):
                        publishing.create_task(self._transact(workers[0], f"t{number}"))
                    await faults()
                    self._over.set()
                await self._publish_end(workers[0])

    async def reaches(self, more: int) -> None:
        """Wait until so many more are published."""
        until = len(self.confirmed) + more
        async with asyncio.timeout(120):
            while len(self.confirmed) < until:
                await asyncio.sleep(0.05)

    async def _receive(self, messages: Any, received: list[str | None]) -> None:
        async for item in messages:
            if isinstance(item, Gap):
                received.append(None)
            elif item.data == _END:
                return
            else:
                received.append(item.data)

    async def _publish(self, worker: Backplane, name: str) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            word = f"{name} {number}"
            try:
                await worker.publish("room", word)
            except PublishOutcomeUnknownError:
                self.unknown.add(word)
            except BrokerError:
                self.refused.add(word)
            else:
                self.confirmed.append(word)
            await asyncio.sleep(0.002)

    async def _transact(self, worker: Backplane, name: str) -> None:
        """Publish in transactions that stay open for up to a second, and of which a third roll back."""
        choose, number = random.Random(name), 0
        while not self._over.is_set():
            number += 1
            word = f"{name} {number}"
            try:
                connection = await _asyncpg.connect(self._url.partition("?")[0], timeout=5, ssl=False)
            except _ENDED:
                await asyncio.sleep(0.05)
                continue
            try:
                await self._transaction(connection, worker, word, choose)
            finally:
                connection.terminate()

    async def _transaction(self, connection: Any, worker: Backplane, word: str, choose: random.Random) -> None:
        is_committing = False
        self.refused.add(word)
        try:
            transaction = connection.transaction()
            await transaction.start()
            await worker.publish_in(connection, "room", word)
            await asyncio.sleep(choose.choice([0, 0, 0.01, 0.1, 1]))
            if choose.random() < 1 / 3:
                await transaction.rollback()
                return
            is_committing = True
            self.refused.discard(word)
            await transaction.commit()
            self.confirmed.append(word)
        except _ENDED:
            if is_committing:
                self.unknown.add(word)

    async def _publish_end(self, worker: Backplane) -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    return void(await worker.publish("room", _END))
                except BrokerError:
                    await asyncio.sleep(0.1)

    def check(self, *, gaps: int) -> None:
        """Nothing twice, nothing of a rollback, nothing lost without a gap, and as many gaps as are permitted."""
        for received in self.received:
            words = [word for word in received if word is not None]
            assert len(set(words)) == len(words)
            assert not self.refused.intersection(words)
            assert received.count(None) <= gaps
            if not gaps:
                assert set(self.confirmed) <= set(words) <= set(self.confirmed) | self.unknown
            for name in {word.split()[0] for word in words if word.startswith("p")}:
                numbers = [int(word.split()[1]) for word in words if word.split()[0] == name]
                assert numbers == sorted(numbers)


def void(_: object) -> None:
    """Discard a result."""


@asynccontextmanager
async def session(url: str) -> AsyncGenerator[Any]:
    """A session of the test's own."""
    connection = await _asyncpg.connect(url.partition("?")[0])
    try:
        yield connection
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("kills", "is_kept"),
    [(6, False), pytest.param(100, False, marks=pytest.mark.full), pytest.param(100, True, marks=pytest.mark.full)],
)
async def test_killed_sessions(kills: int, is_kept: bool, private_postgres: StartPostgres) -> None:
    """Sessions of workers are killed one after another: no message is lost, none comes twice, and there is no gap."""
    url = f"{private_postgres(DURABLE).url}?durable=true"
    load = Load(url, is_kept=is_kept)
    killed = 0

    async def kill() -> None:
        nonlocal killed
        async with session(url) as killer:
            while killed < kills:
                await asyncio.sleep(0.15)
                killed += await killer.fetchval(
                    "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity "
                    "WHERE application_name = 'backplane' ORDER BY random() LIMIT 1) AS one"
                )

    await load.run(kill)
    load.check(gaps=0)
    assert len(load.confirmed) > kills


@pytest.mark.full
async def test_a_killed_server(private_postgres: StartPostgres) -> None:
    """A crash of the server, which recovers what it had confirmed: nothing is lost, nothing comes twice."""
    broker = private_postgres(DURABLE)
    assert isinstance(broker, PostgresProcess)
    load = Load(f"{broker.url}?durable=true")

    async def crash() -> None:
        for _ in range(5):
            await asyncio.sleep(1)
            broker.kill9()
            broker.launch()
            await asyncio.to_thread(broker.wait_until_up)
        await asyncio.sleep(1)

    await load.run(crash)
    load.check(gaps=0)


async def wait_for_commits(primary: PostgresProcess) -> None:
    """Let commits of a primary wait for its standby from now on."""
    async with session(primary.url) as connection:
        await connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        await connection.execute("SELECT pg_reload_conf()")
        async with asyncio.timeout(60):
            while not await connection.fetchval("SELECT true FROM pg_stat_replication WHERE sync_state = 'sync'"):
                await asyncio.sleep(0.05)


def both(primary: PostgresProcess, standby: PostgresProcess) -> str:
    """Return a URL of two servers."""
    return f"postgres://postgres@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/postgres?durable=true"


@pytest.mark.full
@pytest.mark.parametrize("is_kept", [False, True])
@pytest.mark.parametrize("is_synchronous", [True, False])
async def test_a_promoted_standby(
    is_synchronous: bool, is_kept: bool, private_postgres: StartPostgres, tmp_path: Path
) -> None:
    """Where commits wait for it nothing is lost, and there is no gap; else one on each worker. Nothing comes twice."""
    primary = private_postgres(DURABLE)
    assert isinstance(primary, PostgresProcess)
    with primary.standby(tmp_path) as standby:
        if is_synchronous:
            await wait_for_commits(primary)
        load = Load(both(primary, standby), is_kept=is_kept)

        async def promote() -> None:
            await load.reaches(100)
            primary.kill9()
            await asyncio.to_thread(standby.promote)
            await load.reaches(100)

        await load.run(promote)
    gaps = 0 if is_synchronous else 1
    load.check(gaps=gaps)
    assert [received.count(None) for received in load.received] == [gaps] * _WORKERS


@pytest.mark.full
async def test_a_promoted_standby_that_has_lost_messages(private_postgres: StartPostgres, tmp_path: Path) -> None:
    """Commits were to wait for it, and did not: a worker that has received what is lost reports it to all."""
    primary = private_postgres(DURABLE)
    assert isinstance(primary, PostgresProcess)
    with primary.standby(tmp_path) as standby:
        async with session(standby.url) as connection:
            await connection.execute("ALTER SYSTEM SET primary_conninfo = ''")
            await connection.execute("SELECT pg_reload_conf()")
        async with session(primary.url) as connection:  # an application that does not wait for it
            await connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            await connection.execute("SELECT pg_reload_conf()")
            async with (
                Backplane(both(primary, standby), settings=_SETTINGS) as backplane,
                backplane.subscribe("room") as messages,
            ):
                await connection.execute("SET synchronous_commit = local")
                for number in range(3):
                    async with connection.transaction():
                        await backplane.publish_in(connection, "room", str(number))
                async with asyncio.timeout(60):
                    assert [str(getattr(await anext(messages), "data", "")) for _ in range(3)] == ["0", "1", "2"]
                primary.kill9()
                await asyncio.to_thread(standby.promote)
                async with asyncio.timeout(60):
                    gap = await anext(messages)
                    assert isinstance(gap, Gap)
                    assert "had not received the newest messages" in gap.reason
                    await backplane.publish("room", "after")
                    assert getattr(await anext(messages), "data", None) == "after"
            connection.terminate()
