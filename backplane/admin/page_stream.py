"""An event stream to the live page: what a generator yields, until the page is gone, reads nothing, or may not stay."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import Response

from backplane.web.event_format import HEADERS, MEDIA_TYPE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.background import BackgroundTask
    from starlette.types import Receive, Scope, Send

    from backplane.admin.access import Visitor

__all__ = ["Events", "PageStream"]

Events = "AsyncGenerator[tuple[str, Any] | None]"
"""Names of events with their data, anything JSON; `None` where there is nothing to send for the moment."""

# After so long a page that reads nothing is cut; until then its worker keeps what the generator keeps, and one event.
_GIVE_UP_SECONDS: Final = 30.0
_ASK_AGAIN_SECONDS: Final = 30.0
_RETRY: Final = b"retry: 2000\n\n"
# An event, and no comment: the page notices that its worker is gone by the silence.
_ALIVE: Final = b"event: alive\ndata: {}\n\n"


class PageStream(Response):
    """Sends the events one by one: the next one is asked for when the server has taken the one before.

    So a page that reads slowly makes its generator wait, and costs no more memory than that keeps.

    Args:
        events: The events; closed at the end.
        visitor: Who gets them; asked again every 30 seconds, and the stream ends where they may not stay.
        give_up_seconds: After how long a page that reads nothing is cut. Defaults to 30.
        ask_again_seconds: How often `authorize` is asked again. Defaults to 30.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self,
        events: AsyncGenerator[tuple[str, Any] | None],
        visitor: Visitor,
        *,
        give_up_seconds: float = _GIVE_UP_SECONDS,
        ask_again_seconds: float = _ASK_AGAIN_SECONDS,
    ) -> None:
        # Not Starlette's own, which would announce a length of 0.
        self.status_code = 200
        self.background: BackgroundTask | None = None
        self.init_headers(HEADERS)
        self._events = events
        self._visitor = visitor
        self._give_up_seconds = give_up_seconds
        self._ask_again_seconds = ask_again_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        sending = asyncio.create_task(self._send_all(send), name="backplane-page-stream")
        leaving = asyncio.create_task(_leaves(receive), name="backplane-page-leaves")
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            leaving.cancel()
            await asyncio.wait((sending, leaving))
        for task in (sending, leaving):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _send_all(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        ask_at = loop.time() + self._ask_again_seconds
        async with aclosing(self._events) as events:
            try:
                async with asyncio.timeout(None) as patience:
                    patience.reschedule(loop.time() + self._give_up_seconds)
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    await send(_body(_RETRY))
                    patience.reschedule(None)
                    async for event in events:
                        if loop.time() >= ask_at:
                            if not await self._visitor.may_stay():
                                break
                            ask_at = loop.time() + self._ask_again_seconds
                        patience.reschedule(loop.time() + self._give_up_seconds)
                        await send(_body(_ALIVE if event is None else _encode(*event)))
                        patience.reschedule(None)
                    await send(_body(b"", more=False))
            except (TimeoutError, OSError):  # it reads nothing, or is gone (ASGI, HTTP 2.4)
                pass


async def _leaves(receive: Receive) -> None:
    """Return when the page is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _encode(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _body(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}
