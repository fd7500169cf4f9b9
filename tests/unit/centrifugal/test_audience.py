"""`backplane.centrifugal.audience`: pushes of joins and leaves (protocol, section 5)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from backplane import Presence, PresenceSnapshot, Who
from backplane.centrifugal import audience
from backplane.centrifugal.encoding import PROTOBUF
from backplane.centrifugal.service import Accepted
from tests.unit.centrifugal.world import Sdk, Site, error, push, serving
from tests.unit.doubles import until_idle
from tests.unit.kit import NEVER

pytestmark = pytest.mark.anyio

ROOM = "room:1"
TASK = f"backplane-centrifugal-presence-{ROOM}"


def joined(user: str, **info: Any) -> dict[str, Any]:
    """Return the push of a join."""
    return push(ROOM, "join", {"info": {"user": user, "client": user} | info})


def left(user: str, **info: Any) -> dict[str, Any]:
    """Return the push of a leave."""
    return push(ROOM, "leave", {"info": {"user": user, "client": user} | info})


async def watching(site: Site, user: str, client: Sdk | None = None) -> Sdk:
    """Return a client that is notified of joins and leaves, once all are notified of its own join."""
    client = await site.connected(user, client)
    assert "subscribe" in await client.ask("subscribe", channel=ROOM, join_leave=True)
    await site.backplane.present(ROOM)
    assert await client.waiting() == [joined(user)]
    return client


async def test_joins_and_leaves(site: Site) -> None:
    """A client is notified of its own join, after the reply, and of each user who joins and leaves from then on."""
    first = await watching(site, "ann")
    second = await watching(site, "bob")
    assert await first.next() == joined("bob")
    await second.ask("unsubscribe", channel=ROOM)
    assert await first.next() == left("bob")
    await watching(site, "bob", second := Sdk())
    second.leave()
    assert [await first.next(), await first.next()] == [joined("bob"), left("bob")]


async def test_connections_of_one_user(site: Site) -> None:
    """The first connection of a user is a join, and the end of the last one a leave; another one is neither."""
    first = await watching(site, "ann")
    others = [await watching(site, "bob") for _ in range(2)]
    assert await first.waiting() == [joined("bob")]
    for other in others:
        other.leave()
    assert await first.next() == left("bob")
    assert await first.waiting() == []


async def test_info(site: Site) -> None:
    """What is shown with the user is part of each push."""
    first = await watching(site, "ann")
    site.tokens.claims["info"] = {"name": "Bob"}
    second = await site.connected("bob")
    await second.subscribe(ROOM, join_leave=True)
    expected = joined("bob", conn_info={"name": "Bob"})
    assert [await second.next(), await first.next()] == [expected, expected]
    await site.connections[-1].update_presence(ROOM, info={"name": "Bobby"})
    await site.backplane.present(ROOM)
    second.leave()
    assert await first.next() == left("bob", conn_info={"name": "Bobby"})


async def test_info_of_the_handler(site: Site) -> None:
    """What the handler of the endpoint shows of the user is part of the client's own join too."""
    client = await site.connected(presence=Who(user="ann", info={"name": "Ann"}), token="")
    await client.subscribe(ROOM, join_leave=True)
    assert await client.next() == joined("ann", conn_info={"name": "Ann"})


async def test_encodings(site: Site) -> None:
    """Each client gets a push in its own encoding."""
    client = await site.connected("ann", Sdk(subprotocols=("centrifuge-protobuf",)))
    client.send({"id": 2, "subscribe": {"channel": ROOM, "join_leave": True}})
    await client.frame()
    assert await client.frame() == PROTOBUF.push(ROOM, "join", {"info": {"user": "ann", "client": "ann"}})
    await site.backplane.present(ROOM)
    await watching(site, "bob")
    assert await client.frame() == PROTOBUF.push(ROOM, "join", {"info": {"user": "bob", "client": "bob"}})


async def test_client_without_a_user() -> None:
    """One without a user is notified of others, and has no join of its own."""
    async with serving(has_tokens=False) as site:
        client = await site.connected()
        await client.subscribe(ROOM, join_leave=True)
        site.accepted = Accepted(user="bob")
        await watching(site, "bob")
        assert await client.waiting() == [joined("bob")]


async def test_subscribe_that_is_under_way(site: Site) -> None:
    """A client is notified of nothing before the reply to its subscribe, which follows what happened before it."""
    client = await site.connected("ann")
    site.gate.close()
    client.send({"id": 2, "subscribe": {"channel": ROOM, "join_leave": True}})
    await watching_by_token(site, "bob")
    assert await client.waiting() == []
    site.gate.open()
    assert "subscribe" in await client.next()
    assert await client.next() == joined("ann")


async def watching_by_token(site: Site, user: str) -> Sdk:
    """Return a client that is notified of joins and leaves, and had a token for its subscribe."""
    client = await site.connected(user)
    await client.subscribe(ROOM, join_leave=True, token=user)
    await site.backplane.present(ROOM)
    assert joined(user) in await client.waiting()
    return client


async def test_subscribe_that_is_refused(site: Site) -> None:
    """A client that may not subscribe is not notified."""
    client = await site.connected("ann")
    refused = await client.ask("subscribe", channel="room:secret", join_leave=True)
    assert refused == error(103, "permission denied")
    await (await site.connected("bob")).subscribe("room:secret", token="bob")
    await site.backplane.present("room:secret")
    assert await client.waiting() == []


async def test_many_clients(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many clients some are notified in each pass of the event loop, and those that have left meanwhile are not."""
    monkeypatch.setattr(audience, "_SLICE", 1)
    clients = [await watching(site, user) for user in ("ann", "bob", "eve")]
    for client in clients:
        await client.waiting()
    await watching(site, "zoe")
    assert [await client.waiting() for client in clients] == [[joined("zoe")]] * 3


async def test_more_users_than_are_exchanged() -> None:
    """While a channel exchanges numbers alone there are no pushes; what has changed meanwhile is pushed afterwards."""
    async with serving(presence=Presence(grace_seconds=0, max_entries=3)) as site:
        first, *others = [await watching(site, user) for user in ("ann", "bob", "eve")]
        await (await site.connected("zoe")).subscribe(ROOM)
        assert (await site.backplane.present(ROOM)).counts_only
        assert await first.waiting() == [joined("bob"), joined("eve")]
        async with site.backplane.watch(ROOM) as presence:
            for other in others:
                other.leave()
            async for item in presence:
                if isinstance(item, PresenceSnapshot) and not item.counts_only:
                    break
        assert await first.waiting() == [joined("zoe"), left("bob"), left("eve")]


async def test_numbers_alone() -> None:
    """A channel that never exchanges more than numbers has no joins and leaves of others."""
    async with serving(presence=Presence(grace_seconds=0, max_entries=0)) as site:
        first = await watching(site, "ann")
        await watching(site, "bob")
        assert await first.waiting() == []


async def test_users_that_are_not_known_in_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscribe does not wait for ever until it is known which users are there; these are no joins."""
    monkeypatch.setattr(audience, "_KNOWN_SECONDS", 0)
    await (await site.connected("bob")).subscribe(ROOM)
    client = await site.connected()
    assert "subscribe" in await client.ask("subscribe", channel=ROOM, join_leave=True)
    await site.backplane.present(ROOM)
    assert await client.waiting() == [joined("ann")]


async def test_name_that_is_not_legal(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused at once: there is nothing to be known about it."""
    monkeypatch.setattr(audience, "_KNOWN_SECONDS", NEVER)
    client = await site.connected()
    assert await client.ask("subscribe", channel=ROOM * 64, join_leave=True) == error(107, "bad request")


async def test_last_client(site: Site) -> None:
    """Nothing is watched any more once the last client has left."""
    clients = [await watching(site, user) for user in ("ann", "bob")]
    for client in clients:
        assert [task.get_name() for task in asyncio.all_tasks() if ROOM in task.get_name()] == [TASK]
        await client.waiting()
        await client.ask("unsubscribe", channel=ROOM)
    await until_idle()
    assert [task for task in asyncio.all_tasks() if ROOM in task.get_name()] == []


async def test_stop_while_clients_are_notified() -> None:
    """At the end of the worker nothing of it is left."""
    async with serving() as site:
        client = await watching(site, "ann")
        await site.backplane.drain()
        assert await client.closed() == (3001, "shutdown")
