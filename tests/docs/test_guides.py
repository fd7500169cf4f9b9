"""docs/guides, docs/adapters, docs/operations: every example runs as it is on its page."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI, Request, Response
from sqlalchemy import create_engine, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from backplane import Backplane, History, Limits
from backplane.sync import SyncBackplane
from tests.docs.pages import until_subscribed
from tests.server_in_loop import serving_in_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.brokers.broker import Broker

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = re.compile(r"^<!-- example: ([\w-]+) -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documents are away")


def run(page: str, name: str) -> dict[str, Any]:
    """Execute an example of a page, and return its names."""
    text = (DOCS / page).read_text(encoding="utf-8")
    (code,) = [code for found, code in EXAMPLE.findall(text) if found == name]
    names: dict[str, Any] = {"__name__": f"docs_{name}"}
    exec(compile(code, f"{page}, example {name}", "exec", dont_inherit=True), names)
    return names


@pytest.fixture(autouse=True)
def url(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A bus of the test's own, in the environment as the pages presume it."""
    monkeypatch.setenv("BACKPLANE_URL", f"memory://{request.node.name.partition('[')[0]}")


def test_settings() -> None:
    """The settings of the page are accepted."""
    assert repr(run("adapters/index.md", "settings")["backplane"]) == "<Backplane memory:// closed>"


def test_sockets() -> None:
    """A client receives its own orders, an invalid one is answered, and a page of another site is refused."""
    names = run("guides/authorization-and-limits.md", "sockets")

    async def head() -> int:
        statuses: list[int] = []

        async def send(event: Any) -> None:
            statuses.append(event.get("status"))

        stream = await names["listen"](Request({"type": "http"}), user="ada")
        await stream({"type": "http", "method": "HEAD", "headers": []}, asyncio.Event().wait, send)
        return statuses[0]

    with TestClient(names["app"]) as client, client.websocket_connect("/orders?token=ada") as ada:
        assert client.portal is not None
        assert client.portal.call(head) == 200
        ada.send_json({"item": "tea", "amount": 2})
        assert ada.receive_json() == {"item": "tea", "amount": 2}
        ada.send_json({"item": "tea"})
        assert ada.receive_json()["error"] == "invalid message"
        with pytest.raises(WebSocketDenialResponse) as refused:
            client.websocket_connect("/orders?token=eve", headers={"Origin": "https://evil.example"}).__enter__()
        assert refused.value.status_code == 403


def test_hand_over(capsys: pytest.CaptureFixture[str]) -> None:
    """A client is welcomed, joins what it sends the name of, receives it, and its end is reported."""
    names = run("guides/clients-that-listen.md", "hand-over")
    with TestClient(names["app"]) as client:
        with client.websocket_connect("/prices") as socket:
            name = socket.receive_json()["welcome"]
            socket.send_text("TEA")
            socket.send_text("bye")
            with pytest.raises(WebSocketDisconnect) as closed:
                socket.receive_text()
            assert (closed.value.code, closed.value.reason) == (4701, "goodbye")
        assert client.portal is not None
    assert capsys.readouterr().out == f"{name} has left\n"


def test_latest() -> None:
    """A client that has joined a channel with `latest` receives its messages."""
    names = run("guides/slow-clients.md", "latest")
    with TestClient(names["app"]) as client, client.websocket_connect("/prices") as socket:
        assert client.portal is not None
        client.portal.call(names["backplane"].publish, "news", "open")
        assert socket.receive_text() == "open"
        client.portal.call(names["backplane"].publish, "prices", {"symbol": "TEA", "price": 3})
        assert socket.receive_json() == {"symbol": "TEA", "price": 3}


def test_typed() -> None:
    """A published order is received as a model; one that does not validate is a 422 and is not published."""
    names = run("guides/typed-channels.md", "typed")
    with TestClient(names["app"]) as client:
        assert client.portal is not None
        following = client.portal.start_task_soon(names["follow"], "berlin", 42)
        client.portal.call(until_subscribed, names["backplane"], "orders:berlin:42")
        assert client.post("/orders/berlin/42", json={"item": "tea", "amount": 2}).status_code == 200
        assert client.post("/orders/berlin/42", json={"item": "tea"}).status_code == 422
        assert client.post("/orders/berlin/42", json={"item": "tea", "amount": 0}).status_code == 200
        assert [order.amount for order in following.result(5)] == [2, 0]


def test_typed_history() -> None:
    """A consumer that comes back receives what it missed, and after a gap the newest that are kept."""
    names = run("guides/typed-channels.md", "typed-history")
    stored, left = dict[str, str](), dict[str, int]()

    async def publish(*items: str) -> None:
        for item in items:
            await names["stock"].publish({"item": item, "left": 1}, shop="berlin")

    async def follow_until(expected: int) -> None:
        following = asyncio.create_task(names["follow_stock"]("berlin", stored, left))
        async with asyncio.timeout(30):
            while len(left) != expected or "berlin" not in stored:
                await asyncio.sleep(0)
        following.cancel()

    async def follow() -> None:
        async with names["backplane"]:
            await publish("tea")
            await follow_until(1)
            await publish("coffee", "sugar")
            await follow_until(3)
            await publish(*(f"item {number}" for number in range(202)))
            await follow_until(200)

    asyncio.run(follow())
    assert "tea" not in left


def test_task() -> None:
    """A task that is run again publishes once, and what it published is kept for the web workers."""
    names = run("guides/synchronous-code.md", "task")
    with TemporaryDirectory(prefix="bp-") as folder:
        url = f"ipc://shop?peer_timeout_seconds=5&directory={folder}"
        with SyncBackplane(url, history=names["HISTORY"]) as names["backplane"]:
            assert [names["ship"](42, task) for task in ("one", "one", "two")] == [True, False, True]

            async def read() -> list[Any]:
                async with Backplane(url, history=names["HISTORY"]) as backplane:
                    return [message.json()["id"] for message in (await backplane.history("orders:42")).messages]

            assert asyncio.run(read()) == [42, 42]


@pytest.mark.anyio
async def test_transaction(postgres_broker: Broker) -> None:
    """What commits is received, from both kinds of code; what fails to be stored is not."""
    address = postgres_broker.url.partition("://")[2]
    engine = create_async_engine(f"postgresql+asyncpg://{address}")
    later = run("guides/transactions.md", "transaction")
    at_once = run("guides/transactions.md", "transaction-sync")
    async with Backplane(postgres_broker.url) as backplane, backplane.subscribe("orders") as messages:
        later["backplane"], later["sessions"] = backplane, async_sessionmaker(engine)
        with pytest.raises(ProgrammingError):
            await later["place"]("tea")  # there is no table
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE orders (item text)"))
        await later["place"]("coffee")
        at_once["backplane"] = SyncBackplane(postgres_broker.url)
        at_once["sessions"] = sessionmaker(own := create_engine(f"postgresql+psycopg://{address}"))
        await asyncio.to_thread(at_once["place"], "sugar")
        assert [message.json()["item"] async for message in first(messages, 2)] == ["coffee", "sugar"]
        async with engine.begin() as connection:
            await connection.execute(text("DROP TABLE orders"))
    own.dispose()
    await engine.dispose()


async def first(messages: Any, count: int) -> AsyncIterator[Any]:
    """Iterate over the next items."""
    async with asyncio.timeout(30):
        for _ in range(count):
            yield await anext(messages)


def test_commands() -> None:
    """A ban closes the connections of the user with the code that keeps a client away, and refuses the next join."""
    names = run("guides/commands-and-surveys.md", "commands")
    with TestClient(names["app"]) as client, client.websocket_connect("/rooms/1?user=eve") as eve:
        assert client.post("/users/eve/ban").json() == {"closed": 1}
        with pytest.raises(WebSocketDisconnect) as closed:
            eve.receive_text()
        assert (closed.value.code, closed.value.reason) == (4503, "banned")
        with pytest.raises(WebSocketDenialResponse) as refused:
            client.websocket_connect("/rooms/1?user=eve").__enter__()
        assert refused.value.status_code == 403


@pytest.mark.anyio
async def test_survey() -> None:
    """A survey adds up what every worker answers."""
    names = run("guides/commands-and-surveys.md", "survey")
    async with names["backplane"]:
        assert await names["total"]() == 0


def test_limit() -> None:
    """One connection more than a user may have is refused with 429, and there is room again when one ends."""
    app = run("guides/commands-and-surveys.md", "limit")["app"]
    with TestClient(app) as client, client.websocket_connect("/feed?user=ada"):
        with client.websocket_connect("/feed?user=ada"):
            with pytest.raises(WebSocketDenialResponse) as refused:
                client.websocket_connect("/feed?user=ada").__enter__()
            assert refused.value.status_code == 429
            with client.websocket_connect("/feed?user=bob"):
                pass
        with client.websocket_connect("/feed?user=ada"):
            pass


@pytest.mark.anyio
async def test_overviews(capsys: pytest.CaptureFixture[str]) -> None:
    """The report goes on until the worker stops."""
    names = run("operations/cluster.md", "overviews")
    async with asyncio.TaskGroup() as tasks, names["backplane"]:
        tasks.create_task(names["report"]())
        while "live" not in (printed := capsys.readouterr().out):
            await asyncio.sleep(0.05)
    assert printed.startswith("The worker is live.\nwithout ()\n")


def test_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret of the environment is accepted, and not shown."""
    monkeypatch.setenv("CONTROL_SECRET", "0123456789abcdef")
    backplane: object = run("operations/cluster.md", "secret")["backplane"]
    assert "0123" not in repr(vars(backplane))


def test_live_page() -> None:
    """The page is shown to a visitor with a session, and to no other."""
    names = run("operations/live-page.md", "live-page")
    names["sessions"]["token"] = "Ada"
    with TestClient(names["app"]) as client:
        assert client.get("/backplane").status_code == 403
        client.cookies["session"] = "token"
        assert "<title>backplane</title>" in client.get("/backplane").text
        assert client.get("/backplane/api/session").json() == {"name": "Ada"}
        assert client.get("/backplane/api/tail", params={"channel": "a"}).status_code == 403


def test_health(capsys: pytest.CaptureFixture[str]) -> None:
    """The routes answer, and every change of the state is printed."""
    with TestClient(run("operations/health-and-metrics.md", "health")["app"]) as client:
        assert [client.get(f"/health/{name}").status_code for name in ("live", "ready")] == [200, 200]
        assert client.get("/health/ready").json()["state"] == "live"
    assert [line.split(" ")[:3] for line in capsys.readouterr().out.splitlines()] == [
        ["starting", "->", "live"],
        ["live", "->", "closed"],
    ]


def test_prometheus() -> None:
    """A scrape has what was counted."""
    names = run("operations/metrics.md", "prometheus")
    with TestClient(names["app"]) as client:
        assert client.portal is not None
        client.portal.call(names["backplane"].publish, "prices", "42")
        lines = client.get("/metrics").text.splitlines()
    assert f'backplane_publishes_total{{outcome="ok",worker="{os.getpid()}"}} 1.0' in lines


def test_groups() -> None:
    """Each group has its series."""
    from prometheus_client import CollectorRegistry, generate_latest

    from backplane import BackplaneCollector

    names = run("operations/metrics.md", "groups")
    registry = CollectorRegistry()
    registry.register(BackplaneCollector(names["backplane"]))

    async def scraped() -> bytes:
        async with names["backplane"]:
            return generate_latest(registry)

    text = asyncio.run(scraped())
    assert [group for group in (b"orders", b"rooms", b"other") if b'backplane_joins{group="%s"' % group in text] == [
        b"orders", b"rooms", b"other",
    ]  # fmt: skip


def test_registry() -> None:
    """The registry of the application shows the backplane."""
    from prometheus_client import REGISTRY, generate_latest

    names = run("operations/metrics.md", "registry")
    assert b"\nbackplane_link_up{" in generate_latest(REGISTRY)
    for collector in list(REGISTRY._collector_to_names):  # pyright: ignore[reportPrivateUsage]
        if isinstance(collector, names["BackplaneCollector"]):
            REGISTRY.unregister(collector)


def test_otel() -> None:
    """The example runs; tests/unit/exporters has what a real SDK exports."""
    assert run("operations/metrics.md", "otel")["backplane"].state == "closed"


def test_sdk_clients() -> None:
    """A client of the protocol subscribes, publishes, receives that, and calls an RPC; another channel is refused."""
    names = run("guides/sdk-clients.md", "sdk-clients")
    with TestClient(names["app"]) as client, client.websocket_connect("/connection/websocket") as socket:
        socket.send_json({"id": 1, "connect": {}})
        assert socket.receive_json()["connect"]["pong"]
        socket.send_json({"id": 2, "subscribe": {"channel": "room:1"}})
        assert socket.receive_json()["subscribe"]["recoverable"]
        socket.send_json({"id": 3, "publish": {"channel": "room:1", "data": {"text": "hello"}}})
        answers = [socket.receive_json() for _ in range(2)]
        assert {"id": 3, "publish": {}} in answers
        assert any(answer.get("push", {}).get("pub", {}).get("data") == {"text": "hello"} for answer in answers)
        socket.send_json({"id": 4, "rpc": {"method": "double", "data": 21}})
        assert socket.receive_json() == {"id": 4, "rpc": {"data": 42}}
        socket.send_json({"id": 5, "subscribe": {"channel": "other"}})
        assert socket.receive_json()["error"]["code"] == 103


@pytest.mark.anyio
async def test_event_stream_in_a_program() -> None:
    """It gets what was published while it was away, before its first message too, once, and is notified of a gap."""
    follow = run("guides/server-sent-events.md", "program")["follow"]
    backplane = Backplane("memory://", history={"orders": History(max_messages=3)})
    app = FastAPI(lifespan=backplane.lifespan)
    visits: list[str | None] = []

    async def orders(request: Request) -> Response:
        visits.append(request.headers.get("last-event-id"))
        for number in range({2: 2, 3: 6}.get(len(visits), 0)):
            await backplane.publish("orders", f"{len(visits)}.{number}")
        limits = Limits(max_age_seconds=0.02 if len(visits) < 3 else None)
        return backplane.sse(request, "orders", limits=limits, rewind=9, retry_seconds=0.01)

    app.add_api_route("/orders", orders)
    async with serving_in_loop(app) as server:
        following = follow(f"{server.http_url}/orders")
        received = [await asyncio.to_thread(next, following) for _ in range(6)]
        await asyncio.to_thread(following.close)
    assert received == ["2.0", "2.1", "", "3.3", "3.4", "3.5"]
    assert [len(shown or "") for shown in visits] == [0, 28, 28]


def test_tracing() -> None:
    """The application of the page publishes to its WebSockets; its tracing goes to the global provider."""
    names = run("operations/tracing.md", "tracing")
    with TestClient(names["app"]) as client, client.websocket_connect("/orders/42") as orders:
        assert client.post("/orders/42").status_code == 200
        assert orders.receive_text() == '{"state":"paid"}'


async def _billed(names: dict[str, Any]) -> None:
    names["backplane"] = names["bill"].__globals__["backplane"] = Backplane(tracing=names["tracing"])
    async with names["backplane"] as backplane:
        billing = asyncio.create_task(names["bill"]())
        while not (await backplane.health()).channels:  # until it has subscribed
            await asyncio.sleep(0)
        await backplane.publish("orders", "paid")
        billing.cancel()
        await asyncio.wait([billing])
        assert billing.cancelled()


def test_tracing_consume() -> None:
    """The consumer of the page takes messages; here it is not on Redis."""
    asyncio.run(_billed(run("operations/tracing.md", "tracing-consume")))
