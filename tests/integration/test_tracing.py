"""Tracing with real workers: processes on brokers, a server with WebSockets, OpenTelemetry's own instrumentation."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware  # pyright: ignore[reportMissingTypeStubs]
from starlette.websockets import WebSocket  # noqa: TC002  # FastAPI reads it
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import connect

from backplane import Backplane, Connection
from backplane.broker.registry import broadcaster_from_url
from backplane.centrifugal.endpoint import Centrifugal, ConnectRequest
from backplane.server.uvicorn import DirectLaneProtocol
from backplane.sync import SyncBackplane
from backplane.testing import RecordingSink
from backplane.tracing import Tracing
from tests.exported_spans import Exported, context_of, parent_id
from tests.server_in_loop import serving_in_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from opentelemetry.sdk.trace import ReadableSpan

    from tests.server_in_loop import ServerInLoop

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested does not depend on it."""
    return "asyncio", {"use_uvloop": True}


WAIT_SECONDS = 60.0
WAYS = {"lane": DirectLaneProtocol, "plain": WebSocketsSansIOProtocol}
EXCLUDED: Any = ["receive", "send"]

WORKER = """
import asyncio, json, sys
from backplane import Backplane
from backplane.tracing import Tracing
from tests.exported_spans import Exported

exported = Exported()
tracing = Tracing(exported.provider)

async def main():
    async with Backplane(sys.argv[1], tracing=tracing) as backplane, backplane.subscribe("orders:1") as messages:
        print("joined", flush=True)
        async for message in messages:
            if message.data == "end":
                break
            with tracing.consume(message):
                pass
            print("consumed", flush=True)
    for span in exported.spans:
        print(json.dumps([span.name, span.context.trace_id, span.context.span_id, span.parent and span.parent.span_id]))

asyncio.run(main())
"""


@pytest.fixture(params=["ipc", "redis", "nats", "kafka"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """The URL of each broker that connects processes, in turn."""
    if request.param == "ipc":
        return str(request.getfixturevalue("ipc_url"))
    return str(request.getfixturevalue(f"{request.param}_broker").own_url)


@asynccontextmanager
async def worker(url: str) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Run a worker in a process of its own, entered when it has subscribed."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", WORKER, url, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            assert await process.stdout.readline() == b"joined\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def has_consumed(process: asyncio.subprocess.Process) -> None:
    """Wait until a worker has consumed a message: what others publish has no order with it."""
    assert process.stdout is not None
    async with asyncio.timeout(WAIT_SECONDS):
        assert await process.stdout.readline() == b"consumed\n"


async def spans_of(process: asyncio.subprocess.Process) -> list[list[Any]]:
    """Return the name, trace, id and parent of each span of a worker that has got its last message."""
    async with asyncio.timeout(WAIT_SECONDS):
        printed, _ = await process.communicate()
    return [json.loads(line) for line in printed.splitlines() if line != b"consumed"]


async def test_two_workers_share_a_trace(broker_url: str) -> None:
    """Two real workers deliver one publish: their spans are in the trace of its caller, and children of it."""
    exported, unsampled = Exported(), Exported(sampled=False)
    async with (
        worker(broker_url) as one,
        worker(broker_url) as two,
        Backplane(broker_url, tracing=Tracing(exported.provider)) as backplane,
        Backplane(broker_url, tracing=Tracing(unsampled.provider)) as silent,
    ):
        with exported.tracer.start_as_current_span("POST /orders"):
            await backplane.publish("orders:1", "paid")
        for process in (one, two):
            await has_consumed(process)
        await silent.publish("orders:1", "end")
        found = [await spans_of(process) for process in (one, two)]
    request, send = context_of(exported.named("POST /orders")), context_of(exported.named("send"))
    for spans in found:
        assert sorted(name for name, *_ in spans) == ["deliver", "process"]
        assert {(trace, parent) for _, trace, _, parent in spans} == {(request.trace_id, send.span_id)}
    assert len({span for spans in found for _, _, span, _ in spans}) == 4


async def test_unsampled_is_no_byte_and_no_span(broker_url: str) -> None:
    """What is not sampled is on the broker as without tracing, and no worker makes a span of it."""
    unsampled, sink = Exported(sampled=False), RecordingSink()
    adapter = broadcaster_from_url(broker_url)
    async with (
        worker(broker_url) as one,
        Backplane(broker_url, tracing=Tracing(unsampled.provider)) as silent,
        Backplane(broker_url) as plain,
    ):
        await adapter.start(sink)
        await adapter.subscribe(["orders:1"])
        await silent.publish("orders:1", "paid")
        await plain.publish("orders:1", "paid")
        await silent.publish("orders:1", "end")
        await sink.until(lambda: len(sink.delivered) == 3)
        await adapter.stop()
        assert await spans_of(one) == []
    first, second = (bytearray(payload) for payload in sink.payloads("orders:1")[:2])
    first[5:21] = second[5:21]  # the origin and the time differ
    assert (first, first[3], unsampled.spans) == (second, 1, [])


async def test_a_task_queue_takes_part(ipc_url: str) -> None:
    """`SyncBackplane(tracing=...)` publishes in the trace of its caller, by a thread of its own."""
    exported = Exported()
    async with worker(ipc_url) as one:

        def task() -> None:
            tracing = Tracing(exported.provider)
            with SyncBackplane(ipc_url, tracing=tracing) as backplane, exported.tracer.start_as_current_span("task"):
                backplane.publish("orders:1", "paid")
                backplane.publish("orders:1", "end")

        await asyncio.to_thread(task)
        found = await spans_of(one)
    task_span = context_of(exported.named("task"))
    sends = {context_of(span).span_id for span in exported.spans if span.name == "send"}
    assert {parent_id(span) for span in exported.spans if span.name == "send"} == {task_span.span_id}
    assert {(trace, parent in sends) for _, trace, _, parent in found} == {(task_span.trace_id, True)}


async def test_a_shell_takes_part(ipc_url: str) -> None:
    """`backplane publish --traceparent` publishes in the trace of a job; the worker's span is a child of its span."""
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with worker(ipc_url) as one:
        for arguments in (["paid", "--traceparent", f"00-{trace}-{span}-01"], ["end"]):
            command = [sys.executable, "-m", "backplane.cli", "publish", ipc_url, "orders:1", *arguments]
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
            assert await process.wait() == 0
            if "end" not in arguments:
                await has_consumed(one)
        found = await spans_of(one)
    assert {(trace_id, parent) for _, trace_id, _, parent in found} == {(int(trace, 16), int(span, 16))}


# --- handlers of WebSockets -------------------------------------------------------------------------------------------


def permitted(_connection: Connection, _action: str, _channel: str) -> bool:
    """Let every client publish."""
    return True


def accepted(_connection: Connection, _request: ConnectRequest) -> None:
    """Accept every client, without a token."""


class Site:
    """An application whose handlers publish, below OpenTelemetry's middleware.

    Attributes:
        exported: Its spans.
    """

    def __init__(self) -> None:
        self.exported = Exported()
        self.backplane = Backplane("memory://", tracing=Tracing(self.exported.provider))
        self.centrifugal = Centrifugal(self.backplane)
        self.centrifugal.permit(permitted)
        self.centrifugal.on_connect(accepted)
        self.centrifugal.rpc("order")(self.order)
        app = FastAPI(lifespan=self.backplane.lifespan)
        app.add_api_websocket_route("/connect", self.connected)
        app.add_api_websocket_route("/hand-over", self.handed_over)
        app.add_api_websocket_route("/sdk", self.sdk)
        app.add_api_route("/publish", self.publish, methods=["POST"])
        app.add_api_route("/stream", self.stream)
        self.app = OpenTelemetryMiddleware(app, tracer_provider=self.exported.provider, exclude_spans=EXCLUDED)

    async def connected(self, websocket: WebSocket) -> None:
        """Publish what a client sends: as it is, and within a span for one message."""
        async with self.backplane.connect(websocket) as connection:
            async for message in connection:
                await self.received(connection, message)

    async def handed_over(self, websocket: WebSocket) -> None:
        """Do the same without a task."""
        await self.backplane.hand_over(websocket, on_message=self.received)

    async def received(self, connection: Connection, message: str | bytes) -> None:
        """Publish a message of a client."""
        if message == "within a span":
            with self.exported.tracer.start_as_current_span("message"):
                await self.backplane.publish("orders", message)
        else:
            await self.backplane.publish("orders", message)
        await connection.send("done")

    async def sdk(self, websocket: WebSocket) -> None:
        """Serve a client of an SDK."""
        await self.centrifugal.serve(websocket)

    async def order(self, _: Connection, number: int) -> int:
        """Answer an RPC, and publish."""
        await self.backplane.publish("orders", str(number))
        return number

    async def publish(self) -> None:
        """Publish within an ordinary request."""
        await self.backplane.publish("orders", "x")

    async def stream(self, request: Request) -> Response:
        """Answer with an event stream, and publish in its Context, as what belongs to the stream does."""
        response = self.backplane.sse(request, "orders")
        await self.backplane.publish("orders", "x")
        return response

    async def ended(self, count: int) -> list[ReadableSpan]:
        """Return the spans of publishes, once there are so many."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(found := [span for span in self.exported.spans if span.name == "send"]) < count:
                await asyncio.sleep(0.001)
        return found


@asynccontextmanager
async def serving(way: str) -> AsyncGenerator[tuple[Site, ServerInLoop]]:
    """Serve the application, with the lane or without."""
    site = Site()
    async with serving_in_loop(site.app, ws=WAYS[way]) as server:
        yield site, server


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", ["connect", "hand-over"])
async def test_a_publish_within_a_handler_is_a_trace_of_its_own(way: str, path: str) -> None:
    """It is linked to the handler's span; within a span of the application it is a child of that."""
    async with serving(way) as (site, server):
        async with connect(f"{server.ws_url}/{path}") as client:
            for sent in ("one", "two", "within a span"):
                await client.send(sent)
                assert await client.recv() == "done"
        one, two, within = await site.ended(3)
        handler = await of_the_handler(site, f"/{path}")
    for span in (one, two):
        assert span.parent is None
        assert [link.context.span_id for link in span.links] == [context_of(handler).span_id]
    assert len({context_of(span).trace_id for span in (one, two, handler)}) == 3
    message = site.exported.named("message")
    assert (parent_id(within), within.links) == (context_of(message).span_id, ())


@pytest.mark.parametrize("way", WAYS)
async def test_publishes_of_sdk_clients(way: str) -> None:
    """A publish of an SDK client, and one within an RPC, is a trace of its own, linked to the handler's span."""
    async with serving(way) as (site, server):
        async with connect(f"{server.ws_url}/sdk") as client:
            for command in (
                '{"id": 1, "connect": {}}',
                '{"id": 2, "publish": {"channel": "orders", "data": {}}}',
                '{"id": 3, "rpc": {"method": "order", "data": 7}}',
            ):
                await client.send(command)
                assert json.loads(await client.recv())["id"] == json.loads(command)["id"]
        spans = await site.ended(2)
        handler = await of_the_handler(site, "/sdk")
    assert [(span.parent, [link.context.span_id for link in span.links]) for span in spans] == [
        (None, [context_of(handler).span_id])
    ] * 2


async def test_a_publish_within_a_request_is_a_child_of_it() -> None:
    """An ordinary request is short: a publish within it is in its trace. A stream is not, and is as a socket."""
    async with serving("plain") as (site, server), httpx.AsyncClient() as http:
        assert (await http.post(f"{server.http_url}/publish")).status_code == 200
        async with http.stream("GET", f"{server.http_url}/stream") as stream:
            await anext(stream.aiter_lines())
        request, stream_span = await site.ended(2)
        post = await of_the_handler(site, "POST")
    assert (parent_id(request), request.links) == (context_of(post).span_id, ())
    assert (stream_span.parent, len(stream_span.links)) == (None, 1)


async def of_the_handler(site: Site, name: str) -> ReadableSpan:
    """Return the server's span, once it has ended."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            found = [span for span in site.exported.spans if span.kind.name == "SERVER" and name in span.name]
            if found:
                return found[0]
            await asyncio.sleep(0.001)


# --- one span for each send: the instrumentation of FastAPI -----------------------------------------------------------


def instrumented(app: FastAPI, exported: Exported, **options: Any) -> None:
    """Instrument an application as its users do."""
    pytest.importorskip("opentelemetry.instrumentation.fastapi")
    instrumentor = import_module("opentelemetry.instrumentation.fastapi").FastAPIInstrumentor
    instrumentor.instrument_app(app, tracer_provider=exported.provider, **options)


@pytest.mark.parametrize(
    ("way", "options", "spans_of_sends"),
    [
        ("plain", {}, 20),
        ("plain", {"exclude_spans": ["receive", "send"]}, 0),
        ("lane", {}, 0),
    ],
)
async def test_spans_of_a_broadcast(way: str, options: dict[str, Any], spans_of_sends: int) -> None:
    """A broadcast to 20 sockets is two spans of ours. The instrumentation adds one for each, without its option."""
    exported = Exported()
    backplane = Backplane("memory://", tracing=Tracing(exported.provider))
    app = FastAPI(lifespan=backplane.lifespan)

    async def handle(websocket: WebSocket) -> None:
        await backplane.hand_over(websocket, "room")

    app.add_api_websocket_route("/", handle)
    instrumented(app, exported, **options)
    async with serving_in_loop(app, ws=WAYS[way]) as server:
        clients = [await connect(server.ws_url) for _ in range(20)]
        before = len(exported.spans)
        await backplane.publish("room", "hello")
        assert [await client.recv() for client in clients] == ["hello"] * 20
        made = [span.name for span in exported.spans[before:]]
        await asyncio.gather(*(client.close() for client in clients))
    assert sorted(name for name in made if name in ("send", "deliver")) == ["deliver", "send"]
    assert len(made) - 2 == spans_of_sends
