"""The history of channels on `postgres://...?durable=true`: messages of transactions, and retention."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import asyncpg  # type: ignore[import-untyped]
import pytest

from backplane import Backplane, BrokerError, ConfigurationError, Gap, History, Message
from backplane.broker.registry import broadcaster_from_url
from backplane.testing.recording import RecordingSink
from backplane.tracing import Tracing
from tests.brokers.postgres import DURABLE
from tests.exported_spans import Exported

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane import Subscription
    from tests.brokers.broker import Broker
    from tests.conftest import StartPostgres

pytestmark = pytest.mark.anyio

_asyncpg: Final[Any] = asyncpg
_HISTORY: Final = {
    "few:*": History(max_messages=2),
    "brief:*": History(max_age_seconds=0.001),
    "*": History(),
}


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
    """A session of the application."""
    connection = await _asyncpg.connect(url.partition("?")[0])
    try:
        yield connection
    finally:
        await connection.close()


async def data_of(messages: Subscription, count: int) -> list[str | bytes]:
    """Return the data of the next messages."""
    received: list[str | bytes] = []
    async with asyncio.timeout(60):
        while len(received) < count:
            item = await anext(messages)
            assert isinstance(item, Message), item
            assert item.position is not None
            received.append(item.data)
    return received


async def delete_what_is_old(url: str) -> None:
    """Let a worker delete everything that may be deleted."""
    async with session(url) as connection:
        for _ in range(2):
            await connection.execute("UPDATE backplane_retention SET changed_at = 'epoch'")
            adapter: Any = broadcaster_from_url(url)
            await adapter.start(RecordingSink())
            await adapter.check()
            await adapter.stop()


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
async def test_messages_of_transactions_have_the_order_of_the_commits(isolation: str, url: str) -> None:
    """A transaction that began first and commits last has the last position: what resumes misses none."""
    async with (
        Backplane(url, history=_HISTORY) as backplane,
        backplane.subscribe("room") as messages,
        session(url) as early,
        session(url) as late,
    ):
        first = early.transaction(isolation=isolation)
        await first.start()
        await backplane.publish_in(early, "room", "begun first")
        before = (await backplane.publish("room", "published")).position
        second = late.transaction(isolation=isolation)
        await second.start()
        await backplane.publish_in(late, "room", "begun second")
        rolled_back = late.transaction()
        await rolled_back.start()
        await backplane.publish_in(late, "room", "rolled back")
        await rolled_back.rollback()
        await second.commit()
        await backplane.publish("room", "between")
        await first.commit()
        expected = ["published", "begun second", "between", "begun first"]
        assert await data_of(messages, 4) == expected
        page = await backplane.history("room", since=before)
        assert [message.data for message in page.messages] == expected[1:]
        for number, message in enumerate(page.messages, 2):
            async with backplane.subscribe("room", since=str(message.position)) as resumed:
                assert await data_of(resumed, 4 - number) == expected[number:]
                assert resumed.resumed
    async with Backplane(url, history=_HISTORY) as restarted, restarted.subscribe("room", since=str(before)) as resumed:
        assert await data_of(resumed, 3) == expected[1:]


async def test_a_transaction_holds_up_no_other(url: str) -> None:
    """While one that has published is open, others publish to the same channel."""
    async with Backplane(url, history=_HISTORY) as backplane, session(url) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await backplane.publish_in(connection, "room", "open")
        async with asyncio.timeout(60), session(url) as other, other.transaction():
            await backplane.publish("room", "1")
            await backplane.publish_in(other, "room", "2")
        await transaction.commit()
        page = await backplane.history("room")
        assert [message.data for message in page.messages] == ["1", "2", "open"]


async def test_a_key_in_a_transaction(url: str) -> None:
    """What was published with it before, in a transaction or not, is not published again."""
    async with Backplane(url, history=_HISTORY) as backplane, session(url) as connection:
        for number in range(2):
            async with connection.transaction():
                await backplane.publish_in(connection, "room", f"a{number}", idempotency_key="a")
        receipt = await backplane.publish("room", "a2", idempotency_key="a")
        await backplane.publish("room", "b0", idempotency_key="b")
        async with connection.transaction():
            await backplane.publish_in(connection, "room", "b1", idempotency_key="b")
        page = await backplane.history("room")
        assert [message.data for message in page.messages] == ["a0", "b0"]
        assert receipt.duplicate
        assert receipt.position == page.messages[0].position
        await connection.execute("UPDATE backplane_message SET at = at - interval '301 seconds'")
        async with connection.transaction():
            await backplane.publish_in(connection, "room", "a3", idempotency_key="a")
        assert not (await backplane.publish("room", "b2", idempotency_key="b")).duplicate


async def test_typed_channels_publish_in_transactions(url: str) -> None:
    """With the check of the type, and from synchronous code too: see `test_publish_in` for its sessions."""
    backplane = Backplane(url, history=_HISTORY)
    numbers = backplane.channel("numbers:{name}", int)
    async with backplane, numbers.subscribe(name="x") as messages, session(url) as connection:
        async with connection.transaction():
            await numbers.publish_in(connection, 5, name="x")
        async with asyncio.timeout(60):
            assert await anext(messages) == 5


async def test_a_message_of_a_transaction_is_in_its_trace(url: str) -> None:
    """The receiver gets the span of the statement, a child of the one around it."""
    exported = Exported()
    tracing = Tracing(exported.provider)
    async with (
        Backplane(url, history=_HISTORY, tracing=tracing) as backplane,
        backplane.subscribe("room") as messages,
        session(url) as connection,
    ):
        with exported.tracer.start_as_current_span("order") as span:
            async with connection.transaction():
                await backplane.publish_in(connection, "room", "x")
        async with asyncio.timeout(60):
            message = await anext(messages)
        assert isinstance(message, Message)
        with tracing.consume(message):
            pass
        trace = span.get_span_context().trace_id
        assert "process" in exported.names
        assert {one.context.trace_id for one in exported.spans if one.context is not None} == {trace}
        assert backplane.statistics().published == 0


async def test_what_is_deleted_can_be_resumed_as_far_as_nothing_is_missing(url: str) -> None:
    """By number and by age; the newest position of a channel is found for ever, and an older one is a gap."""
    async with Backplane(url, history=_HISTORY) as backplane:
        begin = (await backplane.history("few:x")).position
        few = [(await backplane.publish("few:x", str(number))).position for number in range(5)]
        brief = [(await backplane.publish("brief:x", str(number))).position for number in range(3)]
    await delete_what_is_old(url)
    async with session(url) as connection:
        kept = await connection.fetch("SELECT payload FROM backplane_message ORDER BY id")
        assert [payload[-1:] for (payload,) in kept] == [b"2", b"3", b"4"]
        await delete_what_is_old(url)
    async with Backplane(url, history=_HISTORY) as backplane:
        for channel, position, missed in (
            ("few:x", few[4], []),
            ("few:x", few[2], ["3", "4"]),
            ("few:x", few[1], None),
            ("few:x", begin, None),
            ("brief:x", brief[2], []),
            ("brief:x", brief[1], None),
        ):
            page = await backplane.history(channel, since=position)
            assert page.complete is (missed is not None), (channel, position)
            if missed is not None:
                assert [message.data for message in page.messages] == missed
        assert (await backplane.history("brief:x")).position == brief[2]


async def test_a_key_is_not_forgotten_early(url: str) -> None:
    """A message with a key is there for as long as the key counts, whatever the rule is."""
    async with Backplane(url, history=_HISTORY) as backplane:
        await backplane.publish("brief:x", "1", idempotency_key="key")
        await delete_what_is_old(url)
        assert (await backplane.publish("brief:x", "2", idempotency_key="key")).duplicate


async def test_other_tables_make_positions_invalid(url: str) -> None:
    """Positions of tables that were made anew, or lost messages, are a gap."""
    async with Backplane(url, history=_HISTORY) as backplane:
        position = (await backplane.publish("room", "x")).position
    async with session(url) as connection:
        await connection.execute("UPDATE backplane_retention SET epoch = gen_random_uuid()")
    async with (
        Backplane(url, history=_HISTORY) as backplane,
        backplane.subscribe("room", since=str(position)) as resumed,
    ):
        async with asyncio.timeout(60):
            assert isinstance(await anext(resumed), Gap)


async def test_a_history_needs_the_tables(postgres_broker: Broker) -> None:
    """In plain mode there is none: the error states that, in a transaction too."""
    backplane = Backplane(postgres_broker.url, history=_HISTORY)
    with pytest.raises(ConfigurationError, match="keeps no messages"):
        await backplane.start()
    with pytest.raises(ConfigurationError, match="add durable=true to the URL"):
        await backplane.publish_in(object(), "room", "x")


async def test_reading_without_the_row_of_the_retention(url: str) -> None:
    """It was deleted under a running worker: the read fails, and names what is wrong."""
    async with Backplane(url, history=_HISTORY) as backplane, session(url) as connection:
        await connection.execute("DELETE FROM backplane_retention")
        with pytest.raises(BrokerError, match="has lost the row of its retention"):
            await backplane.history("room")
        await connection.execute("ALTER TABLE backplane_forgotten RENAME TO elsewhere")
        with pytest.raises(BrokerError, match="does not exist"):
            await backplane.history("room")
