"""To which server a link to Redis leads, and when it moves to another: names, balancers, replicas, clusters."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from backplane import Backlog, Backplane, BrokerError, BrokerUnavailableError, Gap, Message, Settings
from backplane.adapters.redis import RedisBroadcaster
from backplane.adapters.redis.options import RedisOptions
from backplane.broadcaster import BrokerUrl
from backplane.broker.registry import broadcaster_from_url
from backplane.testing import RecordingSink
from tests.brokers.process import free_port
from tests.brokers.redis import RedisConfig
from tests.brokers.redis_sentinel import sentinel_of
from tests.brokers.service import MovingService

if TYPE_CHECKING:
    from pathlib import Path

    from backplane import Subscription
    from backplane.adapters.redis.server_info import Address
    from tests.brokers.broker import Broker
    from tests.conftest import StartRedis

pytestmark = pytest.mark.anyio

QUICK = Settings(probe_interval_seconds=0.3, max_backoff_seconds=0.2)
STRICT = Settings(start_timeout_seconds=0.5)


def port_of(broker: Broker) -> int:
    """Return the port that it listens on."""
    return int(broker.url.rpartition(":")[2].partition("?")[0])


def replica_of(primary: Broker, *arguments: str) -> RedisConfig:
    """Return the configuration of a replica."""
    return RedisConfig(arguments=("--replicaof", "127.0.0.1", str(port_of(primary)), *arguments))


def resolving(found: list[Address]) -> RedisBroadcaster:
    """Return an adapter for a name whose addresses are those that `found` holds at the time."""

    async def resolve(_name: str, _port: int) -> list[Address]:
        return list(found)

    return RedisBroadcaster(BrokerUrl.parse("redis://name.example"), RedisOptions(), resolve=resolve)


async def command(broker: Broker, *parts: str) -> Any:
    """Send a command of an operator and return the reply."""
    client: Any = Redis
    async with client.from_url(broker.url) as link:
        return await link.execute_command(*parts)


async def gap_of(messages: Subscription) -> Gap:
    """Return the next item, which must be a gap."""
    async with asyncio.timeout(30):
        item = await anext(messages)
    assert isinstance(item, Gap)
    return item


async def nodes_of(*brokers: Broker) -> list[bytes]:
    """Return what each node of a cluster knows about all nodes."""
    return [bytes(await command(broker, "CLUSTER", "NODES")) for broker in brokers]


async def arrives(backplane: Backplane, messages: Subscription, text: str) -> None:
    """Publish and receive one message, past gaps."""
    await backplane.publish("room", text)
    async with asyncio.timeout(30):
        async for item in messages:
            if isinstance(item, Message):
                assert item.data == text
                return


async def test_a_replica_is_refused_at_the_start(private_redis: StartRedis) -> None:
    """A URL that leads to a replica raises a retriable error, with the address of the primary and what to do."""
    primary = private_redis()
    replica = private_redis(replica_of(primary))
    with pytest.raises(BrokerUnavailableError) as raised:
        await broadcaster_from_url(replica.url).start(RecordingSink())
    assert f"is a replica of 127.0.0.1:{port_of(primary)}" in str(raised.value)
    assert "the URL must lead to the primary, or to sentinels that know it" in str(raised.value)


async def test_a_replica_without_its_primary_is_retried(private_redis: StartRedis) -> None:
    """A replica that answers MASTERDOWN, because its primary is gone, is tried again until it is promoted."""
    primary = private_redis()
    replica = private_redis(replica_of(primary, "--replica-serve-stale-data", "no"))
    primary.stop()
    backplane = Backplane(replica.url, settings=Settings(max_backoff_seconds=0.1, start_timeout_seconds=10))
    starting = asyncio.create_task(backplane.start())
    await asyncio.wait([starting], timeout=0.3)
    assert not starting.done()
    await command(replica, "REPLICAOF", "NO", "ONE")
    async with asyncio.timeout(30):
        await starting
    await backplane.stop()


async def test_a_sentinel_is_refused_at_the_start(private_redis: StartRedis, tmp_path: Path) -> None:
    """`redis://` to a sentinel is refused, with the scheme for sentinels."""
    with (
        sentinel_of(port_of(private_redis()), tmp_path, down_after_milliseconds=60_000) as sentinel,
        pytest.raises(BrokerError, match=r"is a sentinel: redis\+sentinel://") as raised,
    ):
        await Backplane(sentinel.url).start()
    assert not raised.value.retriable


async def test_a_demoted_primary_is_left_for_the_new_one(private_redis: StartRedis) -> None:
    """After a failover at one address the link moves to the new primary within a probe interval, with one gap."""
    old = private_redis()
    new = private_redis(replica_of(old))
    async with (
        MovingService(port_of(old)) as service,
        Backplane(service.url, settings=QUICK) as backplane,
        backplane.subscribe("room") as messages,
    ):
        await arrives(backplane, messages, "before")
        await command(new, "REPLICAOF", "NO", "ONE")
        service.ports = [port_of(new)]
        await command(old, "REPLICAOF", "127.0.0.1", str(port_of(new)))
        gap = await gap_of(messages)
        assert "became a replica of 127.0.0.1:" in gap.reason
        await arrives(backplane, messages, "after")
        assert (await command(new, "PUBSUB", "NUMSUB", "room"))[1] == 1
        assert (await command(old, "PUBSUB", "NUMSUB", "room"))[1] == 0


async def test_a_demotion_is_found_while_messages_flow(private_redis: StartRedis) -> None:
    """A worker that only receives moves too, while others go on publishing to the demoted server."""
    old = private_redis()
    new = private_redis(replica_of(old))

    found = asyncio.Event()

    async def publish_noise() -> None:
        client: Any = Redis
        async with client.from_url(old.url) as link:
            while not found.is_set():  # a cancellation can be lost in the client, while it connects again
                await link.publish("room", "noise")
                await asyncio.sleep(0.01)

    async with (
        MovingService(port_of(old)) as service,
        Backplane(service.url, settings=QUICK) as backplane,
        backplane.subscribe("room", backlog=Backlog(when_full="drop_oldest")) as messages,
    ):
        publishing = asyncio.create_task(publish_noise())
        await command(new, "REPLICAOF", "NO", "ONE")
        service.ports = [port_of(new)]
        await command(old, "REPLICAOF", "127.0.0.1", str(port_of(new)))
        async with asyncio.timeout(30):
            async for item in messages:
                if isinstance(item, Gap):
                    break
        found.set()
        await publishing
        assert (await command(new, "PUBSUB", "NUMSUB", "room"))[1] == 1


async def test_an_address_that_leads_to_another_primary_is_followed(private_redis: StartRedis) -> None:
    """Where a load balancer leads new connections to another primary, the link moves, though the old server goes on."""
    old, new = private_redis(), private_redis()
    async with MovingService(port_of(old)) as service:
        broadcaster = RedisBroadcaster(BrokerUrl.parse(service.url), RedisOptions(), compare_seconds=0.1)
        async with Backplane(broadcaster, settings=QUICK) as backplane, backplane.subscribe("room") as messages:
            service.ports = [port_of(new)]
            gap = await gap_of(messages)
            assert "leads to another primary now" in gap.reason
            await arrives(backplane, messages, "after")
            assert (await command(new, "PUBSUB", "NUMSUB", "room"))[1] == 1


async def test_a_name_that_resolves_elsewhere_is_followed(private_redis: StartRedis) -> None:
    """The name is resolved again: where it has another address now, that of another primary, the link moves there."""
    old, new = private_redis(), private_redis()
    found: list[Address] = [("127.0.0.1", port_of(old))]
    async with (
        Backplane(resolving(found), settings=QUICK) as backplane,
        backplane.subscribe("room") as messages,
    ):
        found[:] = [("127.0.0.1", port_of(new))]
        gap = await gap_of(messages)
        assert "leads to another primary now" in gap.reason
        await arrives(backplane, messages, "after")
        assert (await command(new, "PUBSUB", "NUMSUB", "room"))[1] == 1


async def test_another_address_of_the_same_server_ends_no_link(private_redis: StartRedis) -> None:
    """A name that resolves to another address of the same server, or to a dead one, does not end the link."""
    broker = private_redis()
    async with MovingService(port_of(broker)) as other:
        sink = RecordingSink()
        found: list[Address] = [("127.0.0.1", port_of(broker))]
        broadcaster = resolving(found)
        await broadcaster.start(sink)
        await broadcaster.subscribe(["room"])
        for port in (int(other.url.rpartition(":")[2]), free_port()):
            found[:] = [("127.0.0.1", port)]
            await broadcaster.check()
        assert other.accepted == 1
        await broadcaster.publish("room", b"still here")
        await sink.until(lambda: sink.payloads("room") == [b"still here"])
        assert sink.losses == []
        await broadcaster.stop()


async def test_two_connections_to_two_primaries_are_refused(private_redis: StartRedis) -> None:
    """An address that leads each connection to another primary is refused: publishes would miss the own subscribers."""
    one, two = private_redis(), private_redis()
    async with MovingService(port_of(one), port_of(two)) as service:
        broadcaster = broadcaster_from_url(service.url)
        await broadcaster.start(RecordingSink())
        with pytest.raises(BrokerUnavailableError, match="more than one server"):
            await broadcaster.subscribe(["room"])
        await broadcaster.stop()


async def test_subscriptions_are_not_made_at_a_replica(private_redis: StartRedis) -> None:
    """At an address that balances over a primary and its replica, subscriptions are made at the primary too."""
    primary = private_redis()
    replica = private_redis(replica_of(primary))
    async with MovingService(port_of(primary), port_of(replica)) as service:
        broadcaster = broadcaster_from_url(service.url)
        await broadcaster.start(RecordingSink())
        with pytest.raises(BrokerUnavailableError, match="is a replica of"):
            await broadcaster.subscribe(["room"])
        await broadcaster.subscribe(["room"])  # the next connection is one to the primary
        assert (await command(primary, "PUBSUB", "NUMSUB", "room"))[1] == 1
        await broadcaster.stop()


async def test_a_node_of_a_cluster_may_be_a_replica(private_redis: StartRedis) -> None:
    """In a Redis Cluster a publish reaches every node, so a replica is accepted, and so are two different nodes."""
    cluster = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port")
    ports = [str(free_port()) for _ in range(2)]
    one, two = (private_redis(RedisConfig(arguments=(*cluster, port))) for port in ports)
    await command(one, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
    await command(two, "CLUSTER", "MEET", "127.0.0.1", str(port_of(one)), ports[0])
    name = (await command(one, "CLUSTER", "MYID")).decode()
    async with asyncio.timeout(30):
        while (await command(two, "ROLE"))[0] != b"slave":
            with suppress(ResponseError):  # until they have met
                await command(two, "CLUSTER", "REPLICATE", name)
            await asyncio.sleep(0.05)
        # Publishes are forwarded from node to node, on a connection that each node opens by itself.
        while any(b"handshake" in nodes or nodes.count(b" connected") < 2 for nodes in await nodes_of(one, two)):
            await asyncio.sleep(0.05)
    async with (
        MovingService(port_of(one), port_of(two)) as service,
        Backplane(service.url, settings=QUICK) as backplane,
        backplane.subscribe("room") as messages,
    ):
        async with asyncio.timeout(30):
            while (await command(two, "PUBSUB", "NUMSUB", "room"))[1] != 1:
                await asyncio.sleep(0.01)
        await arrives(backplane, messages, "by the cluster bus")


async def test_denied_role_and_info_cause_one_warning(
    private_redis: StartRedis, caplog: pytest.LogCaptureFixture
) -> None:
    """A user without ROLE and INFO can use the server; one warning names the grant, however often it reconnects."""
    rules = "alice on >secret -@all +@pubsub +@connection allchannels"
    broker = private_redis(RedisConfig(users=(rules,), login="alice:secret"))
    root = broker.url.replace("alice:secret@", "")
    client: Any = Redis
    async with (
        client.from_url(root) as operator,
        Backplane(broker.url, settings=QUICK) as backplane,
        backplane.subscribe("room") as messages,
    ):
        await operator.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await gap_of(messages)
        await arrives(backplane, messages, "after")
        logger = "backplane.adapters.redis.primary"
        warnings = [record.getMessage() for record in caplog.records if record.name == logger]
        assert len(warnings) == 1
        assert "Grant them: ACL SETUSER alice +role +info" in warnings[0]
        assert all("role" not in str(entry) for entry in (await operator.execute_command("ACL", "LOG"))[2:])


async def test_every_address_of_a_name_is_tried(private_redis: StartRedis) -> None:
    """The primary is found after an address that refuses, one that does not answer, and one of a replica."""
    primary = private_redis()
    replica = private_redis(replica_of(primary))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found: list[Address] = [
            ("127.0.0.1", free_port()),
            ("127.0.0.1", silent.getsockname()[1]),
            ("127.0.0.1", port_of(replica)),
            ("127.0.0.1", port_of(primary)),
        ]
        async with (
            Backplane(resolving(found), settings=Settings(start_timeout_seconds=2)) as backplane,
            backplane.subscribe("room") as messages,
        ):
            await arrives(backplane, messages, "hello")
            assert (await command(primary, "PUBSUB", "NUMSUB", "room"))[1] == 1


async def test_localhost_is_tried_in_both_address_families(private_redis: StartRedis) -> None:
    """`localhost` is tried as ::1 and as 127.0.0.1, whichever the system returns first."""
    broker = private_redis()
    async with Backplane(broker.url.replace("127.0.0.1", "localhost")) as backplane:
        await backplane.publish("room", "hello")


async def test_an_unknown_name_is_unavailable(caplog: pytest.LogCaptureFixture) -> None:
    """A name without an address raises a retriable error, which holds the name."""
    with caplog.at_level(logging.DEBUG), pytest.raises(BrokerUnavailableError, match=r"redis://no-such\.invalid"):
        await Backplane("redis://no-such.invalid", settings=STRICT).start()
