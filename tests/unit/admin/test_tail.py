"""`backplane.admin.tail`: what a page is shown of a channel, how much at most, and that it holds nothing up."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from backplane import Backplane
from backplane.admin.tail import MAX_MESSAGES_PER_SECOND, MAX_SHOWN_BYTES, tail
from tests.unit.admin.kit import browsing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane import Message

pytestmark = pytest.mark.anyio


async def batch(events: AsyncGenerator[tuple[str, Any] | None]) -> dict[str, Any]:
    """Return the next messages."""
    while (event := await anext(events)) is None or event[0] != "messages":
        assert event is None or event[0] == "joined"
    messages: dict[str, Any] = event[1]
    return messages


async def test_messages_are_shown() -> None:
    """Text is shown as it is, bytes in hexadecimal digits; each with its size, its time and its publisher."""
    async with Backplane("memory://") as backplane, aclosing(tail(backplane, "a", None)) as events:
        assert (await anext(events) or ("",))[0] == "joined"
        await backplane.publish("a", "<b>\n\0")
        await backplane.publish("a", b"\0\xff")
        text, binary = (await batch(events))["messages"]
        assert (text["text"], text["is_binary"], text["is_cut"], text["bytes"]) == ("<b>\n\0", False, False, 5)
        assert (binary["text"], binary["is_binary"], binary["bytes"]) == ("00 ff", True, 2)
        assert text["publisher"] == binary["publisher"]
        assert text["at"] <= binary["at"]


async def test_long_messages_are_cut() -> None:
    """Of a message its beginning is shown."""
    async with Backplane("memory://") as backplane, aclosing(tail(backplane, "a", None)) as events:
        await anext(events)
        await backplane.publish("a", "x" * 5000)
        await backplane.publish("a", b"x" * 5000)
        for shown in (await batch(events))["messages"]:
            assert (shown["is_cut"], shown["bytes"]) == (True, 5000)
            assert len(shown["text"]) <= MAX_SHOWN_BYTES


async def test_burst_is_bounded() -> None:
    """Of a burst the newest are shown, and the others are counted; the subscription keeps no more than its backlog."""
    async with Backplane("memory://") as backplane, aclosing(tail(backplane, "a", None)) as events:
        await anext(events)
        for number in range(190):
            await backplane.publish("a", str(number))
        first = await batch(events)
        assert len(first["messages"]) == MAX_MESSAGES_PER_SECOND
        assert first["messages"][-1]["text"] == "189"
        assert len(first["messages"]) + first["not_shown"] == 190


async def test_page_that_does_not_read_drops() -> None:
    """While the page takes nothing, what is too much is dropped, and counted: the publisher does not wait."""
    async with Backplane("memory://") as backplane, aclosing(tail(backplane, "a", None)) as events:
        await anext(events)
        for number in range(1000):
            await backplane.publish("a", str(number))
        assert backplane.statistics().dropped_oldest == 800
        shown = await batch(events)
        assert (shown["messages"][-1]["text"], shown["not_shown"]) == ("999", 1000 - len(shown["messages"]))


async def test_redact(caplog: pytest.LogCaptureFixture) -> None:
    """`redact` decides what is shown; where it fails, nothing of the message is shown or logged."""

    def redact(message: Message) -> str:
        if message.data == "fails":
            raise ValueError(message.data)
        return "hidden"

    async with Backplane("memory://") as backplane, aclosing(tail(backplane, "a", redact)) as events:
        await anext(events)
        await backplane.publish("a", "secret")
        await backplane.publish("a", "fails")
        assert [shown["text"] for shown in (await batch(events))["messages"]] == ["hidden", "(redact failed)"]
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [line.rpartition(" at ")[0] for line in lines] == ["redact of admin_routes failed: ValueError"]


async def test_gap_and_end() -> None:
    """A gap is shown in its place, and a worker that drains ends the tail."""
    async with Backplane("memory://") as backplane, aclosing(tail(backplane, "a", None)) as events:
        await anext(events)
        await backplane.publish("a", "before")
        backplane._lifecycle.running().hub.gap(["a"], "lost")  # pyright: ignore[reportPrivateUsage]
        assert [item.get("gap") for item in (await batch(events))["messages"]] == [None, "lost"]
        await backplane.drain()
        assert await anext(events) == ("ended", {"reason": "this worker ends: connect again"})


async def test_nothing_is_subscribed_after_the_end() -> None:
    """When the page is gone its subscription is, too."""
    async with Backplane("memory://") as backplane:
        async with aclosing(tail(backplane, "a", None)) as events:
            await anext(events)
            assert (await backplane.health()).subscriptions == 1
        assert (await backplane.health()).subscriptions == 0


@pytest.mark.parametrize("channel", ["", "$backplane/control", "x" * 256])
async def test_channel_that_is_not_legal(channel: str) -> None:
    """A channel that an application may not use cannot be tailed."""
    async with Backplane("memory://") as backplane, browsing(backplane, allow={"tail"}) as client:
        response = await client.get("api/tail", params={"channel": channel})
        assert response.status_code == 400


async def test_tail_needs_its_right() -> None:
    """Without the right no message is shown, and nothing is subscribed."""
    async with Backplane("memory://") as backplane:
        async with browsing(backplane, allow={"publish"}) as client:
            assert (await client.get("api/tail", params={"channel": "a"})).status_code == 403
        async with asyncio.timeout(10):
            assert (await backplane.health()).subscriptions == 0
