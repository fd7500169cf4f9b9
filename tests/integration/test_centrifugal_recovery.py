"""Recovery over the Centrifugal client protocol, in cases of which users of comparable servers have reported faults."""

from __future__ import annotations

import asyncio
import gc
import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from backplane.centrifugal.client import SdkClient
from tests.centrifugal_wire import frame_of, replies_in
from tests.integration.test_centrifugal import SimpleTokens, ask, closed, connected, replies, serving

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

pytestmark = pytest.mark.anyio


async def subscribed(client: ClientConnection, **position: Any) -> Any:
    """Connect, subscribe to one channel, and return the result."""
    await connected(client)
    return (await ask(client, 2, "subscribe", channel="rec:a", **position))["subscribe"]


async def test_a_client_that_has_received_nothing() -> None:
    """It is recovered from its subscribe on, also where nothing had ever been published (socket.io 4888, 5538)."""
    async with serving("handed over") as site:
        async with site.client() as client:
            epoch = (await subscribed(client))["epoch"]
        await site.backplane.publish("rec:a", "first")
        async with site.client() as client:
            found = await subscribed(client, recover=True, epoch=epoch)
            assert found["recovered"]
            assert [publication["data"] for publication in found["publications"]] == ["first"]


async def test_again_and_again_while_the_old_connections_live() -> None:
    """A client that comes back before its worker has noticed is recovered each time (socket.io 4880)."""
    async with serving("handed over") as site, AsyncExitStack() as old:
        client = await old.enter_async_context(site.client())
        result = await subscribed(client)
        position = {"epoch": result["epoch"], "offset": result.get("offset", 0)}
        for number in range(5):
            await site.backplane.publish("rec:a", number)
            client = await old.enter_async_context(site.client())
            found = await subscribed(client, recover=True, **position)
            assert found["recovered"]
            (missed,) = found["publications"]
            assert missed["data"] == number
            position["offset"] = missed["offset"]


async def test_a_connect_that_recovers_several_channels_while_more_is_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its reply waits for no publication, and no publication for it (centrifuge 639)."""
    channels = [f"rec:{number}" for number in range(20)]
    claims = SimpleTokens.connect

    def with_channels(tokens: SimpleTokens, token: str, /) -> Any:
        found = claims(tokens, token)
        return type(found)(user=found.user, channels=channels)

    monkeypatch.setattr(SimpleTokens, "connect", with_channels)
    async with serving("handed over") as site:
        async with site.client() as client:
            subs = (await connected(client))["subs"]
        position = {channel: {"recover": True, "epoch": result["epoch"]} for channel, result in subs.items()}

        async def publish_all() -> None:
            for number in range(200):
                await site.backplane.publish(channels[number % 20], number)
                await asyncio.sleep(0)

        async with site.client() as client, asyncio.TaskGroup() as tasks:
            tasks.create_task(publish_all())
            await client.send(json.dumps({"id": 1, "connect": {"token": "ann", "subs": position}}))
            received: dict[str, list[int]] = {channel: [] for channel in channels}
            count = 0
            async with asyncio.timeout(20):
                while count < 200:
                    for reply in map(json.loads, str(await client.recv()).split("\n")):
                        for channel, publications in _publications(reply):
                            received[channel] += publications
                            count += len(publications)
        for number, channel in enumerate(channels):
            assert received[channel] == list(range(number, 200, 20))


def _publications(reply: Any) -> list[tuple[str, list[int]]]:
    if "push" in reply:
        return [(reply["push"]["channel"], [reply["push"]["pub"]["data"]])]
    subs = reply["connect"]["subs"]
    assert all(result["recovered"] for result in subs.values())
    return [(channel, [each["data"] for each in result.get("publications", ())]) for channel, result in subs.items()]


async def test_refused_clients_leave_nothing() -> None:
    """However many connects are refused, no object of theirs stays (Flask-SocketIO 574)."""
    async with serving("handed over") as site:
        for token in ("bad", "refused", "bad"):
            for _ in range(10):
                async with site.client() as client:
                    await client.send(json.dumps({"id": 1, "connect": {"token": token}}))
                    await (closed(client) if token == "bad" else replies(client))  # of a test
        runtime = site.backplane._runtime  # pyright: ignore[reportPrivateUsage]
        assert runtime is not None
        async with asyncio.timeout(20):
            while runtime.clients.connected:
                await asyncio.sleep(0)
        gc.collect()
        assert not [found for found in gc.get_objects() if type(found) is SdkClient]


async def test_an_rpc_without_data_in_protobuf() -> None:
    """It is called with `null`, which does not validate as a number (centrifugo 810)."""
    async with serving("handed over") as site, site.client(subprotocol="centrifuge-protobuf") as client:
        await client.send(frame_of("protobuf", [{"id": 1, "connect": {"token": "ann"}}]))
        await client.recv()
        await client.send(frame_of("protobuf", [{"id": 2, "rpc": {"method": "double"}}]))
        (reply,) = replies_in(await client.recv())
        assert reply["error"]["code"] == 107
        assert reply["error"]["message"].startswith("bad request: ")
