"""What it costs to count: the same hub, and the same clients on the direct lane, with and without counters and lag.

The two take turns over the same objects, message by message: nothing but the counting differs. A publish cannot be had
without, so what it counts is measured by itself.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from time import perf_counter, process_time_ns, time
from typing import TYPE_CHECKING, Final

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from backplane import Backplane, Limits
from backplane.fanout.broker_subscriptions import BrokerSubscriptions
from backplane.fanout.channel_subscribers import ChannelSubscribers
from backplane.fanout.codec import encode
from backplane.fanout.hub import Hub
from backplane.fanout.traffic import Traffic
from backplane.statistics import Counters
from benchmarks.micro.asgi import open_client
from benchmarks.micro.fanout import interleaved_over_sockets
from benchmarks.micro.figure import Figure, interleaved

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine

    from starlette.websockets import WebSocket

    from backplane.fanout.batch import Batch
    from backplane.message import Gap, Joined

__all__ = ["hub", "lane", "publish"]

_DATA: Final = "x" * 128
_FRAME_BYTES: Final = 4 + len(_DATA)
_ORIGIN: Final = os.urandom(8)
_IN_A_ROW: Final = 100
_QUIET_SECONDS: Final = 3_600  # no ping is among what is measured
_WITHOUT: Final = "floor: not counted"
_WITH: Final = "counted, with lag"


class _Idle:
    """The least a `backplane.fanout.delivery.Subscriber` can be."""

    token = b""

    def offer(self, batch: Batch, /) -> None:
        """Do nothing."""

    def gap(self, gap: Gap, /) -> None:
        """Do nothing."""

    def joined(self, joined: Joined, /) -> None:
        """Do nothing."""

    def offer_missed(self, batch: Batch, /) -> None:
        """Do nothing."""


def hub(subscribers: int, rounds: int, messages: int) -> list[Figure]:
    """Return what the hub alone takes for a message, of which `messages` arrive in one pass of the event loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_hub(subscribers, rounds, messages))


def lane(count: int, rounds: int) -> list[Figure]:
    """Return the figures per delivery of one message to `count` clients on the direct lane."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_lane(count, rounds))


def publish(rounds: int) -> list[Figure]:
    """Return what a publish takes to count itself."""
    counters = Counters()

    def count() -> None:
        began_at = perf_counter()
        counters.published += 1
        counters.published_bytes += 150
        counters.publish_seconds.observe(perf_counter() - began_at)

    return interleaved({"floor: nothing": lambda: None, "what a publish counts": count}, rounds, 2_000)


async def _hub(subscribers: int, rounds: int, messages: int) -> list[Figure]:
    measured = Hub(BrokerSubscriptions(linger_seconds=1.0, timeout_seconds=1.0), most_rest_seconds=0.0)
    counting = measured.traffic = Traffic(_ORIGIN)
    room = ChannelSubscribers(counting, counting.groups.rest)
    room |= {_Idle(): 1 for _ in range(subscribers)}
    measured._subscribers["room"] = room  # pyright: ignore[reportPrivateUsage]
    figures = {name: Figure(name) for name in (_WITHOUT, _WITH)}
    passes = max(1, _IN_A_ROW // messages)
    for _ in range(rounds):
        for name in (_WITHOUT, _WITH):
            room.is_counted = name == _WITH
            payload = encode(_DATA, origin=_ORIGIN, published_at=time())
            started = process_time_ns()
            for _ in range(passes):
                await _deliver(measured, payload, messages)
            figures[name].microseconds.append((process_time_ns() - started) / 1000 / (passes * messages))
    if counting.received != rounds * passes * messages or counting.offered != counting.received * subscribers:
        raise AssertionError("not each message was counted once")
    return list(figures.values())


async def _deliver(measured: Hub, payload: bytes, messages: int) -> None:
    for _ in range(messages):
        measured.deliver("room", payload)
    await asyncio.sleep(0)
    while measured.under_way:  # noqa: ASYNC110  # the fan-out is cut in slices
        await asyncio.sleep(0)


async def _lane(count: int, rounds: int) -> list[Figure]:
    backplane = Backplane("memory://", limits=Limits(heartbeat_seconds=_QUIET_SECONDS))
    clients: list[socket.socket] = []

    async def hand_over(websocket: WebSocket) -> None:
        await backplane.hand_over(websocket, "room")

    def empty() -> None:
        if {len(client.recv(65536)) for client in clients} != {_FRAME_BYTES}:
            raise AssertionError("a client did not get the message once")

    config = uvicorn.Config(
        Starlette(routes=[WebSocketRoute("/", hand_over)]),
        ws="backplane.server.uvicorn:DirectLaneProtocol",
        ws_per_message_deflate=False,
        log_config=None,
        lifespan="off",
    )
    config.load()
    async with backplane:
        running = backplane._runtime  # pyright: ignore[reportPrivateUsage]
        assert running is not None
        measured = running.hub
        measured._most_rest_seconds = 0.0  # pyright: ignore[reportPrivateUsage]

        async def deliver(is_counted: bool) -> None:
            measured.channels["room"].is_counted = is_counted
            await _deliver(measured, encode(_DATA, origin=_ORIGIN, published_at=time()), 1)

        candidates: dict[str, Callable[[], Coroutine[None, None, None]]] = {
            _WITHOUT: partial(deliver, False),
            _WITH: partial(deliver, True),
        }
        try:
            clients += [await open_client(config) for _ in range(count)]
            while running.clients.handed_over < count:  # noqa: ASYNC110  # nothing else runs here
                await asyncio.sleep(0)
            for client in clients:
                assert client.recv(4096).startswith(b"HTTP/1.1 101")
            return await interleaved_over_sockets(candidates, rounds, count, empty)
        finally:
            for client in clients:
                client.close()
