"""FaultProxy: each fault as the client and the broker see it, over real sockets."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from backplane.testing import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(20)]

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Server:
    """Accepts connections and hands them to the test."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[Streams] = asyncio.Queue()
        self.writers: list[asyncio.StreamWriter] = []
        self.url = ""

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand one connection to the test."""
        self.writers.append(writer)
        await self.accepted.put((reader, writer))


@pytest.fixture
async def server() -> AsyncGenerator[Server]:
    """A server that only accepts."""
    made = Server()
    listening = await asyncio.start_server(made.accept, "127.0.0.1", 0)
    made.url = f"test://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    yield made
    listening.close()
    for writer in made.writers:
        writer.close()
    await listening.wait_closed()


@asynccontextmanager
async def client_of(proxy: FaultProxy) -> AsyncGenerator[Streams]:
    """Connect through the proxy."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.url.rpartition(":")[2]))
    try:
        yield reader, writer
    finally:
        writer.close()


@asynccontextmanager
async def linked(server: Server) -> AsyncGenerator[tuple[FaultProxy, Streams, Streams]]:
    """A proxy with one connection through it: the client's end and the server's."""
    async with FaultProxy(server.url) as proxy, client_of(proxy) as client:
        yield proxy, client, await server.accepted.get()


async def assert_reset(streams: Streams) -> None:
    """Assert that a connection ends with RST, and receives nothing before it."""
    with pytest.raises(ConnectionResetError):
        await streams[0].read()


async def test_a_cut_is_a_reset_at_both_ends(server: Server) -> None:
    """`cut` ends a connection with RST, for the client and for the broker."""
    async with linked(server) as (proxy, client, broker):
        proxy.cut()
        await assert_reset(client)
        await assert_reset(broker)


async def test_a_finish_is_an_orderly_end_at_both_ends(server: Server) -> None:
    """`finish` ends a connection with FIN, for the client and for the broker."""
    async with linked(server) as (proxy, client, broker):
        proxy.finish()
        assert await client[0].read() == b""
        assert await broker[0].read() == b""


async def test_a_cut_after_some_bytes_passes_exactly_these(server: Server) -> None:
    """`cut_after` counts what the broker sends from now on, and does not affect newer connections."""
    async with linked(server) as (proxy, client, broker):
        broker[1].write(b"before")
        assert await client[0].readexactly(6) == b"before"
        proxy.cut_after(5)
        broker[1].write(b"123")
        broker[1].write(b"45678")
        assert await client[0].read() == b"12345"
        async with client_of(proxy) as second:
            (await server.accepted.get())[1].write(b"12345678")
            assert await second[0].readexactly(8) == b"12345678"


@pytest.mark.parametrize(("direction", "passes"), [("to_broker", "client"), ("to_client", "broker")])
async def test_a_silence_of_one_direction_passes_the_other(server: Server, direction: str, passes: str) -> None:
    """A black hole drops one direction only; healing ends the connection, as bytes are missing."""
    async with linked(server) as (proxy, client, broker):
        proxy.silence("to_broker" if direction == "to_broker" else "to_client")
        client[1].write(b"ask")
        broker[1].write(b"answer")
        passed = client[0].readexactly(6) if passes == "client" else broker[0].readexactly(3)
        assert await passed == (b"answer" if passes == "client" else b"ask")
        await proxy.swallowed()
        proxy.heal()
        await assert_reset(client if passes == "broker" else broker)


async def test_a_cut_and_silence_accepts_and_sends_nothing(server: Server) -> None:
    """`silence` and `cut` together: new connections are accepted, and nothing passes."""
    async with linked(server) as (proxy, client, _):
        proxy.silence()
        proxy.cut()
        await assert_reset(client)
        async with client_of(proxy) as second:
            second[1].write(b"hello")
            await proxy.swallowed()
            proxy.heal()
            await assert_reset(second)


async def test_a_silence_after_some_bytes_affects_their_sender_only(server: Server) -> None:
    """Only the connection on which the client sends the bytes goes silent, and only that one ends with healing."""
    async with linked(server) as (proxy, client, broker), client_of(proxy) as other:
        other_broker = await server.accepted.get()
        proxy.silence("to_client", after=lambda sent: b"PUBLISH" in sent)
        broker[1].write(b"before")
        assert await client[0].readexactly(6) == b"before"
        client[1].write(b"PUBLISH")
        assert await broker[0].readexactly(7) == b"PUBLISH"
        broker[1].write(b"reply")
        await proxy.swallowed()
        other_broker[1].write(b"other")
        assert await other[0].readexactly(5) == b"other"
        proxy.heal()
        await assert_reset(client)
        other_broker[1].write(b"still")
        assert await other[0].readexactly(5) == b"still"


async def test_latency_comes_before_every_byte_and_keeps_their_order(server: Server) -> None:
    """What is sent arrives no sooner than the latency, in order, also after what was sent before healing."""
    async with linked(server) as (proxy, client, broker):
        loop = asyncio.get_running_loop()
        proxy.slow(latency_seconds=0.1)
        sent = loop.time()
        for number in range(10):
            client[1].write(bytes([number]))
            await client[1].drain()
        assert await broker[0].readexactly(10) == bytes(range(10))
        assert round(loop.time() - sent, 3) >= 0.1  # uvloop's clock counts milliseconds
        client[1].write(b"slow")
        proxy.heal()
        client[1].write(b"quick")
        assert await broker[0].readexactly(9) == b"slowquick"


async def test_a_limited_rate(server: Server) -> None:
    """20,000 bytes over 100,000 bytes per second take at least 0.2 s less one piece, and arrive whole."""
    async with linked(server) as (proxy, client, broker):
        loop = asyncio.get_running_loop()
        proxy.slow(bytes_per_second=100_000)
        sent = loop.time()
        broker[1].write(bytes(range(200)) * 100)
        assert await client[0].readexactly(20_000) == bytes(range(200)) * 100
        assert loop.time() - sent >= 0.18


async def test_a_stalled_link_fills_the_brokers_buffer(server: Server) -> None:
    """While stalled nothing is read from the broker, which has to wait; after healing everything passes."""
    flood = bytes(32 * 1024 * 1024)
    async with linked(server) as (proxy, client, broker):
        proxy.stall()
        broker[1].write(flood)
        draining = asyncio.create_task(broker[1].drain())
        client[1].write(b"other direction")
        assert await broker[0].readexactly(15) == b"other direction"
        assert not draining.done()
        proxy.heal()
        assert len(await client[0].readexactly(len(flood))) == len(flood)
        await draining


async def test_a_client_that_does_not_read_stalls_the_broker(server: Server) -> None:
    """The proxy buffers no flood: a client that does not read stalls the broker."""
    flood = bytes(32 * 1024 * 1024)
    async with linked(server) as (_, client, broker):
        client[1].transport.pause_reading()  # type: ignore[attr-defined]
        broker[1].write(flood)
        draining = asyncio.create_task(broker[1].drain())
        client[1].write(b"go on")
        assert await broker[0].readexactly(5) == b"go on"
        assert not draining.done()
        client[1].transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await client[0].readexactly(len(flood))) == len(flood)
        await draining


async def test_refusing_ends_new_connections(server: Server) -> None:
    """`refuse` ends open and new connections, until healed."""
    async with linked(server) as (proxy, client, _):
        proxy.refuse()
        await assert_reset(client)
        async with client_of(proxy) as second:
            with pytest.raises(ConnectionResetError):
                await second[0].read()
        proxy.heal()
        async with client_of(proxy) as third:
            third[1].write(b"back")
            assert await (await server.accepted.get())[0].readexactly(4) == b"back"
    assert proxy.links == 0


def test_a_url_without_port_is_refused() -> None:
    """A proxy knows no broker's default port."""
    with pytest.raises(ValueError, match="host and port"):
        FaultProxy("redis://localhost")


async def test_cut_on_ends_the_connection_that_sends_it(server: Server) -> None:
    """A command that the client must not send ends its connection and does not reach the broker; others go on."""
    async with linked(server) as (proxy, (reader, writer), (server_reader, _)), client_of(proxy) as (_, other):
        other_reader, _ = await server.accepted.get()
        proxy.cut_on(lambda sent: b"deadly" in sent)
        writer.write(b"harmless")
        assert await server_reader.readexactly(8) == b"harmless"
        writer.write(b"deadly")
        with pytest.raises(ConnectionError):
            await reader.read(1)
        other.write(b"hello")
        assert await other_reader.readexactly(5) == b"hello"
        proxy.heal()
        other.write(b"deadly")
        assert await other_reader.readexactly(6) == b"deadly"


async def test_lead_to_sends_new_connections_to_another_server(server: Server) -> None:
    """As after a failover of a host name, open connections stay, and new ones reach the new server."""
    other: asyncio.Queue[bytes] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other.put_nowait(await reader.readexactly(3))
        writer.close()

    async with linked(server) as (proxy, (_, writer), (server_reader, _)):
        listening = await asyncio.start_server(accept, "127.0.0.1", 0)
        proxy.lead_to(f"test://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        async with client_of(proxy) as (_, new):
            new.write(b"new")
            assert await other.get() == b"new"
        writer.write(b"old")
        assert await server_reader.readexactly(3) == b"old"
        listening.close()
        await listening.wait_closed()
    with pytest.raises(ValueError, match="needs host and port"):
        proxy.lead_to("test://localhost")


async def test_rewrite_alters_and_strips(server: Server) -> None:
    """Bytes pass as the callable returns them, in each direction, and what it removes does not pass."""
    async with linked(server) as (proxy, (reader, writer), (server_reader, server_writer)):
        proxy.rewrite(lambda direction, data: data.upper() if direction == "to_broker" else data.replace(b"tls", b""))
        writer.write(b"hello")
        assert await server_reader.readexactly(5) == b"HELLO"
        server_writer.write(b"tls")
        await server_writer.drain()
        server_writer.write(b"plain")
        assert await reader.readexactly(5) == b"plain"
        proxy.heal()
        server_writer.write(b"tls")
        assert await reader.readexactly(3) == b"tls"


async def test_record_keeps_what_passes(server: Server) -> None:
    """What passed in each direction since `record` can be read, and nothing before."""
    async with linked(server) as (proxy, (reader, writer), (server_reader, server_writer)):
        writer.write(b"before")
        assert await server_reader.readexactly(6) == b"before"
        proxy.record()
        writer.write(b"asked")
        assert await server_reader.readexactly(5) == b"asked"
        server_writer.write(b"answered")
        assert await reader.readexactly(8) == b"answered"
        assert (proxy.recorded("to_broker"), proxy.recorded("to_client")) == (b"asked", b"answered")
