"""Behaviour specific to Redis Cluster: who can be connected to, shards that fail alone, nodes that come and go."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from backplane import Backplane, BrokerAuthenticationError, BrokerError, BrokerUnavailableError, Gap, Settings
from backplane.adapters.redis_cluster.slots import slot_of
from backplane.broker.registry import broadcaster_from_url
from backplane.errors import ConfigurationError
from backplane.testing import FaultProxy, RecordingSink
from backplane.testing.harness import next_message, quick_backplane, started_worker
from tests.brokers.process import free_port
from tests.brokers.redis import RedisConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.brokers.redis_cluster import RedisCluster
    from tests.conftest import StartRedis, StartRedisNode

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

_SHORT = Settings(subscribe_timeout_seconds=0.5, probe_interval_seconds=0.5, publish_timeout_seconds=0.5)


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: the connections are those of the conformance suite."""
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
def whole(redis_cluster: RedisCluster) -> Iterator[RedisCluster]:
    """The cluster, whole before and after the test."""
    redis_cluster.wait_until_whole()
    yield redis_cluster
    for node in redis_cluster.nodes:
        if not node.is_running:
            node.start()
    redis_cluster.wait_until_whole()


async def failure_of(url: str) -> BrokerError:
    """Return why a start fails."""
    broadcaster = broadcaster_from_url(url)
    with pytest.raises(BrokerError) as raised:
        await broadcaster.start(RecordingSink())
    await broadcaster.stop()
    return raised.value


@pytest.mark.parametrize("url", ["redis+cluster://one/3", "redis+cluster://one,two/rooms"])
def test_a_cluster_has_no_databases(url: str) -> None:
    """A path is refused before anything is opened."""
    with pytest.raises(ConfigurationError, match="a cluster has no databases"):
        broadcaster_from_url(url)


async def test_a_server_that_is_no_cluster(private_redis: StartRedis) -> None:
    """A single server is refused, and the error names its scheme."""
    error = await failure_of(private_redis().url.replace("redis:", "redis+cluster:"))
    assert "belongs to no cluster: the scheme of a single server is redis://" in str(error)
    assert not error.retriable


async def test_credentials(redis_node: StartRedisNode) -> None:
    """A wrong password is refused, and so is a user who may not ask for the map; the error states the grant."""
    node = redis_node(RedisConfig(users=("bob on >secret -@all +ping +spublish",), login="bob:secret"))
    error = await failure_of(node.url)
    assert "grant +cluster|slots +cluster|info +cluster|nodes" in str(error)
    assert isinstance(await failure_of(node.url.replace("secret", "other")), BrokerAuthenticationError)


async def test_tls(redis_node: StartRedisNode) -> None:
    """All connections are encrypted, and the certificate is compared with the address that the node announces."""
    node = redis_node(RedisConfig(tls=True))
    async with started_worker(node.url) as worker:
        await worker.broadcaster.subscribe(["room"])
        await worker.broadcaster.publish("room", b"x")
        await worker.sink.until(lambda: worker.sink.delivered == [("room", b"x")])
    error = await failure_of(node.url.partition("?")[0])
    assert "certificate that is not trusted" in str(error)
    assert not error.retriable


async def test_a_server_without_sharded_pubsub(redis_node: StartRedisNode) -> None:
    """A server that does not know the commands, as before Redis 7.0, is refused for good."""
    arguments = ("--rename-command", "SPUBLISH", "")
    error = await failure_of(redis_node(RedisConfig(arguments=arguments)).url)
    assert "has no sharded pub/sub" in str(error)
    assert not error.retriable


async def test_no_node_answers() -> None:
    """Where no node of the URL answers, each is named."""
    one, two = free_port(), free_port()
    error = await failure_of(f"redis+cluster://127.0.0.1:{one},127.0.0.1:{two}")
    assert isinstance(error, BrokerUnavailableError)
    assert f"127.0.0.1:{one}" in str(error)
    assert f"127.0.0.1:{two}" in str(error)


async def test_classic_pubsub_on_any_node(whole: RedisCluster) -> None:
    """A message on any node reaches all; the loss of the node in use is a gap, and the worker goes on at another."""
    first, second, third = (node.port for node in whole.primaries())
    url = f"redis+cluster://127.0.0.1:{first}?pubsub=classic"
    async with (
        quick_backplane(url, probe_interval_seconds=0.5) as backplane,
        quick_backplane(url.replace(str(first), str(second))) as other,
        backplane.subscribe("room") as messages,
        backplane.subscribe("r*m") as matching,
    ):
        await other.publish("room", "before")
        assert (await next_message(messages)).data == (await next_message(matching)).data == "before"
        killed = next(node for node in whole.nodes if node.port == first)
        assert whole.ask(killed, "PUBSUB", "NUMSUB", "room") == ["room", 1]
        killed.kill9()
        async with asyncio.timeout(30):
            assert [type(await anext(each)) for each in (messages, matching)] == [Gap, Gap]
        await other.publish("room", "after")
        assert (await next_message(messages)).data == (await next_message(matching)).data == "after"
        assert third


async def test_sharded_pubsub_has_no_patterns(whole: RedisCluster) -> None:
    """There is no sharded PSUBSCRIBE, so a pattern is refused, with the option that permits it."""
    async with quick_backplane(whole.url) as backplane:
        with pytest.raises(ConfigurationError, match=r"\?pubsub=classic"):
            async with backplane.subscribe("r*m"):
                pass


@pytest.mark.full
async def test_classic_pubsub_leaves_a_minority(whole: RedisCluster) -> None:
    """A node without the majority accepts every message, and passes it on to few: the link is lost."""
    kept, *stopped = whole.primaries()
    url = f"redis+cluster://127.0.0.1:{kept.port}?pubsub=classic"
    async with quick_backplane(url, probe_interval_seconds=0.5) as backplane, asyncio.timeout(40):
        for node in stopped:
            node.freeze()
        await backplane.wait_for_state("degraded")
        for node in stopped:
            node.thaw()
        await asyncio.to_thread(whole.wait_until_whole)
        await backplane.wait_for_state("live")


async def test_one_node_of_the_url_is_enough(whole: RedisCluster) -> None:
    """The others are found, a dead address in front of it is passed over, and no subscription is left."""
    url = f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{whole.nodes[-1].port}"
    channels = [channel for node in whole.primaries() for channel in whole.channels_of(node, 2, start="seed-")]
    async with started_worker(url) as worker:
        assert await worker.broadcaster.describe() == f"Redis {version(whole)}, a cluster of 3"  # type: ignore[attr-defined]
        await worker.broadcaster.subscribe(channels)
        for channel in channels:
            await worker.broadcaster.publish(channel, b"x")
        await worker.sink.until(lambda: len(worker.sink.delivered) == len(channels))
        await worker.broadcaster.unsubscribe(channels)
        for node in whole.primaries():
            assert [name for name in whole.ask(node, "PUBSUB", "SHARDCHANNELS") if name.startswith("seed-")] == []


def version(cluster: RedisCluster) -> str:
    """Return the version of the servers."""
    lines = str(cluster.ask(cluster.nodes[0], "INFO", "server"))
    return lines.partition("'redis_version': '")[2].partition("'")[0]


async def test_a_shard_without_a_node(whole: RedisCluster, caplog: pytest.LogCaptureFixture) -> None:
    """While a shard is down a join there waits and ends as "try again", a publish raises at once, others go on."""
    caplog.set_level(logging.CRITICAL, "backplane")
    down, up, _ = whole.primaries()
    (dead, *_), (alive, *_) = (whole.channels_of(node, 1, start="shard-") for node in (down, up))
    replica = whole.replica_of(down)
    buffered = Settings(outage="buffer", probe_interval_seconds=0.5)
    async with (
        Backplane(whole.url, settings=_SHORT) as backplane,
        Backplane(whole.url, settings=buffered) as buffering,
        backplane.subscribe(alive) as messages,
    ):
        replica.kill9()
        down.kill9()
        async with asyncio.timeout(30):
            while True:  # until the end of the connection is noticed
                (error,) = await asyncio.gather(backplane.publish(dead, "lost"), return_exceptions=True)
                if isinstance(error, BrokerUnavailableError):
                    assert str(down.port) in str(error)
                    break
        with pytest.raises(BrokerUnavailableError, match="did not confirm channel"):
            await messages.join(dead)
        await buffering.publish(dead, "kept")
        await buffering.publish(alive, "now")
        assert (await next_message(messages)).data == "now"
        assert (await buffering.health()).buffered == 1
        down.launch()
        replica.launch()
        await asyncio.to_thread(whole.wait_until_whole)
        await messages.join(dead)
        async with asyncio.timeout(30):
            while (await buffering.health()).buffered:
                await asyncio.sleep(0.05)
        assert (await backplane.health()).generation == (await buffering.health()).generation == 1


async def test_a_shard_that_is_removed(whole: RedisCluster) -> None:
    """All slots of a node move to another one, as before it is removed: its channels follow, with one gap each."""
    source, target, _ = whole.primaries()
    channels = whole.channels_of(source, 3, start="removed-")
    slots = whole.slots_of(source, 16_384)
    async with quick_backplane(whole.url, probe_interval_seconds=0.5) as backplane:
        async with backplane.subscribe(*channels) as messages:
            await asyncio.to_thread(whole.move_slots, slots, source, target)
            async with asyncio.timeout(30):
                items = [await anext(messages) for _ in channels]
            assert {item.channel for item in items if isinstance(item, Gap)} == set(channels)
            for channel in channels:
                await backplane.publish(channel, channel)
            assert [(await next_message(messages)).data for _ in channels] == channels
        assert (await backplane.health()).generation == 1
    await asyncio.to_thread(whole.move_slots, slots, target, source)


async def test_a_join_while_its_slot_moves(whole: RedisCluster) -> None:
    """Who joins right after a move can miss what the old node accepted meanwhile, and gets a gap, once."""
    source, target, _ = whole.primaries()
    old, new = whole.channels_of(source, 2, start="joined-")
    slots = [slot_of(channel.encode()) for channel in (old, new)]
    async with (
        quick_backplane(whole.url, probe_interval_seconds=0.5) as backplane,
        backplane.subscribe(old) as messages,
        asyncio.timeout(60),
    ):
        await asyncio.to_thread(whole.move_slots, slots, source, target)
        gap = await anext(messages)
        assert isinstance(gap, Gap)
        assert gap.channel == old
        await messages.join(new)
        gap = await anext(messages)
        assert isinstance(gap, Gap)
        assert (gap.channel, gap.reason) == (new, "the slot moved while the channel was joined")
        await backplane.publish(old, "after")
        assert (await next_message(messages)).data == "after"
    await asyncio.to_thread(whole.move_slots, slots, target, source)


async def test_an_idle_connection_that_the_server_closes(redis_node: StartRedisNode) -> None:
    """The server's `timeout` ends the connection that publishes: it is replaced, and no subscriber gets a gap."""
    node = redis_node(RedisConfig(arguments=("--maxclients", "1001")))
    async with started_worker(node.url) as worker:
        await worker.broadcaster.subscribe(["room"])
        before = set(clients(node.ask("CLIENT", "LIST"), "normal"))
        assert len(before) == 1
        for client in before:
            node.ask("CLIENT", "KILL", "ID", client)
        async with asyncio.timeout(30):
            while not before.isdisjoint(clients(node.ask("CLIENT", "LIST"), "normal")):
                await asyncio.sleep(0.02)
        for number in range(3):
            try:
                await worker.broadcaster.publish("room", b"%d" % number)
            except BrokerError:  # it was on its way when the connection ended
                continue
        await worker.broadcaster.publish("room", b"last")
        await worker.sink.until(lambda: ("room", b"last") in worker.sink.delivered)
        assert (worker.sink.losses, worker.sink.revocations) == ([], [])


def clients(listed: str, kind: str) -> list[str]:
    """Return the ids of connections of one kind in a reply to CLIENT LIST."""
    entries = [dict(field.split("=", 1) for field in line.split()) for line in listed.splitlines()]
    wanted = {"normal": "0", "pubsub": "1"}[kind]
    return [entry["id"] for entry in entries if entry.get("ssub", "0") == wanted and entry["cmd"] != "client|list"]


async def test_an_address_that_leads_to_another_node(redis_node: StartRedisNode) -> None:
    """An address that was given to a node of another cluster since is not used."""
    own, other = redis_node(), redis_node(RedisConfig(arguments=("--maxclients", "1000")))
    async with FaultProxy(own.url) as proxy:
        own.ask("CONFIG", "SET", "cluster-announce-port", proxy.url.rpartition(":")[2])
        try:
            async with started_worker(proxy.url) as worker:
                proxy.lead_to(other.url)
                proxy.cut()
                await worker.sink.until(lambda: len(worker.sink.losses) == 1)
        finally:
            own.ask("CONFIG", "SET", "cluster-announce-port", "0")
