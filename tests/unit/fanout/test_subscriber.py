"""`backplane.fanout.subscriber`: what every local subscriber has in common, over a broker that a test controls."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backplane.errors import ClosedError, InvalidChannelError, SubscribeError
from backplane.fanout.subscriber import BaseSubscriber
from backplane.fanout.subscriber_options import SubscriberOptions
from tests.unit import kit
from tests.unit.doubles import until_idle
from tests.unit.kit import WAIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.fanout.batch import Batch
    from backplane.fanout.hub import Hub
    from backplane.message import Gap, Joined

pytestmark = pytest.mark.anyio


class Recorder(BaseSubscriber):
    """A subscriber that keeps what it receives."""

    def __init__(self, hub: Hub, options: SubscriberOptions | None = None) -> None:
        super().__init__(hub, None, options=options)
        self.received: list[str | bytes] = []
        self.joins: list[Joined] = []

    @property
    def kind(self) -> str:
        """What kind of subscriber it is."""
        return "recorder"

    def offer(self, batch: Batch, /) -> None:
        """Keep messages."""
        self.received += [message.data for message in batch]

    def offer_missed(self, batch: Batch, /) -> None:
        """Keep messages."""
        self.offer(batch)

    def _take_joined(self, joined: Joined) -> None:
        """Keep joins."""
        self.joins.append(joined)

    def gap(self, gap: Gap) -> None:
        """Do nothing."""

    def end(self) -> None:
        """End."""
        self._leave_all()


class World(kit.World):
    """A hub over a controlled broker, and one subscriber of it."""

    def __init__(self) -> None:
        super().__init__(*kit.new_hub())
        self.subscriber = Recorder(self.hub)

    @property
    def channels(self) -> tuple[list[str], list[str]]:
        """What the subscriber has joined, and which channels of the hub have subscribers."""
        return list(self.subscriber.channels), list(self.hub.channels)

    async def receives(self, subscriber: Recorder, *expected: str) -> None:
        """Deliver to channels `a` and `b`, and assert which of that a subscriber receives."""
        self.deliver("a", "of a")
        self.deliver("b", "of b")
        await asyncio.sleep(0)
        assert subscriber.received == list(expected)
        subscriber.received.clear()


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    """A hub whose link is open."""
    made = World()
    async with made.linked():
        yield made


async def test_join_and_leave(world: World) -> None:
    """A subscriber receives a channel from the join to the leave, and no other."""
    await world.subscriber.join("a")
    await world.receives(world.subscriber, "of a")
    await world.subscriber.join("b")
    assert world.channels == (["a", "b"], ["a", "b"])
    await world.subscriber.leave("a")
    assert world.channels == (["b"], ["b"])
    await world.receives(world.subscriber, "of b")


async def test_join_twice(world: World) -> None:
    """Joining again changes nothing: one copy, and one leave ends it."""
    await world.subscriber.join("a")
    await world.subscriber.join("a")
    await world.receives(world.subscriber, "of a")
    await world.subscriber.leave("a")
    assert world.channels == ([], [])


async def test_leave_what_was_not_joined(world: World) -> None:
    """Leaving a channel of others changes nothing for them."""
    other = Recorder(world.hub)
    await other.join("a")
    await world.subscriber.leave("a")
    await world.receives(other, "of a")


async def test_join_refused(world: World) -> None:
    """A channel that the broker refuses is not joined, and the subscriber goes on."""
    world.adapter.refusals["secret"] = "not permitted"
    with pytest.raises(SubscribeError, match="not permitted"):
        await world.subscriber.join("secret")
    assert world.channels == ([], [])
    await world.subscriber.join("a")
    await world.receives(world.subscriber, "of a")


@pytest.mark.parametrize(
    "channel", ["", "x" * 256, "$backplane/probe", "\ud800"], ids=["empty", "long", "reserved", "lone surrogate"]
)
async def test_join_of_an_invalid_name(world: World, channel: str) -> None:
    """An invalid name is not sent to the broker."""
    with pytest.raises(InvalidChannelError):
        await world.subscriber.join(channel)
    assert world.adapter.calls == []


async def test_join_cancelled(world: World) -> None:
    """After a cancelled join the channel is not joined."""
    world.adapter.subscribe_gate.close()
    joining = asyncio.create_task(world.subscriber.join("a"))
    await world.adapter.until(lambda: len(world.adapter.calls) == 1)
    joining.cancel()
    await asyncio.wait([joining])
    assert world.channels == ([], [])


async def test_join_cancelled_beside_another_of_the_same_channel(world: World) -> None:
    """Of two concurrent joins of one channel, the cancelled one does not undo the other."""
    world.adapter.subscribe_gate.close()
    first, second = (asyncio.create_task(world.subscriber.join("a")) for _ in range(2))
    await world.adapter.until(lambda: len(world.adapter.calls) == 1)
    first.cancel()
    await asyncio.wait([first])
    world.adapter.subscribe_gate.open()
    await asyncio.wait_for(second, WAIT_SECONDS)
    assert world.channels == (["a"], ["a"])
    await world.receives(world.subscriber, "of a")


async def test_join_while_ending(world: World) -> None:
    """A join that the broker confirms after the end of the subscriber raises, and leaves nothing in the hub."""
    world.adapter.subscribe_gate.close()
    joining = asyncio.create_task(world.subscriber.join("a"))
    await world.adapter.until(lambda: len(world.adapter.calls) == 1)
    world.subscriber.end()
    world.adapter.subscribe_gate.open()
    with pytest.raises(ClosedError, match=f"recorder {world.subscriber.id} has ended"):
        await asyncio.wait_for(joining, WAIT_SECONDS)
    assert world.channels == ([], [])


async def test_end(world: World) -> None:
    """A subscriber that has ended is over, has left every channel, receives nothing, and can join nothing."""
    assert not world.subscriber.is_over
    for channel in ("a", "b"):
        await world.subscriber.join(channel)
    asked = list(world.adapter.calls)
    world.subscriber.end()
    assert (world.subscriber.is_over, world.channels) == (True, ([], []))
    with pytest.raises(ClosedError):
        await world.subscriber.join("c")
    await world.receives(world.subscriber)
    assert world.adapter.calls == asked


async def test_ids_are_unique(world: World) -> None:
    """Each subscriber has an id of its own, 8 bytes as hex."""
    ids = {Recorder(world.hub).id for _ in range(100)}
    assert len(ids) == 100
    assert all(len(bytes.fromhex(member_id)) == 8 for member_id in ids)


async def test_join_that_a_leave_overtakes() -> None:
    """Of two concurrent joins of one channel, the second is in force although the first was completed and left."""
    world = World()
    async with world.linked():
        world.adapter.subscribe_gate.close()

        async def look_in() -> None:
            await world.subscriber.join("a")
            await world.subscriber.leave("a")

        joining = [asyncio.create_task(look_in()), asyncio.create_task(world.subscriber.join("a"))]
        await until_idle()
        world.adapter.subscribe_gate.open()
        await asyncio.gather(*joining)
        assert world.channels == (["a"], ["a"])
        await world.receives(world.subscriber, "of a")


class Channels:
    """The presence of a subscriber, recorded."""

    user = "u"

    def __init__(self) -> None:
        self.happened: list[tuple[str, str]] = []

    def check(self, channel: str, /) -> None:
        """Record it."""
        self.happened.append(("check", channel))

    def entered(self, _: object, channel: str, /) -> None:
        """Record it."""
        self.happened.append(("entered", channel))

    def left(self, _: object, channel: str, /) -> None:
        """Record it."""
        self.happened.append(("left", channel))

    def update(self, _: object, channel: str, info: object, /) -> None:
        """Record it."""
        self.happened.append((f"update {info}", channel))

    def notify(self, _: object, channel: str, /) -> None:
        """Record it."""
        self.happened.append(("notify", channel))


async def test_presence_follows_the_channels(world: World) -> None:
    """It is notified of each channel that is joined, once, and of each that is left, by a leave or by the end."""
    channels = Channels()
    subscriber = Recorder(world.hub, SubscriberOptions(presence=channels))
    assert (world.subscriber.user, subscriber.user) == (None, "u")
    for channel in ("a", "b", "a"):
        await subscriber.join(channel)
    await subscriber.leave("a")
    await subscriber.leave("a")
    subscriber.end()
    subscriber.end()
    assert channels.happened == [("entered", "a"), ("entered", "b"), ("left", "a"), ("left", "b")]


async def test_presence_begins_when_the_handshake_is_done(world: World) -> None:
    """What may still be refused is present nowhere; then it is in all channels that it has joined."""

    class Guest(Recorder):
        admitted = False

        @property
        def _is_admitted(self) -> bool:
            return self.admitted

        def admit(self) -> None:
            """Be done with the handshake."""
            self.admitted = True
            self._enter_channels()

    Guest(world.hub).admit()
    channels = Channels()
    guest = Guest(world.hub, SubscriberOptions(presence=channels))
    await guest.join("a")
    await guest.join("b")
    await guest.leave("b")
    assert channels.happened == [("left", "b")]
    guest.admit()
    await guest.join("b")
    assert channels.happened[1:] == [("entered", "a"), ("entered", "b")]
    guest.end()
