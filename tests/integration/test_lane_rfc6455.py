"""The direct lane's protocol compared with Uvicorn's own, in the cases of Autobahn's test suite.

All serve the same echo, the lane also to clients that it has handed over. Everything that a client receives is
compared: messages, pongs, the close frame, the end.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Opcode

from backplane import Backlog, Backplane, Limits
from backplane.server.uvicorn import DirectLaneProtocol, SharedCompressionProtocol
from tests.server_in_loop import serving_in_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.websockets import WebSocket

    from backplane import Connection

pytestmark = pytest.mark.anyio

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
TEXT, BINARY, CONT, PING, PONG, CLOSE = (
    Opcode.TEXT,
    Opcode.BINARY,
    Opcode.CONT,
    Opcode.PING,
    Opcode.PONG,
    Opcode.CLOSE,
)
HELLO = "Hello-µ@ßöäüàá-UTF-8!!".encode()  # from Autobahn's suite
MASK = bytes([1, 2, 3, 4])


def frame(opcode: int, data: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True) -> bytes:
    """Return a frame, valid or not."""
    size = len(data)
    if size < 126:
        head = bytes([fin << 7 | rsv << 4 | opcode, mask << 7 | size])
    elif size < 65536:
        head = bytes([fin << 7 | rsv << 4 | opcode, mask << 7 | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([fin << 7 | rsv << 4 | opcode, mask << 7 | 127]) + size.to_bytes(8, "big")
    if not mask:
        return head + data
    key = int.from_bytes((MASK * (size // 4 + 1))[:size], "big")
    return head + MASK + (int.from_bytes(data, "big") ^ key).to_bytes(size, "big")


def fragments(opcode: int, *parts: bytes) -> list[bytes]:
    """Return a message in fragments."""
    last = len(parts) - 1
    return [frame(CONT if index else opcode, part, fin=index == last) for index, part in enumerate(parts)]


def chopped(opcode: int, data: bytes, size: int) -> list[bytes]:
    """Return a message in fragments of `size` bytes."""
    return fragments(opcode, *(data[start : start + size] for start in range(0, len(data), size)))


def close(code: int, reason: bytes = b"") -> bytes:
    """Return a close frame."""
    return frame(CLOSE, code.to_bytes(2, "big") + reason)


BYE = close(1000)
WAIT = b""  # for the replies to all messages before: those in transit at the end are not guaranteed
SIZES = [0, 125, 126, 127, 128, 65535, 65536]
INVALID_UTF8 = [
    *(
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xf4\x90\x80\x80",
    ),
    *(b"\x80", b"\xbf\xbf", b"\xfe", b"\xff", b"\xc3", b"\xf0\x9f\x98", b"\xed\xbf\xbf", b"\xfc\x80\x80\x80\x80\xaf"),
]
VALID_UTF8 = [
    HELLO,
    b"\xce\xba",
    b"\x00",
    b"\xef\xbf\xbd",
    b"\xf4\x8f\xbf\xbf",
    b"\xef\xbf\xbf",
    b"\xed\x9f\xbf",
    "😀".encode(),
]
CASES: dict[str, list[bytes]] = {
    **{f"1 text of {size}": [frame(TEXT, b"*" * size), WAIT, BYE] for size in SIZES},
    **{f"1 binary of {size}": [frame(BINARY, b"\xfe" * size), WAIT, BYE] for size in SIZES},
    "1 many": [*(frame(TEXT, b"%d" % number) for number in range(2000)), WAIT, BYE],
    "2 ping": [frame(PING), WAIT, BYE],
    "2 ping with text": [frame(PING, b"Hello, world!"), WAIT, BYE],
    "2 ping with bytes": [frame(PING, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"), WAIT, BYE],
    "2 ping of 125": [frame(PING, b"\xfe" * 125), WAIT, BYE],
    "2 ping of 126": [frame(PING, b"\xfe" * 126)],
    "2 unsolicited pong": [frame(PONG), frame(PONG, b"x"), frame(PING, b"p"), WAIT, BYE],
    "2 ten pings": [*(frame(PING, b"payload-%d" % number) for number in range(10)), WAIT, BYE],
    "2 many pings": [*(frame(PING, b"%d" % number) for number in range(3000)), WAIT, BYE],
    **{
        f"3 reserved bits {rsv}": [frame(TEXT, b"a"), WAIT, frame(TEXT, b"b", rsv=rsv), frame(PING)]
        for rsv in range(1, 8)
    },
    "3 reserved bits of a ping": [frame(PING, rsv=4)],
    "3 reserved bits of a close": [frame(CLOSE, rsv=4)],
    **{
        f"4 opcode {opcode}": [frame(TEXT, b"a"), WAIT, frame(opcode, b"b"), frame(PING)]
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    },
    "5 ping in fragments": [frame(PING, b"a", fin=False), frame(CONT, b"b")],
    "5 pong in fragments": [frame(PONG, b"a", fin=False), frame(CONT, b"b")],
    "5 two fragments": [*fragments(TEXT, b"fragment1", b"fragment2"), WAIT, BYE],
    "5 ping between": [frame(TEXT, b"a", fin=False), frame(PING, b"ping"), frame(CONT, b"b"), WAIT, BYE],
    "5 empty fragments": [*fragments(TEXT, b"", b"", b""), *fragments(BINARY, b"", b"x", b""), WAIT, BYE],
    "5 nothing to go on": [frame(CONT, b"a"), frame(TEXT, b"b")],
    "5 nothing to go on, more to come": [frame(CONT, b"a", fin=False), frame(TEXT, b"b")],
    "5 a text within a text": [frame(TEXT, b"a", fin=False), frame(TEXT, b"b")],
    "5 many": [*fragments(TEXT, *[b"x"] * 5000), *fragments(BINARY, *[b"y"] * 5000), WAIT, BYE],
    "5 no mask": [frame(TEXT, b"a", mask=False)],
    **{f"6 valid {text!r}": [frame(TEXT, text), frame(TEXT, b"next"), WAIT, BYE] for text in VALID_UTF8},
    **{f"6 valid, cut {text!r}": [*chopped(TEXT, text, 1), WAIT, BYE] for text in VALID_UTF8 if len(text) > 1},
    **{
        f"6 invalid {text!r}": [frame(TEXT, b"first"), WAIT, frame(TEXT, text), frame(TEXT, b"next")]
        for text in INVALID_UTF8
    },
    **{f"6 invalid, cut {text!r}": [*chopped(TEXT, b"a" + text, 1)] for text in INVALID_UTF8},
    "7 close": [BYE],
    "7 close twice": [BYE, BYE],
    "7 ping after a close": [BYE, frame(PING, b"x")],
    "7 text after a close": [BYE, frame(TEXT, b"x")],
    "7 close between fragments": [frame(TEXT, b"a", fin=False), BYE, frame(CONT, b"b")],
    "7 256 KiB, then a close and a ping": [frame(TEXT, b"x" * 262144), WAIT, BYE, frame(PING)],
    "7 empty close": [frame(CLOSE)],
    "7 close of one byte": [frame(CLOSE, b"a")],
    "7 close with a reason": [close(1000, HELLO)],
    "7 close with the longest reason": [close(1000, b"x" * 123)],
    "7 close that is too long": [close(1000, b"x" * 124)],
    "7 close with a reason that is no text": [close(1000, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80")],
    **{
        f"7 close with {code}": [close(code)]
        for code in (
            *(1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999),
            *(0, 999, 1004, 1005, 1006, 1012, 1013, 1014, 1015, 1016, 1100, 2000, 2999, 5000, 65535),
        )
    },
    "7 no end": [frame(TEXT, b"x"), WAIT],
    "9 text of 1 MiB": [frame(TEXT, b"x" * 2**20), WAIT, BYE],
    "9 binary of 4 MiB": [frame(BINARY, b"\xfe" * 2**22), WAIT, BYE],
    "9 1 MiB in fragments of 64": [*chopped(TEXT, b"x" * 2**20, 64), WAIT, BYE],
    "9 1 MiB in fragments of 64 KiB": [*chopped(BINARY, b"\xfe" * 2**20, 65536), WAIT, BYE],
    "10 64 KiB in fragments of 1300": [*chopped(TEXT, b"x" * 65536, 1300), WAIT, BYE],
    # Its head alone: what the client still sends after the server has closed resets the connection, and with that the
    # close frame can be lost on its way.
    "limit": [frame(TEXT, b"x" * (16 * 2**20 + 1))[:14]],
    "limit of fragments": [*chopped(BINARY, b"x" * (16 * 2**20 + 1), 2**20)],
}


class Received(NamedTuple):
    """What a client received: either server may interleave messages and pongs in any order."""

    messages: list[bytes]
    pongs: list[bytes]
    closes: list[bytes]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Echo."""
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        try:
            await send({**message, "type": "websocket.send"})
        except OSError:  # how Uvicorn reports that the client has disconnected
            return


@asynccontextmanager
async def serving(protocol: type[WebSocketsSansIOProtocol]) -> AsyncGenerator[int]:
    """Serve the echo; yield the port."""
    async with serving_in_loop(echo, ws=protocol, lifespan="off") as server:
        yield server.port


@asynccontextmanager
async def handing_over(protocol: type[DirectLaneProtocol]) -> AsyncGenerator[int]:
    """Serve the echo to clients that are handed over, with no bound but those of Uvicorn; yield the port."""
    backplane = Backplane(
        "memory://",
        limits=Limits(max_message_bytes=None, max_messages_per_second=None),
        backlog=Backlog(max_bytes=2**26, max_messages=100_000),
    )

    async def reply(connection: Connection, data: str | bytes) -> None:
        task = asyncio.current_task()
        assert task is not None
        assert task.get_name() == f"backplane-callbacks-{connection.id}"  # not that of a handler
        await connection.send(data)

    async def listen(websocket: WebSocket) -> None:
        await backplane.hand_over(websocket, on_message=reply)

    app = Starlette(lifespan=backplane.lifespan, routes=[WebSocketRoute("/", listen)])
    async with serving_in_loop(app, ws=protocol) as server:
        yield server.port


async def exchange(port: int, pieces: list[bytes], chop: int | None) -> Received:
    """Send a case, each piece in one write or in writes of `chop` bytes; return all that is received."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HANDSHAKE)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    found = Received([], [], [])
    answered = asyncio.Condition()

    async def send() -> None:
        messages = 0
        for part in steps(pieces):
            messages += sum(piece[0] >> 7 and piece[0] & 15 <= BINARY for piece in part)
            whole = b"".join(part)
            for start in range(0, len(whole), chop or len(whole)):
                writer.write(whole[start : start + (chop or len(whole))])
                await writer.drain()
                if chop == 1:  # else the server would read all of these writes at once
                    await asyncio.sleep(0)
            async with answered:
                await answered.wait_for(lambda messages=messages: len(found.messages) >= messages)  # type: ignore[misc]
        writer.write_eof()

    sending = asyncio.create_task(send())
    try:
        while True:
            head = await reader.readexactly(2)
            size = head[1] if head[1] < 126 else int.from_bytes(await reader.readexactly(2 if head[1] == 126 else 8))
            data = await reader.readexactly(size)
            where = {CLOSE: found.closes, PONG: found.pongs}.get(Opcode(head[0] & 15), found.messages)
            where.append(data)
            async with answered:
                answered.notify_all()
    except (asyncio.IncompleteReadError, ConnectionError):
        return found
    finally:
        sending.cancel()
        await asyncio.wait([sending])
        if not sending.cancelled():
            sending.exception()  # the server may close while the client sends
        writer.close()


def steps(pieces: list[bytes]) -> list[list[bytes]]:
    """Split a case at each `WAIT`."""
    parts: list[list[bytes]] = [[]]
    for piece in pieces:
        if piece == WAIT:
            parts.append([])
        else:
            parts[-1].append(piece)
    return [part for part in parts if part]


@pytest.mark.parametrize("chop", [None, 1, 997])
async def test_as_uvicorn(chop: int | None) -> None:
    """All reply alike to every case, however the bytes are split."""
    differing: list[str] = []
    async with AsyncExitStack() as stack:
        stock = await stack.enter_async_context(serving(WebSocketsSansIOProtocol))
        lane = await stack.enter_async_context(serving(DirectLaneProtocol))
        handed_over = await stack.enter_async_context(handing_over(DirectLaneProtocol))
        for name, pieces in CASES.items():
            if chop == 1 and sum(map(len, pieces)) > 2_000:
                continue
            async with asyncio.timeout(30):
                expected = await exchange(stock, pieces, chop)
                found = [await exchange(port, pieces, chop) for port in (lane, handed_over)]
            if found != [expected] * 2:
                differing.append(f"{name}: {_short(expected)}, not {', '.join(map(_short, found))}")
    assert differing == []


@pytest.mark.parametrize("protocol", [WebSocketsSansIOProtocol, DirectLaneProtocol, SharedCompressionProtocol])
@pytest.mark.parametrize("size", [16, 1_024, 65_536, 1_048_576])
@pytest.mark.parametrize(
    "offer",
    [
        {},
        {"server_no_context_takeover": True},
        {"client_no_context_takeover": True},
        {"server_no_context_takeover": True, "client_no_context_takeover": True},
        {"server_max_window_bits": 9},
        {"client_max_window_bits": 9, "server_max_window_bits": 15},
    ],
    ids=lambda offer: ", ".join(offer) or "plain",
)
async def test_compression(protocol: type[WebSocketsSansIOProtocol], size: int, offer: dict[str, Any]) -> None:
    """Whatever a client negotiates, its messages are echoed unchanged, whole or in fragments."""
    texts = [("\u00e4" * size)[:size], "".join(map(chr, range(32, 127))) * (size // 95 + 1), "x" * size]
    extensions = [ClientPerMessageDeflateFactory(**offer)]
    ways = [serving(protocol)]
    if issubclass(protocol, DirectLaneProtocol):
        ways.append(handing_over(protocol))
    for way in ways:
        async with (
            way as port,
            connect(f"ws://127.0.0.1:{port}", extensions=extensions, compression=None, max_size=None) as client,
        ):
            assert client.protocol.extensions
            for text in texts:
                await client.send(text)
                assert await client.recv() == text
                await client.send([text[:5], text[5:7], text[7:]])
                assert await client.recv() == text


def _short(found: Received) -> str:
    return f"{len(found.messages)} messages, {len(found.pongs)} pongs, {found.closes}"
