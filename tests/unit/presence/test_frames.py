"""`backplane.presence.frames`: the presence of a channel for clients."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from backplane.fanout.backlog import Backlog
from backplane.fanout.batch import Batch, FinalMessage
from backplane.fanout.outbox import Outbox
from backplane.presence_types import Presence
from tests.unit.doubles import until_idle
from tests.unit.kit import WAIT_SECONDS
from tests.unit.presence.world import OTHER, ROOM, Pages, World

if TYPE_CHECKING:
    from backplane.fanout.backlog import FullPolicy

pytestmark = pytest.mark.anyio

U1 = {"c": ("u1", 1)}
U2 = {"c": ("u1", 1), "d": ("u2", 2)}


async def started(*clients: Pages, rule: Presence | None = None) -> World:
    """Return a world in which clients are notified of the room."""
    world = World(rule)
    world.bus.confirms = False
    world.agent.start()
    for client in clients:
        world.frames.add(ROOM, client)
    await until_idle()
    assert all(client.frames == [] for client in clients)  # nothing while it is not known
    world.bus.confirm()
    await world.known()
    await until_idle()
    return world


async def test_a_snapshot_and_then_changes() -> None:
    """A client gets all users once they are known, and then every change with the next version of the same id."""
    client = Pages()
    world = await started(client)
    world.other_has(U1)
    await until_idle()
    world.other_has({"c": ("u1", 7), "d": ("u2", 2)})
    await until_idle()
    world.other_has({"d": ("u2", 2)})
    await until_idle()
    view = client.frames[0].pop("id")
    assert client.frames == [
        {"version": 0, "connections": 0, "users": {}},
        {"id": view, "version": 1, "connections": 1, "joined": {"u1": {"info": 1, "connections": 1}}},
        {
            "id": view,
            "version": 2,
            "connections": 2,
            "joined": {"u2": {"info": 2, "connections": 1}},
            "updated": {"u1": {"info": 7, "connections": 1}},
        },
        {"id": view, "version": 3, "connections": 1, "left": ["u1"]},
    ]
    world.agent.stop()


async def test_changes_before_the_users_are_known() -> None:
    """What changes while answers are missing is in the snapshot."""
    client, world = Pages(), World()
    world.bus.confirms = False
    world.agent.start()
    world.frames.add(ROOM, client)
    await until_idle()
    world.other_has(U1)
    assert world.users() == ["u1"]
    world.bus.confirm()
    await world.known()
    await until_idle()
    assert [(frame["version"], list(frame["users"])) for frame in client.frames] == [(1, ["u1"])]
    world.agent.stop()


async def test_the_last_client_goes_while_changes_wait() -> None:
    """What waits for a fan-out that is not done is dropped with the last client."""
    clients = [Pages(str(number).encode()) for number in range(300)]
    world = await started(*clients)
    world.hub._pass_seconds = 0.0  # pyright: ignore[reportPrivateUsage]

    def go(_: object, /) -> None:
        world.other_has(U2)
        assert world.users() == ["u1", "u2"]
        for client in clients:
            world.frames.discard(ROOM, client)

    clients[0].offer = go  # type: ignore[method-assign]
    world.other_has(U1)
    for _ in range(20):
        await until_idle()
    assert [len(client.frames) for client in clients] == [1] * 300
    late = Pages(b"late")
    world.frames.add(ROOM, late)
    await until_idle()
    assert [frame["version"] for frame in late.frames] == [2]
    world.agent.stop()


async def test_one_snapshot_for_many() -> None:
    """For clients that join one after another there is one snapshot, as long as nothing changes."""
    made: list[Batch] = []

    class Client(Pages):
        def offer(self, batch: list[Any], /) -> None:
            super().offer(batch)
            assert isinstance(batch, Batch)
            made.append(batch)

    world = await started(Client())
    world.other_has(U2)
    await until_idle()
    made.clear()
    clients = [Client(str(number).encode()) for number in range(3)]
    for client in clients[:2]:
        world.frames.add(ROOM, client)
    await until_idle()
    world.frames.add(ROOM, clients[2])
    await until_idle()
    assert made[0] is made[1] is made[2]
    assert all(frame["users"].keys() == {"u1", "u2"} for client in clients for frame in client.frames)
    world.agent.stop()


async def test_a_snapshot_has_the_number_of_connections_of_its_moment() -> None:
    """Another connection of a user is no change, and a snapshot made after it counts it."""
    world = await started(Pages())
    world.other_has(U1)
    await until_idle()
    first, second = Pages(b"first"), Pages(b"second")
    world.frames.add(ROOM, first)
    await until_idle()
    world.other_has({"c": ("u1", 1), "d": ("u1", 1)})
    await until_idle()
    world.frames.add(ROOM, second)
    await until_idle()
    assert [frame["connections"] for frame in (*first.frames, *second.frames)] == [1, 2]
    assert second.frames[0]["users"]["u1"]["connections"] == 2
    world.agent.stop()


async def test_joining_again_begins_anew() -> None:
    """A client that joins again gets a snapshot, and each version after it once."""
    client, other = Pages(b"one"), Pages(b"two")
    world = await started(client, other)
    world.other_has(U1)
    world.frames.add(ROOM, client)
    await until_idle()
    world.other_has(U2)
    await until_idle()
    assert [frame["version"] for frame in client.frames] == [0, 1, 2]
    assert [("users" in frame) for frame in client.frames] == [True, True, False]
    assert [frame["version"] for frame in other.frames] == [0, 1, 2]
    world.agent.stop()


async def test_versions_are_in_order_for_a_client_that_comes_while_others_are_served() -> None:
    """Where a fan-out takes long each client gets each version once and in order, and one that left nothing more."""
    clients = [Pages(str(number).encode()) for number in range(1_000)]
    world = await started(*clients)
    world.hub._pass_seconds = 0.0  # pyright: ignore[reportPrivateUsage]  # one slice of 200 in each pass
    world.other_has(U1)
    late, gone = Pages(b"late"), clients[-1]

    def come(batch: list[Any], /) -> None:
        """Take the first change: meanwhile the next one comes, and a client, and another one goes."""
        Pages.offer(clients[0], batch)
        if batch[0].data.count("joined") and world.users() == ["u1"]:
            world.other_has(U2)
            world.frames.add(ROOM, late)
            world.frames.add(ROOM, clients[500])
            world.frames.discard(ROOM, gone)

    clients[0].offer = come  # type: ignore[method-assign]
    async with asyncio.timeout(WAIT_SECONDS):
        while not (late.frames and clients[500].frames[-1]["version"] == 2 and clients[-2].frames[-1]["version"] == 2):
            await asyncio.sleep(0)
    versions = [[frame["version"] for frame in client.frames] for client in (*clients, late)]
    assert versions[-1] == [2]
    assert versions[-2] == [0]
    assert versions[500] == [0, 2]
    assert {tuple(each) for number, each in enumerate(versions[:-2]) if number != 500} == {(0, 1, 2)}
    world.agent.stop()


async def test_the_fan_out_is_sliced() -> None:
    """Five thousand clients of a room are served in passes of the event loop of a few milliseconds each."""
    clients = [Pages(str(number).encode()) for number in range(5_000)]
    world = await started(*clients)
    assert {len(client.frames) for client in clients} == {1}
    world.hub._pass_seconds = 0.0  # pyright: ignore[reportPrivateUsage]
    world.other_has(U1)
    served: list[int] = []
    while not served or served[-1] < len(clients):
        await asyncio.sleep(0)
        served.append(sum(client.offers == 2 for client in clients))
    assert max(after - before for before, after in pairwise(served)) == 200
    world.agent.stop()


async def test_the_last_client_that_goes_ends_it() -> None:
    """Without a client nothing is observed: also where it went before anything was sent, and where it was none."""
    client = Pages()
    world = World()
    world.agent.start()
    world.frames.discard(ROOM, client)
    world.frames.add(ROOM, client)
    world.frames.discard(ROOM, Pages(b"another"))
    world.frames.discard(ROOM, client)
    world.frames.discard(ROOM, client)
    await until_idle()
    assert client.frames == []
    world.frames.add(ROOM, client)
    await world.known()
    await until_idle()
    assert len(client.frames) == 1
    world.frames.discard(ROOM, client)
    world.other_has(U1)
    await until_idle()
    assert len(client.frames) == 1
    world.agent.stop()


async def test_a_client_that_ends_while_it_is_served() -> None:
    """The last client of a room can end by what it is offered: everything else goes on."""
    client, other = Pages(b"one"), Pages(b"two")
    world = await started(client)

    def end(_: object, /) -> None:
        world.frames.discard(ROOM, client)

    client.offer = end  # type: ignore[method-assign]
    world.other_has(U1)
    await until_idle()
    world.frames.add(ROOM, other)
    await until_idle()
    world.other_has(U2)
    await until_idle()
    assert [frame["version"] for frame in other.frames] == [1, 2]
    world.agent.stop()


async def test_many_channels_of_one_client() -> None:
    """Each channel has versions of its own."""
    client, rooms = Pages(), [f"room:{number}" for number in range(50)]
    world = World()
    world.agent.start()
    for room in rooms:
        world.frames.add(room, client)
    for room in rooms:
        await world.known(room)
    await until_idle()
    for room in rooms[:2]:
        world.other_has(U1, room)
    await until_idle()
    assert [frame["version"] for frame in client.frames] == [0] * 50 + [1, 1]
    for room in rooms:
        world.frames.discard(room, client)
    world.agent.stop()


async def test_numbers_alone() -> None:
    """Where the channel exchanges numbers alone users are null, each other number is a frame, and it can turn back."""
    client = Pages()
    world = await started(client, rule=Presence(grace_seconds=0, max_entries=2))
    world.other_has(3)
    await until_idle()
    world.other_has(4)
    await until_idle()
    world.other_has(4)
    await until_idle()
    world.other_has(U1)
    await until_idle()
    ids = [frame.pop("id") for frame in client.frames]
    assert ids[1] == ids[2]
    assert len(set(ids)) == 3
    assert client.frames == [
        {"version": 0, "connections": 0, "users": {}},
        {"version": 0, "connections": 3, "users": None},
        {"version": 1, "connections": 4},
        {"version": 0, "connections": 1, "users": {"u1": {"info": 1, "connections": 1}}},
    ]
    world.agent.stop()


async def test_never_any_names() -> None:
    """With `max_entries=0` there are numbers from the first frame on."""
    client = Pages()
    world = await started(client, rule=Presence(max_entries=0))
    world.other_has(2)
    await until_idle()
    world.other_has(0)
    await until_idle()
    ids = {frame.pop("id") for frame in client.frames}
    assert len(ids) == 1
    assert client.frames == [
        {"version": 0, "connections": 0, "users": None},
        {"version": 1, "connections": 2},
        {"version": 2, "connections": 0},
    ]
    world.agent.stop()


async def test_a_reset_while_others_are_served() -> None:
    """What is on its way when the channel turns to numbers goes to no further client; each gets the new snapshot."""
    clients = [Pages(str(number).encode()) for number in range(300)]
    world = await started(*clients, rule=Presence(grace_seconds=0, max_entries=2))
    world.hub._pass_seconds = 0.0  # pyright: ignore[reportPrivateUsage]

    def reset(batch: list[Any], /) -> None:
        Pages.offer(clients[0], batch)
        if world.users():
            world.other_has(5)
            assert world.users() == []

    clients[0].offer = reset  # type: ignore[method-assign]
    world.other_has(U1)
    async with asyncio.timeout(WAIT_SECONDS):
        while clients[-1].frames[-1]["connections"] != 5:
            await asyncio.sleep(0)
    assert [frame["connections"] for frame in clients[0].frames] == [0, 1, 5]
    assert [frame["connections"] for frame in clients[-1].frames] == [0, 5]
    world.agent.stop()


async def test_changes_of_one_pass_are_one_batch() -> None:
    """Changes that come before the frames are sent are written together, each with its version."""
    client = Pages()
    world = await started(client)
    world.other_has(U1)
    world.other_has(U2)
    world.other_has({}, owner="c" * 16)
    await until_idle()
    assert [frame["version"] for frame in client.frames] == [0, 1, 2]
    assert client.offers == 2
    world.agent.stop()


@pytest.mark.parametrize("info", ["{", "", "NaN", '"\\ud800"', "[" * 200, "1" * 250 + "e999"])
async def test_another_worker_states_nonsense(info: str) -> None:
    """What is no JSON, or can be sent to no client, is null; the others are as they are."""
    client = Pages()
    world = await started(client)
    world.receive(ROOM, "snap", OTHER, 1, {"c": ["u1", info, 1], "d": ["u2", '"\\u00e9"', 1]})
    await until_idle()
    assert client.frames[-1]["joined"]["u2"]["info"] == "é"
    assert client.frames[-1]["joined"]["u1"]["info"] in (None, float("inf"))
    world.agent.stop()


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest", "latest"])
async def test_a_dropped_frame_is_a_hole_in_the_versions(policy: FullPolicy) -> None:
    """No policy replaces one frame by another: what does not fit is missing, and the versions show that."""
    outbox = Outbox(Backlog(max_messages=2, when_full=policy))

    class Client(Pages):
        def offer(self, batch: list[Any], /) -> None:
            super().offer(batch)
            for message in batch:
                assert isinstance(message, FinalMessage)
                assert outbox.offer(message)

    client = Client()
    world = await started(client)
    for entries in (U1, U2, U1, U2):
        world.other_has(entries)
        await until_idle()
    kept = [item.data for item in iter(outbox.take, None) if isinstance(item, FinalMessage)]
    sent = [frame["version"] for frame in client.frames]
    assert sent == [0, 1, 2, 3, 4]
    versions = [version for version in sent if any(f'"version":{version},' in str(data) for data in kept)]
    assert versions == ([0, 1] if policy == "drop_newest" else [3, 4])
    world.agent.stop()


async def test_a_large_room_is_made_in_time() -> None:
    """A snapshot of a thousand users takes a few milliseconds, once."""
    clients = [Pages(str(number).encode()) for number in range(100)]
    world = await started(*clients)
    world.other_has({f"c{number}": (f"user-{number}", {"name": "x" * 20}) for number in range(1_000)})
    await until_idle()
    view = world.agent.view
    calls: list[str] = []

    def counted(channel: str) -> Any:
        calls.append(channel)
        return view(channel)

    world.agent.view = counted  # type: ignore[method-assign]
    began = time.perf_counter()
    for client in clients:
        world.frames.add(ROOM, client)
        await asyncio.sleep(0)
    await until_idle()
    assert calls == [ROOM]
    assert {len(client.frames[-1]["users"]) for client in clients} == {1_000}
    assert time.perf_counter() - began < 20
    world.agent.stop()
