"""`backplane.adapters.redis_cluster.links`: which reply belongs to which command, and the ends of subscriptions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from backplane.adapters.redis.envelope import ENVELOPE
from backplane.adapters.redis_cluster.links import ShardPublisherLink, ShardSubscriberLink
from backplane.errors import BrokerUnavailableError, PublishError, PublishOutcomeUnknownError
from backplane.testing import RecordingSink
from tests.unit.adapters.redis.recorded_links import RecordingTransport, confirmation
from tests.unit.doubles import until_idle

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import hiredis

pytestmark = pytest.mark.anyio

MOVED = b"-MOVED 1 10.0.0.2:7002\r\n"


class World:
    """A link that receives, and what it reports."""

    def __init__(self) -> None:
        self.sink = RecordingSink()
        self.moved: list[str] = []
        self.losses: list[Any] = []
        self.reports: list[list[str]] = []
        self.link = ShardSubscriberLink(self.sink, self._note_moved)
        self.transport = RecordingTransport(self.link)
        self.link.adopt(self.losses.append)

    def _note_moved(self, channels: Collection[str]) -> None:
        self.moved += channels
        self.reports.append(list(channels))

    async def subscribing(self, *names: str) -> asyncio.Task[dict[bytes, hiredis.ReplyError]]:
        """Return the call once its commands are sent."""
        wanted: Mapping[bytes, str] = {name.encode(): name for name in names}
        task = asyncio.create_task(self.link.subscribe(wanted))
        await until_idle()
        return task

    async def unsubscribing(self, *names: str) -> asyncio.Task[None]:
        """Return the call once its commands are sent."""
        task = asyncio.create_task(self.link.unsubscribe([name.encode() for name in names]))
        await until_idle()
        return task

    def replies(self, *replies: bytes | tuple[str, str]) -> None:
        """Receive replies; a pair is a confirmation."""
        packed = [
            reply if isinstance(reply, bytes) else confirmation(reply[0].encode(), reply[1].encode())
            for reply in replies
        ]
        self.link.data_received(b"".join(packed))

    def message(self, name: str, payload: bytes) -> None:
        """Receive a message."""
        self.link.data_received(
            b"*3\r\n$8\r\nsmessage\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name.encode(), len(payload), payload)
        )


async def test_each_name_is_a_command_of_its_own() -> None:
    """The names of one command would have to share a slot; all commands leave in one write."""
    world = World()
    task = await world.subscribing("a", "b")
    assert world.transport.written == [b"*2\r\n$10\r\nSSUBSCRIBE\r\n$1\r\na\r\n*2\r\n$10\r\nSSUBSCRIBE\r\n$1\r\nb\r\n"]
    world.replies(("ssubscribe", "a"), ("ssubscribe", "b"))
    assert await task == {}
    world.message("a", b"payload")
    world.message("elsewhere", b"payload")
    world.message("b", ENVELOPE)  # too short for an envelope
    assert world.sink.delivered == [("a", b"payload"), ("b", ENVELOPE)]


async def test_a_refused_name_fails_alone() -> None:
    """An error belongs to the oldest command, and its name is no longer delivered."""
    world = World()
    task = await world.subscribing("a", "b", "c")
    world.replies(("ssubscribe", "a"), MOVED, ("ssubscribe", "c"))
    errors = await task
    assert list(errors) == [b"b"]
    assert list(world.link.channels) == [b"a", b"c"]


@pytest.mark.parametrize("at", [0, 1, 2])
async def test_a_subscription_that_the_server_ends(at: int) -> None:
    """A `sunsubscribe` before, between and after our own answers answers none of them."""
    world = World()
    (await world.subscribing("old")).cancel()
    world.replies(("ssubscribe", "old"))
    task = await world.subscribing("a", "b")
    replies: list[bytes | tuple[str, str]] = [("ssubscribe", "a"), ("ssubscribe", "b")]
    replies.insert(at, ("sunsubscribe", "old"))
    world.replies(*replies)
    assert (await task, world.moved, list(world.link.channels)) == ({}, ["old"], [b"a", b"b"])


async def test_the_end_of_many_subscriptions_is_reported_at_once() -> None:
    """All that a move of slots ends in one piece of bytes is one report."""
    world = World()
    task = await world.subscribing("a", "b", "c")
    world.replies(*[("ssubscribe", name) for name in "abc"])
    await task
    world.replies(*[("sunsubscribe", name) for name in "abc"])
    assert world.reports == [["a", "b", "c"]]


async def test_an_answer_to_the_wrong_command_repairs_itself() -> None:
    """The server ends a subscription right before it refuses our own end of it: one channel more is not confirmed."""
    world = World()
    task = await world.subscribing("a")
    world.replies(("ssubscribe", "a"))
    await task
    leaving, joining = await world.unsubscribing("a"), await world.subscribing("b", "c")
    world.replies(("sunsubscribe", "a"), MOVED, ("ssubscribe", "b"), ("ssubscribe", "c"))
    await leaving
    assert list(await joining) == [b"b"]  # subscribed at the server, and not confirmed here
    again = await world.subscribing("b")
    world.replies(("ssubscribe", "b"))
    assert await again == {}
    world.message("b", b"1")
    assert (world.sink.delivered, world.moved, world.losses) == ([("b", b"1")], [], [])


async def test_unsubscribing_what_has_moved() -> None:
    """A refused end of a subscription is none: the server has it no more."""
    world = World()
    task = await world.subscribing("a")
    world.replies(("ssubscribe", "a"))
    await task
    leaving = await world.unsubscribing("a")
    world.replies(MOVED)
    await leaving
    assert world.link.channels == {}


async def test_the_end_of_the_link_fails_what_waits() -> None:
    """A lost link leaves no call waiting, and refuses the next one."""
    world = World()
    task = await world.subscribing("a", "b")
    world.replies(("ssubscribe", "a"))
    world.link.connection_lost(None)
    with pytest.raises(BrokerUnavailableError):
        await task
    with pytest.raises(BrokerUnavailableError):
        await world.link.subscribe({b"c": "c"})
    assert len(world.losses) == 1


async def test_the_probe_is_no_channel() -> None:
    """A probe completes its reply, and so does the end of its subscription; neither is reported."""
    world = World()
    subscribing = asyncio.create_task(world.link.subscribe_probe(b"p"))
    await until_idle()
    world.replies(("ssubscribe", "p"))
    assert await subscribing is None
    for fault in (False, True):
        reply = world.link.probe_reply = asyncio.get_running_loop().create_future()
        if fault:
            world.replies(("sunsubscribe", "p"))
        else:
            world.message("p", b"")
        await reply
    assert (world.link.probe_name, world.sink.delivered, world.moved) == (None, [], [])
    world.message("p", b"")
    refusing = asyncio.create_task(world.link.subscribe_probe(b"q"))
    await until_idle()
    world.replies(b"-NOPERM no\r\n")
    assert "NOPERM" in str(await refusing)


async def test_publishing() -> None:
    """Messages and a barrier are answered in order; what is too much, or has no link, is refused."""
    link = ShardPublisherLink(20)
    transport = RecordingTransport(link)
    losses: list[Any] = []
    first = link.spublish(b"name", b"payload")
    link.adopt(losses.append)
    barrier = link.barrier()
    await until_idle()
    assert b"".join(transport.written) == (
        b"*3\r\n$8\r\nSPUBLISH\r\n$4\r\nname\r\n$7\r\npayload\r\n*1\r\n$4\r\nPING\r\n"
    )
    assert link.oldest_unanswered is first
    with pytest.raises(PublishError):
        link.spublish(b"name", b"more than may wait")
    link.data_received(b":1\r\n+PONG\r\n")
    assert (await first, await barrier) == (1, b"PONG")
    assert link.oldest_unanswered is None
    last = link.spublish(b"name", b"")
    await until_idle()
    link.end("cut")
    with pytest.raises(PublishOutcomeUnknownError):
        await last
    with pytest.raises(BrokerUnavailableError):
        link.barrier()
