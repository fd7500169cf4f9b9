"""`postgres://...?durable=true`: its tables, its position, retention, and publishing in a transaction."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import asyncpg  # type: ignore[import-untyped]
import pytest
from typer.testing import CliRunner

from backplane import Backplane, BrokerError, Gap, Settings
from backplane.broadcaster import SupportsResume
from backplane.broker.registry import broadcaster_from_url
from backplane.cli.app import app
from backplane.testing import FaultProxy
from backplane.testing.harness import reaches_state
from backplane.testing.recording import RecordingSink
from tests.brokers.postgres import DURABLE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.brokers.broker import Broker
    from tests.conftest import StartPostgres

pytestmark = pytest.mark.anyio

_asyncpg: Final[Any] = asyncpg
_QUICK: Final = Settings(probe_interval_seconds=0.3, max_backoff_seconds=0.1)


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop: the conformance suite runs on both."""
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
def url(private_postgres: StartPostgres) -> str:
    """A server that has the tables."""
    return f"{private_postgres(DURABLE).url}?durable=true"


@asynccontextmanager
async def session(url: str) -> AsyncGenerator[Any]:
    """A session of the test's own."""
    connection = await _asyncpg.connect(url.partition("?")[0])
    try:
        yield connection
    finally:
        await connection.close()


async def suspended(url: str, sink: RecordingSink) -> Any:
    """Return an adapter that has subscribed to `room`, and whose link was lost then."""
    adapter = broadcaster_from_url(url)
    await adapter.start(sink)
    await adapter.subscribe(["room"])
    assert isinstance(adapter, SupportsResume)
    await adapter.suspend()
    return adapter


async def publish(url: str, *payloads: bytes) -> None:
    """Publish from another process."""
    adapter = broadcaster_from_url(url)
    await adapter.start(RecordingSink())
    for payload in payloads:
        await adapter.publish("room", payload)
    await adapter.stop()


async def resumed(adapter: Any) -> RecordingSink:
    """Return what is reported when the link is open again."""
    sink = RecordingSink()
    await adapter.resume(sink, ["room"])
    await adapter.publish("room", b"last")
    await sink.until(lambda: ("room", b"last") in sink.delivered)
    await adapter.stop()
    return sink


async def test_missing_tables_are_named_at_the_start(postgres_broker: Broker) -> None:
    """The error names the command that prints them, and another try does not help."""
    with pytest.raises(BrokerError, match="`backplane schema postgres`") as raised:
        await Backplane(f"{postgres_broker.url}?durable=true").start()
    assert not raised.value.retriable


async def test_the_printed_sql_makes_them(postgres_broker: Broker) -> None:
    """Twice, too; with another PostgreSQL channel under other names."""
    printed = CliRunner().invoke(app, ["schema", "postgres://localhost/shop?durable=true&notify=shop"])
    assert printed.exit_code == 0
    async with session(postgres_broker.url) as connection:
        await connection.execute(printed.output)
        await connection.execute(printed.output)
        async with (
            Backplane(f"{postgres_broker.url}?durable=true&notify=shop") as backplane,
            backplane.subscribe("room") as messages,
        ):
            await backplane.publish("room", "hello")
            assert (await anext(messages)).data == "hello"  # type: ignore[union-attr]
        await connection.execute("DROP TABLE shop_message, shop_retention, shop_forgotten")


@pytest.mark.parametrize(("url", "status"), [("redis://localhost", 1), ("nowhere", 2)])
def test_no_sql_for_other_adapters(url: str, status: int) -> None:
    """The command ends with a line that gives the reason."""
    assert CliRunner().invoke(app, ["schema", url]).exit_code == status


async def test_what_was_missed_is_delivered_once(url: str) -> None:
    """Also what a transaction published that was open when the link was lost, and nothing of one that rolled back."""
    backplane = Backplane(url)
    async with session(url) as early, session(url) as late:
        open_before = early.transaction()
        await open_before.start()
        await backplane.publish_in(early, "room", "early")
        adapter = await suspended(url, RecordingSink())
        await publish(url, b"between", b"between")
        rolled_back = late.transaction()
        await rolled_back.start()
        await backplane.publish_in(late, "room", "rolled back")
        await open_before.commit()
        await rolled_back.rollback()
    sink = await resumed(adapter)
    assert sink.gaps == []
    assert sorted(payload[-5:] for _, payload in sink.delivered) == [b"early", b"last", b"tween", b"tween"]


async def test_a_number_of_a_transaction_that_is_used_again(url: str) -> None:
    """After a crash a new row can have a number that the position takes for ended: its id shows that it is new."""
    adapter = await suspended(url, RecordingSink())
    adapter._position = replace(adapter._position, snapshot="99999999:99999999:")
    async with session(url) as connection:
        await connection.execute("UPDATE backplane_retention SET deleted = '3:3:'")
    await publish(url, b"missed")
    sink = await resumed_once(adapter)
    assert sink.delivered == [("room", b"missed")]


async def resumed_once(adapter: Any) -> RecordingSink:
    """Return what is reported by the resume alone."""
    sink = RecordingSink()
    await adapter.resume(sink, ["room"])
    await adapter.stop()
    return sink


async def test_what_was_deleted_meanwhile_is_a_gap(url: str) -> None:
    """Retention has passed the position: it is reported, and the worker goes on."""
    adapter = await suspended(url, RecordingSink())
    await publish(url, b"missed")
    async with session(url) as connection:
        for _ in range(2):
            await connection.execute("UPDATE backplane_retention SET changed_at = 'epoch'")
            await publish_and_check(url)
        assert await connection.fetchval("SELECT count(*) FROM backplane_message") == 0
    sink = await resumed(adapter)
    assert [channels for channels, _ in sink.gaps] == [None]  # all
    assert sink.delivered == [("room", b"last")]


async def publish_and_check(url: str) -> None:
    """Let another worker delete what is old."""
    adapter: Any = broadcaster_from_url(url)
    await adapter.start(RecordingSink())
    await adapter.check()
    await adapter.stop()


async def test_nothing_is_deleted_before_its_time(url: str) -> None:
    """A check that is due for nothing deletes nothing."""
    adapter = await suspended(url, RecordingSink())
    await publish(url, b"missed")
    await publish_and_check(url)
    sink = await resumed(adapter)
    assert [payload for _, payload in sink.delivered] == [b"missed", b"last"]


async def test_other_tables_are_a_gap(url: str) -> None:
    """They were made anew: a position of the old ones means nothing there."""
    adapter = await suspended(url, RecordingSink())
    async with session(url) as connection:
        await connection.execute("UPDATE backplane_retention SET epoch = gen_random_uuid()")
    sink = await resumed(adapter)
    assert [channels for channels, _ in sink.gaps] == [None]  # all


async def test_a_promoted_standby_that_has_everything(url: str) -> None:
    """Commits waited for it, and it has the newest row that was read: the worker goes on without a gap."""
    adapter = await suspended(url, RecordingSink())
    await publish(url, b"missed")
    adapter._position = replace(adapter._position, timeline="00000000", is_synchronous=True)
    sink = await resumed(adapter)
    assert sink.gaps == []
    assert [payload for _, payload in sink.delivered] == [b"missed", b"last"]


@pytest.mark.parametrize(
    ("changes", "reason", "is_reported_to_others"),
    [
        ({"is_synchronous": False}, "a standby was promoted for which commits had not waited", False),
        (
            {"mark": "1 1", "is_synchronous": True},
            "a standby was promoted that had not received the newest messages",
            True,
        ),
    ],
)
async def test_a_promoted_standby_that_has_not(
    changes: dict[str, Any], reason: str, is_reported_to_others: bool, url: str
) -> None:
    """A worker that has read what is lost makes the others report it too, which may have read less."""
    other, others = broadcaster_from_url(url), RecordingSink()
    await other.start(others)
    await other.subscribe(["room"])
    adapter = await suspended(url, RecordingSink())
    adapter._position = replace(adapter._position, timeline="00000000", **changes)
    sink = await resumed(adapter)
    assert [reported[: len(reason)] for _, reported in sink.gaps] == [reason]
    assert sink.delivered == [("room", b"last")]
    await others.until(lambda: bool(others.gaps if is_reported_to_others else others.delivered))
    await other.stop()
    assert len(others.gaps) == is_reported_to_others


async def test_after_a_gap_nothing_old_is_delivered(url: str) -> None:
    """The position after it is the present one, of the new tables too."""
    adapter = await suspended(url, RecordingSink())
    await publish(url, b"missed")
    async with session(url) as connection:
        await connection.execute("UPDATE backplane_retention SET epoch = gen_random_uuid()")
    sink = RecordingSink()
    await adapter.resume(sink, ["room"])
    for _ in range(2):
        await adapter.check()
    await adapter.publish("room", b"new")
    await sink.until(lambda: bool(sink.delivered))
    await adapter.stop()
    assert sink.delivered == [("room", b"new")]
    assert len(sink.gaps) == 1


async def test_a_worker_without_the_option_warns(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """It receives nothing of what others publish with it, which is logged once."""
    plain, sink = broadcaster_from_url(url.partition("?")[0]), RecordingSink()
    await plain.start(sink)
    await plain.subscribe(["room"])
    await publish(url, b"1", b"2")
    await plain.publish("room", b"last")
    await sink.until(lambda: bool(sink.delivered))
    await plain.stop()
    assert [record.getMessage()[:24] for record in caplog.records] == ["another process publishe"]


async def test_tables_without_their_row(url: str) -> None:
    """They were emptied: the error names the command that repairs that."""
    async with session(url) as connection:
        await connection.execute("DELETE FROM backplane_retention")
    with pytest.raises(BrokerError, match="`backplane schema postgres`"):
        await broadcaster_from_url(url).start(RecordingSink())


async def test_tables_that_lose_their_row(url: str) -> None:
    """They were emptied while a worker runs: its next check fails, and so does every start."""
    adapter: Any = broadcaster_from_url(url)
    await adapter.start(RecordingSink())
    await adapter.subscribe(["room"])
    async with session(url) as connection:
        await connection.execute("DELETE FROM backplane_retention")
    with pytest.raises(BrokerError, match="`backplane schema postgres`"):
        await adapter.check()
    await adapter.stop()


async def test_doctor_looks_at_the_tables(url: str) -> None:
    """Beside what it finds without them."""
    adapter: Any = broadcaster_from_url(url)
    await adapter.start(RecordingSink())
    found = await adapter.inspect({})
    await adapter.stop()
    assert {finding.check: finding.level for finding in found} == {
        "postgres_pooler": "ok",
        "postgres_queue": "ok",
        "postgres_max_connections": "ok",
        "postgres_rows": "ok",
        "postgres_promotion": "ok",
    }


async def test_more_than_is_read_is_a_gap(url: str) -> None:
    """What a long outage left is bounded."""
    adapter = await suspended(f"{url}&max_resume_messages=3", RecordingSink())
    await publish(url, b"1", b"2", b"3", b"4")
    sink = await resumed(adapter)
    assert [reason for _, reason in sink.gaps] == ["more than 3 messages were missed (max_resume_messages)"]
    assert sink.delivered == [("room", b"last")]


async def test_a_row_without_a_notification_is_found(url: str) -> None:
    """The check reads it: a doorbell that was lost delays a message by an interval."""
    async with Backplane(url, settings=_QUICK) as backplane, backplane.subscribe("room") as messages:
        async with session(url) as connection:
            await connection.execute("INSERT INTO backplane_message (channel, payload) VALUES ('room', 'quiet')")
        async with asyncio.timeout(30):
            item = await anext(messages)
        assert not isinstance(item, Gap)
        assert item.data == "quiet"


async def test_consumers_do_not_notice_an_outage(url: str) -> None:
    """Through the core: everything arrives, in order, and without a gap."""
    async with (
        FaultProxy(url) as proxy,
        Backplane(proxy.url, settings=_QUICK) as backplane,
        Backplane(url) as outside,
        backplane.subscribe("room") as messages,
    ):
        for outage in range(2):
            proxy.refuse()
            await reaches_state(backplane, "degraded")
            for number in range(10):
                await outside.publish("room", f"{outage} {number}" + "x" * 10_000)
            proxy.heal()
            async with asyncio.timeout(30):
                received = [await anext(messages) for _ in range(10)]
            assert [str(getattr(item, "data", item))[:3] for item in received] == [f"{outage} {n}" for n in range(10)]
