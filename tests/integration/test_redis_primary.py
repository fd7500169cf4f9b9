"""Which server a link to Redis leads to, and how it is left for a better one: names, balancers, replicas, clusters."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from backplane import Backplane, BrokerError, BrokerUnavailableError, Gap, Message, Settings
from backplane.adapters.redis import broadcaster as adapter
from backplane.adapters.redis import connect as redis_connect
from backplane.broadcaster import SupportsLinkCheck
from backplane.broker.registry import broadcaster_from_url
from backplane.testing import RecordingSink
from tests.brokers.process import free_port
from tests.brokers.redis import RedisConfig
from tests.brokers.redis_sentinel import sentinel_of
from tests.brokers.service import MovingService

if TYPE_CHECKING:
    from pathlib import Path

    from backplane import Subscription
    from backplane.adapters.redis.link import Address
    from tests.brokers.broker import Broker
    from tests.conftest import StartRedis

pytestmark = pytest.mark.anyio

QUICK = Settings(probe_interval_seconds=0.3, max_backoff_seconds=0.2)
STRICT = Settings(start_timeout_seconds=0.5)


def port_of(broker: Broker) -> int:
    """Return where it listens."""
    return int(broker.url.rpartition(":")[2].partition("?")[0])


def replica_of(primary: Broker, *arguments: str) -> RedisConfig:
    """Return the configuration of a replica."""
    return RedisConfig(arguments=("--replicaof", "127.0.0.1", str(port_of(primary)), *arguments))


async def command(broker: Broker, *words: str) -> Any:
    """Return what a server answers to its operator."""
    client: Any = Redis
    async with client.from_url(broker.url) as link:
        return await link.execute_command(*words)


async def gap_of(messages: Subscription) -> Gap:
    """Return the gap that comes next."""
    async with asyncio.timeout(10):
        item = await anext(messages)
    assert isinstance(item, Gap)
    return item


async def nodes_of(*brokers: Broker) -> list[bytes]:
    """Return what each node of a cluster knows of all."""
    return [bytes(await command(broker, "CLUSTER", "NODES")) for broker in brokers]


async def arrives(backplane: Backplane, messages: Subscription, text: str) -> None:
    """Publish and receive one message, past gaps."""
    await backplane.publish("room", text)
    async with asyncio.timeout(10):
        async for item in messages:
            if isinstance(item, Message):
                assert item.data == text
                return


async def test_a_replica_is_no_place_to_start(private_redis: StartRedis) -> None:
    """A URL that leads to a replica is refused, with its primary and what to do; a failover may mend it, so retried."""
    primary = private_redis()
    replica = private_redis(replica_of(primary))
    with pytest.raises(BrokerUnavailableError) as raised:
        await Backplane(replica.url, settings=STRICT).start()
    assert f"is a replica of 127.0.0.1:{port_of(primary)}" in str(raised.value)
    assert "the URL must lead to the primary, or to sentinels that know it" in str(raised.value)


async def test_a_replica_without_its_primary_is_no_refusal(private_redis: StartRedis) -> None:
    """A replica that answers MASTERDOWN, for its primary is gone, is tried again until it is promoted."""
    primary = private_redis()
    replica = private_redis(replica_of(primary, "--replica-serve-stale-data", "no"))
    primary.stop()
    backplane = Backplane(replica.url, settings=Settings(max_backoff_seconds=0.1, start_timeout_seconds=10))
    starting = asyncio.create_task(backplane.start())
    await asyncio.wait([starting], timeout=0.3)
    assert not starting.done()
    await command(replica, "REPLICAOF", "NO", "ONE")
    async with asyncio.timeout(10):
        await starting
    await backplane.stop()


async def test_a_sentinel_is_no_server_of_messages(private_redis: StartRedis, tmp_path: Path) -> None:
    """`redis://` to a sentinel is refused with the scheme that asks it."""
    with (
        sentinel_of(port_of(private_redis()), tmp_path, down_after_milliseconds=60_000) as sentinel,
        pytest.raises(BrokerError, match=r"is a sentinel: redis\+sentinel://") as raised,
    ):
        await Backplane(sentinel.url).start()
    assert not raised.value.retriable


async def test_a_demoted_primary_is_left(private_redis: StartRedis) -> None:
    """After a failover under one address everybody is on the new primary within a probe interval, with one gap."""
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


async def test_a_busy_channel_hides_no_demotion(private_redis: StartRedis) -> None:
    """A worker that only listens, on a channel where others go on publishing to the old server, moves all the same."""
    old = private_redis()
    new = private_redis(replica_of(old))

    async def chatter() -> None:
        client: Any = Redis
        async with client.from_url(old.url) as link:
            while True:
                await link.publish("room", "noise")
                await asyncio.sleep(0.01)

    async with (
        MovingService(port_of(old)) as service,
        Backplane(service.url, settings=QUICK) as backplane,
        backplane.subscribe("room", when_full="drop_oldest") as messages,
    ):
        talking = asyncio.create_task(chatter())
        await command(new, "REPLICAOF", "NO", "ONE")
        service.ports = [port_of(new)]
        await command(old, "REPLICAOF", "127.0.0.1", str(port_of(new)))
        async with asyncio.timeout(10):
            async for item in messages:
                if isinstance(item, Gap):
                    break
        talking.cancel()
        await asyncio.wait([talking])
        assert (await command(new, "PUBSUB", "NUMSUB", "room"))[1] == 1


async def test_an_address_that_leads_to_another_primary_is_followed(
    private_redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the old server goes on as a primary, and the balancer leads new connections elsewhere, the link moves."""
    monkeypatch.setattr(adapter, "_COMPARE_SECONDS", 0.1)
    old, new = private_redis(), private_redis()
    async with (
        MovingService(port_of(old)) as service,
        Backplane(service.url, settings=QUICK) as backplane,
        backplane.subscribe("room") as messages,
    ):
        service.ports = [port_of(new)]
        gap = await gap_of(messages)
        assert "leads to another primary now" in gap.reason
        await arrives(backplane, messages, "after")
        assert (await command(new, "PUBSUB", "NUMSUB", "room"))[1] == 1


async def test_a_name_that_resolves_elsewhere_is_followed(
    private_redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS is read again: a name that has other addresses now, where another primary answers, takes the link along."""
    old, new = private_redis(), private_redis()
    found: list[Address] = [("127.0.0.1", port_of(old))]

    async def resolve(*_: object) -> list[Address]:
        return list(found)

    monkeypatch.setattr(redis_connect, "_resolve", resolve)
    async with (
        Backplane("redis://name.example", settings=QUICK) as backplane,
        backplane.subscribe("room") as messages,
    ):
        found[:] = [("127.0.0.1", port_of(new))]
        gap = await gap_of(messages)
        assert "leads to another primary now" in gap.reason
        await arrives(backplane, messages, "after")
        assert (await command(new, "PUBSUB", "NUMSUB", "room"))[1] == 1


async def test_a_name_with_another_address_of_the_same_server_costs_nothing(
    private_redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that names its servers in turn, or a dead one, costs nobody a good link."""
    broker = private_redis()
    async with MovingService(port_of(broker)) as other:
        sink = RecordingSink()
        found: list[Address] = [("127.0.0.1", port_of(broker))]

        async def resolve(*_: object) -> list[Address]:
            return list(found)

        monkeypatch.setattr(redis_connect, "_resolve", resolve)
        broadcaster = broadcaster_from_url("redis://name.example")
        assert isinstance(broadcaster, SupportsLinkCheck)
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


async def test_two_connections_to_two_servers_are_no_link(private_redis: StartRedis) -> None:
    """An address that leads each connection to another primary is refused: a publish would miss its own worker."""
    one, two = private_redis(), private_redis()
    async with MovingService(port_of(one), port_of(two)) as service:
        broadcaster = broadcaster_from_url(service.url)
        await broadcaster.start(RecordingSink())
        with pytest.raises(BrokerUnavailableError, match="more than one server"):
            await broadcaster.subscribe(["room"])
        await broadcaster.stop()


async def test_a_subscriber_is_on_no_replica(private_redis: StartRedis) -> None:
    """Under an address that balances over a primary and its replicas, subscriptions are on the primary too."""
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
    """In a Redis Cluster a publish reaches every node, so neither a replica nor two nodes are the wrong place."""
    cluster = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port")
    ports = [str(free_port()) for _ in range(2)]
    one, two = (private_redis(RedisConfig(arguments=(*cluster, port))) for port in ports)
    await command(one, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
    await command(two, "CLUSTER", "MEET", "127.0.0.1", str(port_of(one)), ports[0])
    name = (await command(one, "CLUSTER", "MYID")).decode()
    async with asyncio.timeout(20):
        while (await command(two, "ROLE"))[0] != b"slave":
            with suppress(ResponseError):  # until they have met
                await command(two, "CLUSTER", "REPLICATE", name)
            await asyncio.sleep(0.05)
        # What is published goes from node to node on a link that each makes for itself.
        while any(b"handshake" in nodes or nodes.count(b" connected") < 2 for nodes in await nodes_of(one, two)):
            await asyncio.sleep(0.05)
    async with (
        MovingService(port_of(one), port_of(two)) as service,
        Backplane(service.url, settings=QUICK) as backplane,
        backplane.subscribe("room") as messages,
    ):
        async with asyncio.timeout(10):
            while (await command(two, "PUBSUB", "NUMSUB", "room"))[1] != 1:
                await asyncio.sleep(0.01)
        await arrives(backplane, messages, "by the bus")


async def test_what_is_not_granted_is_taken_on_trust_and_named_once(
    private_redis: StartRedis, caplog: pytest.LogCaptureFixture
) -> None:
    """A user without ROLE and INFO works, with one warning that names the grant, however often it reconnects."""
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
        logger = "backplane.adapters.redis.broadcaster"
        warnings = [record.getMessage() for record in caplog.records if record.name == logger]
        assert len(warnings) == 1
        assert "Grant them: ACL SETUSER alice +role +info" in warnings[0]
        assert all("role" not in str(entry) for entry in (await operator.execute_command("ACL", "LOG"))[2:])


async def test_every_address_of_a_name_is_tried(private_redis: StartRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past an address where nobody listens, one that is silent, and one of a replica, the primary is found."""
    primary = private_redis()
    replica = private_redis(replica_of(primary))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found: list[Address] = [
            ("127.0.0.1", free_port()),
            ("127.0.0.1", silent.getsockname()[1]),
            ("127.0.0.1", port_of(replica)),
            ("127.0.0.1", port_of(primary)),
        ]

        async def resolve(*_: object) -> list[Address]:
            return found

        monkeypatch.setattr(redis_connect, "_resolve", resolve)
        settings = Settings(start_timeout_seconds=2)
        async with (
            Backplane("redis://name.example", settings=settings) as backplane,
            backplane.subscribe("room") as messages,
        ):
            await arrives(backplane, messages, "hello")
            assert (await command(primary, "PUBSUB", "NUMSUB", "room"))[1] == 1


async def test_the_name_localhost_leads_to_both_families(private_redis: StartRedis) -> None:
    """`localhost` is tried as ::1 and as 127.0.0.1, whichever the system names first."""
    broker = private_redis()
    async with Backplane(broker.url.replace("127.0.0.1", "localhost")) as backplane:
        await backplane.publish("room", "hello")


async def test_a_name_that_does_not_resolve_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """A name without an address is an outage, in words that hold the name."""
    with caplog.at_level(logging.DEBUG), pytest.raises(BrokerUnavailableError, match=r"redis://no-such\.invalid"):
        await Backplane("redis://no-such.invalid", settings=STRICT).start()
