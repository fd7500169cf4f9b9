"""`backplane.presence.agent`: the protocol of one worker on its bus."""

from __future__ import annotations

import asyncio
import json

import pytest

from backplane.cluster.topics import WORKERS, inbox_of, presence_of
from tests.unit.doubles import until_idle
from tests.unit.presence.world import OTHER, ROOM, Events, World

pytestmark = pytest.mark.anyio

TOPIC = presence_of(ROOM)


async def test_start_sends_a_heartbeat() -> None:
    """It sends a heartbeat at the end of the pass of the event loop in which it starts, and nothing before."""
    world = World()
    world.agent.start()
    assert (world.bus.sent, world.agent.is_live) == ([], True)
    await until_idle()
    assert world.bus.kinds(WORKERS) == ["beat"]
    assert world.bus.topics == {}
    world.agent.stop()


async def test_an_observer_sends_no_heartbeat() -> None:
    """It asks about channels, and is none of the workers."""
    world = World(observes=True)
    world.agent.start()
    world.agent.observe(ROOM, Events())
    await world.until(lambda: bool(world.bus.sent))
    assert (world.bus.kinds(WORKERS), world.bus.kinds(TOPIC)) == ([], ["ask"])
    world.agent.stop()
    assert world.bus.kinds(WORKERS) == []


async def test_stop_ends_everything() -> None:
    """It sends a goodbye, before what else is due, and after it nothing is sent or subscribed, whatever is called."""
    world = World()
    world.agent.start()
    world.agent.enter(ROOM, "c", "u", "1")
    await world.until(lambda: bool(world.bus.kinds(TOPIC)))
    world.agent.enter(ROOM, "d", "v", "1")
    world.agent.stop()
    assert (world.bus.kinds(TOPIC)[-1], world.bus.kinds(WORKERS)) == ("delta", ["beat", "bye"])
    assert [fields[0] for _, fields in world.bus.sent[-2:]] == ["bye", "delta"]
    assert not world.agent.is_live
    sent = len(world.bus.sent)
    world.agent.exit(ROOM, "c")
    world.agent.update(ROOM, "d", "2")
    world.agent.received(TOPIC, json.dumps(["snap", OTHER, 1, {}]))
    await until_idle()
    assert len(world.bus.sent) == sent
    world.agent.stop()
    assert len(world.bus.sent) == sent


async def test_stop_before_the_start() -> None:
    """An agent that has not started has nothing to end."""
    world = World()
    world.agent.stop()
    assert world.bus.sent == []


async def test_what_happens_in_one_pass_is_one_message() -> None:
    """Enter, update and exit of one pass are one delta, and a client that came and went is in none."""
    world = World()
    world.agent.start()
    world.agent.enter(ROOM, "c", "u", "1")
    world.agent.update(ROOM, "c", "2")
    world.agent.enter(ROOM, "gone", "v", "1")
    world.agent.exit(ROOM, "gone")
    await world.until(lambda: bool(world.bus.kinds(TOPIC)))
    (fields,) = [fields for topic, fields in world.bus.sent if topic == TOPIC]
    assert [entry[:2] for entry in fields[4].values()] == [["u", "2"]]
    assert list(world.bus.topics) == [TOPIC]
    world.agent.stop()


async def test_a_client_that_comes_and_goes_at_once_sends_nothing() -> None:
    """Nothing is published for it, and its channel is left again."""
    world = World()
    world.agent.start()
    world.agent.enter(ROOM, "c", "u", "1")
    world.agent.exit(ROOM, "c")
    world.agent.enter("room:2", "c", "u", "1")
    await world.until(lambda: bool(world.bus.kinds(presence_of("room:2"))))
    await world.until(lambda: TOPIC not in world.bus.topics)
    assert world.bus.kinds(TOPIC) == []
    world.agent.stop()


async def test_a_channel_without_an_observer() -> None:
    """Its clients are stated, and no view of it is kept."""
    world = World()
    world.agent.start()
    world.agent.enter(ROOM, "c", "u", "1")
    await world.until(lambda: bool(world.bus.kinds(TOPIC)))
    protocol = world.agent._protocol  # pyright: ignore[reportPrivateUsage]
    assert (protocol.head(ROOM), protocol.view(ROOM), protocol.head("room:9")) == (None, None, None)
    world.agent.stop()


async def test_observers_share_a_view() -> None:
    """One subscription and one request serve all observers of a channel; the last one that ends lets go of it."""
    world, first, second = World(), Events(), Events()
    world.agent.start()
    world.agent.observe(ROOM, first)
    world.agent.observe(ROOM, second)
    await world.known()
    world.other_has({"c": ("u", 1)})
    assert world.users() == ["u"]
    assert first.kinds == second.kinds == ["fresh", "change"]
    world.agent.unobserve(ROOM, first)
    world.agent.unobserve(ROOM, first)
    world.other_has({})
    await until_idle()
    assert (first.kinds, second.kinds) == (["fresh", "change"], ["fresh", "change", "change"])
    world.agent.unobserve(ROOM, second)
    world.agent.unobserve(ROOM, second)
    world.agent.unobserve("room:9", second)
    world.agent.stop()


async def test_an_observer_gets_no_earlier_changes() -> None:
    """It is notified of what comes after the view that it has read, not of changes that are in it already."""
    world, first, second = World(), Events(), Events()
    world.agent.start()
    world.agent.observe(ROOM, first)
    await world.known()
    world.other_has({"c": ("u", 1)})
    world.agent.observe(ROOM, second)
    assert world.agent.view(ROOM).version == 1
    await until_idle()
    assert (first.kinds, second.kinds) == (["fresh", "change"], [])
    world.agent.stop()


async def test_the_link() -> None:
    """While it is lost views are stale, and nothing is sent; when it is back a heartbeat is."""
    world, events = World(), Events()
    world.agent.start()
    world.agent.observe(ROOM, events)
    await world.known()
    world.agent.link_changed(is_live=False)
    await until_idle()
    assert (events.kinds[-1], world.agent.is_live) == ("stale", False)
    sent = len(world.bus.sent)
    world.agent.enter(ROOM, "c", "u", "1")
    await until_idle()
    assert len(world.bus.sent) == sent
    world.agent.link_changed(is_live=True)
    await world.until(lambda: world.users() == ["u"] and not world.agent.head(ROOM).stale)
    assert world.bus.kinds(WORKERS) == ["beat", "beat"]
    world.agent.stop()


async def test_gaps() -> None:
    """A gap on a channel makes its view ask; one on a topic that is not its own changes nothing."""
    world = World()
    world.agent.start()
    world.agent.observe(ROOM, Events())
    await world.known()
    asked = world.bus.kinds(TOPIC).count("ask")
    world.agent.gap(presence_of("room:9"))
    world.agent.received(presence_of("room:9"), "[]")
    await until_idle()
    assert not world.agent.head(ROOM).stale
    world.agent.gap(TOPIC)
    world.agent.gap(inbox_of(world.bus.worker))
    world.agent.gap(WORKERS)
    assert world.agent.head(ROOM).stale
    await world.until(lambda: world.bus.kinds(TOPIC).count("ask") > asked)
    world.agent.stop()


async def test_a_message_that_failed_is_sent_as_a_whole() -> None:
    """What may not have been published is published again, all of it."""
    world = World()
    world.agent.start()
    world.agent.enter(ROOM, "c", "u", "1")
    await world.until(lambda: world.bus.kinds(TOPIC) == ["delta"])
    failed = world.bus.failed[-1]
    assert failed is not None
    failed()
    await world.until(lambda: world.bus.kinds(TOPIC) == ["delta", "snap"])
    world.agent.stop()


async def test_answers_go_to_the_inbox_of_the_worker_that_asked() -> None:
    """An answer is sent to one worker alone."""
    world = World()
    world.agent.start()
    world.agent.enter(ROOM, "c", "u", "1")
    await world.until(lambda: world.bus.kinds(TOPIC) == ["delta"])
    world.receive(ROOM, "ask", OTHER, {}, True, 0, 7)
    await until_idle()
    assert world.bus.kinds(inbox_of(OTHER)) == ["view"]
    world.agent.stop()


async def test_workers() -> None:
    """It lists those whose heartbeats it receives, and reports that some may have come or gone."""
    world = World()
    world.agent.start()
    await until_idle()
    before = world.worker_changes
    world.agent.received(WORKERS, json.dumps(["beat", OTHER, 1, {"host": "h"}]))
    assert world.worker_changes == before
    await until_idle()
    assert world.worker_changes == before + 1
    (worker,) = world.agent.workers()
    assert (worker.origin, worker.alive, dict(worker.info)) == (OTHER, True, {"host": "h"})
    world.other_ends()
    assert not world.agent.workers()[0].alive
    assert (world.agent.counters["in.heartbeat"], world.agent.lag_seconds) == (1, 0)
    world.agent.stop()


async def test_a_confirmation_lets_it_ask() -> None:
    """Nothing is sent to a channel before the broker has confirmed the subscription."""
    world = World()
    world.bus.confirms = False
    world.agent.start()
    world.agent.observe(ROOM, Events())
    await until_idle()
    assert world.bus.kinds(TOPIC) == []
    world.bus.topics[TOPIC]()
    await world.known()
    assert world.bus.kinds(TOPIC)[0] == "ask"
    world.agent.stop()


async def test_waiting_for_a_pass_can_be_cancelled() -> None:
    """Of two that wait, one that is cancelled does not end the other's wait."""
    world = World()
    world.agent.start()
    await until_idle()
    one, two = (asyncio.create_task(world.agent.passed()) for _ in range(2))
    await until_idle()
    one.cancel()
    await until_idle()
    assert (one.cancelled(), two.done()) == (True, False)
    world.other_has({})
    world.other_ends()
    await two
    world.agent.stop()
