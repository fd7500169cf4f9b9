"""The recorded answers of the reference server to what is not allowed and to what runs out, in both encodings.

`transcripts/raw-*.txt` are recorded in JSON; in Protobuf the same commands must have the same answers. What differs on
purpose is in `DIFFERENT`.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from fastapi import FastAPI
from starlette.websockets import WebSocket  # noqa: TC002  # FastAPI reads it
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

import backplane.centrifugal.client as client_module
from backplane import Backplane, Connection, History, JoinRefusedError, Presence
from backplane.centrifugal import Accepted, Centrifugal, ConnectRequest, expiry
from backplane.server.uvicorn import DirectLaneProtocol
from tests.centrifugal_wire import ENCODINGS, EncodingName, frame_of, replies_in
from tests.integration.test_centrifugal import SimpleTokens
from tests.server_in_loop import serving_in_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0
RECORDED: Final = Path(__file__).parent / "transcripts"
NOT_COMPARED: Final = {"client", "version", "info"}
"""Ids, the version that an application states, and the publisher of a publication, which is not offered here."""

SUBSCRIBED: Final = {"recoverable": True, "positioned": True, "epoch": "an epoch"}
DIFFERENT: Final[dict[str, list[Any]]] = {
    # Each channel has positions, also one without a history: a client that comes back must learn that it missed some.
    "subscribe twice": [
        {"id": 2, "subscribe": SUBSCRIBED},
        {"id": 3, "error": {"code": 105, "message": "already subscribed"}},
    ],
    "the subscription's token is not refreshed": [
        {"id": 2, "subscribe": {**SUBSCRIBED, "expires": True, "ttl": "some"}},
        {"push": {"channel": "token:1", "unsubscribe": {"code": 2501, "reason": "subscription expired"}}},
    ],
    # The client can go on; after a close with 1009 centrifuge-js would stay away.
    "more than 64 KiB": [{"id": 2, "error": {"code": 107, "message": "bad request"}}],
}
"""By section, what is answered after the connect in place of what is recorded."""


class Section(NamedTuple):
    """One section of a transcript: frames with their lines, and the close code and reason where it ends with them."""

    name: str
    frames: list[tuple[str, list[str]]]
    close: tuple[int, str] | None


def sections_of(name: str) -> list[Section]:
    """Read a transcript."""
    found: list[Section] = []
    for text in (RECORDED / f"raw-{name}.txt").read_text().split("\n## ")[1:]:
        title, *lines = text.splitlines()
        section = Section(title, [], None)
        for line in lines:
            if close := re.match(r"S< close (\d+) '(.*)'", line):
                section = section._replace(close=(int(close[1]), close[2]))
            elif line[:3] in ("C> ", "S< "):
                section.frames.append((line[0], [line[3:]]))
            elif line.startswith("   {"):
                section.frames[-1][1].append(line.strip())
        found.append(section)
    return found


VIOLATIONS: Final = sections_of("violations")
EXPIRIES: Final = sections_of("expiries")


class Site:
    """A served application with one endpoint, whose history is that of the reference server."""

    def __init__(self, url: str, backplane: Backplane) -> None:
        self.url = url
        self.backplane = backplane

    def client(self, encoding: EncodingName, section: str) -> connect:
        """Return a client that connects."""
        query = re.match(r"\?[^: ]+", section)
        path = "/fast" if section.startswith("no pong") else f"/ws{query[0] if query else ''}"
        is_named = encoding == "protobuf" and "cf_protocol" not in path
        subprotocols: Any = ["centrifuge-protobuf"] if is_named else None
        return connect(f"{self.url}{path}", subprotocols=subprotocols, proxy=None)

    async def offset(self, channel: str, number: int) -> int:
        """Return the offset of the publication with this number; beyond the last one, one that is never reached."""
        messages = (await self.backplane.history(channel)).messages
        position = messages[number - 1].position if number <= len(messages) else None
        return 2**53 - 1 if position is None or position.compact is None else position.compact


@pytest.fixture
async def site() -> AsyncGenerator[Site]:
    """An application with the rules of the recorded one."""
    backplane = Backplane("memory://", history={"rec:*": History(), "a": History()}, presence={"a": Presence()})
    ordinary = Centrifugal(backplane, tokens=SimpleTokens())
    fast = Centrifugal(backplane, tokens=SimpleTokens(), ping_seconds=1, pong_seconds=0.5)

    @ordinary.permit
    def permit(connection: Connection, action: str, channel: str) -> bool:
        return True

    @ordinary.on_connect
    def on_connect(connection: Connection, request: ConnectRequest) -> Accepted | None:
        if request.token == "refused":  # of a test
            raise JoinRefusedError("this one is refused")
        return None

    app = FastAPI(lifespan=backplane.lifespan)

    @app.websocket("/ws")
    async def endpoint(websocket: WebSocket) -> None:
        await ordinary.serve(websocket)

    @app.websocket("/fast")
    async def fast_endpoint(websocket: WebSocket) -> None:
        await fast.serve(websocket)

    async with serving_in_loop(app, ws=DirectLaneProtocol) as server:
        yield Site(server.ws_url, backplane)


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_violations(site: Site, encoding: EncodingName) -> None:
    """What is not allowed, and what is allowed though one may not expect it, has the recorded answers."""
    assert len(VIOLATIONS) == 27
    for section in VIOLATIONS:  # in their order: what one publishes is the history of the next one
        await play(site, section, encoding, expires_in=60)


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_expiries(site: Site, encoding: EncodingName, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs out ends as recorded: connections, subscriptions, the time for a connect and for a pong."""
    assert len(EXPIRIES) == 7
    monkeypatch.setattr(client_module, "_STALE_SECONDS", 2.0)
    monkeypatch.setattr(expiry, "_REFRESH_SECONDS", 0.0)
    await asyncio.gather(*(play(site, section, encoding, expires_in=1.2) for section in EXPIRIES))


async def play(site: Site, section: Section, encoding: EncodingName, *, expires_in: float) -> None:
    """Send what the client of a section sent, and compare what it receives."""
    expected: list[Any] = []
    received: list[Any] = []
    async with site.client(encoding, section.name) as client, asyncio.timeout(WAIT_SECONDS):
        for direction, lines in section.frames:
            if direction == "C":
                await client.send(await sent(site, section, encoding, lines, expires_in))
            elif lines[0].startswith("hex "):  # the answer in Protobuf is checked by its decoded form
                expected.append({"id": 1, "connect": {"data": {"hello": "a"}, "ping": 25, "pong": True}})
            else:
                expected += map(json.loads, lines)
            while direction == "S" and len(received) < len(expected):
                received += replies_in(await client.recv())
        if section.name in DIFFERENT:
            expected[1:] = DIFFERENT[section.name]
            while len(received) < len(expected):
                received += replies_in(await client.recv())
        if section.close is not None and section.name not in DIFFERENT:
            with suppress(ConnectionClosed):
                received += replies_in(await client.recv())
            assert (client.close_code, client.close_reason) == section.close, section.name
        else:
            await (await client.ping())  # it is still open, and receives nothing else
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await client.recv()
    assert comparable(received) == comparable(expected), section.name


async def sent(
    site: Site, section: Section, encoding: EncodingName, lines: list[str], expires_in: float
) -> str | bytes:
    """Return a frame of the client in this encoding; what no encoding can write is sent as it is."""
    moments = re.compile(r"\|\d{9,}")
    if lines[0].startswith("hex "):
        is_wrong = encoding == "protobuf" and section.close is not None  # it is a frame of the other encoding
        return '{"id":1,"connect":{"token":"ann"}}' if is_wrong else bytes.fromhex(lines[0][4:])
    if lines[0].endswith("66044 bytes"):
        lines = ['{"id":2,"publish":{"channel":"a","data":"%s"}}' % ("x" * 66_000)]  # braces
    try:
        commands = [json.loads(moments.sub(f"|{time.time() + expires_in}", line)) for line in lines]
    except ValueError:
        return lines[0] if encoding == "json" else lines[0].encode()
    for command in commands:
        for body in command.values():
            position = body if not isinstance(body, dict) else body.get("since", body)
            if isinstance(position, dict) and position.get("offset"):
                position["offset"] = await site.offset("rec:h", position["offset"])
    return frame_of(encoding, commands)


def comparable(replies: list[Any]) -> list[Any]:
    """Return replies in the order of their ids, with what differs from run to run replaced by what does not."""
    offsets = sorted({offset for reply in replies for offset in _offsets(reply)})
    found = [{name: _comparable(item, offsets, name) for name, item in reply.items()} for reply in replies]
    return sorted(found, key=lambda reply: reply.get("id", 99))


def _offsets(value: Any) -> list[int]:
    if isinstance(value, list):
        return [offset for item in value for offset in _offsets(item)]
    if not isinstance(value, dict):
        return []
    own = [value["offset"]] if value.get("offset") else []
    return own + [offset for item in value.values() for offset in _offsets(item)]


def _comparable(value: Any, offsets: list[int], name: str = "") -> Any:
    if name == "data":
        return value
    if name == "offset":
        return offsets.index(value) + 1 if value else None
    if name in ("epoch", "ttl", "ping"):
        return f"some {name}"
    if isinstance(value, list):
        return [_comparable(item, offsets) for item in value]
    if not isinstance(value, dict):
        return value
    items = {name: _comparable(item, offsets, name) for name, item in value.items() if name not in NOT_COMPARED}
    return {name: item for name, item in items.items() if item or name == "data"}
