"""`backplane.adapters.redis_cluster.ordering`: the order of a channel while its slot moves; without a server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from backplane.adapters.redis_cluster import ordering
from backplane.adapters.redis_cluster.links import ShardPublisherLink
from backplane.adapters.redis_cluster.ordering import ShardedPublisher
from backplane.adapters.redis_cluster.slots import slot_of
from backplane.errors import BrokerError, BrokerUnavailableError, PublishError
from tests.unit.adapters.redis.recorded_links import RecordingTransport
from tests.unit.doubles import until_idle

if TYPE_CHECKING:
    from collections.abc import Awaitable

pytestmark = pytest.mark.anyio

SLOT = slot_of(b"a")
MOVED = b"-MOVED %d 10.0.0.2:7002\r\n" % SLOT


class Peer:
    """One node, whose replies the test gives."""

    def __init__(self) -> None:
        self.link = ShardPublisherLink(1000)
        self.transport = RecordingTransport(self.link)
        self.link.address = ("10.0.0.1", 7001)
        self.link.adopt(lambda _: None)

    def payloads(self) -> list[bytes]:
        """What was published here so far."""
        return [
            command.split(b"\r\n")[5]
            for command in b"".join(self.transport.written).split(b"*3\r\n")[1:]
            if b"SPUBLISH" in command
        ]

    async def replies(self, *replies: bytes) -> None:
        """Reply to the oldest commands."""
        await until_idle()
        self.link.data_received(b"".join(replies))
        await until_idle()


class World:
    """Two nodes, of which one serves everything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ordering, "_BUS_SECONDS", 0)
        self.old, self.new = Peer(), Peer()
        self.owner: Peer | None = self.old
        self.moved: list[tuple[int, Any]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.publisher = ShardedPublisher(self._link_of, self._on_moved, self._spawn, max_pending_bytes=100)

    def publishing(self, *payloads: bytes) -> list[asyncio.Task[None]]:
        """Publish on one channel."""
        return [asyncio.create_task(self.publisher.publish(b"a", payload)) for payload in payloads]

    def _link_of(self, _: int) -> ShardPublisherLink:
        if self.owner is None:
            raise BrokerUnavailableError("no node")
        return self.owner.link

    async def _on_moved(self, slot: int, target: Any, link: ShardPublisherLink) -> None:
        assert link is self.old.link
        self.moved.append((slot, target))
        self.owner = self.new

    def _spawn(self, work: Awaitable[None]) -> None:
        self.tasks.append(asyncio.ensure_future(work))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Two nodes."""
    return World(monkeypatch)


async def test_what_is_refused_goes_first(world: World) -> None:
    """Of three messages in flight the first is moved on: it and the others keep their order, and a later one waits."""
    sent = world.publishing(b"1", b"2", b"3")
    await world.old.replies(MOVED)
    sent += world.publishing(b"4")
    await world.old.replies(MOVED, MOVED)
    assert (world.old.payloads(), world.new.payloads()) == ([b"1", b"2", b"3"], [])
    await world.old.replies(b"+PONG\r\n")
    assert world.new.payloads() == [b"1", b"2", b"3", b"4"]
    await world.new.replies(b":1\r\n" * 4)
    await asyncio.gather(*sent)
    assert world.moved == [(SLOT, ("10.0.0.2", 7002))]
    assert world.publisher._pending_bytes == 0  # pyright: ignore[reportPrivateUsage]
    (after,) = world.publishing(b"5")
    await world.new.replies(b":1\r\n")
    await after


async def test_a_new_map_turns_too(world: World) -> None:
    """Where the map changes, what is published waits for the answers of the old node, whatever they are."""
    (before,) = world.publishing(b"1")
    await until_idle()
    world.owner = world.new
    world.publisher.turn([SLOT], world.old.link)
    world.publisher.turn([SLOT], world.old.link)
    (after,) = world.publishing(b"2")
    await until_idle()
    assert world.new.payloads() == []
    await world.old.replies(b":1\r\n", b"+PONG\r\n")
    assert world.new.payloads() == [b"2"]
    await world.new.replies(b":1\r\n")
    await asyncio.gather(before, after)


async def test_an_old_node_that_ended_has_answered(world: World) -> None:
    """The end of the old link ends the turn; a slot that had no node needs none."""
    world.publisher.turn([SLOT], None)
    world.owner = world.new
    world.publisher.turn([SLOT], world.old.link)
    (waiting,) = world.publishing(b"1")
    await until_idle()
    world.old.link.end("killed")
    await world.new.replies(b":1\r\n")
    await waiting


async def test_a_cancelled_message_is_not_sent(world: World) -> None:
    """What waits for a turn and is cancelled is left out, and the others go on."""
    world.owner = world.new
    world.publisher.turn([SLOT], world.old.link)
    first, second = world.publishing(b"1", b"2")
    await until_idle()
    first.cancel()
    await world.old.replies(b"+PONG\r\n")
    assert world.new.payloads() == [b"2"]
    second.cancel()  # in flight: its late error is retrieved
    await world.new.replies(b"-ERR late\r\n")


async def test_no_node_after_a_turn(world: World) -> None:
    """Where no node serves the slot after the turn, what waited was certainly not published."""
    world.publisher.turn([SLOT], world.old.link)
    (waiting,) = world.publishing(b"1")
    await until_idle()
    world.owner = None
    await world.old.replies(b"+PONG\r\n")
    with pytest.raises(BrokerUnavailableError):
        await waiting


async def test_a_message_is_not_moved_on_for_ever(world: World) -> None:
    """Two nodes that name each other end the publish, as certainly not published."""

    async def back(_: int, target: object, link: object) -> None:
        world.moved.append((SLOT, target))

    world.publisher._on_moved = back  # pyright: ignore[reportPrivateUsage]
    (moving,) = world.publishing(b"1")
    for _ in range(8):
        await world.old.replies(MOVED)
        await world.old.replies(b"+PONG\r\n")
    await world.old.replies(MOVED)
    with pytest.raises(BrokerUnavailableError, match="do not serve the slot"):
        await moving
    assert world.old.payloads() == [b"1"] * 9


async def test_a_script_is_repeated_while_its_keys_move(world: World) -> None:
    """It goes to the node that serves the slot until that has all keys or another one does, before what is later."""
    running = asyncio.create_task(world.publisher.run_script(b"a", b"SCRIPT", 6))
    await world.old.replies(b"-TRYAGAIN Multiple keys\r\n")
    (later,) = world.publishing(b"2")
    await world.old.replies(b"+PONG\r\n")
    await world.old.replies(b"-ASK %d 10.0.0.2:7002\r\n" % SLOT, b":1\r\n")
    await world.old.replies(b"+PONG\r\n")
    await world.old.replies(b"$4\r\nkept\r\n")
    assert await running == b"kept"
    await later
    assert b"".join(world.old.transport.written).count(b"SCRIPT") == 3
    assert (world.moved, world.new.transport.written) == ([], [])


async def test_a_script_is_not_repeated_for_ever(world: World) -> None:
    """Keys that do not arrive end it, as certainly not executed."""
    running = asyncio.create_task(world.publisher.run_script(b"a", b"SCRIPT", 0))
    for _ in range(10):
        await world.old.replies(b"-TRYAGAIN Multiple keys\r\n")
        await world.old.replies(b"+PONG\r\n")
    await world.old.replies(b"-TRYAGAIN Multiple keys\r\n")
    with pytest.raises(BrokerUnavailableError, match="keys of the history move"):
        await running


async def test_a_map_that_cannot_be_had(world: World) -> None:
    """A turn ends where the map cannot be had: its messages go to the node that is known."""

    async def fail(*_: object) -> None:
        raise BrokerUnavailableError("no map")

    world.publisher._on_moved = fail  # pyright: ignore[reportPrivateUsage]
    (moving,) = world.publishing(b"1")
    await world.old.replies(MOVED)
    world.owner = world.new
    await world.old.replies(b"+PONG\r\n")
    await world.new.replies(b":1\r\n")
    await moving


@pytest.mark.parametrize(
    ("reply", "error"),
    [(b"-CLUSTERDOWN The cluster is down\r\n", BrokerUnavailableError), (b"-NOPERM no\r\n", PublishError)],
)
async def test_refusals(world: World, reply: bytes, error: type[BrokerError]) -> None:
    """A cluster that is down takes it later; a refusal stays one."""
    (refused,) = world.publishing(b"1")
    await world.old.replies(reply)
    with pytest.raises(error):
        await refused


async def test_too_much_that_waits(world: World) -> None:
    """What is published and not answered is bounded over all nodes; one message is always accepted."""
    (first,) = world.publishing(bytes(150))
    await until_idle()
    with pytest.raises(PublishError, match="await an answer") as raised:
        await world.publisher.publish(b"b", b"x")
    assert raised.value.retriable
    await world.old.replies(b":1\r\n")
    await first
