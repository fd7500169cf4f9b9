"""`backplane.fanout.subscriber`: what every local subscriber does alike, over a broker that does what a test says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backplane.errors import ClosedError, InvalidChannelError, SubscribeError
from backplane.fanout.broker_subscriptions import BrokerSubscriptions
from backplane.fanout.hub import Hub
from backplane.fanout.subscriber import BaseSubscriber
from tests.unit.doubles import ControlledBroadcaster, following, until_idle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.fanout.batch import Batch
    from backplane.message import Gap

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 5.0


class Listener(BaseSubscriber):
    """A member that keeps what it hears."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub, None)
        self.heard: list[str | bytes] = []

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return "listener"

    def offer(self, batch: Batch, /) -> None:
        """Keep messages."""
        self.heard += [message.data for message in batch]

    def gap(self, gap: Gap) -> None:
        """Do nothing."""

    def end(self) -> None:
        """End."""
        self._leave_all()


class World:
    """A hub over a controlled broker, and one member of it."""

    def __init__(self) -> None:
        self.broker = ControlledBroadcaster()
        self.broker_subscriptions = BrokerSubscriptions(linger_seconds=60, timeout_seconds=60)
        self.hub = Hub(self.broker_subscriptions)
        self.member = Listener(self.hub)

    @property
    def joined(self) -> tuple[list[str], list[str]]:
        """What the member has joined, and what the hub has members of."""
        return list(self.member.channels), list(self.hub.channels)

    async def hears(self, member: Listener, *expected: str) -> None:
        """Deliver to channels `a` and `b`, and assert which of that a member hears."""
        self.hub.deliver("a", b"of a")
        self.hub.deliver("b", b"of b")
        await asyncio.sleep(0)
        assert member.heard == list(expected)
        member.heard.clear()


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    """A hub whose broker is up."""
    made = World()
    async with following(made.broker_subscriptions, made.broker):
        yield made
    made.hub.close()


async def test_join_and_leave(world: World) -> None:
    """A member hears a channel from the join to the leave, and no other."""
    await world.member.join("a")
    await world.hears(world.member, "of a")
    await world.member.join("b")
    assert world.joined == (["a", "b"], ["a", "b"])
    await world.member.leave("a")
    assert world.joined == (["b"], ["b"])
    await world.hears(world.member, "of b")


async def test_join_twice(world: World) -> None:
    """Joining again changes nothing: one copy, and one leave ends it."""
    await world.member.join("a")
    await world.member.join("a")
    await world.hears(world.member, "of a")
    await world.member.leave("a")
    assert world.joined == ([], [])


async def test_leave_what_was_not_joined(world: World) -> None:
    """Leaving a channel of others changes nothing for them."""
    other = Listener(world.hub)
    await other.join("a")
    await world.member.leave("a")
    await world.hears(other, "of a")


async def test_join_refused(world: World) -> None:
    """A channel the broker refuses is not joined, and the member goes on."""
    world.broker.refusals["secret"] = "not permitted"
    with pytest.raises(SubscribeError, match="not permitted"):
        await world.member.join("secret")
    assert world.joined == ([], [])
    await world.member.join("a")
    await world.hears(world.member, "of a")


@pytest.mark.parametrize(
    "channel", ["", "x" * 256, "$backplane/probe", "\ud800"], ids=["empty", "long", "reserved", "lone surrogate"]
)
async def test_join_of_an_illegal_name(world: World, channel: str) -> None:
    """A name that is not legal never reaches the broker."""
    with pytest.raises(InvalidChannelError):
        await world.member.join(channel)
    assert world.broker.calls == []


async def test_join_cancelled(world: World) -> None:
    """A cancelled join leaves the channel unjoined."""
    world.broker.subscribe_gate.close()
    joining = asyncio.create_task(world.member.join("a"))
    await world.broker.until(lambda: len(world.broker.calls) == 1)
    joining.cancel()
    await asyncio.wait([joining])
    assert world.joined == ([], [])


async def test_join_cancelled_beside_another_of_the_same_channel(world: World) -> None:
    """Of two concurrent joins of one channel, the cancelled one does not take the channel from the other."""
    world.broker.subscribe_gate.close()
    first, second = (asyncio.create_task(world.member.join("a")) for _ in range(2))
    await world.broker.until(lambda: len(world.broker.calls) == 1)
    first.cancel()
    await asyncio.wait([first])
    world.broker.subscribe_gate.open()
    await asyncio.wait_for(second, WAIT_SECONDS)
    assert world.joined == (["a"], ["a"])
    await world.hears(world.member, "of a")


async def test_join_while_ending(world: World) -> None:
    """A join the broker confirms after the member's end raises, and leaves nothing in the hub."""
    world.broker.subscribe_gate.close()
    joining = asyncio.create_task(world.member.join("a"))
    await world.broker.until(lambda: len(world.broker.calls) == 1)
    world.member.end()
    world.broker.subscribe_gate.open()
    with pytest.raises(ClosedError, match=f"listener {world.member.id} has ended"):
        await asyncio.wait_for(joining, WAIT_SECONDS)
    assert world.joined == ([], [])


async def test_end(world: World) -> None:
    """A member that has ended is over, has left every channel, hears nothing, and joins nothing more."""
    assert not world.member.is_over
    for channel in ("a", "b"):
        await world.member.join(channel)
    asked = list(world.broker.calls)
    world.member.end()
    assert (world.member.is_over, world.joined) == (True, ([], []))
    with pytest.raises(ClosedError):
        await world.member.join("c")
    await world.hears(world.member)
    assert world.broker.calls == asked


async def test_ids_are_unique(world: World) -> None:
    """Each member has an id of its own, 8 bytes as hex."""
    ids = {Listener(world.hub).id for _ in range(100)}
    assert len(ids) == 100
    assert all(len(bytes.fromhex(member_id)) == 8 for member_id in ids)


async def test_join_that_a_leave_overtakes() -> None:
    """Of two concurrent joins of one channel, the second hears it although the first left it in between."""
    world = World()
    async with following(world.broker_subscriptions, world.broker):
        world.broker.subscribe_gate.close()

        async def look_in() -> None:
            await world.member.join("a")
            await world.member.leave("a")

        joining = [asyncio.create_task(look_in()), asyncio.create_task(world.member.join("a"))]
        await until_idle()
        world.broker.subscribe_gate.open()
        await asyncio.gather(*joining)
        try:
            assert world.joined == (["a"], ["a"])
            await world.hears(world.member, "of a")
        finally:
            world.hub.close()
