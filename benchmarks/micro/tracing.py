"""Tracing: what a publish and its delivery cost with it, and what OpenTelemetry's instrumentation costs plain ASGI.

The SDK is the real one, with an exporter that drops what it is given.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Literal

import uvicorn
import uvloop
from fastapi import FastAPI, WebSocket
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from backplane import Backplane
from backplane.tracing import Tracing
from benchmarks.micro.asgi import open_client
from benchmarks.micro.fanout import interleaved_over_sockets

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.sampling import Sampler

    from benchmarks.micro.figure import Figure

__all__ = ["run_instrumented", "run_publishes"]

_DATA = "x" * 128
_FRAME = b"\x81\x7e\x00\x80" + _DATA.encode()
_PUBLISHES = 500

_Instrumented = Literal["none", "excluded", "default"]


class _Dropping(SpanExporter):
    def __init__(self) -> None:
        self.count = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.count += len(spans)
        return SpanExportResult.SUCCESS


def _provider(sampler: Sampler) -> tuple[TracerProvider, _Dropping]:
    provider, exporter = TracerProvider(sampler=sampler), _Dropping()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def run_publishes(rounds: int) -> list[Figure]:
    """Return the figures of a publish on `memory://` that one subscriber receives; the floor has no tracing."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure_publishes(rounds))


async def _measure_publishes(rounds: int) -> list[Figure]:
    tracings = {
        "floor: without tracing": None,
        "not sampled": Tracing(_provider(ALWAYS_OFF)[0]),
        "sampled, no span of a delivery": Tracing(_provider(ALWAYS_ON)[0], max_spans_per_second=1e-9),
        "sampled, a span for each publish and each delivery": Tracing(
            _provider(ALWAYS_ON)[0], max_spans_per_second=1e9
        ),
    }
    async with AsyncExitStack() as stack:
        candidates: dict[str, Callable[[], Coroutine[None, None, None]]] = {}
        for number, (name, tracing) in enumerate(tracings.items()):
            backplane = await stack.enter_async_context(Backplane(f"memory://bus{number}", tracing=tracing))
            messages = await stack.enter_async_context(backplane.subscribe("room"))

            async def publish(backplane: Backplane = backplane, messages: Any = messages) -> None:
                for _ in range(_PUBLISHES):
                    await backplane.publish("room", _DATA)
                    await anext(messages)

            candidates[name] = publish
        return await interleaved_over_sockets(candidates, rounds, _PUBLISHES, lambda: None)


def run_instrumented(count: int, rounds: int) -> list[Figure]:
    """Return the figures per delivery by plain ASGI to `count` clients; the floor has no instrumentation."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure_instrumented(count, rounds))


async def _measure_instrumented(count: int, rounds: int) -> list[Figure]:
    kinds: dict[str, _Instrumented] = {
        "floor: FastAPI without instrumentation": "none",
        'exclude_spans=["receive", "send"]': "excluded",
        "as instrument_app(app) makes it": "default",
    }
    passes = 4 + count // 50
    every: list[socket.socket] = []
    expected: list[socket.socket] = []
    async with AsyncExitStack() as stack:
        candidates: dict[str, Callable[[], Coroutine[None, None, None]]] = {}
        for name, kind in kinds.items():
            backplane = await stack.enter_async_context(Backplane(f"memory://{kind}"))
            exporter, clients = await _serve(backplane, kind, count)
            every += clients

            async def publish(backplane: Backplane = backplane, clients: list[socket.socket] = clients) -> None:
                expected[:] = clients
                await backplane.publish("room", _DATA)
                for _ in range(passes):
                    await asyncio.sleep(0)

            before = exporter.count
            await publish()
            await asyncio.sleep(0)
            _empty(expected)
            spans = (exporter.count - before) / count
            candidates[f"{name} ({spans:g} spans a delivery)"] = publish
        try:
            return await interleaved_over_sockets(candidates, rounds, count, lambda: _empty(expected))
        finally:
            for client in every:
                client.close()


async def _serve(backplane: Backplane, kind: _Instrumented, count: int) -> tuple[_Dropping, list[socket.socket]]:
    """Return the clients of an application."""
    app, joined = FastAPI(), 0
    provider, exporter = _provider(ALWAYS_ON)

    @app.websocket("/")
    async def handle(websocket: WebSocket) -> None:
        nonlocal joined
        async with backplane.connect(websocket, "room") as connection:
            joined += 1
            async for _ in connection:
                pass

    if kind != "none":
        excluded: Any = ["receive", "send"] if kind == "excluded" else None
        FastAPIInstrumentor.instrument_app(app, tracer_provider=provider, exclude_spans=excluded)
    config = uvicorn.Config(
        app,
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        log_config=None,
        lifespan="off",
    )
    config.load()
    clients = [await open_client(config) for _ in range(count)]
    while joined < count:  # noqa: ASYNC110  # nothing else runs here
        await asyncio.sleep(0)
    for client in clients:
        assert client.recv(4096).startswith(b"HTTP/1.1 101")
    return exporter, clients


def _empty(clients: list[socket.socket]) -> None:
    for client in clients:
        if client.recv(65536) != _FRAME:
            raise AssertionError("a client did not get the message once")
