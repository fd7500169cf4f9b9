"""`backplane.integrations.feed`: a subscription that goes on, with a gap wherever messages may be missing."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from backplane import Backlog, Backplane, BrokerUnavailableError, ClosedError, Gap, Message, SubscribeError
from backplane.integrations import feed as module
from backplane.integrations.feed import Feed, notify_gap
from tests.unit.controlled_adapter import Adapter

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(adapter: Adapter) -> AsyncGenerator[tuple[Backplane, Feed]]:
    """Open a feed on a started backplane."""
    async with Backplane(adapter) as backplane:
        feed = Feed()
        await feed.open(backplane)
        try:
            yield backplane, feed
        finally:
            await feed.close()


async def received(feed: Feed) -> tuple[str, str]:
    """Return the channel of the next item, with its data or `gap`."""
    async with asyncio.timeout(10):
        item = await anext(feed)
    return item.channel, str(item.data) if isinstance(item, Message) else "gap"


async def test_messages_of_joined_channels() -> None:
    """An iteration that begins before the first join receives; what waits of a channel that is left is dropped."""
    async with opened(Adapter()) as (backplane, feed):
        first = asyncio.create_task(received(feed))
        await feed.join("a")
        await feed.join("b")
        assert set(feed.channels) == {"a", "b"}
        await backplane.publish("a", "1")
        assert await first == ("a", "1")
        await backplane.publish("a", "2")
        await backplane.publish("b", "3")
        await feed.leave("a")
        await feed.leave("a")
        assert await received(feed) == ("b", "3")


async def test_names_are_no_patterns() -> None:
    """A `*` is a plain character of a name, which clients may have chosen, at the join and at the leave."""
    async with opened(Adapter()) as (backplane, feed):
        await feed.join("a*")
        await feed.join("b")
        await backplane.publish("abc", "not for it")
        await backplane.publish("a*", "for it")
        assert await received(feed) == ("a*", "for it")
        await feed.leave("a*")
        assert set(feed.channels) == {"b"}


async def test_slow_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where more waits than the bounds allow, the oldest is dropped, and each channel gets a gap before the next."""
    monkeypatch.setattr(module, "_BACKLOG", Backlog(when_full="drop_oldest", max_messages=2))
    async with opened(Adapter()) as (backplane, feed):
        await feed.join("a")
        await feed.join("b")
        for number in range(3):
            await backplane.publish("a", str(number))
        items = [await received(feed) for _ in range(4)]
        assert items[2:] == [("a", "1"), ("a", "2")]
        assert sorted(items[:2]) == [("a", "gap"), ("b", "gap")]


async def test_lost_link() -> None:
    """A lost link is a gap in its place, and then the channel goes on."""
    adapter = Adapter()
    async with opened(adapter) as (backplane, feed):
        await feed.join("a")
        await backplane.publish("a", "1")
        adapter.cut()
        await backplane.wait_for_state("degraded")
        await backplane.wait_for_state("live")
        await backplane.publish("a", "2")
        assert [await received(feed) for _ in range(3)] == [("a", "1"), ("a", "gap"), ("a", "2")]


async def test_join_that_fails() -> None:
    """Without `insist` it is not tried again; with it the channel begins with a gap once the broker accepts it."""
    adapter = Adapter()
    async with opened(adapter) as (backplane, feed):
        adapter.refusals = {"a": "no", "b": "no", "c": "no"}
        with pytest.raises(SubscribeError):
            await feed.join("a")
        for channel in ("b", "b", "c"):
            with pytest.raises(SubscribeError):
                await feed.join(channel, insist=True)
        await feed.leave("c")
        await adapter.until(lambda: adapter.calls.count(("subscribe", ("b",))) > 3)  # it goes on
        adapter.refusals = {}
        assert await received(feed) == ("b", "gap")
        await backplane.publish("b", "1")
        assert await received(feed) == ("b", "1")
        assert set(feed.channels) == {"b"}


async def test_join_that_is_cancelled() -> None:
    """With `insist` the channel is joined all the same, by a task that ends with the feed."""
    adapter = Adapter()
    async with opened(adapter) as (_, feed):
        for channel in ("a", "b"):
            adapter.subscribe_gate.close()
            joining = asyncio.create_task(feed.join(channel, insist=True))
            await adapter.until(lambda name=channel: ("subscribe", (name,)) in adapter.calls)  # type: ignore[misc]
            joining.cancel()
            with pytest.raises(asyncio.CancelledError):
                await joining
            if channel == "a":
                adapter.subscribe_gate.open()
                assert await received(feed) == ("a", "gap")
    adapter.subscribe_gate.open()


async def test_end_of_the_backplane() -> None:
    """The iteration ends with the backplane, and no task goes on trying to join."""
    adapter = Adapter()
    async with Backplane(adapter) as backplane:
        feed = Feed()
        await feed.open(backplane)
        await feed.join("a")
        adapter.refusals = {"b": "no"}
        with pytest.raises(SubscribeError):
            await feed.join("b", insist=True)
    with pytest.raises(StopAsyncIteration):
        await anext(feed)
    while feed._retries:  # pyright: ignore[reportPrivateUsage]
        await asyncio.sleep(0)
    await feed.leave("a")
    await feed.close()


async def test_not_open() -> None:
    """A feed that was not opened receives nothing, and states why."""
    feed = Feed()
    with pytest.raises(ClosedError, match="not open"):
        await feed.join("a")
    assert list(feed.channels) == []
    await feed.leave("a")
    await feed.close()


async def test_callback_of_gaps(caplog: pytest.LogCaptureFixture) -> None:
    """It may be a function or a coroutine function; what it raises is logged."""
    gap = Gap(channel="a", reason="lost")
    gaps: list[Gap] = []

    async def fails(_: Gap) -> None:
        raise BrokerUnavailableError("no")

    await notify_gap(None, gap)
    await notify_gap(gaps.append, gap)
    await notify_gap(fails, gap)
    assert gaps == [gap]
    assert caplog.messages == ["a callback of on_gap failed for channel 'a'"]
