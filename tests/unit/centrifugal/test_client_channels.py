"""`backplane.centrifugal.client_channels`: what a client is sent of its channels, and when it is notified of an end."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import pytest

from backplane.adapters.memory import MemoryBroadcaster
from backplane.centrifugal import client as client_module
from backplane.centrifugal import expiry
from backplane.centrifugal.subscriptions import SdkSubscription
from backplane.worker import runtime
from tests.unit.centrifugal.world import ANN, Sdk, Site, error, in_seconds, push
from tests.unit.doubles import Gate, until_idle
from tests.unit.sockets import driver_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane import Connection

pytestmark = pytest.mark.anyio

CONNECT = {"id": 1, "connect": {"token": ANN}}
PUSHED = push("a", "pub", {"data": 1})


def never(*_: object) -> float:
    """Let the clients of a gap have their turns within days."""
    return 1e6


def unsubscribed(code: int, reason: str, channel: str = "a") -> dict[str, Any]:
    """Return the push of the end of a subscription."""
    return push(channel, "unsubscribe", {"code": code, "reason": reason})


async def test_channels_of_the_server(site: Site) -> None:
    """The reply has a result for each channel, once, and what a client that comes back has missed."""
    site.tokens.claims["channels"] = ("rec:a", "b", "rec:a")
    client = site.opened()
    client.send(CONNECT)
    first = (await client.next())["connect"]["subs"]
    assert list(first) == ["rec:a", "b"]
    client.leave()
    await site.backplane.publish("rec:a", 1)
    client = site.opened()
    subs = {"rec:a": {"recover": True, "epoch": first["rec:a"]["epoch"]}}
    client.send({"id": 1, "connect": {"token": ANN, "subs": subs}})
    again = (await client.next())["connect"]["subs"]["rec:a"]
    assert (again["recovered"], [each["data"] for each in again["publications"]]) == (True, [1])
    await site.backplane.publish("b", 1)
    assert await client.next() == push("b", "pub", {"data": 1})


async def test_channel_of_the_server_that_is_refused(site: Site) -> None:
    """A client whose channels cannot be joined is refused, and is in none of them."""
    site.tokens.claims["channels"] = ("a", "secret")
    client = site.opened()
    client.send(CONNECT)
    assert await client.next() == {"id": 1} | error(103, "permission denied")
    assert not site.connections[0].channels


async def test_channels_that_are_not_joined_in_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connect is answered in time, by a temporary error: the client comes back."""
    monkeypatch.setattr(client_module, "_COMMAND_SECONDS", 0.01)
    site.tokens.claims["channels"] = ("a", "b")
    site.gate.close()
    site.gates["a"] = Gate()
    client = site.opened()
    client.send(CONNECT)
    assert (await client.next())["error"]["code"] == 100
    assert not site.connections[0].channels
    site.gate.open()


async def test_nothing_before_the_reply(site: Site) -> None:
    """The connect reply is the first thing that a client is sent, with what the application has done meanwhile.

    SDKs drop what comes before it.
    """

    async def on_connect(connection: Connection, _: object) -> None:
        for channel in ("a", "b"):
            await connection.join(channel)
        await connection.leave("b")
        await connection.send("dropped")
        await site.backplane.publish("a", 1)
        await until_idle()

    site.centrifugal.on_connect(on_connect)
    client = site.opened()
    client.send(CONNECT)
    assert list((await client.next())["connect"]["subs"]) == ["a"]
    assert await client.waiting() == [PUSHED]


async def test_joins_and_leaves_by_the_application(site: Site, client: Sdk) -> None:
    """A channel that the application adds and removes is announced, before and after its publications."""
    (connection,) = site.connections
    await connection.join("a")
    await site.backplane.publish("a", 1)
    added = (await client.next())["push"]
    assert (added["channel"], added["subscribe"]["recoverable"]) == ("a", True)
    assert await client.next() == PUSHED
    await connection.leave("a")
    await site.backplane.publish("a", 2)
    assert await client.waiting() == [unsubscribed(2000, "server unsubscribe")]


@pytest.mark.parametrize("is_connected", [True, False], ids=["connected", "within the connect"])
@pytest.mark.parametrize("since", [0, None, -1], ids=["resumed", "not resumed", "rewound"])
async def test_what_a_join_by_the_application_gives_back(site: Site, is_connected: bool, since: int | None) -> None:
    """It follows the announcement as publications: the client did not ask for it."""
    for number in range(3):
        await site.backplane.publish("rec:a", number)
    messages = (await site.backplane.history("rec:a")).messages
    position = "-" if since is None else str(messages[since].position) if since >= 0 else None

    async def on_connect(connection: Connection, _: object) -> None:
        site.connections.append(connection)
        if not is_connected:
            await connection.join("rec:a", since=position, rewind=2)

    site.centrifugal.on_connect(on_connect)
    client = site.opened()
    client.send(CONNECT)
    found = (await client.next())["connect"].get("subs", {}).get("rec:a")
    if is_connected:
        await site.connections[0].join("rec:a", since=position, rewind=2)
        found = (await client.next())["push"]["subscribe"]
    assert set(found) == {"recoverable", "positioned", "epoch", "offset"}
    pushes = [each["push"]["pub"] for each in await client.waiting()]
    assert [each["data"] for each in pushes] == [1, 2]
    assert found["offset"] < pushes[0]["offset"] < pushes[1]["offset"]


async def test_channel_that_the_application_removes_at_once(site: Site, client: Sdk) -> None:
    """Neither that nor its end is announced."""
    (connection,) = site.connections
    await connection.join("a")
    await connection.leave("a")
    assert await client.waiting() == []


async def test_unsubscribe_of_a_server_side_subscription(site: Site) -> None:
    """It is the server's to end: the client stays subscribed."""
    site.tokens.claims["channels"] = ("a",)
    client = await site.connected()
    assert await client.ask("unsubscribe", channel="a") == {"unsubscribe": {}}
    await site.backplane.publish("a", 1)
    assert await client.next() == PUSHED


async def test_reply_before_publications(site: Site, client: Sdk) -> None:
    """What is published while a subscribe is under way follows its reply."""
    site.gate.close()
    client.send({"id": 2, "subscribe": {"channel": "a"}})
    await until_idle()
    assert await client.waiting() == []
    joined = asyncio.create_task(site.backplane.publish("a", 0))
    site.gate.open()
    await joined
    await site.backplane.publish("a", 1)
    replies = await client.waiting()
    assert (replies[0]["id"], replies[-1]) == (2, PUSHED)


async def test_subscription_that_expires(site: Site, client: Sdk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscription that is not refreshed ends with 2501 some time after its token; the connection goes on."""
    monkeypatch.setattr(expiry, "_REFRESH_SECONDS", 0.0)
    result = await client.subscribe("a", token=f"ann|{in_seconds(0.01)}")
    assert (result["expires"], result["ttl"]) == (True, 1)
    assert await client.next() == unsubscribed(2501, "subscription expired")
    await site.backplane.publish("a", 1)
    assert await client.waiting() == []


async def test_gap(site: Site, client: Sdk) -> None:
    """A client is unsubscribed with 2500, and its SDK subscribes again; nothing of the channel is sent in between."""
    first = await client.subscribe("a")
    site.gap("a")
    site.gap("a")  # no second notice
    await site.backplane.publish("a", 0)
    assert await client.next() == unsubscribed(2500, "insufficient state")
    again = await client.subscribe("a", recover=True, epoch=first["epoch"])
    assert again["was_recovering"]
    await site.backplane.publish("a", 1)
    assert await client.waiting() == [PUSHED]


async def test_gap_of_a_server_side_subscription(site: Site) -> None:
    """It cannot be subscribed again: the client is closed with 3010, and comes back."""
    site.tokens.claims["channels"] = ("a",)
    client = await site.connected()
    site.gap("a")
    assert await client.closed() == (3010, "insufficient state")


async def test_end_before_the_notice_of_a_gap(site: Site, client: Sdk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clients of a channel are notified one after the other; one that has left before its turn is not."""
    monkeypatch.setattr(runtime, "stagger_window", never)
    await client.subscribe("a")
    await client.subscribe("b")
    site.gap("a", "b")
    assert await client.ask("unsubscribe", channel="a") == {"unsubscribe": {}}
    client.leave()
    assert client.serving is not None
    await client.serving
    assert not site.connections[0].channels
    assert not driver_of(site.connections[0]).policy.turns


async def test_gap_while_a_subscribe_is_under_way(site: Site, client: Sdk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscription that begins after the gap is not concerned."""
    gate, subscribe = Gate(), MemoryBroadcaster.subscribe

    async def held(adapter: MemoryBroadcaster, channels: Collection[str]) -> None:
        await gate.passage()
        await subscribe(adapter, channels)

    monkeypatch.setattr(MemoryBroadcaster, "subscribe", held)
    gate.close()
    client.send({"id": 2, "subscribe": {"channel": "a"}})
    await until_idle()
    site.gap("a")
    gate.open()
    assert "subscribe" in await client.next()
    await site.backplane.publish("a", 1)
    assert await client.waiting() == [PUSHED]


async def test_nothing_is_left_of_a_subscription(site: Site, client: Sdk) -> None:
    """Neither its unsubscribe nor the end of the client leaves a timer that refers to it."""
    await client.subscribe("a", token=f"ann|{in_seconds(3600)}")
    await client.subscribe("b", token=f"ann|{in_seconds(3600)}")
    await client.ask("unsubscribe", channel="a")
    client.leave()
    assert client.serving is not None
    await client.serving
    gc.collect()
    assert [each.channel for each in gc.get_objects() if type(each) is SdkSubscription] == []
