"""`admin_routes`: the live page as an ASGI application.

app.mount("/backplane", admin_routes(backplane, authorize=is_staff, allow={"publish", "disconnect", "tail"}))
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import JSONResponse
from starlette.routing import Route, Router

from backplane.admin.access import Access, check_rights, visitor_of
from backplane.admin.changes import Changes
from backplane.admin.lists import Lists
from backplane.admin.overview import overviews
from backplane.admin.page_files import page_routes
from backplane.admin.page_stream import PageStream
from backplane.admin.tail import tail
from backplane.admin.why import Why
from backplane.channels import validate_channel
from backplane.errors import BackplaneError, InvalidChannelError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

    from backplane.admin.access import AuthorizeVisitor, Right
    from backplane.core import Backplane
    from backplane.message import Message

__all__ = ["admin_routes"]

_MAX_STREAMS: Final = 64


def admin_routes(
    backplane: Backplane,
    *,
    authorize: AuthorizeVisitor,
    allow: Collection[Right] = (),
    redact: Callable[[Message], str] | None = None,
    mask: Callable[[str], str] | None = None,
) -> ASGIApp:
    """Return an ASGI application with the live page and its JSON, for `mount` of FastAPI and Starlette.

    Shows what the workers do at this moment: links, clients, channels, what is missing, and why. It changes nothing
    unless `allow` has the right for it, and shows no message without the right `tail`.

    Every request is answered by `authorize`, those for the files of the page too. No page of another site can read an
    answer or cause a change, even with the cookies of a visitor, and the page loads nothing from elsewhere. Whatever is
    in the name of a channel or in a message is shown as text.

    Args:
        backplane: The backplane, started or not.
        authorize: Who may see the page; see `AuthorizeVisitor`. There is no default: `local_only` is for development.
        allow: What all of its visitors may do beside: `"publish"` a message, `"disconnect"` connections, `"tail"` a
            channel. Each change is logged with the name of the visitor. Defaults to nothing.
        redact: Returns what is shown of a message in place of its data. Defaults to the beginning of the data.

        mask: Returns what is shown of the user, or `client_key`, of a connection. Defaults to all of it.

    Raises:
        ConfigurationError: `authorize` is no function, or a right is not known.
    """
    return Access(_Routes(backplane, check_rights(allow), redact, mask).router(), authorize, allow)


class _Routes:
    """The JSON of the page."""

    def __init__(
        self,
        backplane: Backplane,
        allow: frozenset[Right],
        redact: Callable[[Message], str] | None,
        mask: Callable[[str], str] | None,
    ) -> None:
        self._backplane = backplane
        self._allow = allow
        self._redact = redact
        self._changes = Changes(backplane)
        self._lists = Lists(backplane, mask)
        self._why = Why(backplane, mask)
        self._streams = 0

    def router(self) -> Router:
        """Return all routes."""
        changes = self._changes
        return Router(
            [
                *page_routes(),
                Route("/api/session", self._session),
                Route("/api/overview", self._overview),
                Route("/api/channels", self._lists.channels),
                Route("/api/connections", self._lists.connections),
                Route("/api/log", self._lists.events),
                Route("/api/configuration", self._lists.configuration),
                Route("/api/explain", self._why.explain),
                Route("/api/stream", self._stream),
                Route("/api/tail", self._allowed("tail", self._tail)),
                Route("/api/publish", self._allowed("publish", changes.publish), methods=["POST"]),
                Route("/api/disconnect", self._allowed("disconnect", changes.disconnect), methods=["POST"]),
            ],
            default=JSONResponse({"detail": "there is nothing here"}, 404),
        )

    def _allowed(
        self, right: Right, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return a handler that refuses where `allow` lacks a right."""

        async def handle(request: Request) -> Response:
            if right not in self._allow:
                return JSONResponse({"detail": f'not allowed here: admin_routes(allow={{"{right}"}}) allows it'}, 403)
            return await handler(request)

        return handle

    async def _session(self, request: Request) -> Response:
        """Answer whether the visitor is still let in: an `EventSource` does not show why it was refused."""
        return JSONResponse({"name": visitor_of(request).name})

    async def _overview(self, request: Request) -> Response:
        try:
            async with aclosing(overviews(self._backplane)) as all_of_them:
                return JSONResponse({**await anext(all_of_them), **self._rights(request)})
        except (BackplaneError, StopAsyncIteration) as error:
            return JSONResponse({"detail": str(error) or "this worker ends"}, 503)

    async def _stream(self, request: Request) -> Response:
        return self._answer_with(self._events(request), request)

    async def _events(self, request: Request) -> AsyncGenerator[tuple[str, Any] | None]:
        async with aclosing(overviews(self._backplane)) as all_of_them:
            async for overview in all_of_them:
                yield "overview", {**overview, **self._rights(request)}

    def _rights(self, request: Request) -> dict[str, Any]:
        return {"you": {"name": visitor_of(request).name, "allow": sorted(self._allow)}}

    async def _tail(self, request: Request) -> Response:
        try:
            channel = validate_channel(request.query_params.get("channel", ""))
        except InvalidChannelError as error:
            return JSONResponse({"detail": str(error)}, 400)
        return self._answer_with(tail(self._backplane, channel, self._redact), request)

    def _answer_with(self, events: AsyncGenerator[tuple[str, Any] | None], request: Request) -> Response:
        if self._streams >= _MAX_STREAMS:
            return JSONResponse({"detail": f"this worker serves {_MAX_STREAMS} pages already"}, 503)
        return PageStream(self._counted(events), visitor_of(request))

    async def _counted(self, events: AsyncGenerator[tuple[str, Any] | None]) -> AsyncGenerator[tuple[str, Any] | None]:
        self._streams += 1
        try:
            async for event in events:
                yield event
        finally:
            self._streams -= 1
            await events.aclose()
