"""`backplane.verbs.commands`: commands of whole backplanes, and surveys, to real connections and event streams."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from fastapi import FastAPI, HTTPException, Request, Response, WebSocket
from starlette.exceptions import WebSocketException
from starlette.testclient import TestClient

from backplane import (
    Answers,
    Backlog,
    Backplane,
    ClosedError,
    ConfigurationError,
    Connection,
    InvalidChannelError,
    InvalidDataError,
    Limits,
    PayloadTooLargeError,
    Presence,
    PublishOutcomeUnknownError,
    Settings,
    Who,
    Worker,
)
from backplane import Client as Asked
from backplane.cluster.topics import CONTROL, WORKERS, inbox_of, presence_of
from backplane.sync import SyncBackplane
from tests.unit.asgi_client import Client
from tests.unit.controlled_adapter import Adapter
from tests.unit.doubles import until_idle
from tests.unit.kit import WAIT_SECONDS, warnings_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

pytestmark = pytest.mark.anyio

SETTINGS = Settings(
    worker_heartbeat_seconds=0.05, worker_down_seconds=30, handler_grace_seconds=0.05, drain_seconds=0.01
)
SECRET = "s" * 32


def worker(url: str = "memory://", **options: Any) -> Backplane:
    """Return a backplane whose workers know each other soon."""
    return Backplane(url, cluster=True, settings=SETTINGS, **options)


class Served:
    """Clients and the handlers that serve them.

    Attributes:
        handlers: The handlers, by client.
        errors: What a handler raised, or was refused with.
    """

    def __init__(self) -> None:
        self.handlers: dict[Client, asyncio.Task[None]] = {}
        self.errors: list[BaseException] = []

    def begin(
        self,
        backplane: Backplane,
        user: str | None = "ada",
        *channels: str,
        client: Client | None = None,
        **options: Any,
    ) -> Client:
        """Begin to serve a client that joins channels."""
        client = client or Client()
        presence = None if user is None else Who(user=user)

        async def serve() -> None:
            try:
                async with backplane.connect(client.websocket, *channels, presence=presence, **options) as connection:
                    client.websocket.state.connection = connection
                    async for _ in connection:
                        pass
            except (WebSocketException, HTTPException, ConfigurationError) as error:
                self.errors.append(error)

        self.handlers[client] = asyncio.create_task(serve())
        return client

    async def open(self, backplane: Backplane, user: str | None = "ada", *channels: str, **options: Any) -> Client:
        """Serve a client, and return it once it is accepted."""
        client = self.begin(backplane, user, *channels, **options)
        async with asyncio.timeout(WAIT_SECONDS):
            await client.accepting.wait()
        await until_idle()
        return client

    async def ended(self, client: Client) -> None:
        """Wait until a handler has ended."""
        async with asyncio.timeout(WAIT_SECONDS):
            await self.handlers[client]


def connection_of(client: Client) -> Connection:
    """Return the connection of a client."""
    connection = client.websocket.state.connection
    assert isinstance(connection, Connection)
    return connection


@pytest.fixture
async def served() -> AsyncGenerator[Served]:
    """No client yet; all are ended after the test."""
    made = Served()
    yield made
    for handler in made.handlers.values():
        handler.cancel()
    if made.handlers:
        await asyncio.wait(made.handlers.values())


@asynccontextmanager
async def cluster(*backplanes: Backplane) -> AsyncGenerator[None]:
    """Start backplanes, entered when each knows all others."""
    async with AsyncExitStack() as stack:
        for backplane in backplanes:
            await stack.enter_async_context(backplane)
        async with asyncio.timeout(WAIT_SECONDS):
            for backplane in backplanes:
                while len((await backplane.survey("none", timeout_seconds=0.5)).errors) != len(backplanes):
                    pass
        yield


def total(answers: Answers | None) -> int:
    """Return to how many connections a command applied, on all workers."""
    assert answers is not None
    assert answers.complete, answers
    return sum(answers.by_worker.values())


# --- who is meant ---


@pytest.mark.parametrize(
    ("selected", "error"),
    [
        ({}, ConfigurationError),
        ({"exclude": "0" * 16}, ConfigurationError),
        ({"user": ""}, InvalidDataError),
        ({"user": 5}, InvalidDataError),
        ({"user": b"ada"}, InvalidDataError),
        ({"user": "\ud800"}, InvalidDataError),
        ({"user": "u" * 129}, InvalidDataError),
        ({"connection": ""}, InvalidDataError),
        ({"connection": "ada"}, InvalidDataError),
        ({"connection": "A" * 16}, InvalidDataError),
        ({"connection": 5}, InvalidDataError),
        ({"connection": b"0" * 16}, InvalidDataError),
        ({"user": "ada", "exclude": ""}, InvalidDataError),
        ({"user": "ada", "exclude": object()}, InvalidDataError),
        ({"user": "ada", "older_than": "x"}, InvalidDataError),
        ({"user": "ada", "older_than": "0" * 16, "exclude": "1" * 16}, ConfigurationError),
        ({"user": "ada", "older_than": "0" * 16}, ClosedError),
        ({"channel": ""}, InvalidChannelError),
        ({"channel": "$backplane/control"}, InvalidChannelError),
        ({"channel": 5}, InvalidChannelError),
        ({"user": "ada", "code": 1005}, ConfigurationError),
        ({"user": "ada", "reason": 5}, ConfigurationError),
        ({"user": "ada", "confirm_seconds": 0}, ConfigurationError),
        ({"user": "ada", "confirm_seconds": float("nan")}, ConfigurationError),
        ({"user": "ada", "confirm_seconds": True}, ConfigurationError),
    ],
)
async def test_what_cannot_be_meant(selected: dict[str, Any], error: type[Exception]) -> None:
    """A name that is none is an error, and no command that selects nothing, or everything."""
    async with worker() as backplane:
        with pytest.raises(error):
            await backplane.disconnect(**selected)
        assert backplane.statistics().commands_applied == 0


async def test_connections_channels_and_exclusions(served: Served) -> None:
    """A connection is named by itself or its id; several names must all apply."""
    async with worker() as backplane, cluster():
        one, two, bob = [await served.open(backplane, user, "a") for user in ("ada", "ada", "bob")]
        assert total(await backplane.disconnect(user="bob", connection=connection_of(one), confirm_seconds=5)) == 0
        assert total(await backplane.disconnect(user="ada", channel="b", confirm_seconds=5)) == 0
        assert total(await backplane.count_connections(user="ada", exclude=connection_of(one), timeout_seconds=5)) == 1
        assert total(await backplane.disconnect(connection=connection_of(bob).id, confirm_seconds=5)) == 1
        exclude = connection_of(one)
        assert total(await backplane.disconnect(channel="a", exclude=exclude, reason="x", confirm_seconds=5)) == 1
        assert await two.receives() == 4503
        assert total(await backplane.leave(channel="a", confirm_seconds=5)) == 1
        assert list(connection_of(one).channels) == []


# --- across workers ---


async def test_all_workers_of_one_process(ipc_url: str, served: Served) -> None:
    """Two backplanes in one process are two workers: each applies a command to its own clients, once."""
    first, second = worker(ipc_url), worker(ipc_url)
    async with cluster(first, second):
        clients = [await served.open(each, "ada", "a") for each in (first, second)]
        assert total(await first.join(user="ada", channel="b", confirm_seconds=5)) == 2
        assert total(await second.send_to(user="ada", data={"n": 1}, confirm_seconds=5)) == 2
        assert total(await first.leave(user="ada", channel="a", confirm_seconds=5)) == 2
        assert [list(connection_of(client).channels) for client in clients] == [["b"], ["b"]]
        await second.disconnect(user="ada", code=4003, reason="banned")
        for client in clients:
            assert [await client.receives(), await client.receives()] == ['{"n":1}', 4003]
            await served.ended(client)
        answers = await first.count_connections(user="ada", timeout_seconds=5)
        assert sorted(answers.by_worker.values()) == [0, 0]


async def test_a_script_needs_no_cluster(ipc_url: str, served: Served) -> None:
    """Neither from a coroutine nor from synchronous code; with a secret it needs that."""
    async with cluster(backplane := worker(ipc_url, control_secret=SECRET)):
        for number, secret in enumerate((None, "t" * 32, SECRET)):
            client = await served.open(backplane, f"user {number}")
            async with Backplane(ipc_url, control_secret=secret) as script:
                await script.disconnect(user=f"user {number}")
                with pytest.raises(ConfigurationError, match="do not know each other"):
                    await script.disconnect(user=f"user {number}", confirm_seconds=1)
            with SyncBackplane(ipc_url, control_secret=secret) as script_in_a_thread:
                await asyncio.to_thread(script_in_a_thread.send_to, user=f"user {number}", data="x")
            if secret == SECRET:
                assert await client.receives() == 4503
            else:
                async with asyncio.timeout(WAIT_SECONDS):
                    while backplane.statistics().cluster_rejected < 2 * (number + 1):
                        await asyncio.sleep(0)
                assert client.sent.qsize() == 1


async def test_synchronous_code_of_a_worker(served: Served) -> None:
    """`backplane.sync` has the commands, through the event loop of the worker; in it they are refused."""
    async with cluster(backplane := worker()):
        client = await served.open(backplane, "ada", "a")
        sync = backplane.sync

        def work() -> None:
            sync.send_to(user="ada", data=b"\x00", exclude=None)
            sync.join(user="ada", channel="b")
            sync.leave(connection=connection_of(client), channel="a")
            with pytest.raises(InvalidDataError):
                sync.disconnect(user="")

        await asyncio.to_thread(work)
        await until_idle()
        assert list(connection_of(client).channels) == ["b"]
        await asyncio.to_thread(sync.disconnect, user="ada", reason="banned")
        await served.ended(client)
        events = [client.sent.get_nowait() for _ in range(3)]
        assert [event.get("bytes", event.get("code")) for event in events] == [None, b"\x00", 4503]
        with pytest.raises(Exception, match="would block the event loop"):
            sync.disconnect(user="ada")


async def test_a_task_queue_that_imports_the_backplane_of_the_workers(ipc_url: str, served: Served) -> None:
    """In a process that never starts it, `backplane.sync` signs with its secret."""
    async with cluster(backplane := worker(ipc_url, control_secret=SECRET)):
        client = await served.open(backplane)
        imported = worker(ipc_url, control_secret=SECRET)
        await asyncio.to_thread(imported.sync.disconnect, user="ada")
        assert await client.receives() == 4503
        assert backplane.statistics().cluster_rejected == 0


async def test_a_worker_without_cluster_that_serves_clients(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """Its command may reach others, and never its own clients: that is logged."""
    async with Backplane("memory://") as backplane:
        await backplane.disconnect(user="ada")
        assert warnings_of(caplog) == []
        client = await served.open(backplane, None, client_key="ada")
        await backplane.disconnect(user="ada")
        await backplane.disconnect(user="ada")
        await until_idle()
        assert client.sent.qsize() == 1
        assert ["pass Backplane(cluster=True) in each worker" in line for line in warnings_of(caplog)] == [True] * 2


async def test_without_cluster_nothing_is_subscribed(served: Served) -> None:
    """A worker that is off keeps no index of its clients, and subscribes and publishes nothing."""
    adapter = Adapter()
    async with Backplane(adapter) as backplane:
        await served.open(backplane, None, "a", client_key="ada")
        runtime = backplane._runtime  # pyright: ignore[reportPrivateUsage]
        assert runtime is not None
        assert runtime.clients.index is None
        assert adapter.channels == {"a"}
        assert adapter.published == []


# --- connections at any moment of their life ---


async def test_a_client_in_its_handshake(served: Served) -> None:
    """It is refused, also while `authorize` hangs, and does not join afterwards."""
    backplane, asked = worker(), asyncio.Event()

    @backplane.authorize
    async def hang(_: Asked, __: str) -> bool:
        asked.set()
        await asyncio.Event().wait()
        return True

    _ = hang
    async with cluster(backplane):
        runtime = backplane._runtime  # pyright: ignore[reportPrivateUsage]
        assert runtime is not None
        client = served.begin(backplane, "ada", "a")
        await asked.wait()
        assert total(await backplane.disconnect(user="ada", code=4003, reason="banned", confirm_seconds=5)) == 1
        await served.ended(client)
        assert not client.accepting.is_set()
        assert len(served.errors) == 1
        assert backplane.statistics().connections_refused == 1
        assert "a" not in runtime.hub.channels


async def test_a_client_that_is_about_to_be_accepted(served: Served) -> None:
    """Its close frame follows the handshake."""
    async with cluster(backplane := worker()):
        client = served.begin(backplane, "ada", "a")
        client.accept_gate.close()
        await client.accepting.wait()
        assert total(await backplane.disconnect(user="ada", code=4003, confirm_seconds=5)) == 1
        client.accept_gate.open()
        assert await client.receives() == 4003
        await served.ended(client)


async def test_a_handler_that_hangs(served: Served) -> None:
    """It is cancelled after its grace; the client has its close frame before."""
    async with cluster(backplane := worker()):
        client = Client()
        ended = asyncio.Event()

        async def serve() -> None:
            async with backplane.connect(client.websocket, presence=Who(user="ada")):
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.set()

        served.handlers[client] = asyncio.create_task(serve())
        await client.accepting.wait()
        await until_idle()
        assert total(await backplane.disconnect(user="ada", confirm_seconds=5)) == 1
        assert await client.receives() == 4503
        await served.ended(client)
        assert ended.is_set()
        assert backplane.statistics().cancelled_handlers == 1


async def test_a_handler_that_disconnects_its_own_user(served: Served) -> None:
    """It gets the answers within its grace, and ends; asked again at its end, it closes nothing twice."""
    async with cluster(backplane := worker()):
        client, answers = Client(), list[Answers]()

        async def serve() -> None:
            async with backplane.connect(client.websocket, presence=Who(user="ada")):
                for _ in range(2):
                    answers.append(await backplane.disconnect(user="ada", confirm_seconds=5))

        served.handlers[client] = asyncio.create_task(serve())
        assert await client.receives() == 4503
        await served.ended(client)
        assert [total(each) for each in answers] == [1, 0]


async def test_one_session_per_user(served: Served) -> None:
    """A new connection ends those before it; a later one, whose own command does the same, is left alone."""
    async with cluster(backplane := worker()):
        clients = [await served.open(backplane) for _ in range(3)]
        middle = connection_of(clients[1])
        assert total(await backplane.disconnect(user="ada", older_than=middle, confirm_seconds=5)) == 1
        assert await clients[0].receives() == 4503
        assert total(await backplane.disconnect(user="ada", older_than=middle.id, confirm_seconds=5)) == 0
        await served.ended(clients[0])
        with pytest.raises(ClosedError, match="has ended, or is none of this worker"):
            await backplane.disconnect(user="ada", older_than=connection_of(clients[0]))


async def test_commands_while_the_worker_drains(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that waits for its turn to be closed is closed at once."""
    monkeypatch.setattr("backplane.worker.clients.stagger_window", Mock(return_value=300.0))
    async with cluster(backplane := worker()):
        client = await served.open(backplane)
        draining = asyncio.create_task(backplane.drain())
        await until_idle()
        assert total(await backplane.disconnect(user="ada", code=4003, confirm_seconds=5)) == 1
        assert await client.receives() == 4003
        async with asyncio.timeout(WAIT_SECONDS):
            await draining
        assert total(await backplane.count_connections(user="ada", timeout_seconds=5)) == 0


@pytest.mark.parametrize("way", ["refuses", "raises", "raises an HTTPException"])
async def test_a_join_that_authorize_refuses(served: Served, way: str, caplog: pytest.LogCaptureFixture) -> None:
    """It does not join, and its connection stays."""
    backplane = worker()

    @backplane.authorize
    async def authorize(_: Asked, channel: str) -> bool:
        if channel == "b" and way == "raises":
            raise LookupError("some data")
        if channel == "b" and way != "refuses":
            raise HTTPException(402, "some data")
        return channel == "a"

    _ = authorize
    async with cluster(backplane):
        client = await served.open(backplane, "ada", "a")
        assert total(await backplane.join(user="ada", channel="b", confirm_seconds=5)) == 0
        assert list(connection_of(client).channels) == ["a"]
        await backplane.publish("a", "still there")
        assert await client.receives() == "still there"
    assert "some data" not in caplog.text


# --- send_to ---


async def test_what_is_sent_keeps_its_order(served: Served) -> None:
    """In the order of the calls, text, binary data and JSON, large ones too."""
    async with cluster(backplane := worker()):
        client = await served.open(backplane)
        sent = ["text", b"\x00\xff", "x" * 200_000, b"y" * 200_000, ""]
        for data in sent:
            await backplane.send_to(user="ada", data=data)
        await until_idle()
        client.sent.get_nowait()
        received = [client.sent.get_nowait() for _ in sent]
        assert [event.get("text", event.get("bytes")) for event in received] == sent
        with pytest.raises(InvalidDataError):
            await backplane.send_to(user="ada", data=object())
        with pytest.raises(InvalidDataError):
            await backplane.send_to(user="ada", data="\ud800")


async def test_what_is_too_large_to_be_sent() -> None:
    """It is refused before it is published."""
    async with Backplane(Adapter(), cluster=True) as backplane:
        with pytest.raises(PayloadTooLargeError):
            await backplane.send_to(user="ada", data="x" * 1_000_000)


class Stalled(Client):
    """A client that reads nothing but its handshake."""

    async def _send(self, event: Any) -> None:
        if event["type"] == "websocket.send":
            await asyncio.Event().wait()
        await super()._send(event)


async def test_a_client_that_is_too_slow_for_what_it_is_sent(served: Served) -> None:
    """Its backlog decides, as for a channel; the others get everything."""
    async with cluster(backplane := worker()):
        stalled = await served.open(backplane, client=Stalled(), backlog=Backlog(max_messages=5))
        quick = await served.open(backplane)
        for number in range(20):
            assert total(await backplane.send_to(user="ada", data=str(number), confirm_seconds=5)) >= 1
        assert [await quick.receives() for _ in range(20)] == [str(number) for number in range(20)]
        await served.ended(stalled)
        assert backplane.statistics().closed_slow == 1


# --- event streams ---


def stream_app(backplane: Backplane, **options: Any) -> FastAPI:
    """Return an application with an event stream."""
    app = FastAPI(lifespan=backplane.lifespan)

    @app.get("/events")
    async def events(request: Request) -> Response:
        return backplane.sse(request, "a", presence=Who(user="ada"), **options)

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        async with backplane.connect(websocket, presence=Who(user="ada"), **options) as connection:
            async for _ in connection:
                pass

    _ = events, ws
    return app


async def test_an_event_stream() -> None:
    """It gets what is sent, and ends by a `disconnect`."""
    backplane = worker()
    app = stream_app(backplane)
    body = bytearray()
    began = asyncio.Event()

    async def send(event: Any) -> None:
        body.extend(event.get("body", b""))
        if event["type"] == "http.response.body":
            began.set()

    async def receive() -> Any:
        await asyncio.Event().wait()

    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/events", "headers": [], "query_string": b""}
    async with cluster(backplane):
        streaming = asyncio.create_task(app(scope, receive, send))
        async with asyncio.timeout(WAIT_SECONDS):
            await began.wait()
            assert total(await backplane.send_to(user="ada", data="note", confirm_seconds=5)) == 1
            assert total(await backplane.disconnect(user="ada", confirm_seconds=5)) == 1
            await streaming
    assert b"data: note" in bytes(body)


# --- a limit of a user's connections ---


@pytest.mark.parametrize("cluster_mode", [False, "observer"])
async def test_a_limit_for_all_workers_needs_them_to_know_each_other(cluster_mode: Any, served: Served) -> None:
    """Otherwise it is refused where it is given."""
    limits = Limits(max_connections_per_user=1)
    with pytest.raises(ConfigurationError, match="needs Backplane"):
        Backplane("memory://", cluster=cluster_mode, limits=limits)
    async with Backplane("memory://", cluster=cluster_mode) as backplane:
        client = served.begin(backplane, None, client_key="ada", limits=limits)
        await served.ended(client)
        assert len(served.errors) == 1
        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        with pytest.raises(ConfigurationError, match="needs Backplane"):
            backplane.sse(Request(scope), "a", limits=limits)


async def test_a_limit_for_all_workers(ipc_url: str, served: Served) -> None:
    """One more connection is refused with 429, on any worker; it is free again when one ends."""
    limits = Limits(max_connections_per_user=2)
    first, second = worker(ipc_url), worker(ipc_url)
    async with cluster(first, second):
        one = await served.open(first, limits=limits)
        await served.open(second, None, client_key="ada", limits=limits)
        refused = served.begin(first, limits=limits)
        await served.ended(refused)
        [error] = served.errors
        assert "a user may have 2 connections" in str(error.__cause__ or error)
        assert first.statistics().refused_connections == 1
        await served.open(first, "bob", limits=limits)
        await served.open(first, None, limits=limits)
        await first.disconnect(connection=connection_of(one))
        await served.ended(one)
        await served.open(second, limits=limits)


def test_a_limit_over_http() -> None:
    """A WebSocket and an event stream over the limit get the status 429."""
    backplane = worker(limits=Limits(max_connections_per_user=1))
    with TestClient(stream_app(backplane)) as client, client.websocket_connect("/ws"):
        assert client.get("/events").status_code == 429
        with pytest.raises(Exception) as denied, client.websocket_connect("/ws"):  # noqa: PT011
            pass
        assert getattr(denied.value, "status_code", None) == 429


# --- surveys ---


async def test_a_survey(ipc_url: str) -> None:
    """Each worker answers the question; a worker that hangs has answered that before the time is up."""
    first, second = worker(ipc_url), worker(ipc_url)

    @first.on_survey("load")
    def answer(question: Any) -> Any:
        return [question, 1]

    @second.on_survey("load")
    async def hang(_: Any) -> None:
        await asyncio.Event().wait()

    _ = answer, hang
    async with cluster(first, second):
        answers = await first.survey("load", {"q": 1}, timeout_seconds=2)
        assert list(answers.by_worker.values()) == [[{"q": 1}, 1]]
        assert list(answers.errors.values()) == ["the handler took longer than 1.8 s"]
        assert answers.missing == []
        with pytest.raises(InvalidDataError):
            await first.survey("load", object())
        with pytest.raises(ConfigurationError):
            await first.survey("load", timeout_seconds=float("inf"))
    with pytest.raises(ConfigurationError, match="has a handler already"):
        first.on_survey("load")(print)


async def test_a_lost_link() -> None:
    """A survey, and a command that is to be confirmed, raise when their time is up, and not a second later."""
    adapter = Adapter()
    async with Backplane(adapter, cluster=True, settings=SETTINGS) as backplane:
        adapter.start_gate.close()
        adapter.cut()
        await backplane.wait_for_state("degraded")
        began = asyncio.get_running_loop().time()
        with pytest.raises(PublishOutcomeUnknownError):
            await backplane.survey("load", timeout_seconds=0.05)
        with pytest.raises(PublishOutcomeUnknownError):
            await backplane.disconnect(user="ada", confirm_seconds=0.05)
        assert asyncio.get_running_loop().time() - began < 5
        adapter.start_gate.open()
        await backplane.wait_for_state("live")


async def test_a_stop_while_a_survey_waits() -> None:
    """It returns with the answers there are, long before its time is up."""
    backplane = worker()
    goes_on = asyncio.Event()

    @backplane.on_survey("load")
    async def hang(_: Any) -> None:
        goes_on.set()
        await asyncio.Event().wait()

    _ = hang
    async with backplane:
        asking = asyncio.create_task(backplane.survey("load", timeout_seconds=60))
        await goes_on.wait()
    async with asyncio.timeout(WAIT_SECONDS):
        answers = await asking
    assert (answers.complete, len(answers.missing)) == (False, 1)


NEEDS_CLUSTER: list[Callable[[Backplane], Any]] = [
    lambda backplane: backplane.survey("load"),
    lambda backplane: backplane.workers(),
    lambda backplane: backplane.count_connections(user="ada"),
    lambda backplane: backplane.disconnect(user="ada", confirm_seconds=1),
    lambda backplane: backplane.leave(user="ada", channel="a", confirm_seconds=1),
    lambda backplane: backplane.join(user="ada", channel="a", confirm_seconds=1),
    lambda backplane: backplane.send_to(user="ada", data="x", confirm_seconds=1),
    lambda backplane: backplane.disconnect(user="ada", older_than="0" * 16),
]


@pytest.mark.parametrize("use", NEEDS_CLUSTER)
async def test_what_needs_the_workers_to_know_each_other(use: Callable[[Backplane], Any]) -> None:
    """It is refused, with the remedy."""
    async with Backplane("memory://") as backplane:
        with pytest.raises(ConfigurationError, match=r"pass Backplane\(cluster=True\)"):
            await use(backplane)


# --- what others publish on the reserved channels ---

WORKER = "0123456789abcdef"
PARTS: list[Any] = [
    *(None, True, False, 0, -1, 1, 1.5, 1e308, 10**30, "", "x", "\ud800", "é" * 300, WORKER, "room:1"),
    *(
        [],
        {},
        [[]],
        {"x": 1},
        {WORKER: 1},
        {WORKER: [1, {}, 0]},
        {"user": "ada"},
        {"user": True},
        [WORKER],
        ["x"] * 300,
    ),
    *("$backplane/control", f"$backplane/worker/{WORKER}", {"code": True, "reason": None}, {"most": 10**30}),
]
KINDS = ["command", "answer", "beat", "bye", "delta", "snap", "beacon", "ask", "view", "unknown", 5, None]
COMMANDS = ["disconnect", "leave", "join", "send", "count", "survey", "others", "unknown"]


def hostile_texts(chance: random.Random, count: int) -> list[str]:
    """Return texts that are almost what workers send each other."""
    texts = ["", "[]", "{}", "null", "[" * 50_000, '["beat"', "9" * 5_000, '["command"]', "x" * 1_000_000]
    for _ in range(count):
        parts = [chance.choice(KINDS), *(chance.choice(PARTS) for _ in range(chance.randint(0, 8)))]
        if parts[0] == "command" and chance.random() < 0.8:
            selector, arguments = chance.choice(PARTS), chance.choice(PARTS)
            reply_to = chance.choice([None, f"$backplane/worker/{WORKER}", *PARTS])
            moment = chance.choice([time.time(), float("nan"), *PARTS])
            parts = ["command", str(chance.random()), chance.choice(COMMANDS), selector, arguments, reply_to, moment]
        texts.append(json.dumps(parts))
    return texts


@pytest.mark.parametrize("seed", range(5))
async def test_hostile_texts_on_every_reserved_channel(
    served: Served, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it is an error of this worker, goes to a channel of the application, or stops what works."""
    chance = random.Random(seed)
    backplane = worker(presence={"room:*": Presence()})
    async with cluster(backplane), backplane.subscribe("x", "room:1") as messages:
        runtime = backplane._runtime  # pyright: ignore[reportPrivateUsage]
        assert runtime is not None
        client = await served.open(backplane, "bob", "room:1")
        async with backplane.watch("room:1") as presence:
            await anext(presence)
            topics = [WORKERS, CONTROL, inbox_of(runtime.origin.hex()), presence_of("room:1")]
            assert set(topics) <= set(runtime.hub.channels)
            for topic in topics:
                for text in hostile_texts(chance, 300):
                    runtime.hub.deliver(topic, text.encode(errors="surrogatepass"))
                await until_idle()
            async with asyncio.timeout(WAIT_SECONDS):
                answers = await backplane.count_connections(user="bob", timeout_seconds=5)
                assert answers.by_worker[Worker(id=runtime.origin.hex())] == 1
                await backplane.send_to(user="bob", data="still there")
                assert await client.receives() == "still there"
            assert "bob" in (await backplane.present("room:1")).users
        assert backplane.statistics().cluster_rejected > 100
        await backplane.publish("x", "last")
        message = await anext(messages)
        assert getattr(message, "data", None) == "last"
    assert warnings_of(caplog, logging.ERROR) == []
    assert len(warnings_of(caplog)) < 40
