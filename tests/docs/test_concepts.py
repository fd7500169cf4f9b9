"""docs/concepts/: every example runs as it stands there."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from backplane import Backplane, BrokerUnavailableError, History, Message, Presence, PublishOutcomeUnknownError
from backplane.adapters.memory import MemoryBroadcaster
from backplane.message import ALL
from tests.docs.pages import DOCS, Page, until_subscribed

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from backplane.broadcaster import Sink

WAIT_SECONDS = 60.0

TESTED = {
    "channels": {"join", "consumer"},
    "connections": {"connection"},
    "delivery": {"outcome"},
    "drain": {"drain"},
    "gaps": {"gap", "cache"},
    "history": {"rules", "stream", "consumer", "page", "latest", "once"},
    "outages": {"unavailable", "health"},
    "patterns": {"consume", "exact", "clients"},
    "presence": {"rules", "watch", "workers"},
    "slow-clients-and-outbox": {"latest"},
}


def page(name: str) -> Page:
    """Return a page of the concepts."""
    return Page(f"concepts/{name}.md")


@pytest.fixture
def sinks(monkeypatch: pytest.MonkeyPatch) -> list[Sink]:
    """The sinks of every `memory://` that is started, to report gaps to."""
    kept: list[Sink] = []
    start = MemoryBroadcaster.start

    async def kept_start(self: MemoryBroadcaster, sink: Sink) -> None:
        kept.append(sink)
        await start(self, sink)

    monkeypatch.setattr(MemoryBroadcaster, "start", kept_start)
    return kept


@pytest.mark.parametrize("name", sorted(path.stem for path in (DOCS / "concepts").glob("*.md")))
def test_every_python_block_has_a_name_and_a_test(name: str) -> None:
    """No Python of a page is without a name, and none of the tests below has lost its example."""
    names = [found for found, _ in page(name).examples()]
    assert page(name).text.count("```python") == len(names)
    assert sorted(map(str, names)) == sorted(TESTED.get(name, ()))


# --- channels ------------------------------------------------------------------------------------------------------


def test_join() -> None:
    """A client receives what is published to a stock from its join to its leave."""
    names = page("channels").run("join")
    with TestClient(names["app"]) as client, client.websocket_connect("/stocks") as one:
        one.send_text("join ACME")
        assert one.receive_json() == {"joined": ["stock:ACME"]}
        names["backplane"].sync.publish("stock:ACME", 17)
        assert one.receive_json() == 17
        one.send_text("leave ACME")
        assert one.receive_json() == {"joined": []}
        names["backplane"].sync.publish("stock:ACME", 18)
        one.send_text("join OTHER")
        assert one.receive_json() == {"joined": ["stock:OTHER"]}


@pytest.mark.anyio
async def test_consumer(capsys: pytest.CaptureFixture[str], sinks: list[Sink]) -> None:
    """The consumer prints messages and gaps, and ends with the backplane."""
    follow_orders: Callable[[Backplane], Coroutine[Any, Any, None]] = page("channels").run("consumer")["follow_orders"]
    async with Backplane("memory://") as backplane:
        following = asyncio.create_task(follow_orders(backplane))
        await until_subscribed(backplane, "orders")
        await backplane.publish("orders", {"id": 42})
        sinks[0].gap(ALL, "overrun")
        await backplane.publish("orders", "last")
    await asyncio.wait_for(following, WAIT_SECONDS)
    assert capsys.readouterr().out.splitlines() == ['orders {"id":42}', "reload: overrun", "orders last"]


# --- patterns ------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_consume(capsys: pytest.CaptureFixture[str], sinks: list[Sink]) -> None:
    """The consumer prints what matches, with its channel, and the gap of the pattern."""
    archive: Callable[[Backplane], Coroutine[Any, Any, None]] = page("patterns").run("consume")["archive"]
    async with Backplane("memory://") as backplane:
        archiving = asyncio.create_task(archive(backplane))
        await until_subscribed(backplane, "news")  # which is joined last
        await backplane.publish("prices.eur", 1)
        sinks[0].gap(ALL, "overrun")
        await backplane.publish("prices.usd", 2)
    await asyncio.wait_for(archiving, WAIT_SECONDS)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "news" not in line] == [
        "prices.eur 1",
        "something may be missing on prices.*",
        "prices.usd 2",
    ]


@pytest.mark.anyio
async def test_exact(capsys: pytest.CaptureFixture[str]) -> None:
    """A room with the name `*` is one room."""
    follow: Callable[[Backplane, str], Coroutine[Any, Any, None]] = page("patterns").run("exact")["follow"]
    async with Backplane("memory://") as backplane:
        following = asyncio.create_task(follow(backplane, "*"))
        async with asyncio.timeout(WAIT_SECONDS):
            while not (await backplane.health()).channels:
                await asyncio.sleep(0)
        async with backplane.subscribe("room:*", exact=True):
            await backplane.publish("room:secret", "")
            await backplane.publish("room:*", "")
    await asyncio.wait_for(following, WAIT_SECONDS)
    assert capsys.readouterr().out.splitlines() == ["room:*"]


def test_clients() -> None:
    """A client that the application permits it receives what matches, with its channel."""
    names = page("patterns").run("clients")
    with TestClient(names["app"]) as client, client.websocket_connect("/prices") as one:
        assert one.receive_json() == {"watching": ["prices.*"]}
        names["backplane"].sync.publish("prices.eur", 17)
        received = one.receive_json()
        assert (received["channel"], received["text"]) == ("prices.eur", "17")


# --- connections ---------------------------------------------------------------------------------------------------


def test_connection() -> None:
    """A client is greeted, receives what others send and not its own, and is closed with the code of the page."""
    names = page("connections").run("connection")
    with (
        TestClient(names["app"]) as client,
        client.websocket_connect("/rooms/kitchen") as one,
        client.websocket_connect("/rooms/kitchen") as other,
    ):
        assert one.receive_json()["welcome"] != other.receive_json()["welcome"]
        one.send_text("from one")
        assert other.receive_text() == "from one"
        other.send_text("from other")
        assert one.receive_text() == "from other"
        one.send_text("bye")
        with pytest.raises(WebSocketDisconnect) as closed:
            one.receive_text()
        assert (closed.value.code, closed.value.reason) == (4701, "goodbye")


# --- delivery and outages ------------------------------------------------------------------------------------------


def test_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is answered by what is known of its message."""

    async def away(*_: object) -> None:
        raise BrokerUnavailableError("away")

    async def unknown(*_: object) -> None:
        raise PublishOutcomeUnknownError("no answer")

    with TestClient(page("delivery").run("outcome")["app"]) as client:
        assert client.post("/orders/1/shipped").json() == {"published": "yes"}
        monkeypatch.setattr(MemoryBroadcaster, "publish", away)
        assert client.post("/orders/1/shipped").status_code == 503
        monkeypatch.setattr(MemoryBroadcaster, "publish", unknown)
        assert client.post("/orders/1/shipped").json() == {"published": "unknown"}


def test_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose publish fails because the broker is away is answered 503 with the time to try again."""

    async def fail(*_: object) -> None:
        raise BrokerUnavailableError("away")

    with TestClient(page("outages").run("unavailable")["app"]) as client:
        assert client.post("/rooms/a?text=hello").status_code == 200
        monkeypatch.setattr(MemoryBroadcaster, "publish", fail)
        answer = client.post("/rooms/a?text=hello")
    assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (503, True)


def test_health(capsys: pytest.CaptureFixture[str]) -> None:
    """The routes answer, and every change of the state is printed."""
    with TestClient(page("outages").run("health")["app"]) as client:
        assert [client.get(f"/health/{name}").status_code for name in ("live", "ready")] == [200, 200]
        assert client.get("/health/ready").json()["state"] == "live"
    assert [line.split(" ")[:3] for line in capsys.readouterr().out.splitlines()] == [
        ["starting", "->", "live"],
        ["live", "->", "closed"],
    ]


@pytest.mark.anyio
async def test_drain(capsys: pytest.CaptureFixture[str]) -> None:
    """A drain ends what is iterated, and the block closes the link."""
    names = page("drain").run("drain")
    ended = asyncio.Event()
    serving = asyncio.create_task(names["serve_until"](ended))
    async with asyncio.timeout(WAIT_SECONDS):
        while names["backplane"].state != "live":
            await asyncio.sleep(0)
        async with names["backplane"].subscribe("orders") as messages:
            ended.set()
            assert [message async for message in messages] == []
        await serving
    assert capsys.readouterr().out.splitlines() == ["starting -> live", "live -> closed"]


# --- gaps and outboxes ---------------------------------------------------------------------------------------------


def test_gap(sinks: list[Sink]) -> None:
    """A client receives a gap as the application words it, and stays."""
    names = page("gaps").run("gap")
    with TestClient(names["app"]) as client, client.websocket_connect("/prices") as one:
        assert client.portal is not None
        client.portal.call(sinks[0].gap, ALL, "overrun")
        assert one.receive_json() == {"type": "reload", "channel": "prices"}
        client.portal.call(names["backplane"].publish, "prices", "42")
        assert one.receive_text() == "42"


@pytest.mark.anyio
async def test_cache(sinks: list[Sink]) -> None:
    """The cache is loaded after the join, updated by messages, and loaded again at a gap."""
    keep_prices = page("gaps").run("cache")["keep_prices"]
    stored, prices = {"tea": 1}, dict[str, Any]()

    async def load() -> dict[str, Any]:
        assert (await backplane.health()).channels == 1
        return dict(stored)

    async with Backplane("memory://") as backplane:
        keeping = asyncio.create_task(keep_prices(backplane, prices, load))
        await until_subscribed(backplane, "prices")
        await backplane.publish("prices", {"tea": 2})
        async with asyncio.timeout(WAIT_SECONDS):
            while prices != {"tea": 2}:
                await asyncio.sleep(0)
            stored["coffee"] = 3
            sinks[0].gap(ALL, "overrun")
            while prices != {"tea": 1, "coffee": 3}:
                await asyncio.sleep(0)
    await asyncio.wait_for(keeping, WAIT_SECONDS)


def test_latest() -> None:
    """The client receives both channels, and the key of `latest` is the stock of a message."""
    names = page("slow-clients-and-outbox").run("latest")
    price = {"stock": "ACME", "price": 17}
    with TestClient(names["app"]) as client, client.websocket_connect("/market") as one:
        names["backplane"].sync.publish("news", "opening")
        assert one.receive_text() == "opening"
        names["backplane"].sync.publish("prices", price)
        assert one.receive_json() == price
    assert names["stock_of"](Message(channel="prices", data=json.dumps(price))) == "ACME"
    names["note_slow"](SimpleNamespace(channel="news", action="closed"))
    assert names["slow_clients"] == ["news: closed"]


# --- history -------------------------------------------------------------------------------------------------------


def test_rules() -> None:
    """A client that comes back with its last position receives what it missed, once, and one without it the newest."""
    names = page("history").run("rules")
    with TestClient(names["app"]) as client:
        with client.websocket_connect("/rooms/kitchen") as one:
            assert one.receive_json()["event"] == "joined"
            one.send_text("first")
            position = one.receive_json()["position"]
        for text in ("second", "third"):
            names["backplane"].sync.publish("room:kitchen", text)
        with client.websocket_connect(f"/rooms/kitchen?since={position}") as one:
            assert one.receive_json()["resumed"] is True
            assert [one.receive_json()["text"] for _ in range(2)] == ["second", "third"]
        with client.websocket_connect("/rooms/kitchen") as other:
            assert other.receive_json()["resumed"] is False
            assert [other.receive_json()["text"] for _ in range(3)] == ["first", "second", "third"]


@pytest.mark.anyio
async def test_stream() -> None:
    """A stream resumes from the header that a browser sends by itself, and begins with the newest at a first visit."""
    names = page("history").run("stream")
    async with names["backplane"] as backplane:
        receipt = await backplane.publish("orders:eu", "first")
        await backplane.publish("orders:eu", "second")
        assert await events(names["listen"], count=2) == ["first", "second"]
        assert await events(names["listen"], count=1, last_id=str(receipt.position)) == ["second"]


async def events(listen: Callable[..., Any], *, count: int, last_id: str = "") -> list[str]:
    """Return the data of the first events of a stream."""
    headers = [(b"last-event-id", last_id.encode())] if last_id else []
    scope = {"type": "http", "method": "GET", "headers": headers, "path": "/", "query_string": b""}
    received, enough, asked = list[str](), asyncio.Event(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        if asked.is_set():
            await enough.wait()
            return {"type": "http.disconnect"}
        asked.set()
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event: Any) -> None:
        body = event.get("body", b"").decode()
        received.extend(line[6:] for line in body.splitlines() if line.startswith("data: "))
        if len(received) >= count:
            enough.set()

    async with asyncio.timeout(WAIT_SECONDS):
        await (await listen(Request(scope), "eu"))(scope, receive, send)
    return received


@pytest.mark.anyio
async def test_consumer_resumes() -> None:
    """Orders that are published while the consumer is away are booked once, in order, at its first return too."""
    book_orders = page("history").run("consumer")["book_orders"]
    db = sqlite3.connect(":memory:")
    db.executescript(
        "CREATE TABLE progress (id INTEGER PRIMARY KEY, position TEXT);"
        "CREATE TABLE bookings (data TEXT); CREATE TABLE checks (reason TEXT);"
    )

    async def run_until_booked(expected: list[str]) -> None:
        booking = asyncio.create_task(book_orders(backplane, db))
        async with asyncio.timeout(WAIT_SECONDS):
            while booked() != expected or db.execute("SELECT count(*) FROM progress").fetchone() != (1,):
                await asyncio.sleep(0)
        booking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await booking

    def booked() -> list[str]:
        return [str(data) for (data,) in db.execute("SELECT data FROM bookings ORDER BY rowid")]

    async with Backplane("memory://", history={"orders:*": History(max_messages=3)}) as backplane:
        await backplane.publish("orders:eu", "before the first visit")
        await run_until_booked([])
        await backplane.publish("orders:eu", "1")
        await run_until_booked(["1"])
        await backplane.publish("orders:eu", "2")
        await backplane.publish("orders:eu", "3")
        await run_until_booked(["1", "2", "3"])
        assert db.execute("SELECT count(*) FROM checks").fetchone() == (0,)
        for order in "456789":  # more than is kept
            await backplane.publish("orders:eu", order)
        booking = asyncio.create_task(book_orders(backplane, db))
        async with asyncio.timeout(WAIT_SECONDS):
            while db.execute("SELECT count(*) FROM checks").fetchone() != (1,):
                await asyncio.sleep(0)
    await asyncio.wait_for(booking, WAIT_SECONDS)
    db.close()


def test_page() -> None:
    """The route returns the newest messages, then those after a position, and refuses what is no position."""
    names = page("history").run("page")
    with TestClient(names["app"]) as client:
        for text in ("first", "second"):
            names["backplane"].sync.publish("room:kitchen", text)
        first = client.get("/rooms/kitchen/messages").json()
        assert (first["messages"], first["complete"], first["more"]) == (["first", "second"], True, False)
        names["backplane"].sync.publish("room:kitchen", "third")
        url = "/rooms/kitchen/messages"
        assert client.get(url, params={"since": first["position"]}).json()["messages"] == ["third"]
        assert client.get(url, params={"since": "nonsense"}).status_code == 400


def test_latest_value() -> None:
    """A client receives the current price at its join, and the next one after it."""
    names = page("history").run("latest")
    with TestClient(names["app"]) as client:
        for value in (17, 18):
            names["backplane"].sync.publish("price:ACME", value)
        with client.websocket_connect("/prices/ACME") as one:
            assert one.receive_json() == 18
            names["backplane"].sync.publish("price:ACME", 19)
            assert one.receive_json() == 19


@pytest.mark.anyio
async def test_once() -> None:
    """The second publish with the key is dropped."""
    order_was_paid = page("history").run("once")["order_was_paid"]
    async with Backplane("memory://", history={"orders:*": History()}) as backplane:
        assert [await order_was_paid(backplane, 42) for _ in range(2)] == [True, False]
        assert len((await backplane.history("orders:eu")).messages) == 1


# --- presence ------------------------------------------------------------------------------------------------------


def test_presence() -> None:
    """A client is sent the users of its room and their changes, and a request returns them."""
    names = page("presence").run("rules")
    with TestClient(names["app"]) as client, client.websocket_connect("/rooms/1?user=ada") as ada:
        first = ada.receive_json()
        assert first["channel"] == "room:1"
        seen = set(first["presence"].get("users", {}))
        with client.websocket_connect("/rooms/1?user=bob"):
            while seen != {"ada", "bob"}:
                frame = ada.receive_json()["presence"]
                seen |= set(frame.get("users", {})) | set(frame.get("joined", {}))
            assert client.get("/rooms/1/users").json() == {"users": ["ada", "bob"], "connections": 2, "stale": False}


@pytest.mark.anyio
async def test_watch() -> None:
    """A watcher follows the users; the list of workers has this one."""
    follow = page("presence").run("watch")["follow"]
    report = page("presence").run("workers")["report"]
    async with Backplane("memory://", presence={"room:*": Presence()}) as backplane:
        following = asyncio.create_task(follow(backplane, "room:1"))
        assert len(await report(backplane)) == 1
        assert not (await backplane.present("room:1")).stale
    async with asyncio.timeout(WAIT_SECONDS):
        await following
