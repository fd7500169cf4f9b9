"""Commands of the Centrifugal client protocol: their order, why they are refused, and what one client may cost."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from starlette.websockets import WebSocket  # noqa: TC002  # FastAPI reads it

import backplane.centrifugal.client as client_module
from backplane import Backplane, Connection, History, InvalidTokenError, Limits, Presence, TokenExpiredError
from backplane.centrifugal import Accepted, Centrifugal, ConnectClaims, ConnectRequest, SubscribeClaims
from backplane.server.uvicorn import DirectLaneProtocol
from tests.integration.test_centrifugal import Site, ask, closed, connected, replies
from tests.server_in_loop import serving_in_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from websockets.asyncio.client import ClientConnection

pytestmark = pytest.mark.anyio

LOGGER = "backplane.centrifugal.client"
FAR = 9_999_999_999.0


class Tokens:
    """A token is a user, or why it is refused."""

    def connect(self, token: str, /) -> ConnectClaims:
        """Read the token of a connect."""
        if token == "over":  # of a test
            raise TokenExpiredError("the session is over")
        if token == "none":  # of a test
            raise InvalidTokenError("there is no such session")
        info = "x" * 300 if token == "big" else None  # of a test
        return ConnectClaims(user=token, info=info, expires_at=FAR)

    def subscribe(self, token: str, /, *, user: str, channel: str, client: str) -> SubscribeClaims:
        """Read the token of a subscribe, or fail with data that is no JSON."""
        if token == "over":  # of a test
            raise TokenExpiredError("the subscription is over")
        if token == "none":  # of a test
            raise InvalidTokenError("it is for another channel")
        return SubscribeClaims(expires_at=FAR, data=object() if token == "no JSON" else None)


class Application:
    """What a served application counts."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.go_on = asyncio.Event()


@asynccontextmanager
async def served(
    *, tokens: Tokens | None = None, limits: Limits | None = None
) -> AsyncGenerator[tuple[Site, Application]]:
    """Serve an application that takes a moment to permit anything."""
    history, presence = {"rec:*": History(max_messages=400)}, {"room:*": Presence()}
    backplane = Backplane("memory://", history=history, presence=presence, limits=limits or Limits())
    application = Application()

    @backplane.authorize
    async def authorize(client: Any, channel: str) -> bool:
        await asyncio.sleep(0)
        return channel != "secret"

    centrifugal = Centrifugal(backplane, tokens=tokens)

    @centrifugal.permit
    def permit(connection: Connection, action: str, channel: str) -> bool:
        if channel == "fault":
            raise KeyError(channel)
        return channel != "secret"

    @centrifugal.on_connect
    def on_connect(connection: Connection, request: ConnectRequest) -> Accepted | None:
        return Accepted(expires_at=float(request.data)) if request.data else None

    @centrifugal.rpc("wait")
    async def wait(connection: Connection) -> None:
        application.begun += 1
        try:
            await application.go_on.wait()
        except asyncio.CancelledError:
            application.cancelled += 1
            raise

    app = FastAPI(lifespan=backplane.lifespan)

    @app.websocket("/ws")
    async def endpoint(websocket: WebSocket) -> None:
        await centrifugal.serve(websocket)

    async with serving_in_loop(app, ws=DirectLaneProtocol) as server:
        yield Site(server, backplane, centrifugal), application


async def ask_at_once(client: ClientConnection, *commands: dict[str, Any]) -> list[Any]:
    """Send commands in one frame, and return as many replies, by their ids."""
    numbered = [{"id": number, **command} for number, command in enumerate(commands, 2)]
    await client.send("\n".join(map(json.dumps, numbered)))
    return sorted(await replies(client, len(commands)), key=lambda reply: reply["id"])


async def something_waits(site: Site) -> None:
    """Return when a client has not read all that it was sent."""
    runtime = site.backplane._runtime  # pyright: ignore[reportPrivateUsage]
    assert runtime is not None
    async with asyncio.timeout(20):
        while not runtime.waiting.subscribers:
            await asyncio.sleep(0)


async def test_subscribes_and_unsubscribes_keep_their_order() -> None:
    """A page that unsubscribes and subscribes again while its first subscribe is under way ends as subscribed."""
    async with served() as (site, _), site.client() as client:
        await connected(client)
        on, off = {"subscribe": {"channel": "a"}}, {"unsubscribe": {"channel": "a"}}
        answers = await ask_at_once(client, on, off, on, on, off, off, on)
        assert [answer.get("error", {}).get("code") for answer in answers] == [None, None, None, 105, None, None, None]
        await site.backplane.publish("a", 1)
        assert await replies(client) == [{"push": {"channel": "a", "pub": {"data": 1}}}]


async def test_a_subscription_does_not_outlast_its_token() -> None:
    """With one that has expired the SDK subscribes again, where an error would keep it away; without one it fails."""
    async with served(tokens=Tokens()) as (site, _), site.client() as client:
        await connected(client)
        subscribed = await ask(client, 2, "subscribe", channel="a", token="good")
        assert subscribed["subscribe"]["expires"]
        bad = {"error": {"code": 107, "message": "bad request"}}
        assert await ask(client, 3, "sub_refresh", channel="a") == bad
        assert (await ask(client, 4, "sub_refresh", channel="a", token="good"))["sub_refresh"]["expires"]
        await client.send('{"id":5,"sub_refresh":{"channel":"a","token":"over"}}')
        assert await replies(client, 2) == [
            {"push": {"channel": "a", "unsubscribe": {"code": 2501, "reason": "subscription expired"}}},
            {"id": 5, "sub_refresh": {}},
        ]
        over = {"error": {"code": 109, "message": "token expired"}}
        assert await ask(client, 6, "subscribe", channel="a", token="over") == over
        assert "subscribe" in await ask(client, 7, "subscribe", channel="a", token="good")


async def test_a_subscribe_that_fails_is_none() -> None:
    """Data of the application that is no JSON fails the subscribe before it joins: nothing is sent of the channel."""
    async with served(tokens=Tokens()) as (site, _), site.client() as client:
        await connected(client)
        assert "error" in await ask(client, 2, "subscribe", channel="a", token="no JSON")
        await site.backplane.publish("a", 1)
        assert "subscribe" in await ask(client, 3, "subscribe", channel="a")


@pytest.mark.parametrize(
    ("token", "frame", "reason"),
    [
        ("none", "", "refused the connect of connection {}: there is no such session"),
        ("over", "", "refused the connect of connection {}: the session is over"),
        ("big", "", "refused the connect of connection {}: the info of a presence takes 302 bytes"),
        ("ann", '{"id":2,"connect":{}}', "closing connection {}, a bad request: a second connect"),
        ("ann", "{}", "closing connection {}, a bad request: a pong that was not asked for"),
        ("ann", "hello", "closing connection {}, a bad request: a command that is not JSON"),
        (
            "ann",
            '{"id":2,"refresh":{"token":"bob"}}',
            "refused a refresh of connection {}: the token is for another user",
        ),
        (
            "ann",
            '{"id":2,"subscribe":{"channel":"a","token":"none"}}',
            "refused a subscribe of connection {}: it is for another channel",
        ),
        ("ann", '{"id":2,"publish":{"channel":"secret"}}', "refused a publish of connection {}: permission denied"),
        ("ann", '{"id":2,"rpc":{"method":"no"}}', "refused a rpc of connection {}: method not found"),
        ("ann", '{"id":2,"publish":{"channel":"a","type":1}}', "refused a publish of connection {}: bad request"),
        ("ann", '{"id":2,"history":{"channel":"fault"}}', "history of connection {} failed"),
        (
            "ann",
            '{"id":2,"publish":{"channel":"a","data":"%s"}}' % ("x" * 70_000),  # braces
            "refused a publish of connection {}: it is longer than 65,536 bytes",
        ),
    ],
)
async def test_refusals_are_logged(token: str, frame: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is refused is logged with its reason."""
    caplog.set_level(logging.INFO, LOGGER)
    async with served(tokens=Tokens()) as (site, _), site.client() as client:
        await client.send(json.dumps({"id": 1, "connect": {"token": token}}))
        if frame:
            await client.recv()
            await client.send(frame)
        await (await client.ping())
        lines = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    (line,) = lines
    before, after = reason.split("{}")
    assert line.startswith(before)
    assert line[len(before) + 16 :].startswith(after)


async def test_a_connection_that_no_token_can_renew() -> None:
    """Where the application lets a connection expire the SDK is not asked for a token, and comes back in the end."""
    async with served() as (site, _), site.client() as client:
        await client.send(json.dumps({"id": 1, "connect": {"data": time.time() + 0.3}}))
        (reply,) = await replies(client)
        assert "expires" not in reply["connect"]
        await closed(client)
        assert (client.close_code, client.close_reason) == (3005, "connection expired")


async def test_more_channels_than_a_client_may_join() -> None:
    """A subscribe that is one too many is answered so, and with nothing else, also where both are under way."""
    async with served(limits=Limits(max_channels=1)) as (site, _), site.client() as client:
        await connected(client)
        answers = await ask_at_once(client, {"subscribe": {"channel": "a"}}, {"subscribe": {"channel": "b"}})
        assert "subscribe" in answers[0]
        assert answers[1]["error"] == {"code": 106, "message": "limit exceeded"}
        assert "error" in await ask(client, 4, "rpc", method="no")


async def test_presence_of_more_channels_than_a_client_may_join() -> None:
    """A client cannot let its worker watch one channel after the other."""
    async with served(limits=Limits(max_channels=3)) as (site, _), site.client() as client:
        await connected(client)
        names = ["room:1", "room:2", "room:1", "room:3", "room:4", "room:2"]
        answers = await ask_at_once(client, *({"presence_stats": {"channel": name}} for name in names))
        assert [answer.get("error", {}).get("code") for answer in answers] == [None, None, None, None, 106, None]


async def test_commands_that_run_at_a_time() -> None:
    """So many as are allowed run, and the others after them; a subscribe waits for none."""
    async with served(limits=Limits(max_running_commands=2)) as (site, application), site.client() as client:
        await connected(client)
        for number in range(5):
            await client.send(json.dumps({"id": 10 + number, "rpc": {"method": "wait"}}))
        assert "subscribe" in await ask(client, 2, "subscribe", channel="a")
        assert application.begun == 2
        application.go_on.set()
        assert {reply["id"] for reply in await replies(client, 5)} == {10, 11, 12, 13, 14}


async def test_an_rpc_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is cancelled, and the client is answered before its SDK gives up."""
    monkeypatch.setattr(client_module, "_COMMAND_SECONDS", 0.05)
    async with served() as (site, application), site.client() as client:
        await connected(client)
        answer = await ask(client, 2, "rpc", method="wait")
        assert (answer["error"]["code"], answer["error"]["temporary"]) == (100, True)
        assert (application.begun, application.cancelled) == (1, 1)


async def test_much_that_is_asked_for_at_once() -> None:
    """A client that reads is not too slow for large replies, however many it asks for: one waits for another."""
    async with served() as (site, _), site.client() as client:
        for channel in range(8):
            for number in range(300):
                await site.backplane.publish(f"rec:{channel}", [number, "x" * 3_000])
        await connected(client)
        recover = [{"subscribe": {"channel": f"rec:{channel}", "recover": True}} for channel in range(8)]
        history = [{"history": {"channel": f"rec:{channel}", "limit": -1}} for channel in range(8)]
        client.transport.pause_reading()
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(ask_at_once(client, *recover, *history))
            await something_waits(site)
            client.transport.resume_reading()
        answers = task.result()
        assert all(answer["subscribe"]["recovered"] for answer in answers[:8])
        results = [answer["subscribe"] for answer in answers[:8]] + [answer["history"] for answer in answers[8:]]
        assert [len(result["publications"]) for result in results] == [300] * 16


async def test_a_client_that_reads_no_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """One large reply waits for it, and the others are not made before it has read that."""
    monkeypatch.setattr(client_module, "_COMMAND_SECONDS", 60.0)  # on a loaded machine no command is over before
    async with served() as (site, _), site.client() as client:
        for number in range(400):
            await site.backplane.publish("rec:a", [number, "x" * 10_000])
        await connected(client)
        runtime = site.backplane._runtime  # pyright: ignore[reportPrivateUsage]
        assert runtime is not None
        client.transport.pause_reading()
        history = {"history": {"channel": "rec:a", "limit": -1}}
        await client.send("\n".join(json.dumps({"id": number, **history}) for number in range(2, 200)))
        await something_waits(site)
        most = 0
        for _ in range(200):
            await asyncio.sleep(0)
            most = max(most, runtime.waiting.messages)
        client.transport.abort()
        assert most == 1
