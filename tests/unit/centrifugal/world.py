"""An endpoint over a `Backplane` on `memory://`, and clients of it whose frames a test writes and reads."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest
from starlette.websockets import WebSocket

from backplane import Backplane, Gap, History, Presence
from backplane.centrifugal.endpoint import Centrifugal
from backplane.centrifugal.protobuf import message_of
from backplane.centrifugal.schema import COMMAND
from backplane.centrifugal.tokens import ConnectClaims, SubscribeClaims
from backplane.errors import InvalidTokenError, TokenCheckUnavailableError, TokenExpiredError
from backplane.lane import EXTENSION
from backplane.presence.times import PresenceTimes
from backplane.worker import cluster
from tests.unit.doubles import Gate, until_idle
from tests.unit.kit import WAIT_SECONDS
from tests.unit.sockets import ClientLane, driver_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from starlette.types import Message as Event

    from backplane import Connection
    from backplane.centrifugal.endpoint import Accepted, ConnectRequest
    from tests.unit.sockets import FakeSocket

__all__ = ["ANN", "Sdk", "SimpleTokens", "Site", "error", "in_seconds", "push", "serving"]

ANN = "ann"

# A worker that is alone knows after 0.02 s which users are in a channel.
_BRISK = partial(PresenceTimes, flush=0.001, responder=0.01, everyone=0.01, spread=0.001)


def error(code: int, message: str, *, temporary: bool = False) -> dict[str, Any]:
    """Return a reply that is an error."""
    return {"error": {"code": code, "message": message} | ({"temporary": True} if temporary else {})}


def push(channel: str, name: str, body: object) -> dict[str, Any]:
    """Return a push."""
    return {"push": ({"channel": channel} if channel else {}) | {name: body}}


class SimpleTokens:
    """Tokens that anyone can read: `ann`, `ann|1795777458` with when it runs out, `none`, `old`, `unknown`.

    Attributes:
        claims: What the tokens of connects state beside that.
        granted: What the tokens of subscribes state.
        asked: What was asked for each token of a subscribe.
        gate: Holds what reads them.
    """

    def __init__(self) -> None:
        self.claims: dict[str, Any] = {}
        self.granted: dict[str, Any] = {}
        self.asked: list[dict[str, str]] = []
        self.gate = Gate()

    def connect(self, token: str, /) -> ConnectClaims:
        """Read the token of a connect."""
        user, expires_at = _read(token)
        claims: dict[str, Any] = {"user": user, "expires_at": expires_at} | self.claims
        return ConnectClaims(**claims)

    async def subscribe(self, token: str, /, **asked: str) -> SubscribeClaims:
        """Read the token of a subscribe."""
        self.asked.append(asked)
        await self.gate.passage()
        _, expires_at = _read(token)
        return SubscribeClaims(**{"expires_at": expires_at} | self.granted)


def _read(token: str) -> tuple[str, float | None]:
    errors: dict[str, Exception] = {
        "": InvalidTokenError("no token"),
        "none": InvalidTokenError("no token"),
        "old": TokenExpiredError("too old"),
        "unknown": TokenCheckUnavailableError("the keys cannot be fetched"),
    }
    if token in errors:
        raise errors[token]
    user, _, moment = token.partition("|")
    return user, float(moment) if moment else None


class Sdk:
    """One client, as a server shows it to the application.

    Args:
        query: The query of its URL.
        subprotocols: What it offers.
        has_lane: Whether its server has a direct lane: it is handed over then.

    Attributes:
        accepted: With which subprotocol it was accepted.
        lane: The direct lane.
        sending: How many frames were written to it.
        is_protobuf: It speaks Protobuf.
        reading: Holds what is sent to it, as a client that does not read.
        serving: The handler that serves it.
    """

    def __init__(self, query: str = "", subprotocols: tuple[str, ...] = (), *, has_lane: bool = False) -> None:
        self.accepted: list[str | None] = []
        self.lane = ClientLane(cast("FakeSocket", self)) if has_lane else None
        self.sending = 0
        self.is_protobuf = "protobuf" in f"{query}{subprotocols}"
        self.reading = Gate()
        self.serving: asyncio.Task[None] | None = None
        self._ids = 1
        self._sends: asyncio.Queue[Event] = asyncio.Queue()
        self._sends.put_nowait({"type": "websocket.connect"})
        self._received: asyncio.Queue[str | bytes | tuple[int, str]] = asyncio.Queue()
        scope: dict[str, Any] = {
            "type": "websocket",
            "path": "/",
            "query_string": query.encode(),
            "headers": [],
            "subprotocols": list(subprotocols),
            "extensions": {EXTENSION: self.lane} if has_lane else {},
        }
        self.websocket = WebSocket(scope, self._sends.get, self._take)
        self._lines: list[Any] = []

    async def _take(self, event: Event) -> None:
        kind = event["type"]
        if kind == "websocket.accept":
            self.accepted.append(event["subprotocol"])
        elif kind == "websocket.send":
            await self.reading.passage()
            self._received.put_nowait(event["text"] if "text" in event else event["bytes"])
        else:
            self._received.put_nowait((event["code"], event["reason"]))
            self.leave()

    def taken(self, *frames: str | bytes) -> None:
        """Take what was written to the lane."""
        for frame in frames:
            self._received.put_nowait(frame)

    def leave(self) -> None:
        """End the connection."""
        if self.lane is not None:
            self.lane.leave()
        self._sends.put_nowait({"type": "websocket.disconnect", "code": 1006})

    def write(self, frame: str | bytes) -> None:
        """Send a frame."""
        if self.lane is not None:
            return self.lane.arrive(frame)
        kind = "text" if isinstance(frame, str) else "bytes"
        self._sends.put_nowait({"type": "websocket.receive", kind: frame})

    def send(self, *commands: Mapping[str, Any]) -> None:
        """Send commands in one frame, those of Protobuf being shorter than 128 bytes."""
        if self.is_protobuf:
            messages = [message_of(COMMAND, command) for command in commands]
            self.write(b"".join(bytes([len(message)]) + message for message in messages))
        else:
            self.write("\n".join(map(json.dumps, commands)))

    async def frame(self) -> str | bytes:
        """Return the next frame."""
        async with asyncio.timeout(WAIT_SECONDS):
            frame = await self._received.get()
        assert not isinstance(frame, tuple), f"closed with {frame}"
        return frame

    async def next(self) -> Any:
        """Return the next reply or push; of Protobuf the frame."""
        if self.is_protobuf:
            return await self.frame()
        if not self._lines:
            self._lines += map(json.loads, str(await self.frame()).split("\n"))
        return self._lines.pop(0)

    async def ask(self, name: str, **body: Any) -> Any:
        """Send a command, and return what comes next: its reply, without the id."""
        self._ids += 1
        self.send({"id": self._ids, name: body})
        reply = await self.next()
        assert reply.pop("id", None) == self._ids, reply
        return reply

    async def subscribe(self, channel: str, **body: Any) -> Any:
        """Subscribe, and return the result."""
        return (await self.ask("subscribe", channel=channel, **body))["subscribe"]

    async def waiting(self) -> list[Any]:
        """Return what has come by now."""
        await until_idle()
        found: list[Any] = []
        while self._lines or not self._received.empty():
            found.append(await self.next())
        return found

    async def closed(self) -> tuple[int, str]:
        """Return with which code and reason the client is closed, whatever was sent before."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not isinstance(frame := await self._received.get(), tuple):
                pass
        return frame


class Site:
    """An application with one endpoint: `rec:*` has a history, `room:*` has presence, `*secret*` is for no client.

    Attributes:
        backplane: Its backplane.
        tokens: Its tokens.
        centrifugal: Its endpoint.
        accepted: What the hook answers to clients that connect.
        connections: Those of the clients that have connected.
        requests: What they sent for that.
        permitted: What clients may do, other than to subscribe.
        gate: Holds the joins, before it is decided about them.
        gates: By channel, what holds the joins of some channels in place of that.
        asked: How many joins have come to them.
    """

    def __init__(self, history: History, presence: Presence, *, has_tokens: bool, **options: Any) -> None:
        self.backplane = Backplane("memory://", history={"rec:*": history}, presence={"room:*": presence})
        self.backplane.authorize(self._authorize)
        self.tokens = SimpleTokens()
        self.centrifugal = Centrifugal(
            self.backplane, tokens=self.tokens if has_tokens else None, version="test", **options
        )
        self.permitted = {"publish", "presence", "history"}
        self.gate = Gate()
        self.gates: dict[str, Gate] = {}
        self.asked = 0
        self.accepted: Accepted | None = None
        self.connections: list[Connection] = []
        self.requests: list[ConnectRequest] = []
        self._clients: list[Sdk] = []
        self.centrifugal.on_connect(self._on_connect)

        @self.centrifugal.permit
        def permit(_: object, action: str, channel: str) -> bool:
            return action in self.permitted

    def _on_connect(self, connection: Connection, request: ConnectRequest) -> Accepted | None:
        self.connections.append(connection)
        self.requests.append(request)
        return self.accepted

    async def _authorize(self, _: object, channel: str) -> bool:
        self.asked += 1
        await self.gates.get(channel, self.gate).passage()
        return "secret" not in channel

    def opened(self, client: Sdk | None = None, **options: Any) -> Sdk:
        """Return a client that is served, and has sent nothing."""
        client = client or Sdk()
        client.serving = asyncio.create_task(self.centrifugal.serve(client.websocket, **options))
        self._clients.append(client)
        return client

    async def connected(self, token: str = ANN, client: Sdk | None = None, **options: Any) -> Sdk:
        """Return a client that has connected."""
        client = self.opened(client, **options)
        client.send({"id": 1, "connect": {"token": token}})
        reply = await client.next()
        assert client.is_protobuf or "connect" in reply, reply
        return client

    def gap(self, *channels: str) -> None:
        """Let messages of channels be lost on their way to this worker."""
        runtime = self.backplane._runtime  # pyright: ignore[reportPrivateUsage]
        assert runtime is not None
        for channel in channels:
            runtime.hub.gaps.notify(Gap(channel=channel, reason="of a test"))

    def ping(self) -> None:
        """Let the time pass at which the first client is pinged next, or must have answered."""
        driver = driver_of(self.connections[0])
        driver.check_timers(driver.timers.heartbeat_at)

    async def end(self) -> None:
        """End all clients, and wait for their handlers."""
        for client in self._clients:
            client.leave()
        async with asyncio.timeout(WAIT_SECONDS):
            await asyncio.gather(*(client.serving for client in self._clients if client.serving is not None))


@asynccontextmanager
async def serving(
    *, history: History | None = None, presence: Presence | None = None, has_tokens: bool = True, **options: Any
) -> AsyncGenerator[Site]:
    """Run an application; its clients are ended after the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "PresenceTimes", _BRISK)
        site = Site(history or History(), presence or Presence(grace_seconds=0), has_tokens=has_tokens, **options)
        async with site.backplane:
            yield site
            await site.end()


def in_seconds(seconds: float) -> float:
    """Return a moment, in seconds since the epoch."""
    return time.time() + seconds
