"""`backplane.admin.page_stream`: events in order, and an end where the page is gone, reads nothing or may not stay."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from backplane.admin.access import Visitor
from backplane.admin.page_stream import PageStream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

SCOPE = {"type": "http", "method": "GET", "path": "/"}


class Page:
    """A page at the other end of an ASGI server.

    Attributes:
        sent: The events that the server has taken.
        reads: Cleared, the server takes nothing more.
        is_gone: Set by `leave`.
    """

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.is_gone = asyncio.Event()

    async def send(self, event: Any) -> None:
        """Take one event, when the page reads."""
        await self.reads.wait()
        self.sent.append(event)

    async def receive(self) -> Any:
        """Return when the page is gone."""
        await self.is_gone.wait()
        return {"type": "http.disconnect"}

    @property
    def events(self) -> list[tuple[str, Any]]:
        """The events that arrived, parsed."""
        text = b"".join(event.get("body", b"") for event in self.sent).decode()
        blocks = [block for block in text.split("\n\n") if block.startswith("event:")]
        return [
            (head.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
            for head, data in (block.split("\n") for block in blocks)
        ]


class Source:
    """A generator of events, and whether it was closed.

    Attributes:
        made: How many events it was asked for.
    """

    def __init__(self, *items: tuple[str, Any] | None, then_waits: bool = False) -> None:
        self._items = items
        self._then_waits = then_waits
        self.made = 0
        self.is_closed = False

    async def events(self) -> AsyncGenerator[tuple[str, Any] | None]:
        """Yield the items."""
        try:
            for item in self._items:
                self.made += 1
                yield item
            if self._then_waits:
                await asyncio.Event().wait()
        finally:
            self.is_closed = True


async def stays() -> str | None:
    """Let a visitor stay."""
    return "Ada"


async def must_leave() -> str | None:
    """Let no visitor stay."""
    return None


VISITOR = Visitor("Ada", stays)


async def test_events_are_sent_in_order() -> None:
    """Each event has its name and its data in one line, a pause is `alive`, and the end ends the answer."""
    page, source = Page(), Source(("a", {"text": "x\r\n\u2028event: b"}), None, ("b", [1]))
    await PageStream(source.events(), VISITOR)(SCOPE, page.receive, page.send)
    assert page.events == [("a", {"text": "x\r\n\u2028event: b"}), ("alive", {}), ("b", [1])]
    headers = dict(page.sent[0]["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert page.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert source.is_closed


async def test_page_that_leaves() -> None:
    """The generator is closed as soon as the page is gone."""
    page, source = Page(), Source(("a", 1), then_waits=True)
    answering = asyncio.create_task(PageStream(source.events(), VISITOR)(SCOPE, page.receive, page.send))
    while not page.events:
        await asyncio.sleep(0)
    page.is_gone.set()
    await answering
    assert source.is_closed


async def test_page_that_reads_nothing() -> None:
    """The next event is asked for when the one before was taken; after a while the page is cut."""
    page, source = Page(), Source(*[("a", "x" * 1000)] * 1000)
    stream = PageStream(source.events(), VISITOR, give_up_seconds=0.05)
    page.reads.clear()
    await stream(SCOPE, page.receive, page.send)
    assert (source.made, source.is_closed, page.sent) == (0, False, [])  # it has not begun

    page, source = Page(), Source(*[("a", "x" * 1000)] * 1000)

    async def send(event: Any) -> None:
        await page.send(event)
        if len(page.events) == 3:
            page.reads.clear()

    await PageStream(source.events(), VISITOR, give_up_seconds=0.05)(SCOPE, page.receive, send)
    assert (source.made, source.is_closed, len(page.events)) == (4, True, 3)


async def test_server_that_raises_for_a_page_that_is_gone() -> None:
    """An `OSError` of the server is the end of the page (ASGI, HTTP 2.4); another error is raised."""
    page, source = Page(), Source(("a", 1), then_waits=True)

    async def gone(_: Any) -> None:
        raise ConnectionResetError

    await PageStream(source.events(), VISITOR)(SCOPE, page.receive, gone)

    async def broken(_: Any) -> None:
        raise KeyError("send")

    with pytest.raises(KeyError):
        await PageStream(Source().events(), VISITOR)(SCOPE, page.receive, broken)


async def test_visitor_whose_session_has_ended() -> None:
    """`authorize` is asked again, and the stream ends before the next event where it refuses."""
    page, source = Page(), Source(("a", 1), ("b", 2))
    stream = PageStream(source.events(), Visitor("Ada", must_leave), ask_again_seconds=-1)
    await stream(SCOPE, page.receive, page.send)
    assert page.events == []
    assert source.is_closed


async def test_cancellation() -> None:
    """A request that is cancelled leaves no task and closes the generator."""
    page, source = Page(), Source(("a", 1), then_waits=True)
    answering = asyncio.create_task(PageStream(source.events(), VISITOR)(SCOPE, page.receive, page.send))
    while not page.events:
        await asyncio.sleep(0)
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert source.is_closed
