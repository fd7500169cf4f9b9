"""A connection whose client is served in a protocol: what the protocol is given, and what it decides."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from backplane.centrifugal.client import SdkClient
from backplane.connection.client_protocol import ClientProtocol
from backplane.connection.limits import Limits
from backplane.connection.policy import ConnectionPolicy
from backplane.errors import ConfigurationError, JoinRefusedError
from backplane.fanout.batch import Batch
from backplane.message import Gap, Joined, Message
from tests.unit.connection.world import World, bounded, finish, lane_of, received_from, what_happened
from tests.unit.doubles import until_idle
from tests.unit.sockets import driver_of

if TYPE_CHECKING:
    from backplane.connection.connection import Connection
    from backplane.connection.driver import ConnectionDriver
    from backplane.fanout.subscriber_options import ChannelPresence
    from tests.unit.sockets import FakeSocket

pytestmark = pytest.mark.anyio


def in_braces(item: Message | Gap | Joined) -> str | bytes | None:
    """Return a message in braces: one function for all clients."""
    return f"{{{item.data!r}}}" if isinstance(item, Message) else None


class Protocol:
    """A protocol that keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.held: dict[str, list[Batch] | None] = {}
        self.envelope = in_braces
        self.pings = True
        self.user: str | None = None
        self.pong_seconds = 4.0
        self.fault: Exception | None = None

    def begin(self, driver: ConnectionDriver) -> None:
        """Take the connection."""
        self.events.append(driver.id)

    def joined(self, joined: Joined) -> None:
        """Keep it."""
        self.events.append(joined)

    def missed(self, batch: Batch) -> None:
        """Keep it."""
        self.events.append([message.data for message in batch])

    def left(self, channel: str) -> None:
        """Keep it."""
        self.events.append(f"left {channel}")

    def gap(self, gap: Gap) -> None:
        """Keep it, or fail."""
        if self.fault is not None:
            raise self.fault
        self.events.append(gap)

    def message(self, data: str | bytes) -> str | bytes | None:
        """Return it in brackets."""
        return None if data == "nothing" else f"[{data!r}]"

    def ping(self) -> str | bytes:
        """Return a ping."""
        return "ping"

    def close_frame(self, code: int, reason: str) -> tuple[int, str]:
        """Return codes of this protocol."""
        return code + 500, f"{reason}!"


async def speaking(world: World, policy: ConnectionPolicy | None = None) -> tuple[Connection, FakeSocket, Protocol]:
    """Return a connection in a protocol."""
    connection, socket = world.connection(opened=False, policy=policy)
    protocol = Protocol()
    driver_of(connection).speak(protocol)
    assert protocol.events.pop() == connection.id
    driver_of(connection).accepted()
    return connection, socket, protocol


def test_members() -> None:
    """The protocol of these tests, and the SDK clients, have all that a connection asks a protocol for."""
    members = {name for name in vars(ClientProtocol) if not name.startswith("_")}
    assert {"begin", "close_frame"} <= members <= set(dir(Protocol()))
    assert members <= set(dir(SdkClient))


async def test_no_pattern(world: World) -> None:
    """A client of a protocol knows channels by their names: a pattern is refused, whatever the application permits."""

    def authorize(_: Connection, pattern: str) -> bool:
        pytest.fail(f"asked about {pattern!r}")

    connection, _, _ = await speaking(world, ConnectionPolicy(authorize_pattern=authorize))
    with pytest.raises(ConfigurationError, match="SDK client"):
        await connection.join_pattern("a*")


async def test_messages(world: World) -> None:
    """What is published has the protocol's envelope, what the application sends the protocol's form."""
    connection, socket, protocol = await speaking(world)
    await connection.join("a")
    assert [type(event) for event in protocol.events] == [Joined]
    world.deliver("a", "1")
    await until_idle()
    await connection.send("2")
    await connection.send("nothing")
    driver_of(connection).transmit("3")
    await until_idle()
    assert socket.sent == ["{'1'}", "['2']", "3"]


async def test_user(world: World) -> None:
    """The user is the one that the protocol names, unless the connection has one."""
    connection, _, protocol = await speaking(world)
    assert connection.user is None
    protocol.user = "ada"
    assert connection.user == "ada"
    driver_of(connection).identify(cast("ChannelPresence", Attended()))
    assert connection.user == "ann"


async def test_presence_frames(world: World) -> None:
    """A protocol has no frames for the users of a channel: a join that asks for them is refused, and joins nothing."""
    connection, _, protocol = await speaking(world)
    with pytest.raises(ConfigurationError, match="joinLeave"):
        await connection.join("a", presence=True)
    assert (list(connection.channels), protocol.events) == ([], [])


async def test_held_messages(world: World) -> None:
    """Messages of a channel that is held are kept for the protocol, or dropped; those of others are sent."""
    connection, socket, protocol = await speaking(world)
    for channel in ("a", "b", "c"):
        await connection.join(channel)
    protocol.held |= {"a": [], "b": None}
    for channel in ("a", "b", "c"):
        world.deliver(channel, "1")
    await until_idle()
    kept = protocol.held["a"]
    assert socket.sent == ["{'1'}"]
    assert kept is not None
    assert [message.channel for batch in kept for message in batch] == ["a"]
    protocol.held.clear()
    driver_of(connection).offer(kept[0])
    await until_idle()
    assert socket.sent == ["{'1'}", "{'1'}"]


async def test_what_a_join_gives_back(world: World) -> None:
    """Of a channel that is held it goes to the protocol, and not to the client; of another one it is sent."""
    world.keeping_hub.keep("kept", "1")
    world.keeping_hub.keep("kept", "2")
    connection, socket, protocol = await speaking(world)
    protocol.held["kept"] = []
    await connection.join("kept", rewind=2)
    assert protocol.events[1:] == [["1", "2"]]
    assert socket.sent == []
    protocol.held.clear()
    driver_of(connection).offer_missed(Batch(Message(channel="kept", data="3")))
    await until_idle()
    assert protocol.events[2:] == []
    assert socket.sent == ["{'3'}"]


async def test_leaves(world: World) -> None:
    """A leave by the application is reported; one of the protocol itself, and of what was not joined, is not."""
    connection, _, protocol = await speaking(world)
    await connection.join("a")
    await connection.join("b")
    protocol.events.clear()
    await connection.leave("a")
    await connection.leave("a")
    assert driver_of(connection).leave_now("b")
    assert not driver_of(connection).leave_now("b")
    assert protocol.events == ["left a"]


async def test_gaps(world: World) -> None:
    """A gap is the protocol's to report; where that fails the client is closed."""
    connection, socket, protocol = await speaking(world)
    await connection.join("a")
    world.hub.gap(["a"], "overrun")
    assert isinstance(protocol.events[-1], Gap)
    assert not connection.is_over
    protocol.fault = ValueError("of the protocol")
    world.hub.gap(["a"], "overrun")
    await until_idle()
    assert socket.closed == [(1511, "!")]


async def test_close_codes(world: World) -> None:
    """The close frame has the protocol's code, and the statistics the package's."""
    policy = ConnectionPolicy()
    connection, socket, _ = await speaking(world, policy)
    await connection.close(4001, "expired")
    assert socket.closed == [(4501, "expired!")]
    assert what_happened(policy) == {"closed_expired": 1}


def beat(connection: Connection, seconds: float) -> None:
    """Let so many seconds have passed since the connection was opened."""
    driver = driver_of(connection)
    driver.timers.heartbeat_at = driver.timers.opened_at + seconds
    driver.check_timers(driver.timers.opened_at + seconds)


async def test_pings(lane_world: World) -> None:
    """The client is pinged by a message at each interval, whatever it sends, and has its time to answer."""
    policy = ConnectionPolicy(limits=Limits(heartbeat_seconds=10))
    connection, socket, _ = await speaking(lane_world, policy)
    lane, timers = lane_of(socket), driver_of(connection).timers
    begin = timers.opened_at
    lane.last_received_at = begin + 9.9
    beat(connection, 10)
    assert (socket.sent, lane.pings, timers.heartbeat_at) == (["ping"], 0, begin + 14)
    lane.last_received_at = begin + 11
    beat(connection, 14)
    assert (socket.sent, timers.heartbeat_at) == (["ping"], begin + 20)
    beat(connection, 20)
    beat(connection, 24)
    await until_idle()
    assert (socket.sent, what_happened(policy)) == (["ping"] * 2, {"closed_silent": 1})
    assert socket.closed == [(4511, "no answer to a ping!")]


async def test_pings_without_a_lane(plain_world: World) -> None:
    """The same by what the handler receives; one that does not receive cannot have an answer."""
    policy = ConnectionPolicy(limits=Limits(heartbeat_seconds=10))
    connection, socket, _ = await speaking(plain_world, policy)
    beat(connection, 10)
    beat(connection, 14)
    assert not connection.is_over
    iterating = asyncio.create_task(received_from(connection))
    await until_idle()
    beat(connection, 20)
    beat(connection, 24)
    assert await bounded(iterating) == []
    await finish(connection)
    assert socket.closed == [(4511, "no answer to a ping!")]


async def test_native_pings(lane_world: World) -> None:
    """A protocol without pings of its own leaves them to WebSocket."""
    policy = ConnectionPolicy(limits=Limits(heartbeat_seconds=10))
    connection, socket, protocol = await speaking(lane_world, policy)
    protocol.pings = False
    lane_of(socket)
    beat(connection, 10)
    assert (socket.sent, lane_of(socket).pings) == ([], 1)


async def test_joins_that_a_token_permits(world: World) -> None:
    """They are joins about which the application is not asked, with a position as any other."""
    world.keeping_hub.keep("kept", "1")
    connection, _, protocol = await speaking(world, ConnectionPolicy(authorize=lambda _, __: False))
    with pytest.raises(JoinRefusedError):
        await connection.join("kept")
    await driver_of(connection).join_permitted("kept", "-")
    assert list(connection.channels) == ["kept"]
    assert [type(event) for event in protocol.events] == [Joined]


class Attended:
    """The presence of one client, which keeps where it is.

    Attributes:
        user: Its user.
        channels: Where it is present.
    """

    def __init__(self) -> None:
        self.user = "ann"
        self.channels: list[str] = []

    def entered(self, _: Connection, channel: str) -> None:
        """Keep it."""
        self.channels.append(channel)

    def left(self, _: Connection, channel: str) -> None:
        """Drop it."""
        self.channels.remove(channel)


async def test_user_that_is_named_after_the_handshake(world: World) -> None:
    """It is the user of the client from then on, present in what the client has joined and joins; the former is not."""
    connection, _, _ = await speaking(world)
    await connection.join("a")
    assert driver_of(connection).user is None
    first, second = Attended(), Attended()
    driver_of(connection).identify(cast("ChannelPresence", first))
    await connection.join("b")
    assert (driver_of(connection).user, first.channels) == ("ann", ["a", "b"])
    driver_of(connection).identify(cast("ChannelPresence", second))
    assert (first.channels, second.channels) == ([], ["a", "b"])
    await connection.close()
    assert second.channels == []
