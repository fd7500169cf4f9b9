"""`backplane.centrifugal.audience`: pushes of joins and leaves (protocol, section 5)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from backplane import Presence
from backplane.centrifugal import audience
from backplane.centrifugal.encoding import PROTOBUF
from tests.unit.centrifugal.world import Sdk, Site, push, serving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

ROOM = "room:1"


def joined(user: str, **info: Any) -> dict[str, Any]:
    """Return the push of a join."""
    return push(ROOM, "join", {"info": {"user": user, "client": user} | info})


def left(user: str, **info: Any) -> dict[str, Any]:
    """Return the push of a leave."""
    return push(ROOM, "leave", {"info": {"user": user, "client": user} | info})


async def watching(site: Site, user: str) -> Sdk:
    """Return a client that is notified of joins and leaves, after its own join."""
    client = await site.connected(user)
    await client.subscribe(ROOM, join_leave=True)
    assert await client.next() == joined(user)
    return client


async def test_joins_and_leaves(site: Site) -> None:
    """A client is notified of its own join, after the reply, and of each user who joins and leaves from then on."""
    first = await watching(site, "ann")
    second = await watching(site, "bob")
    assert await first.next() == joined("bob")
    await second.ask("unsubscribe", channel=ROOM)
    assert await first.next() == left("bob")
    assert await second.waiting() == []
    assert await first.waiting() == []
