"""`backplane.integrations.litestar`: a `ChannelsPlugin` on it, as its applications use one."""

# Some types of Litestar are unknown:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.redis import RedisChannelsPubSubBackend
from redis.asyncio import Redis

from backplane import (
    Backplane,
    BrokerUnavailableError,
    ClosedError,
    ConfigurationError,
    Gap,
    History,
    InvalidChannelError,
    Message,
    PublishError,
)
from backplane.integrations.litestar import BackplaneChannelsBackend
from tests.unit.controlled_adapter import Adapter

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from litestar.channels import Subscriber

    from tests.brokers.broker import Broker

pytestmark = pytest.mark.anyio


async def taken(subscriber: Subscriber, count: int) -> list[bytes]:
    """Return the next events of a subscriber."""
    events: list[bytes] = []
    async with asyncio.timeout(10):
        async for event in subscriber.iter_events():
            events.append(event)
            if len(events) == count:
                break
    return events


@asynccontextmanager
async def plugin_on(
    adapter: Adapter, gaps: list[Gap] | None = None
) -> AsyncGenerator[tuple[Backplane, ChannelsPlugin]]:
    """Run a plugin with any channels on a started backplane."""
    async with Backplane(adapter) as backplane:
        backend = BackplaneChannelsBackend(backplane, gap_message=b"gap", on_gap=None if gaps is None else gaps.append)
        async with ChannelsPlugin(backend, arbitrary_channels_allowed=True) as plugin:
            yield backplane, plugin


async def test_plugin() -> None:
    """Subscribers get what is published at once and what is queued, text and binary; others receive text as text."""
    backend = BackplaneChannelsBackend("memory://")
    async with ChannelsPlugin(backend, channels=["a", "b"]) as plugin:
        subscriber = await plugin.subscribe(["a", "b"])
        async with backend.backplane.subscribe("a") as messages:
            await plugin.wait_published("text: ü", ["a", "b", "a"])
            plugin.publish(b"\xff\0", "a")
            assert sorted(await taken(subscriber, 3)) == ["text: ü".encode()] * 2 + [b"\xff\0"]
            received = [await anext(messages) for _ in range(2)]
            assert [item.data for item in received if isinstance(item, Message)] == ["text: ü", b"\xff\0"]
        await plugin.unsubscribe(subscriber, "a")
        await plugin.wait_published("not received", "a")
        await plugin.wait_published("received", "b")
        assert await taken(subscriber, 1) == [b"received"]
    assert str(backend.backplane) == "<Backplane memory:// closed>"
    async with ChannelsPlugin(backend, channels=["a"]) as plugin:  # a second time (litestar #4784)
        subscriber = await plugin.subscribe("a")
        await plugin.wait_published("again", "a")
        assert await taken(subscriber, 1) == [b"again"]


async def test_gap() -> None:
    """After a lost link each subscriber gets `gap_message` before the next message, and `on_gap` is called."""
    adapter = Adapter()
    gaps: list[Gap] = []
    async with plugin_on(adapter, gaps) as (backplane, plugin):
        subscriber = await plugin.subscribe("a")
        await plugin.wait_published("1", "a")
        adapter.cut()
        await backplane.wait_for_state("degraded")
        await backplane.wait_for_state("live")
        await plugin.wait_published("2", "a")
        assert await taken(subscriber, 3) == [b"1", b"gap", b"2"]
        assert [gap.channel for gap in gaps] == ["a"]


async def test_failed_publish(caplog: pytest.LogCaptureFixture) -> None:
    """One that is waited for raises; one that was queued is logged, and the queue goes on (litestar #5008)."""
    adapter = Adapter()
    adapter.publish_errors = {"a": PublishError("no rights"), "b": ValueError("a fault")}
    async with asyncio.timeout(10), plugin_on(adapter) as (_, plugin):
        subscriber = await plugin.subscribe("c")
        with pytest.raises(PublishError, match="no rights"):
            await plugin.wait_published("1", ["c", "a"])
        plugin.publish("2", ["a", "c"])
        plugin.publish("3", "c")
        assert await taken(subscriber, 3) == [b"1", b"2", b"3"]
    assert [text for text in caplog.messages if "queued" in text] == [
        "a message that was queued was not published: no rights"
    ]


async def test_refused_channel() -> None:
    """A subscription that the broker does not confirm does not fail, and begins with a gap when it does."""
    adapter = Adapter()
    adapter.refusals = {"a": "no rights"}
    async with plugin_on(adapter) as (_, plugin):
        subscriber = await plugin.subscribe(["a", "b"])
        await plugin.wait_published("1", "b")
        assert await taken(subscriber, 1) == [b"1"]
        adapter.refusals = {}
        assert await taken(subscriber, 1) == [b"gap"]
        await plugin.wait_published("2", "a")
        assert await taken(subscriber, 1) == [b"2"]
        with pytest.raises(InvalidChannelError):
            await plugin.subscribe("")


async def test_not_started() -> None:
    """Before its start it receives nothing, and states why; a start without the broker fails."""
    backend = BackplaneChannelsBackend("redis://127.0.0.1:1?connect_timeout_seconds=0.1")
    with pytest.raises(ClosedError):
        await anext(backend.stream_events())
    with pytest.raises(BrokerUnavailableError):
        await backend.on_startup()
    await backend.on_shutdown()


async def test_history() -> None:
    """A new subscriber gets the newest messages of a channel that has a history; another one has none."""
    backplane = Backplane("memory://", history={"a": History(max_messages=10)})
    async with backplane, ChannelsPlugin(BackplaneChannelsBackend(backplane), channels=["a", "b"]) as plugin:
        for number in range(5):
            await plugin.wait_published(str(number).encode() + b"\xff" * (number % 2), "a")
        subscriber = await plugin.subscribe("a", history=2)
        assert await taken(subscriber, 2) == [b"3\xff", b"4"]
        await plugin.put_subscriber_history(subscriber, "a")
        assert len(await taken(subscriber, 5)) == 5
        with pytest.raises(ConfigurationError):
            await plugin.put_subscriber_history(subscriber, "b")


async def test_beside_the_redis_backend(redis_broker: Broker) -> None:
    """With `wire_format=plain` applications with Litestar's own backend and with this one receive each other."""
    client: Any = Redis
    link = client.from_url(redis_broker.url)
    old = RedisChannelsPubSubBackend(redis=link)
    new = BackplaneChannelsBackend(f"{redis_broker.url}?wire_format=plain")
    async with ChannelsPlugin(old, channels=["a"]) as one, ChannelsPlugin(new, channels=["a"]) as other:
        subscribers = [await one.subscribe("a"), await other.subscribe("a")]
        for sender in (one, other):
            await sender.wait_published(b"\xff", "a")
            assert [await taken(subscriber, 1) for subscriber in subscribers] == [[b"\xff"]] * 2
    await link.aclose()
