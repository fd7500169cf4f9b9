"""The Centrifugal client protocol on a real Uvicorn server: frames written by hand, as of recorded transcripts."""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from starlette.websockets import WebSocket  # noqa: TC002  # FastAPI reads it
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from backplane import Backplane, Connection, History, Presence, TokenExpiredError
from backplane.centrifugal.client_channels import ClientChannels
from backplane.centrifugal.codes import CommandError
from backplane.centrifugal.endpoint import Accepted, Centrifugal, ConnectRequest
from backplane.centrifugal.tokens import ConnectClaims, SubscribeClaims
from backplane.errors import InvalidTokenError
from backplane.fanout.batch import Batch
from backplane.message import Message
from backplane.server.uvicorn import DirectLaneProtocol
from tests.server_in_loop import serving_in_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from websockets.asyncio.client import ClientConnection

    from backplane.centrifugal.subscriptions import SdkSubscription
    from backplane.message import Position
    from tests.server_in_loop import ServerInLoop

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0
WAYS = {"handed over": DirectLaneProtocol, "without a lane": WebSocketsSansIOProtocol}


class SimpleTokens:
    """Tokens of the transcripts: a user, and perhaps when it expires: `ann|1795777458`."""

    def connect(self, token: str, /) -> ConnectClaims:
        """Read the token of a connect."""
        user, _, moment = token.partition("|")
        if user == "bad":
            raise InvalidTokenError("this user is refused")
        expires_at = self._expires_at(moment)
        channels = ("rec:feed",) if user == "side" else ()
        return ConnectClaims(user=user, expires_at=expires_at, channels=channels, data={"hello": user})

    def subscribe(self, token: str, /, *, user: str, channel: str, client: str) -> SubscribeClaims:
        """Read the token of a subscribe."""
        return SubscribeClaims(expires_at=self._expires_at(token.partition("|")[2]))

    def _expires_at(self, moment: str) -> float | None:
        if not moment:
            return None
        if float(moment) < time.time():
            raise TokenExpiredError("this token has expired")
        return float(moment)


class Site:
    """A served application."""

    def __init__(self, server: ServerInLoop, backplane: Backplane, centrifugal: Centrifugal) -> None:
        self.server = server
        self.backplane = backplane
        self.centrifugal = centrifugal

    def client(self, query: str = "", subprotocol: str | None = None) -> connect:
        """Return a client that connects."""
        subprotocols: Any = None if subprotocol is None else [subprotocol]
        return connect(f"{self.server.ws_url}/ws{query}", subprotocols=subprotocols)


@pytest.fixture(params=list(WAYS))
async def site(request: pytest.FixtureRequest) -> AsyncGenerator[Site]:
    """An application with one endpoint, with the lane and without."""
    async with serving(request.param) as found:
        yield found


@asynccontextmanager
async def serving(way: str, **options: Any) -> AsyncGenerator[Site]:
    """Serve an application with one endpoint."""
    backplane = Backplane("memory://", history={"rec:*": History(max_messages=400)}, presence={"room:*": Presence()})

    @backplane.authorize
    def authorize(client: Any, channel: str) -> bool:
        return not channel.startswith("secret")

    centrifugal = Centrifugal(backplane, tokens=SimpleTokens(), version="test", **options)

    @centrifugal.permit
    def permit(connection: Connection, action: str, channel: str) -> bool:
        return not channel.startswith("silent")

    @centrifugal.on_connect
    def on_connect(connection: Connection, request: ConnectRequest) -> Accepted | None:
        if request.token == "refused":  # of a test
            raise CommandError(400, "refused")
        return None

    @centrifugal.rpc("double")
    async def double(connection: Connection, number: int) -> int:
        return 2 * number

    app = FastAPI(lifespan=backplane.lifespan)

    @app.websocket("/ws")
    async def endpoint(websocket: WebSocket) -> None:
        await centrifugal.serve(websocket)

    async with serving_in_loop(app, ws=WAYS[way]) as server:
        yield Site(server, backplane, centrifugal)


CONNECT = '{"id":1,"connect":{"token":"ann"}}'


async def replies(client: ClientConnection, count: int = 1) -> list[Any]:
    """Return so many replies, in their order."""
    found: list[Any] = []
    async with asyncio.timeout(WAIT_SECONDS):
        while len(found) < count:
            found += [json.loads(line) for line in str(await client.recv()).split("\n")]
    assert len(found) == count
    return found


async def connected(client: ClientConnection, token: str = "ann") -> Any:  # of a test
    """Connect, and return the result."""
    await client.send(json.dumps({"id": 1, "connect": {"token": token}}))
    (reply,) = await replies(client)
    assert reply["id"] == 1
    return reply["connect"]


async def ask(client: ClientConnection, command_id: int, name: str, **body: Any) -> Any:
    """Send a command, and return its reply."""
    await client.send(json.dumps({"id": command_id, name: body}))
    (reply,) = await replies(client)
    assert reply.pop("id") == command_id
    return reply


async def closed(client: ClientConnection) -> None:
    """Receive until the client is closed."""
    with suppress(ConnectionClosed):
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                await client.recv()


async def test_connect(site: Site) -> None:
    """The reply states the client, the version, what the token states, and how it is pinged."""
    async with site.client() as client:
        result = await connected(client)
        assert len(result.pop("client")) == 16
        assert result == {"version": "test", "data": {"hello": "ann"}, "ping": 25, "pong": True}


@pytest.mark.parametrize(
    ("frames", "code", "reason"),
    [
        pytest.param(['{"id":1,"subscribe":{"channel":"a"}}'], 3501, "bad request", id="not connected yet"),
        pytest.param(["hello"], 3501, "bad request", id="no JSON"),
        pytest.param([""], 3501, "bad request", id="an empty frame"),
        pytest.param([CONNECT, '{"id":2}'], 3501, "bad request", id="no request"),
        pytest.param([CONNECT, '{"id":2,"nosuch":{}}'], 3501, "bad request", id="unknown request"),
        pytest.param([CONNECT, '{"id":2,"ping":{}}'], 3501, "bad request", id="the ping of the schema"),
        pytest.param([CONNECT, "{}"], 3501, "bad request", id="a pong that was not asked for"),
        pytest.param([CONNECT, '{"subscribe":{"channel":"a"}}'], 3501, "bad request", id="no id"),
        pytest.param([CONNECT, '{"id":2,"connect":{}}'], 3501, "bad request", id="connect twice"),
        pytest.param([CONNECT, '{"id":2,"subscribe":{}}'], 3501, "bad request", id="no channel"),
        pytest.param([CONNECT.replace("ann", "bad")], 3500, "invalid token", id="a refused token"),
        pytest.param(
            [CONNECT.replace("ann", "ann|9999999999"), '{"id":2,"refresh":{"token":"ann|5"}}'],
            3005,
            "connection expired",
            id="a refresh that is too old",
        ),
        pytest.param([b"\x03\x08\x01\x22"], 3501, "bad request", id="Protobuf on a JSON connection"),
        pytest.param(["[" * 100_000], 3501, "bad request", id="nested deep"),
    ],
)
async def test_violations(site: Site, frames: list[str | bytes], code: int, reason: str) -> None:
    """What the protocol does not allow closes the client, with a code that keeps it away."""
    async with site.client() as client:
        for frame in frames:
            await client.send(frame)
        await closed(client)
        assert (client.close_code, client.close_reason) == (code, reason)


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        pytest.param({"unsubscribe": {"channel": "nosuch"}}, {"unsubscribe": {}}, id="not subscribed"),
        pytest.param({"publish": {"channel": "a"}}, {"publish": {}}, id="publish nothing"),
        pytest.param({"publish": {"channel": "a", "data": {}}}, {"publish": {}}, id="publish"),
        pytest.param(
            {"publish": {"channel": "silent", "data": 1}},
            {"error": {"code": 103, "message": "permission denied"}},
            id="publish without permission",
        ),
        pytest.param(
            {"history": {"channel": "a"}}, {"error": {"code": 108, "message": "not available"}}, id="no history"
        ),
        pytest.param(
            {"presence": {"channel": "a"}}, {"error": {"code": 108, "message": "not available"}}, id="no presence"
        ),
        pytest.param({"presence": {"channel": "room:1"}}, {"presence": {"presence": {}}}, id="an empty room"),
        pytest.param(
            {"presence_stats": {"channel": "room:1"}},
            {"presence_stats": {"num_clients": 0, "num_users": 0}},
            id="numbers of an empty room",
        ),
        pytest.param({"rpc": {"method": "double", "data": 21}}, {"rpc": {"data": 42}}, id="rpc"),
        pytest.param(
            {"rpc": {"method": "nosuch"}}, {"error": {"code": 104, "message": "method not found"}}, id="unknown rpc"
        ),
        pytest.param(
            {"sub_refresh": {"channel": "a", "token": "x"}},
            {"error": {"code": 103, "message": "permission denied"}},
            id="sub_refresh of what is not subscribed",
        ),
        pytest.param(
            {"sub_refresh": {"token": "x"}}, {"error": {"code": 107, "message": "bad request"}}, id="of no channel"
        ),
        pytest.param(
            {"subscribe": {"channel": "secret"}},
            {"error": {"code": 103, "message": "permission denied"}},
            id="a subscribe that is refused",
        ),
        pytest.param(
            {"subscribe": {"channel": "token:1", "token": "ann|5"}},
            {"error": {"code": 109, "message": "token expired"}},
            id="a subscribe with an old token",
        ),
        pytest.param(
            {"subscribe": {"channel": "a", "type": 1}},
            {"error": {"code": 107, "message": "bad request"}},
            id="a map subscription",
        ),
        pytest.param(
            {"publish": {"channel": "a", "data": "x" * 70_000}},
            {"error": {"code": 107, "message": "bad request"}},
            id="more than 64 KiB",
        ),
        pytest.param({"refresh": {"token": "ann"}}, {"refresh": {}}, id="refresh where nothing expires"),
    ],
)
async def test_replies(site: Site, command: dict[str, Any], reply: dict[str, Any]) -> None:
    """What is allowed, and what is answered with an error, leaves the client connected."""
    async with site.client() as client:
        await connected(client)
        ((name, body),) = command.items()
        answer = await ask(client, 2, name, **body)
        answer.get(name, {}).pop("client", None)
        answer.get(name, {}).pop("version", None)
        assert answer == reply
        assert "error" not in await ask(client, 3, "rpc", method="double", data=1)


async def test_an_answer_to_connect_that_is_an_error(site: Site) -> None:
    """What follows in the frame, and later, is ignored."""
    async with site.client() as client:
        await client.send('{"id":1,"connect":{"token":"refused"}}\n{"id":2,"subscribe":{"channel":"a"}}')
        assert await replies(client) == [{"id": 1, "error": {"code": 400, "message": "refused"}}]
        await client.send('{"id":3,"subscribe":{"channel":"a"}}')
        pong = await client.ping()
        await pong
        assert not site.backplane.statistics().published


async def test_a_subscribe_token_permits(site: Site) -> None:
    """Where a token permits a channel the application is not asked; without one it is."""
    async with site.client() as client:
        await connected(client)
        assert "subscribe" in await ask(client, 2, "subscribe", channel="secret", token="ann|9999999999")
        await ask(client, 3, "unsubscribe", channel="secret")
        refused = await ask(client, 4, "subscribe", channel="secret")
        assert refused == {"error": {"code": 103, "message": "permission denied"}}


async def test_publications(site: Site) -> None:
    """A subscribe reply comes before every publication, and each is one push."""
    async with site.client() as client:
        await connected(client)
        subscribed = (await ask(client, 2, "subscribe", channel="a"))["subscribe"]
        epoch = subscribed.pop("epoch")
        assert subscribed == {"recoverable": True, "positioned": True}
        await site.backplane.publish("a", {"n": 1})
        await site.backplane.publish("a", "text")
        await site.backplane.publish("a", b"\x00\xff")
        pushes = await replies(client, 3)
        assert pushes == [
            {"push": {"channel": "a", "pub": {"data": {"n": 1}}}},
            {"push": {"channel": "a", "pub": {"data": "text"}}},
            {"push": {"channel": "a", "pub": {"data": "AP8=", "tags": {"encoding": "base64"}}}},
        ]
        twice = await ask(client, 3, "subscribe", channel="a")
        assert twice == {"error": {"code": 105, "message": "already subscribed"}}
        assert await ask(client, 4, "unsubscribe", channel="a") == {"unsubscribe": {}}
        again = await ask(client, 5, "subscribe", channel="a", recover=True, epoch=epoch)
        assert again["subscribe"]["was_recovering"]
        assert "recovered" not in again["subscribe"]
        assert again["subscribe"]["epoch"] != epoch


async def test_recovery(site: Site) -> None:
    """A client that comes back gets exactly what it missed, in the reply, or the present position."""
    async with site.client() as client:
        await connected(client)
        subscribed = (await ask(client, 2, "subscribe", channel="rec:a"))["subscribe"]
        epoch = subscribed["epoch"]
        await site.backplane.publish("rec:a", {"n": 1})
        (push,) = await replies(client)
        offset = push["push"]["pub"]["offset"]
    for number in (2, 3):
        await site.backplane.publish("rec:a", {"n": number})
    async with site.client() as client:
        await connected(client)
        found = await ask(client, 2, "subscribe", channel="rec:a", recover=True, epoch=epoch, offset=offset)
        result = found["subscribe"]
        assert [publication["data"] for publication in result["publications"]] == [{"n": 2}, {"n": 3}]
        assert (result["recovered"], result["was_recovering"], result["offset"]) == (True, True, offset)
        newest = result["publications"][-1]["offset"]
        await site.backplane.publish("rec:a", {"n": 4})
        (push,) = await replies(client)
        assert push["push"]["pub"]["data"] == {"n": 4}
        assert push["push"]["pub"]["offset"] > newest
        await ask(client, 3, "unsubscribe", channel="rec:a")
        for wrong in (
            {"epoch": "_", "offset": offset},
            {"epoch": epoch, "offset": offset + 1},
            {"epoch": epoch, "offset": 2**53 - 1},
            {"epoch": epoch[::-1], "offset": offset},
        ):
            lost = (await ask(client, 4, "subscribe", channel="rec:a", recover=True, **wrong))["subscribe"]
            assert lost["was_recovering"]
            assert "recovered" not in lost
            assert "publications" not in lost
            assert (lost["epoch"], lost["offset"]) == (epoch, push["push"]["pub"]["offset"])
            await ask(client, 5, "unsubscribe", channel="rec:a")
        rejected = await ask(client, 6, "subscribe", channel="rec:a", recover=True, epoch="_", flag=3)
        assert rejected == {"error": {"code": 112, "message": "unrecoverable position"}}
        first = (await ask(client, 7, "subscribe", channel="rec:a", recover=True))["subscribe"]
        assert [publication["data"]["n"] for publication in first["publications"]] == [1, 2, 3, 4]


async def test_more_is_missed_than_a_reply_gives_back(site: Site) -> None:
    """Nothing is given back then: never a part."""
    async with site.client() as client:
        await connected(client)
        subscribed = (await ask(client, 2, "subscribe", channel="rec:b"))["subscribe"]
        await ask(client, 3, "unsubscribe", channel="rec:b")
        for number in range(301):
            await site.backplane.publish("rec:b", number)
        lost = await ask(client, 4, "subscribe", channel="rec:b", recover=True, epoch=subscribed["epoch"], offset=0)
        assert "publications" not in lost["subscribe"]
        assert "recovered" not in lost["subscribe"]


async def test_history(site: Site) -> None:
    """Limits, a position, and the reverse order."""
    async with site.client() as client:
        await connected(client)
        for number in range(4):
            await ask(client, 2, "publish", channel="rec:h", data=number)

        async def numbers(**body: Any) -> list[int]:
            result = (await ask(client, 3, "history", channel="rec:h", **body))["history"]
            return [publication["data"] for publication in result.get("publications", ())]

        top = (await ask(client, 4, "history", channel="rec:h"))["history"]
        assert not top.get("publications")
        assert await numbers(limit=-1) == [0, 1, 2, 3]
        assert await numbers(limit=2) == [0, 1]
        assert await numbers(limit=1, reverse=True) == [3]
        since = {"epoch": top["epoch"], "offset": 0}
        assert await numbers(limit=2, since=since) == [0, 1]
        everything = (await ask(client, 5, "history", channel="rec:h", limit=-1))["history"]["publications"]
        second = {"epoch": top["epoch"], "offset": everything[1]["offset"]}
        assert await numbers(limit=5, since=second) == [2, 3]
        assert await numbers(limit=5, since=second, reverse=True) == [0]
        foreign = await ask(client, 6, "history", channel="rec:h", limit=1, since={"epoch": "foreign"})
        assert foreign == {"error": {"code": 112, "message": "unrecoverable position"}}


async def test_server_side_subscriptions(site: Site) -> None:
    """At connect, added and removed by commands of the application, and recovered at the next connect."""
    async with site.client() as client:
        result = await connected(client, "side")
        subscription = result["subs"]["rec:feed"]
        await site.backplane.join(channel="rec:news", connection=result["client"], confirm_seconds=5)
        (added,) = await replies(client)
        assert added["push"]["channel"] == "rec:news"
        assert added["push"]["subscribe"]["recoverable"]
        await site.backplane.publish("rec:news", 1)
        (push,) = await replies(client)
        assert push["push"]["pub"]["data"] == 1
        await site.backplane.leave(channel="rec:news", user="side", confirm_seconds=5)
        removed = {"code": 2000, "reason": "server unsubscribe"}
        assert await replies(client) == [{"push": {"channel": "rec:news", "unsubscribe": removed}}]
        await site.backplane.send_to(user="side", data={"for": "you"})
        assert await replies(client) == [{"push": {"message": {"data": {"for": "you"}}}}]
    await site.backplane.publish("rec:feed", "missed")
    async with site.client() as client:
        position = {"recover": True, "epoch": subscription["epoch"]}
        await client.send(json.dumps({"id": 1, "connect": {"token": "side", "subs": {"rec:feed": position}}}))
        (reply,) = await replies(client)
        again = reply["connect"]["subs"]["rec:feed"]
        assert again["recovered"]
        assert [publication["data"] for publication in again["publications"]] == ["missed"]


async def test_a_gap(site: Site) -> None:
    """A client is unsubscribed, so that its SDK subscribes again; nothing more of the channel is sent before that."""
    async with site.client() as client:
        await connected(client)
        await ask(client, 2, "subscribe", channel="a")
        runtime = site.backplane._runtime  # pyright: ignore[reportPrivateUsage]
        assert runtime is not None
        runtime.hub.gap(["a"], "overrun")
        await site.backplane.publish("a", "after the gap")
        lost = {"code": 2500, "reason": "insufficient state"}
        assert await replies(client) == [{"push": {"channel": "a", "unsubscribe": lost}}]
        again = await ask(client, 3, "subscribe", channel="a", recover=True, epoch="x")
        assert again["subscribe"]["was_recovering"]
        await site.backplane.publish("a", 2)
        assert await replies(client) == [{"push": {"channel": "a", "pub": {"data": 2}}}]


async def test_what_is_given_back_after_a_loss(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscribed client is sent it; before the reply to a subscribe it waits; after a gap it is dropped."""
    async with site.client() as client:
        await connected(client)
        await ask(client, 2, "subscribe", channel="rec:a")
        runtime = site.backplane._runtime  # pyright: ignore[reportPrivateUsage]
        assert runtime is not None
        hub = runtime.hub

        def give_back(channel: str, data: str, position: Position | None = None) -> None:
            batch = Batch(Message(channel=channel, data=data, position=position))
            hub._give_back(channel, batch)  # pyright: ignore[reportPrivateUsage]
            hub._flush()  # pyright: ignore[reportPrivateUsage]

        give_back("rec:a", "missed")
        assert await replies(client) == [{"push": {"channel": "rec:a", "pub": {"data": "missed"}}}]
        hub.gaps.notify(_gap("rec:a"))
        give_back("rec:a", "dropped")
        lost = {"code": 2500, "reason": "insufficient state"}
        assert await replies(client) == [{"push": {"channel": "rec:a", "unsubscribe": lost}}]

        announce = ClientChannels._announce  # pyright: ignore[reportPrivateUsage]

        def announce_late(self: ClientChannels, subscription: SdkSubscription) -> None:
            assert subscription.joined is not None
            give_back("rec:b", "missed", subscription.joined.position)
            give_back("rec:b", "missed later")
            announce(self, subscription)

        monkeypatch.setattr(ClientChannels, "_announce", announce_late)
        await site.backplane.join(channel="rec:b", user="ann")
        subscribed, *publications = await replies(client, 3)
        assert list(subscribed["push"]) == ["channel", "subscribe"]
        assert [publication["push"]["pub"]["data"] for publication in publications] == ["missed", "missed later"]


async def test_a_gap_of_a_server_side_subscription(site: Site) -> None:
    """The client is closed, and comes back."""
    async with site.client() as client:
        await connected(client, "side")
        runtime = site.backplane._runtime  # pyright: ignore[reportPrivateUsage]
        assert runtime is not None
        runtime.hub.gaps.notify(_gap("rec:feed"))
        await closed(client)
        assert (client.close_code, client.close_reason) == (3010, "insufficient state")


async def test_pings() -> None:
    """The server pings; a client that answers stays, one that does not is closed."""
    async with serving("handed over", ping_seconds=1, pong_seconds=0.5) as site, site.client() as client:
        await connected(client)
        for _ in range(2):
            assert await replies(client) == [{}]
            await client.send("{}")
        await closed(client)
        assert (client.close_code, client.close_reason) == (3012, "no pong")


async def test_protobuf(site: Site) -> None:
    """The same in Protobuf, by its subprotocol or by a query parameter."""
    for query, subprotocol in (("", "centrifuge-protobuf"), ("?cf_protocol=protobuf", None)):
        async with site.client(query, subprotocol) as client:
            assert client.subprotocol == subprotocol
            await client.send(bytes.fromhex("07080122030a0161"))
            reply = await client.recv()
            assert isinstance(reply, bytes)
            assert b'{"hello":"a"}' in reply


async def test_the_worker_ends(site: Site) -> None:
    """Its clients are closed with a code after which they come back."""
    async with site.client() as client:
        await connected(client)
        site.server.stop()
        await closed(client)
        assert (client.close_code, client.close_reason) == (3001, "shutdown")


@pytest.mark.parametrize(
    ("code", "reason", "sent"),
    [
        (3001, "shutdown", (3001, "shutdown")),
        (3010, "insufficient state", (3010, "insufficient state")),
        (3503, "force disconnect", (3503, "force disconnect")),
        (4500, "application refuses", (4500, "application refuses")),
        (4000, "", (3010, "insufficient state")),
        (4000, "custom", (3010, "insufficient state")),
        (4001, "", (3005, "connection expired")),
        (1012, "restart", (3001, "shutdown")),
        (1011, "", (3004, "internal server error")),
        (4503, "banned", (4503, "banned")),
        (4503, "", (4503, "forbidden")),
        (4600, "7", (4600, "reason: 7")),
        (4600, "true", (4600, "reason: true")),
        (4600, '{"reconnect":true}', (4600, 'reason: {"reconnect":true}')),
        (1000, "", (1000, "normal closure")),
    ],
)
async def test_close_codes(site: Site, code: int, reason: str, sent: tuple[int, str]) -> None:
    """The package's own codes are those of the protocol, an application's are as they are; no reason is JSON."""
    async with site.client() as client:
        result = await connected(client)
        await site.backplane.disconnect(connection=result["client"], code=code, reason=reason)
        await closed(client)
        assert (client.close_code, client.close_reason) == sent


async def test_damaged_frames(site: Site) -> None:
    """Whatever a client sends costs its own connection at most."""
    draw = random.Random(18)
    commands = [
        '{"id":2,"subscribe":{"channel":"rec:a","recover":true,"offset":7,"epoch":"0000000000000000"}}',
        '{"id":3,"publish":{"channel":"a","data":{"n":[1,2,{"x":null}]}}}',
        '{"id":4,"history":{"channel":"rec:a","limit":-1,"since":{"offset":1}}}',
        '{"id":5,"rpc":{"method":"double","data":1}}',
        '{"id":6,"sub_refresh":{"channel":"a","token":"x"}}',
    ]
    async with site.client() as other:
        await connected(other)
        for _ in range(150):
            frame = list("\n".join(draw.sample(commands, 3)))
            for _ in range(draw.randint(1, 4)):
                place = draw.randrange(len(frame))
                frame[place : place + draw.randint(0, 6)] = draw.choice(
                    ['"', "{", "[", "-1e999", "\u0000", "9" * 40, ","]
                )
            async with site.client() as client:
                await connected(client)
                await client.send("".join(frame))
                with suppress(ConnectionClosed):
                    await (await client.ping())
            assert client.close_code in (1000, 3501)
        assert await ask(other, 2, "rpc", method="double", data=21) == {"rpc": {"data": 42}}


def _gap(channel: str) -> Any:
    from backplane import Gap

    return Gap(channel=channel, reason="of a test")
