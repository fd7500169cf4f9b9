"""`backplane.presence.attendance`: one client's presence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backplane.errors import ConfigurationError, InvalidDataError
from backplane.presence_types import Who
from tests.unit.doubles import until_idle
from tests.unit.presence.world import ROOM, Events, Pages, World

pytestmark = pytest.mark.anyio

ADA = Who(user="ada", info={"n": 1})


def infos(world: World) -> dict[str, Any]:
    """Return the info of each user of the room."""
    return {user: json.loads(present.info) for user, present in (world.agent.view(ROOM).users or {}).items()}


async def started() -> World:
    """Return a world in which the room is observed, and known."""
    world = World()
    world.agent.start()
    world.agent.observe(ROOM, Events())
    await world.known()
    return world


async def test_a_client_with_a_user() -> None:
    """It is present while it is in a channel, with its info and what it is updated to; a join begins with the info."""
    world, client = await started(), Pages()
    attendance = world.attendance(ADA)
    assert attendance.user == "ada"
    attendance.entered(client, ROOM)
    await world.until(lambda: infos(world) == {"ada": {"n": 1}})
    attendance.update(client, ROOM, {"n": 2})
    await world.until(lambda: infos(world) == {"ada": {"n": 2}})
    attendance.left(client, ROOM)
    await world.until(lambda: infos(world) == {})
    attendance.entered(client, ROOM)
    await world.until(lambda: infos(world) == {"ada": {"n": 1}})
    world.agent.stop()


async def test_a_client_without_a_user() -> None:
    """It is nowhere present, and can be notified all the same."""
    world, client = await started(), Pages()
    attendance = world.attendance()
    attendance.entered(client, ROOM)
    attendance.notify(client, ROOM)
    await until_idle()
    assert (attendance.user, world.users(), [frame["users"] for frame in client.frames]) == (None, [], [{}])
    with pytest.raises(ConfigurationError, match="the connection has no user"):
        attendance.update(client, ROOM, 1)
    attendance.left(client, ROOM)
    world.other_has({"c": ("u", 1)})
    await until_idle()
    assert len(client.frames) == 1
    world.agent.stop()


async def test_a_channel_without_a_rule() -> None:
    """Nothing is subscribed or sent for it; what needs presence raises an error that names the rule."""
    world, client = World(), Pages()
    world.agent.start()
    await until_idle()
    sent = len(world.bus.sent)
    attendance = world.attendance(ADA)
    attendance.entered(client, "lobby")
    attendance.left(client, "lobby")
    with pytest.raises(ConfigurationError, match="channel 'lobby' has no presence: give it a rule"):
        attendance.check("lobby")
    attendance.check(ROOM)
    await until_idle()
    assert (world.bus.topics, len(world.bus.sent)) == ({}, sent)
    world.agent.stop()


@pytest.mark.parametrize("info", [object(), "x" * 300, float("nan"), "\ud800", {1: {2}}])
async def test_bad_info(info: object) -> None:
    """It is refused, and what was shown stays."""
    world, client = await started(), Pages()
    attendance = world.attendance(ADA)
    attendance.entered(client, ROOM)
    await world.until(lambda: infos(world) == {"ada": {"n": 1}})
    with pytest.raises(InvalidDataError, match="the info of a presence"):
        attendance.update(client, ROOM, info)
    await until_idle()
    assert infos(world) == {"ada": {"n": 1}}
    world.agent.stop()


async def test_an_update_in_a_channel_that_is_not_joined() -> None:
    """It changes nothing."""
    world, client = await started(), Pages()
    world.attendance(ADA).update(client, ROOM, 1)
    await until_idle()
    assert world.users() == []
    world.agent.stop()


@pytest.mark.parametrize("user", ["__proto__", "Zoë ☃", "$backplane/workers", '"},"x":{"', "é" * 64, "*"])
async def test_hostile_names(user: str) -> None:
    """Any text is a user, also to the clients."""
    world, client = await started(), Pages()
    attendance = world.attendance(Who(user=user, info={"__proto__": '"\n'}))
    attendance.entered(client, ROOM)
    await world.until(lambda: world.users() == [user])
    attendance.notify(client, ROOM)
    await until_idle()
    assert client.frames[-1]["users"] == {user: {"info": {"__proto__": '"\n'}, "connections": 1}}
    world.agent.stop()
