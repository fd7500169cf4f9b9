"""`backplane.admin.access`: who is let in, from where, and what a browser is asked to enforce."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount

from backplane import Backplane, ConfigurationError
from backplane.admin import admin_routes, local_only
from backplane.admin.access import Access, visitor_of
from tests.unit.admin.kit import CHANGE, browsing, staff
from tests.unit.asgi_client import data_of

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

pytestmark = pytest.mark.anyio

PATHS = [
    "",
    "page.js",
    "page.css",
    "uplot.js",
    "api/session",
    "api/overview",
    "api/stream",
    "api/tail?channel=a",
    "none",
]


def request(host: str | None = "localhost:8000", peer: str | None = "127.0.0.1", **headers: str) -> Request:
    """Return a request from an address to a host."""
    named = {**({} if host is None else {"host": host}), **headers}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]
    client = None if peer is None else (peer, 1234)
    return Request({"type": "http", "method": "GET", "path": "/", "headers": raw, "client": client})


def test_authorize_is_required() -> None:
    """Without `authorize` nothing can be made, and `None` is none; a right that is not known is refused."""
    make: Any = admin_routes
    backplane = Backplane("memory://")
    with pytest.raises(TypeError, match="authorize"):
        make(backplane)
    with pytest.raises(ConfigurationError, match="such as local_only"):
        make(backplane, authorize=None)
    for allow in ("tail", {"delete"}, [1], None):
        with pytest.raises(ConfigurationError, match="allow is a set of 'publish', 'disconnect', 'tail'"):
            make(backplane, authorize=staff, allow=allow)


@pytest.mark.parametrize("verdict", [False, None, "", 0, 1, ["Ada"]], ids=repr)
@pytest.mark.parametrize("path", PATHS)
async def test_visitor_who_is_refused_sees_nothing(path: str, verdict: object) -> None:
    """Every path is 403 with the same body, files and unknown ones too, whether `authorize` is a coroutine or not."""

    def verdict_of(_: Request) -> object:
        return verdict

    async def coroutine_of(_: Request) -> object:
        return verdict

    async with Backplane("memory://") as backplane:
        for authorize in (verdict_of, coroutine_of):
            async with browsing(backplane, authorize, allow={"publish", "disconnect", "tail"}) as client:
                response = await client.get(path)
                assert (response.status_code, response.json()) == (403, {"detail": "not allowed"})
                assert "script-src 'self'" in response.headers["content-security-policy"]


async def test_wrong_answer_of_authorize_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """An `authorize` that returns a user object refuses all: the log names the type, and not the user."""

    def user(_: Request) -> object:
        return ["secret"]

    async with Backplane("memory://") as backplane, browsing(backplane, user) as client:
        await client.get("")
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert lines == [
        "authorize of admin_routes returned list, which lets no request in: return a name (str), True or False"
    ]


async def test_authorize_may_answer_itself() -> None:
    """An `HTTPException` of `authorize` is the answer, such as a redirect to the login."""

    def login(_: Request) -> bool:
        raise HTTPException(303, headers={"Location": "/login"})

    async with browsing(Backplane("memory://"), login) as client:
        response = await client.get("api/overview")
        assert (response.status_code, response.headers["location"]) == (303, "/login")


async def test_authorize_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    """It is cancelled after its time, which is logged, and the request is 503; a `TimeoutError` of its own is one."""
    cancelled = asyncio.Event()

    async def hang(_: Request) -> bool:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return True

    access = Access(JSONResponse({}), hang, (), authorize_seconds=0.01)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(Starlette(routes=[Mount("/", access)]))) as client:
        assert (await client.get("http://test/")).status_code == 503
    assert cancelled.is_set()
    assert caplog.messages == ["authorize of admin_routes did not answer within 0.01 s"]

    async def raises(_: Request) -> bool:
        raise TimeoutError("of its database")

    async with browsing(Backplane("memory://"), raises) as client:
        with pytest.raises(TimeoutError, match="of its database"):
            await client.get("")


async def test_visitor_may_stay() -> None:
    """An event stream asks again: what refuses its next request ends it, by `False` as by an exception of HTTP."""
    answers: list[bool | HTTPException] = [True, True, False, HTTPException(303)]

    def authorize(_: Request) -> bool:
        answer = answers.pop(0)
        if isinstance(answer, HTTPException):
            raise answer
        return answer

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        visitor = visitor_of(Request(scope))
        stays = [await visitor.may_stay() for _ in range(3)]
        await JSONResponse(stays)(scope, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(Access(app, authorize, ()))) as client:
        assert (await client.get("http://test/")).json() == [True, False, False]


async def test_proxy_that_replaces_the_host() -> None:
    """A browser that states that the page itself asks is believed, whatever `Host` the proxy in front makes of it."""
    headers = {**CHANGE, "Origin": "https://shop.example", "Host": "10.0.0.7:8000"}
    body = {"channel": "a", "text": "b"}
    async with Backplane("memory://") as backplane, browsing(backplane, allow={"publish"}) as client:
        assert (await client.post("api/publish", json=body, headers=headers)).status_code == 200
        del headers["Sec-Fetch-Site"]
        refused = await client.post("api/publish", json=body, headers=headers)
        assert (refused.status_code, "pass it on" in refused.json()["detail"]) == (403, True)


@pytest.mark.parametrize("path", ["", "api/overview", "none"])
async def test_headers(path: str) -> None:
    """Every answer has the policy, is kept by no cache, and permits no other site anything."""
    async with Backplane("memory://") as backplane, browsing(backplane) as client:
        headers = (await client.get(path, headers={"Origin": "http://test"})).headers
        assert headers["content-security-policy"] == (
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
        assert (headers["referrer-policy"], headers["x-frame-options"]) == ("no-referrer", "DENY")
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert not [name for name in headers if name.startswith("access-control")]


CROSS_SITE = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://test:81"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
]


@pytest.mark.parametrize("headers", CROSS_SITE, ids=str)
@pytest.mark.parametrize("path", ["", "page.js", "api/overview", "api/tail?channel=a"])
async def test_page_of_another_site_reads_nothing(path: str, headers: dict[str, str]) -> None:
    """A request that a page of another origin makes is 403, though the visitor it comes from is let in."""
    async with Backplane("memory://") as backplane, browsing(backplane, allow={"tail"}) as client:
        response = await client.get(path, headers=headers)
        assert response.status_code == 403
        assert response.json()["detail"].startswith("another site may not ask for this")


async def test_link_of_another_site_leads_to_the_page() -> None:
    """A visitor who follows a link, or types the address, gets the page; a form that is posted does not."""
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    async with Backplane("memory://") as backplane, browsing(backplane, allow={"publish"}) as client:
        assert (await client.get("", headers=link)).status_code == 200
        assert (await client.get("", headers={"Sec-Fetch-Site": "none"})).status_code == 200
        form = await client.post("api/publish", headers={**CHANGE, **link}, json={"channel": "a", "text": "b"})
        assert form.status_code == 403


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        ({"X-Backplane": ""}, "a change needs the header X-Backplane: admin"),
        ({"X-Backplane": "other"}, "a change needs the header X-Backplane: admin"),
        ({"Content-Type": "text/plain"}, "a change needs a body with Content-Type: application/json"),
        *((headers, "another site may not ask for this") for headers in CROSS_SITE),
    ],
    ids=str,
)
async def test_change_that_is_refused(headers: dict[str, str], detail: str) -> None:
    """A change without the header, of another content type or from another site is 403, and publishes nothing."""
    async with (
        Backplane("memory://") as backplane,
        browsing(backplane, allow={"publish"}) as client,
        backplane.subscribe("a") as messages,
    ):
        sent = {**CHANGE, **headers}
        if "Origin" in headers:  # of a browser that states nothing else
            del sent["Sec-Fetch-Site"]
        response = await client.post("api/publish", headers=sent, json={"channel": "a", "text": "refused"})
        assert (response.status_code, response.json()["detail"].partition(";")[0]) == (403, detail)

        allowed = await client.post("api/publish", headers=CHANGE, json={"channel": "a", "text": "allowed"})
        assert allowed.status_code == 200
        assert await data_of(messages, 1) == ["allowed"]


async def test_change_of_a_program_needs_no_origin() -> None:
    """A program is no browser: it sends no `Origin`, and needs the header all the same."""
    async with Backplane("memory://") as backplane, browsing(backplane, allow={"publish"}) as client:
        body = {"channel": "a", "text": "b"}
        assert (await client.post("api/publish", json=body)).status_code == 403
        assert (await client.post("api/publish", headers={"X-Backplane": "admin"}, json=body)).status_code == 200


async def test_websocket_is_refused() -> None:
    """A WebSocket at a path of the page is closed before it is accepted, and `authorize` is not asked."""
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    app = admin_routes(Backplane("memory://"), authorize=lambda _: pytest.fail("asked"))
    await app({"type": "websocket", "path": "/api/stream", "headers": []}, receive, send)
    assert [event["type"] for event in sent] == ["websocket.close"]


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "127.1.2.3"])
@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_local_only_allows(host: str, peer: str) -> None:
    """A request of this machine to a name of the loopback interface is allowed."""
    assert local_only(request(host, peer)) is True


@pytest.mark.parametrize(
    "refused",
    [
        request("evil.example:8000"),  # DNS rebinding
        request("localhost.evil.example"),
        request("evil@localhost"),
        request(None),
        request(peer="192.0.2.1"),
        request(peer="1270.0.0.1"),
        request(peer=None),
        *(request(**{name: "127.0.0.1"}) for name in ("forwarded", "x_forwarded_for", "x_real_ip", "via")),
    ],
    ids=lambda refused: str(refused.headers.items()),
)
def test_local_only_refuses(refused: Request) -> None:
    """A foreign name, another machine, a Unix socket, and whatever a proxy has passed on are refused."""
    assert local_only(refused) is False
