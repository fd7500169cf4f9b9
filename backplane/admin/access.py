"""Who may open the live page and what for: the application's `authorize`, the rights, and the rules of browsers.

A browser sends the cookies of a site with requests that pages of other sites make. So a request is let through only
where neither `Origin` nor `Sec-Fetch-Site` names another site (a link to the page excepted), and a change needs a
header that a form cannot set and that a foreign script may not set without a permission that is never given (CORS).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from backplane.errors import ConfigurationError
from backplane.journal.events import HOOK_FAILED
from backplane.journal.writing import write
from backplane.web.origin import OriginRule

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send
    from starlette.types import Message as Event

__all__ = ["CHANGE_HEADER", "Access", "AuthorizeVisitor", "Right", "Visitor", "local_only", "visitor_of"]

logger: Final = logging.getLogger("backplane.admin.access")

AuthorizeVisitor = Callable[[Request], bool | str | Awaitable[bool | str]]
"""Decides whether a request may see the live page: a function or a coroutine function, which must not block.

It returns the name of the visitor, which the log states with each change, or `True`; anything else refuses the request
with 403. It may raise the framework's `HTTPException`, such as 401 or a redirect to the login. One that does not answer
within 10 seconds is cancelled, and the request is answered with 503.
"""

Right = Literal["publish", "disconnect", "tail"]
"""What the page may do beside showing figures: publish a message, close connections, show the messages of a channel."""

CHANGE_HEADER: Final = ("X-Backplane", "admin")
"""The header that each change must have."""

_VISITOR: Final = "backplane.admin.visitor"
_AUTHORIZE_SECONDS: Final = 10.0

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
"""The headers of every answer."""

_OWN_SITE: Final = OriginRule()
_LOOPBACK_HOSTS: Final = OriginRule(hosts=["localhost"])  # of which 127.0.0.1 and [::1] are other names
_LOOPBACK_PEERS: Final = ("127.", "::1", "::ffff:127.")
_OF_PROXIES: Final = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")


def local_only(request: Request) -> bool:
    """Allow what a browser on this machine asks for; an `authorize` for development.

    The client's address is a loopback address, the `Host` is a name of the loopback interface (a foreign name that
    leads to it is refused: DNS rebinding), and no proxy has left a header.

    Not for production: every user and program of this machine is let in, and so is every client of a proxy on it that
    adds no header and passes on its own `Host`.
    """
    host = request.client.host if request.client else ""
    return (
        host.startswith(_LOOPBACK_PEERS)
        and "host" in request.headers
        and _LOOPBACK_HOSTS.host_refusal(request.headers["host"]) is None
        and not any(name in request.headers for name in _OF_PROXIES)
    )


class Visitor:
    """Who made a request, and whether it is still let in.

    Attributes:
        name: What `authorize` returned, or "" for `True`.
    """

    def __init__(self, name: str, check: Callable[[], Awaitable[str | None]]) -> None:
        self.name = name
        self._check = check

    async def may_stay(self) -> bool:
        """Ask `authorize` again: an event stream outlives the session of its visitor."""
        try:
            return await self._check() is not None
        except HTTPException:  # of an answer that has begun there is no other status
            return False


def visitor_of(request: Request) -> Visitor:
    """Return who made a request that `Access` let through."""
    visitor: Visitor = request.scope[_VISITOR]
    return visitor


class Access:
    """An ASGI application around another one, which lets through what is allowed and sets the headers of every answer.

    Args:
        app: What is protected.
        authorize: See `AuthorizeVisitor`.
        allow: The rights.
        authorize_seconds: How long `authorize` may take. Defaults to 10.

    Raises:
        ConfigurationError: `authorize` is no function, or a right is not known.
    """

    def __init__(
        self,
        app: ASGIApp,
        authorize: AuthorizeVisitor,
        allow: Collection[Right],
        *,
        authorize_seconds: float = _AUTHORIZE_SECONDS,
    ) -> None:
        if not callable(authorize):
            raise ConfigurationError(
                "authorize must be a function of the request that returns a name or a bool, such as local_only while "
                f"you develop, not {authorize!r:.100}"
            )
        self._app = app
        self._authorize = authorize
        self._authorize_seconds = authorize_seconds
        self.allow: frozenset[Right] = check_rights(allow)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; a WebSocket is refused."""
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008, "reason": "this is a page"})
        request, send = Request(scope, receive), _with_headers(send)

        async def check() -> str | None:
            return await self._name_of(request)

        refusal = _refusal(request)
        name = None if refusal else await check()
        if name is None:
            return await JSONResponse({"detail": refusal or "not allowed"}, 403)(scope, receive, send)
        await self._app({**scope, _VISITOR: Visitor(name, check)}, receive, send)

    async def _name_of(self, request: Request) -> str | None:
        """Return the name of a visitor that is let in; `None` refuses."""
        answer: Any = self._authorize(request)
        if inspect.isawaitable(answer):
            deadline = asyncio.timeout(self._authorize_seconds)
            try:
                async with deadline:
                    answer = await answer
            except TimeoutError:
                if not deadline.expired():  # its own
                    raise
                words = "%(hook)s of admin_routes did not answer within %(seconds)g s"
                write(logger, HOOK_FAILED, words, hook="authorize", seconds=self._authorize_seconds)
                raise HTTPException(503, "authorize did not answer in time") from None
        if answer is True:
            return ""
        if isinstance(answer, str) and answer:
            return answer
        if answer is not False and answer is not None and answer != "":
            write(
                logger,
                HOOK_FAILED,
                "%(hook)s of admin_routes returned %(reason)s, which lets no request in: return a name (str), True or "
                "False",
                hook="authorize",
                reason=type(answer).__name__,
            )
        return None


def check_rights(allow: Collection[Right]) -> frozenset[Right]:
    """Return the rights that are allowed.

    Raises:
        ConfigurationError: One is not known.
    """
    known: tuple[Right, ...] = get_args(Right)
    given: object = allow
    if not isinstance(given, Collection) or isinstance(given, str) or not set(allow) <= set(known):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"allow is a set of {', '.join(map(repr, known))}, not {allow!r:.100}")
    return frozenset(allow)


def _refusal(request: Request) -> str | None:
    """Return why a request is refused whatever its visitor may, or `None`."""
    headers = request.headers
    site = headers.get("sec-fetch-site")
    # A browser that states it knows better than a comparison: the proxy in front may have replaced `Host`.
    if site != "same-origin" and _OWN_SITE.refusal(headers.get("origin"), headers.get("host")) is not None:
        return "another site may not ask for this; if it is this one, a proxy has replaced the header Host: pass it on"
    if site not in ("same-origin", "none", None) and not _is_followed_link(request):
        return "another site may not ask for this"
    if request.method in ("GET", "HEAD"):
        return None
    name, value = CHANGE_HEADER
    if headers.get(name) != value:
        return f"a change needs the header {name}: {value}"
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return "a change needs a body with Content-Type: application/json"
    return None


def _is_followed_link(request: Request) -> bool:
    """Return whether a visitor followed a link to the page: the answer is shown to this visitor alone."""
    headers = request.headers
    return (
        request.method == "GET"
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


def _with_headers(send: Send) -> Send:
    async def send_with_headers(event: Event) -> None:
        if event["type"] == "http.response.start":
            headers = MutableHeaders(scope=event)
            for name, value in HEADERS.items():
                headers[name] = value
        await send(event)

    return send_with_headers
