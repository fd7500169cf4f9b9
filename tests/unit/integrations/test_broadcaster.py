"""`backplane.integrations.broadcaster`: as encode/broadcaster, and beside it on one Redis."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import broadcaster
import pytest

from backplane import Backlog, Backplane, ConfigurationError, Gap, NotStartedError, SlowConsumerError
from backplane.integrations.broadcaster import Broadcast, Event, Unsubscribed
from tests.brokers.broker import Broker, ProcessBroker
from tests.unit.controlled_adapter import Adapter

if TYPE_CHECKING:
    from tests.conftest import StartRedis

pytestmark = pytest.mark.anyio


async def test_publish_and_subscribe() -> None:
    """Each subscriber of a channel gets each event, and one that leaves does not concern the others."""
    async with Broadcast("memory://") as broadcast:
        async with broadcast.subscribe("chat") as one:
            async with broadcast.subscribe(channel="chat") as other:
                await broadcast.publish(channel="chat", message="hello")
                assert [await one.get(), await other.get()] == [Event("chat", "hello")] * 2
            await broadcast.publish("chat", "again")
            assert (await one.get()).message == "again"
        async with broadcast.subscribe("chat") as one:  # after the last one has left (broadcaster #121)
            await broadcast.publish("chat", {"id": 1})
            assert repr(await one.get()) == """Event(channel='chat', message='{"id":1}')"""


async def test_names_are_no_patterns() -> None:
    """A `*` is a plain character of a name, which clients may have chosen."""
    broadcast = Broadcast("memory://")
    async with broadcast, broadcast.subscribe("chat.*") as subscriber:
        await broadcast.publish("chat.private", "not for it")
        await broadcast.publish("chat.*", "for it")
        assert await subscriber.get() == Event("chat.*", "for it")


async def test_end() -> None:
    """An iteration ends with `disconnect`, and so does `get`; before `connect` nothing works."""
    broadcast = Broadcast("memory://")
    with pytest.raises(NotStartedError):
        await broadcast.publish("chat", "hello")
    await broadcast.connect()
    async with broadcast.subscribe("chat") as subscriber:
        await broadcast.publish("chat", "last")
        events: list[Event] = []
        async for event in subscriber:
            events.append(event)
            await broadcast.disconnect()
        assert events == [Event("chat", "last")]
        with pytest.raises(Unsubscribed):
            await subscriber.get()


async def test_gap() -> None:
    """After a lost link `on_gap` is called before the next event."""
    adapter = Adapter()
    gaps: list[Gap] = []
    async with Backplane(adapter) as backplane:
        broadcast = Broadcast(backplane, on_gap=gaps.append)
        await broadcast.connect()
        async with broadcast.subscribe("chat") as subscriber:
            adapter.cut()
            await backplane.wait_for_state("degraded")
            await backplane.wait_for_state("live")
            await broadcast.publish("chat", "again")
            assert await subscriber.get() == Event("chat", "again")
        assert [gap.channel for gap in gaps] == ["chat"]
        await broadcast.disconnect()
        assert broadcast.backplane.state == "live"


async def test_slow_subscriber() -> None:
    """One that is slower than its backlog allows ends with an error after what waited."""
    broadcast = Broadcast("memory://", backlog=Backlog(max_messages=1))
    async with broadcast, broadcast.subscribe("chat") as subscriber:
        await broadcast.publish("chat", "1")
        await broadcast.publish("chat", "2")
        assert (await subscriber.get()).message == "1"
        with pytest.raises(SlowConsumerError):
            await subscriber.get()


def test_plain_needs_a_url() -> None:
    """`plain` is added to the options of a URL, and a backplane has it in its own."""
    Broadcast("redis://localhost?prefix=a:", plain=True)
    for url in (None, Backplane("memory://")):
        with pytest.raises(ConfigurationError, match="wire_format=plain"):
            Broadcast(url, plain=True)


@pytest.mark.parametrize(
    ("url", "own"), [("postgres://x", "NOTIFY channel"), ("postgresql://x", "NOTIFY channel"), ("kafka://x", "topic")]
)
def test_plain_is_refused_where_the_channels_are_others(url: str, own: str) -> None:
    """On PostgreSQL and Kafka no option makes workers with encode/broadcaster and with this receive each other."""
    with pytest.raises(ConfigurationError, match=f"has a {own} of the broker for each channel"):
        Broadcast(url, plain=True)
    Broadcast(url)


async def test_beside_encode_broadcaster(redis_broker: Broker) -> None:
    """Workers with encode/broadcaster and workers with this receive each other, while `plain` is set."""
    old: Any = broadcaster.Broadcast(redis_broker.url)
    new = Broadcast(redis_broker.url, plain=True)
    async with old, new, asyncio.timeout(20), old.subscribe("chat") as of_old, new.subscribe("chat") as of_new:
        await until_subscribed(redis_broker.url)
        # With redis-py 8 its listener looks for channels before the first one is subscribed, and then waits for ever.
        old._backend._ready.set()
        for sender in (new, old):
            await sender.publish("chat", "ü")
            received = [await of_old.get(), await of_new.get()]
            assert [event.message for event in received] == ["ü", "ü"]


async def test_restart_of_redis(private_redis: StartRedis) -> None:
    """A subscriber is notified of the gap and goes on (broadcaster #144), where encode/broadcaster waits for ever."""
    broker = private_redis()
    assert isinstance(broker, ProcessBroker)
    gaps: asyncio.Queue[Gap] = asyncio.Queue()
    async with Broadcast(broker.url, on_gap=gaps.put) as broadcast, broadcast.subscribe("chat") as subscriber:
        receiving = asyncio.create_task(subscriber.get())
        broker.kill9()
        await broadcast.backplane.wait_for_state("degraded")
        broker.launch()
        async with asyncio.timeout(60):
            assert (await gaps.get()).channel == "chat"
            await broadcast.publish("chat", "again")
            assert (await receiving).message == "again"


async def until_subscribed(url: str) -> None:
    """Wait until both are subscribed: encode/broadcaster does not wait for the confirmation."""
    from redis.asyncio import Redis

    client: Any = Redis
    async with client.from_url(url) as link:
        while (await link.pubsub_numsub("chat"))[0][1] < 2:
            await asyncio.sleep(0.01)
