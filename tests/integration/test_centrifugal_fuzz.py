"""Damaged frames of the Centrifugal client protocol cost their own connection at most."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import psutil
import pytest
from websockets.exceptions import ConnectionClosed

from backplane.centrifugal.client import SdkClient
from tests.centrifugal_wire import ENCODINGS, EncodingName, frame_of, varint
from tests.integration.test_centrifugal import Site, connected, replies, serving
from tests.unit.centrifugal.recorded import RECORDED

if TYPE_CHECKING:
    from collections.abc import Callable

    from websockets.asyncio.client import ClientConnection

pytestmark = pytest.mark.anyio

ROUNDS: Final = [
    pytest.param("handed over", 60, id="60"),
    pytest.param("handed over", 4_000, id="4000", marks=pytest.mark.full),
    pytest.param("without a lane", 400, id="400 without a lane", marks=pytest.mark.full),
]
"""How many connections are opened in each encoding, each for up to 10 frames, with the direct lane or without."""

CODES: Final = {1000, 3500, 3501}
"""With which a client may be closed: by itself, for a token, for a frame."""

CONNECT: Final = {"id": 1, "connect": {"token": "ann"}}
FRAMES: Final[dict[EncodingName, list[str | bytes]]] = {
    name: [each.frame for each in RECORDED if each.encoding == name and each.from_client] for name in ENCODINGS
}
COMMANDS: Final[list[dict[str, Any]]] = [
    {"id": 2, "subscribe": {"channel": "rec:a", "recover": True, "offset": 7, "epoch": "0" * 16, "join_leave": True}},
    {"id": 3, "publish": {"channel": "a", "data": {"n": [1, 2, {"x": None}]}}},
    {"id": 4, "history": {"channel": "rec:a", "limit": -1, "since": {"offset": 1}}},
    {"id": 5, "rpc": {"method": "double", "data": 1}},
    {"id": 6, "sub_refresh": {"channel": "a", "token": "x"}},
    {"id": 7, "refresh": {"token": "ann"}},
    {"id": 8, "presence": {"channel": "room:1"}},
    {"send": {"data": "x"}},
    {"id": 9, "connect": {"token": "side", "subs": {"rec:feed": {"recover": True}}, "headers": {"a": "b"}}},
]


class Fuzzer:
    """Draws frames from one seed.

    Args:
        encoding: Of which frames are drawn.
        draw: What draws.
    """

    def __init__(self, encoding: EncodingName, draw: random.Random) -> None:
        self._encoding: EncodingName = encoding
        self._draw = draw
        self._changes: list[Callable[[Any], Any]] = [self._cut, self._doubled]
        if encoding == "json":
            self._changes += [self._exchanged_text, self._nested_text, self._long_number, self._unknown_member]
        else:
            self._changes += [self._exchanged, self._nested, self._long_varint, self._unknown_field]

    def is_connected(self) -> bool:
        """Return whether a client connects before it sends anything else."""
        return self._draw.random() < 0.8

    def frame(self) -> str | bytes:
        """Return a frame: of a real client or made of commands, damaged in up to three ways."""
        draw = self._draw
        found = draw.choice(FRAMES[self._encoding]) if draw.random() < 0.5 else self._commands()
        for _ in range(draw.randint(0, 3)):
            found = draw.choice(self._changes)(found)
        if draw.random() < 0.1:  # the other kind of message
            return found.encode("utf-8", "replace") if isinstance(found, str) else found.decode("latin-1")
        return found

    def _commands(self) -> str | bytes:
        draw = self._draw
        chosen = draw.choices(COMMANDS, k=draw.choice([1, 2, 5, 40]))
        return frame_of(self._encoding, [{**command, "id": draw.choice([0, 1, 2**32 - 1])} for command in chosen])

    def _place(self, frame: str | bytes) -> int:
        return self._draw.randint(0, len(frame))

    def _cut(self, frame: Any) -> Any:
        return frame[: self._place(frame)]

    def _doubled(self, frame: Any) -> Any:
        start, end = sorted((self._place(frame), self._place(frame)))
        return frame[:end] + frame[start:]

    def _exchanged(self, frame: bytes) -> bytes:
        place = self._place(frame)
        return frame[:place] + self._draw.randbytes(self._draw.randint(1, 3)) + frame[place + 1 :]

    def _exchanged_text(self, frame: str) -> str:
        place = self._place(frame)
        other = self._draw.choice(
            ['"', "{", "[", "-1e999", "\u0000", "9" * 40, ",", "null", "\\ud800", "\n", "é", "1.5"]
        )
        return frame[:place] + other + frame[place + self._draw.randint(0, 6) :]

    def _nested_text(self, frame: str) -> str:
        levels = self._draw.choice([10, 190, 300, 20_000])
        return frame.replace(":", ':{"x":' * levels, 1) + "}" * levels

    def _nested(self, frame: bytes) -> bytes:
        """Return a frame within a field of a frame, several times."""
        for _ in range(self._draw.choice([1, 3, 100])):
            content = varint(self._draw.choice([4, 5, 10, 29]) << 3 | 2) + varint(len(frame)) + frame
            frame = varint(len(content)) + content
        return frame

    def _long_number(self, frame: str) -> str:
        number = self._draw.choice([2**32, 2**53, 2**63, 2**64, -1, 10**400])
        return frame.replace(":1", f":{number}").replace(":2", f":{number}")

    def _long_varint(self, frame: bytes) -> bytes:
        place = self._place(frame)
        number = self._draw.choice([b"\xff" * 9 + b"\x01", b"\x80" * 11 + b"\x01", b"\xff" * 12, b"\x80\x00"])
        return frame[:place] + number + frame[place:]

    def _unknown_member(self, frame: str) -> str:
        return frame.replace("{", '{"unknown":[{"id":1}],', 1)

    def _unknown_field(self, frame: bytes) -> bytes:
        """Return a frame whose first command has a field more, of any wire type."""
        draw = self._draw
        field = varint(draw.choice([1, 2, 5, 19, 31, 2**28]) << 3 | draw.randint(0, 7)) + draw.randbytes(9)
        return varint((frame[0] if frame else 0) + len(field)) + field + frame[1:]


@pytest.mark.parametrize(("way", "rounds"), ROUNDS)
async def test_damaged_frames(way: str, rounds: int, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a client sends, its worker goes on, and another client receives all that is published."""
    draw = random.Random(18)
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    async with serving(way) as site, site.client("?cf_ws_frame_ping_pong=true") as other:
        await connected(other)
        await other.send('{"id":2,"subscribe":{"channel":"rec:watched"}}')
        await replies(other)
        size = 0
        for number in range(rounds):
            for encoding in ENCODINGS:
                await _attack(site, encoding, Fuzzer(encoding, draw))
            await site.backplane.publish("rec:watched", number)
            assert (await replies(other))[0]["push"]["pub"]["data"] == number
            if number == rounds // 2:
                size = psutil.Process().memory_info().rss
        grown = psutil.Process().memory_info().rss - size
        await _until_gone(site)
        assert grown < 30 * 1024 * 1024
    assert not failures
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def _attack(site: Site, encoding: EncodingName, fuzzer: Fuzzer) -> None:
    """Send damaged frames until the client is closed."""
    async with site.client(subprotocol="centrifuge-protobuf" if encoding == "protobuf" else None) as client:
        if fuzzer.is_connected():
            await client.send(frame_of(encoding, [CONNECT]))
        with suppress(ConnectionClosed):
            for _ in range(10):
                await client.send(fuzzer.frame())
            await (await client.ping())
            await _drain(client)
    assert client.close_code in CODES, client.close_code


async def _drain(client: ClientConnection) -> None:
    """Receive what has come."""
    with suppress(TimeoutError):
        async with asyncio.timeout(0):
            while True:
                await client.recv()


async def _until_gone(site: Site) -> None:
    """Wait until nothing is left of the clients but that of the test."""
    runtime = site.backplane._runtime  # pyright: ignore[reportPrivateUsage]
    assert runtime is not None
    async with asyncio.timeout(20):
        while len(runtime.clients.connected) > 1:
            await asyncio.sleep(0.01)
    gc.collect()
    assert sum(type(found) is SdkClient for found in gc.get_objects()) == 1
    assert [channel for channel in runtime.hub.channels if not channel.startswith("$backplane/")] == ["rec:watched"]
