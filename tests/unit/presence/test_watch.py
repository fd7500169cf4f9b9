"""`backplane.presence.watch`: a channel's users for the application itself."""

from __future__ import annotations

import asyncio
import threading

import pytest

from backplane.errors import LifecycleError, TooManyPresentError, WrongLoopError
from backplane.presence.watch import PresenceWatch
from backplane.presence_types import Presence, PresenceChange, PresenceSnapshot, PresentUser
from tests.unit.doubles import until_idle
from tests.unit.kit import WAIT_SECONDS
from tests.unit.presence.world import ROOM, World

pytestmark = pytest.mark.anyio

LONG_SECONDS = 10 * WAIT_SECONDS
U1 = {"c": ("u1", 1)}
U2 = {"c": ("u1", 1), "d": ("u2", {"n": 2})}


async def started(rule: Presence | None = None) -> tuple[World, PresenceWatch]:
    """Return a world, and a watch of the room."""
    world = World(rule)
    world.agent.start()
    watch = PresenceWatch(world.agent, world.hub.affinity, ROOM)
    await until_idle()
    return world, watch


async def take(watch: PresenceWatch) -> PresenceSnapshot | PresenceChange:
    """Return the next item."""
    return await asyncio.wait_for(anext(watch), WAIT_SECONDS)


async def test_a_snapshot_and_then_changes() -> None:
    """The first item is a snapshot of what is known then, and each change after it has the next version."""
    world, watch = await started()
    world.other_has(U1)
    snapshot = await take(watch)
    assert isinstance(snapshot, PresenceSnapshot)
    assert (snapshot.version, snapshot.users, snapshot.connections, snapshot.counts_only) == (
        1,
        {"u1": PresentUser(user="u1", info=1)},
        1,
        False,
    )
    world.other_has(U2)
    world.other_has({"d": ("u2", {"n": 3})})
    joined = {"u2": PresentUser(user="u2", info={"n": 2})}
    assert await take(watch) == PresenceChange(version=2, joined=joined, connections=1)
    updated = {"u2": PresentUser(user="u2", info={"n": 3})}
    assert await take(watch) == PresenceChange(version=3, updated=updated, connections=1)
    assert await take(watch) == PresenceChange(version=4, left=("u1",), connections=1)
    assert watch.view.users == updated
    watch.end()
    world.agent.stop()


async def test_it_waits_until_the_users_are_known() -> None:
    """No item comes while an answer is missing or the link is lost; the view is there, and stale."""
    world, watch = await started()
    world.agent.link_changed(is_live=False)
    item = asyncio.create_task(take(watch))
    await until_idle()
    assert (item.done(), watch.view.stale) == (False, True)
    world.agent.link_changed(is_live=True)
    assert isinstance(await item, PresenceSnapshot)
    assert not watch.view.stale
    watch.end()
    world.agent.stop()


async def test_changes_while_the_link_is_lost() -> None:
    """A watch that has begun gets nothing for a lost link, and after it what has changed, under the same id."""
    world, watch = await started()
    snapshot = await take(watch)
    world.agent.link_changed(is_live=False)
    world.agent.link_changed(is_live=True)
    world.other_has(U1)
    change = await take(watch)
    assert change.version == snapshot.version + 1
    watch.end()
    world.agent.stop()


async def test_a_slow_consumer_begins_anew() -> None:
    """Where more than 1,000 changes wait, a snapshot with the last version comes in their place."""
    world, watch = await started()
    await take(watch)
    for number in range(1_000):
        world.other_has({"c": ("u1", number)})
        await until_idle()
    assert (await take(watch)).version == 1
    for number in range(2):
        world.other_has({"c": ("u1", -number)})
        await until_idle()
    snapshot = await take(watch)
    assert isinstance(snapshot, PresenceSnapshot)
    assert (snapshot.version, snapshot.users["u1"].info) == (1_002, -1)
    world.other_has({})
    assert (await take(watch)).version == 1_003
    watch.end()
    world.agent.stop()


async def test_numbers_alone() -> None:
    """A channel that turns to numbers alone, or back, begins anew; each other number is a change."""
    world, watch = await started(Presence(grace_seconds=0, max_entries=2))
    first = await take(watch)
    world.other_has(U1)
    await take(watch)
    world.other_has(3)
    second = await take(watch)
    assert isinstance(second, PresenceSnapshot)
    assert (second.counts_only, second.users, second.connections) == (True, {}, 3)
    with pytest.raises(TooManyPresentError, match="3 connections"):
        _ = watch.view.users
    world.other_has(5)
    assert await take(watch) == PresenceChange(version=1, connections=5)
    world.other_has(U1)
    third = await take(watch)
    assert isinstance(third, PresenceSnapshot)
    assert third.users.keys() == {"u1"}
    assert len({item.id for item in (first, second, third) if isinstance(item, PresenceSnapshot)}) == 3
    watch.end()
    world.agent.stop()


async def test_the_end() -> None:
    """A watch that is ended returns what waits, and then stops; its view is the last one, as stale."""
    world, watch = await started()
    await take(watch)
    world.other_has(U1)
    await until_idle()
    watch.end()
    watch.end()
    world.other_has(U2)
    await until_idle()
    assert [item.version async for item in watch] == [1]
    assert (watch.view.stale, list(watch.view.users)) == (True, ["u1"])
    world.agent.stop()


async def test_the_end_of_a_watch_that_waits() -> None:
    """The iteration stops, also where no item has come yet."""
    world = World()
    world.bus.confirms = False
    world.agent.start()
    watch = PresenceWatch(world.agent, world.hub.affinity, ROOM)

    async def iterate() -> list[int]:
        return [item.version async for item in watch]

    iterating = asyncio.create_task(iterate())
    await until_idle()
    watch.end()
    assert await asyncio.wait_for(iterating, WAIT_SECONDS) == []
    world.agent.stop()


async def test_one_task_at_a_time() -> None:
    """A second task that iterates is refused, and one after a cancelled one is not; cancelling loses nothing."""
    world, watch = await started()
    await take(watch)
    first = asyncio.create_task(anext(watch))
    await until_idle()
    with pytest.raises(LifecycleError, match="receives from this watch already: watch the channel once for each"):
        await anext(watch)
    world.other_has(U1)
    first.cancel()
    await until_idle()
    assert first.cancelled()
    assert (await take(watch)).version == 1
    watch.end()
    world.agent.stop()


async def test_another_thread() -> None:
    """It belongs to the event loop that made it."""
    world, watch = await started()
    errors: list[type[BaseException]] = []

    def use() -> None:
        for call in (lambda: watch.view, lambda: asyncio.run(take(watch))):
            try:
                call()
            except BaseException as error:
                errors.append(type(error))

    thread = threading.Thread(target=use)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert errors == [WrongLoopError, WrongLoopError]
    watch.end()
    world.agent.stop()


async def test_settle_waits_for_answers_and_for_what_the_own_clients_did() -> None:
    """What a client of this worker did just before is in the view, also where it is no change for users."""
    world, watch = await started()
    world.agent.enter(ROOM, "c", "u1", "1")
    await watch.settle(WAIT_SECONDS)
    assert (watch.view.stale, watch.view.connections) == (False, 1)
    world.agent.enter(ROOM, "d", "u1", "1")
    await watch.settle(WAIT_SECONDS)
    assert watch.view.connections == 2
    watch.end()
    world.agent.stop()


async def test_settle_in_vain() -> None:
    """It waits no longer than it may, not at all while the link is lost, and not for a watch that has ended."""
    world, watch = await started()
    world.bus.confirms = False
    other = PresenceWatch(world.agent, world.hub.affinity, "room:2")
    await other.settle(0.01)
    assert other.view.stale
    waiting = asyncio.create_task(other.settle(LONG_SECONDS))
    await until_idle()
    assert not waiting.done()
    world.agent.link_changed(is_live=False)
    await asyncio.wait_for(waiting, WAIT_SECONDS)
    await asyncio.wait_for(other.settle(LONG_SECONDS), WAIT_SECONDS)
    world.agent.link_changed(is_live=True)
    other.end()
    await asyncio.wait_for(other.settle(LONG_SECONDS), WAIT_SECONDS)
    watch.end()
    world.agent.stop()
