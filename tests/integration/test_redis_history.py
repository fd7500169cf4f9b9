"""The history of channels on Redis: positions show what the server lost, and what it refuses is not published."""

from __future__ import annotations

import asyncio
import random
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast
from zlib import crc32

import pytest
from redis.asyncio import Redis

from backplane import (
    Backlog,
    Backplane,
    BrokerError,
    BrokerUnavailableError,
    ConfigurationError,
    Gap,
    Message,
    PublishError,
    PublishOutcomeUnknownError,
    Receipt,
    Settings,
)
from backplane.broker.registry import broadcaster_from_url
from backplane.fanout import codec
from backplane.history_rules import History, HistoryRules
from backplane.message import Position
from backplane.testing import FaultProxy, RecordingSink
from backplane.testing.harness import next_message
from backplane.testing.resume_conformance import compacted
from tests.brokers.process import free_port
from tests.brokers.redis import RedisConfig

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.adapters.redis import RedisBroadcaster
    from backplane.broadcaster import Recalled
    from tests.brokers.broker import Broker
    from tests.conftest import StartRedis, StartSentinels

pytestmark = pytest.mark.anyio

RULE = History(max_messages=100, max_age_seconds=60)
RULES = HistoryRules({"*": RULE})
GRANTS = "+evalsha +script|load +get +set +del +rpush +rpop +ltrim +lrange +lindex +pexpire +time"
LEAST = f"-@all +ping +publish +subscribe +unsubscribe +role +info {GRANTS}"


@asynccontextmanager
async def linked(url: str, *channels: str) -> AsyncGenerator[tuple[RedisBroadcaster, RecordingSink]]:
    """Start an adapter that keeps messages and is subscribed to `channels`."""
    sink, adapter = RecordingSink(), cast("RedisBroadcaster", broadcaster_from_url(url))
    await adapter.start(sink)
    try:
        await adapter.prepare(RULES)
        if channels:
            await adapter.subscribe(channels)
        yield adapter, sink
    finally:
        await adapter.stop()


async def command(broker: Broker | str, *parts: str | int) -> Any:
    """Send a command of an operator and return the reply."""
    client: Any = Redis
    async with client.from_url(broker if isinstance(broker, str) else broker.url) as link:
        return await link.execute_command(*parts)


async def recalled(
    adapter: RedisBroadcaster, after: Position | None = None, *, channel: str = "room", limit: int = 1000
) -> Recalled:
    """Return what the history holds after a position."""
    return await adapter.recall(channel, RULE, after=after, limit=limit, max_bytes=1 << 22)


async def kept(adapter: RedisBroadcaster, *payloads: bytes, channel: str = "room") -> Position:
    """Keep some messages and return the position of the last one."""
    receipts = await asyncio.gather(*(adapter.keep(channel, payload, RULE) for payload in payloads))
    assert receipts[-1].position is not None
    return receipts[-1].position


def payloads_of(found: Recalled) -> list[bytes]:
    """Return the payloads of what was recalled."""
    return [item.payload for item in found.items]


def admin_of(broker: Broker) -> str:
    """Return the URL of the default user."""
    return broker.url.replace("alice:secret@", "")


@pytest.mark.parametrize("lost", ["place", "log", "both", "everything"])
async def test_what_is_gone_is_not_found(private_redis: StartRedis, lost: str) -> None:
    """Where a key is deleted or evicted, or all, what was missed is not found, and what is kept from then on is."""
    broker = private_redis()
    async with linked(broker.url, "room") as (adapter, sink):
        first = await kept(adapter, b"1")
        top = await kept(adapter, b"2", b"3")
        keys = {"place": ["place"], "log": ["log"], "both": ["place", "log"]}.get(lost)
        parts = ["FLUSHALL"] if keys is None else ["DEL", *(f"$backplane/{{room}}/{key}" for key in keys)]
        await command(broker, *parts)
        assert not (await recalled(adapter, first)).found
        # The newest position stays valid where only the log is lost: nothing was published after it.
        assert (await recalled(adapter, top)).found == (lost == "log")
        next_ = await kept(adapter, b"4")
        assert (await recalled(adapter, first)).found is False
        assert payloads_of(await recalled(adapter)) == [b"4"]
        after_top = await recalled(adapter, top)
        assert (after_top.found, payloads_of(after_top)) == ((True, [b"4"]) if lost == "log" else (False, []))
        assert (next_.epoch == top.epoch) == (lost == "log")
        await sink.until(lambda: len(sink.delivered) == 4)
        place = sink.places[-1]
        assert place is not None
        assert (place == next_, place.before) == (True, next_.offset - 1)
        # The next message continues in the epoch that the recall, or the message, has made.
        assert (await recalled(adapter, next_)).found


async def test_a_message_after_a_lost_place_begins_anew(private_redis: StartRedis) -> None:
    """What is in a log whose place is gone is not recalled as the messages before the next one."""
    broker = private_redis()
    async with linked(broker.url) as (adapter, _):
        top = await kept(adapter, b"1", b"2", b"3")
        await command(broker, "DEL", "$backplane/{room}/place")
        next_ = await kept(adapter, b"4")
        assert (next_.offset, next_.epoch != top.epoch) == (1, True)
        assert payloads_of(await recalled(adapter)) == [b"4"]


async def test_a_recall_of_an_unused_channel_makes_its_epoch(private_redis: StartRedis) -> None:
    """A position of an empty channel finds what is published after it; another history of that channel does not."""
    broker = private_redis()
    async with linked(broker.url) as (adapter, _):
        empty = (await recalled(adapter)).top
        assert (empty.offset, empty.check) == (0, 0)
        assert (await recalled(adapter)).top == empty
        await kept(adapter, b"1", b"2")
        assert payloads_of(await recalled(adapter, empty)) == [b"1", b"2"]
        await command(broker, "FLUSHALL")
        assert not (await recalled(adapter, empty)).found


async def test_lost_scripts_are_loaded_again(private_redis: StartRedis) -> None:
    """After SCRIPT FLUSH publishes and reads in flight are repeated in their order, once each."""
    broker = private_redis()
    async with linked(broker.url, "room") as (adapter, sink):
        for round_ in range(20):
            await command(broker, "SCRIPT", "FLUSH")
            payloads = [b"%d %d" % (round_, number) for number in range(50)]
            reading = asyncio.create_task(recalled(adapter))
            await asyncio.gather(kept(adapter, *payloads), reading)
            assert reading.result().found
        expected = [b"%d %d" % (round_, number) for round_ in range(20) for number in range(50)]
        await sink.until(lambda: len(sink.delivered) == len(expected))
        assert sink.payloads("room") == expected
        assert sink.losses == []


async def test_lost_scripts_do_not_change_the_order(private_redis: StartRedis) -> None:
    """A message that is kept and one that is not arrive in the order of the calls, or the first one raises."""
    broker = private_redis()
    async with linked(broker.url, "room") as (adapter, sink):
        await command(broker, "SCRIPT", "FLUSH")
        first, second = await asyncio.gather(
            adapter.keep("room", b"kept", RULE), adapter.publish("room", b"plain"), return_exceptions=True
        )
        assert (type(first), second) == (BrokerUnavailableError, None)
        await kept(adapter, b"after")
        await sink.until(lambda: len(sink.delivered) == 2)
        assert sink.payloads("room") == [b"plain", b"after"]


async def test_scripts_are_loaded_at_a_replaced_connection(private_redis: StartRedis) -> None:
    """A publishing connection that is replaced after SCRIPT FLUSH loads the scripts before it publishes."""
    broker = private_redis()
    async with linked(broker.url, "room") as (adapter, sink):
        await kept(adapter, b"1")
        await command(broker, "SCRIPT", "FLUSH")
        await command(broker, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        while True:
            try:
                await kept(adapter, b"2")
            except BrokerUnavailableError:  # the end was found before the replacement waits for publishes
                continue
            except PublishOutcomeUnknownError:
                continue
            break
        await sink.until(lambda: b"2" in sink.payloads("room"))
        assert sink.losses == []
        assert "errorstat_NOSCRIPT" not in await command(broker, "INFO", "errorstats")


async def test_a_restart_without_persistence_is_found(private_redis: StartRedis) -> None:
    """A server that was killed and came back empty has another epoch: no position of before is found."""
    broker = private_redis()
    async with linked(broker.url) as (adapter, _):
        positions = [await kept(adapter, b"%d" % number) for number in range(5)]
        broker.kill9()
        broker.start()
        await adapter.stop()
        await adapter.start(RecordingSink())
        await adapter.prepare(RULES)
        for number in range(7):
            await kept(adapter, b"new %d" % number)
            assert not any([(await recalled(adapter, position)).found for position in positions])


async def test_a_failover_that_loses_the_tail_is_found(private_redis: StartRedis) -> None:
    """A replica that took over without the last messages uses their offsets again, and the check shows it."""
    primary, choose = private_redis(), random.Random(15)
    async with FaultProxy(primary.url) as proxy:
        port = proxy.url.rpartition(":")[2]
        replica = private_redis(RedisConfig(arguments=("--replicaof", "127.0.0.1", port)))
        while (await command(replica, "ROLE"))[3] != b"connected":
            await asyncio.sleep(0.01)
        names = [f"room-{number}" for number in range(1000)]
        replicated, newest = dict[str, Position](), dict[str, Position]()
        async with linked(primary.url) as (adapter, _):

            async def keep_some(positions: dict[str, Position], name: str, text: bytes) -> None:
                count = choose.randrange(1, 6)
                positions[name] = await kept(adapter, *(text + b"%d" % number for number in range(count)), channel=name)

            await asyncio.gather(*(keep_some(replicated, name, b"") for name in names))
            assert await command(primary, "WAIT", 1, 10_000) == 1
            proxy.silence()
            await asyncio.gather(*(keep_some(newest, name, b"lost ") for name in names))
        await command(replica, "REPLICAOF", "NO", "ONE")
    async with linked(replica.url) as (adapter, _):

        async def reuses_the_offset(name: str) -> bool:
            assert not (await recalled(adapter, newest[name], channel=name)).found
            new = [b"new %d" % number for number in range(choose.randrange(1, 8))]
            top = await kept(adapter, *new, channel=name)
            assert top.epoch == newest[name].epoch
            for lost in (newest[name], compacted(newest[name])):
                assert not (await recalled(adapter, lost, channel=name)).found
            for position in (replicated[name], compacted(replicated[name])):
                assert payloads_of(await recalled(adapter, position, channel=name)) == new
            return top.offset >= newest[name].offset

        # In so many cases numbers alone would have resumed.
        assert sum(await asyncio.gather(*map(reuses_the_offset, names))) > 300


async def test_a_demoted_primary_is_left_at_once(private_sentinels: StartSentinels) -> None:
    """A server that became a replica refuses the script: nothing is published, and the loss is reported at once."""
    service = private_sentinels()
    async with linked(service.url, "room") as (adapter, sink):
        position = await kept(adapter, b"1")
        await asyncio.to_thread(service.failover)
        await asyncio.to_thread(service.wait_until_demoted, service.nodes[0])
        if not sink.losses:  # the old primary ends its clients' connections at some demotions
            with pytest.raises(BrokerUnavailableError):
                await adapter.keep("room", b"2", RULE)
        assert len(sink.losses) == 1
        await adapter.stop()
        await adapter.start(sink)
        await adapter.prepare(RULES)
        found = await recalled(adapter, position)
        assert (found.found, found.items, found.top) == (True, [], position)
        await kept(adapter, b"3")
        assert payloads_of(await recalled(adapter, position)) == [b"3"]


@pytest.mark.parametrize("way", ["keep", "recall"])
async def test_a_replica_refuses_to_keep_and_to_recall(private_redis: StartRedis, way: str) -> None:
    """On a server that became a replica, both raise that it is unavailable, and report the loss of the link once."""
    broker, new = private_redis(), private_redis()
    async with linked(broker.url, "room") as (adapter, sink):
        await kept(adapter, b"1")
        await command(broker, "REPLICAOF", "127.0.0.1", new.url.rpartition(":")[2])
        for _ in range(2):
            with pytest.raises(BrokerUnavailableError):
                await (adapter.keep("room", b"2", RULE) if way == "keep" else recalled(adapter))
        assert ["is a replica now: READONLY" in str(loss) for loss in sink.losses] == [True]
        assert sink.payloads("room") == [b"1"]


async def test_memory_without_room_refuses_and_publishes_nothing(private_redis: StartRedis) -> None:
    """With `noeviction` a full server refuses to keep: nothing is delivered or stored, and plain publishes go on."""
    broker = private_redis()
    async with linked(broker.url, "room") as (adapter, sink):
        first = await kept(adapter, b"1")
        await command(broker, "CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(PublishError, match="OOM") as raised:
            await adapter.keep("room", b"refused", RULE)
        assert raised.value.retriable
        with pytest.raises(BrokerUnavailableError, match="OOM"):
            await recalled(adapter, channel="never used")
        await adapter.publish("room", b"plain")
        assert payloads_of(await recalled(adapter)) == [b"1"]
        async with linked(broker.url):  # a start is not refused
            pass
        await command(broker, "CONFIG", "SET", "maxmemory", "0")
        await kept(adapter, b"2")
        assert payloads_of(await recalled(adapter, first)) == [b"2"]
        assert sink.payloads("room") == [b"1", b"plain", b"2"]


async def test_a_server_without_its_replicas_refuses_to_keep_and_recalls(private_redis: StartRedis) -> None:
    """Where the server refuses writes, because too few replicas have its data, what it has is recalled."""
    broker = private_redis()
    async with linked(broker.url, "room") as (adapter, sink):
        await kept(adapter, b"1")
        await command(broker, "CONFIG", "SET", "min-replicas-to-write", "1")
        with pytest.raises(PublishError, match="NOREPLICAS") as raised:
            await adapter.keep("room", b"refused", RULE)
        assert raised.value.retriable
        assert payloads_of(await recalled(adapter)) == [b"1"]
        await command(broker, "CONFIG", "SET", "min-replicas-to-write", "0")
        await kept(adapter, b"2")
        assert sink.payloads("room") == [b"1", b"2"]


async def test_the_documented_grants_are_enough(private_redis: StartRedis) -> None:
    """A user with the documented permissions alone, and its own prefix, keeps, trims, deduplicates and recalls."""
    rules = f"alice on >secret {LEAST} resetchannels &shop:* ~shop:$backplane/*"
    broker = private_redis(RedisConfig(users=(rules,), login="alice:secret"))
    async with linked(f"{broker.url}?prefix=shop:", "room") as (adapter, sink):
        for rule in (History(max_messages=5), History(max_messages=2), History(latest=True)):
            for number in range(8):
                await adapter.keep("room", b"%d" % number, rule)
            length = await command(admin_of(broker), "LLEN", "shop:$backplane/{room}/log")
            assert length == rule.max_messages + 1
        receipts = [await adapter.keep("room", b"once", RULE, key=b"order-42") for _ in range(2)]
        assert [receipt.duplicate for receipt in receipts] == [False, True]
        assert receipts[0].position == receipts[1].position
        assert payloads_of(await recalled(adapter)) == [b"6", b"7", b"once"]
        await sink.until(lambda: len(sink.delivered) == 25)
        keys = await command(admin_of(broker), "KEYS", "*")
        assert all(key.startswith(b"shop:$backplane/{room}/") for key in keys)
        assert await command(admin_of(broker), "ACL", "LOG") == []


@pytest.mark.parametrize("denied", [*GRANTS.replace("+", "-").replace("-script|load", "-script").split(), "resetkeys"])
async def test_a_missing_permission_is_refused_with_the_line_to_grant(private_redis: StartRedis, denied: str) -> None:
    """A user who lacks a command or the keys is refused before any message, and the error grants what is missing."""
    rules = f"alice on >secret {LEAST} allchannels ~shop:$backplane/* {denied}"
    broker = private_redis(RedisConfig(users=(rules,), login="alice:secret"))
    adapter = cast("RedisBroadcaster", broadcaster_from_url(f"{broker.url}?prefix=shop:"))
    await adapter.start(RecordingSink())
    try:
        with pytest.raises(BrokerError) as raised:
            await adapter.prepare(RULES)
        assert raised.value.retriable is False
        assert not isinstance(raised.value, BrokerUnavailableError)
        line = str(raised.value).partition("Grant it: ")[2]
        assert line == f"ACL SETUSER alice {GRANTS} ~shop:$backplane/*"
        assert "secret" not in str(raised.value)
        await command(admin_of(broker), *line.split())
        await adapter.prepare(RULES)
        await kept(adapter, b"1")
    finally:
        await adapter.stop()


async def test_a_denied_channel_is_not_stored(private_redis: StartRedis) -> None:
    """A message that an ACL does not allow to publish raises, and is neither delivered nor stored."""
    rules = f"alice on >secret {LEAST} resetchannels &room* ~*"
    broker = private_redis(RedisConfig(users=(rules,), login="alice:secret"))
    async with linked(broker.url, "room") as (adapter, _):
        for key in (None, b"key"):
            with pytest.raises(PublishError, match=r"NOPERM|can't publish to the channel") as raised:
                await adapter.keep("secrets", b"x", RULE, key=key)
            assert not raised.value.retriable
        assert (await recalled(adapter, channel="secrets")).items == []
        assert (await recalled(adapter, channel="secrets")).top.offset == 0
        await command(admin_of(broker), "ACL", "SETUSER", "alice", "&secrets")
        top = await kept(adapter, b"1", channel="secrets")
        await command(admin_of(broker), "ACL", "SETUSER", "alice", "resetchannels", "&room*")
        with pytest.raises(PublishError):
            await adapter.keep("secrets", b"x", RULE)
        found = await recalled(adapter, channel="secrets")
        assert (payloads_of(found), found.top) == ([b"1"], top)


async def test_plain_payloads_exclude_a_history(redis_broker: Broker) -> None:
    """`wire_format=plain`, for readers that know no header, cannot be combined with a history."""
    adapter = cast("RedisBroadcaster", broadcaster_from_url(f"{redis_broker.url}?wire_format=plain"))
    await adapter.start(RecordingSink())
    with pytest.raises(ConfigurationError, match="take off that option"):
        await adapter.prepare(RULES)
    await adapter.stop()


def cluster_node() -> RedisConfig:
    """Return the configuration of a node whose bus has a port that is free: that of the data and 10,000 may not be."""
    return RedisConfig(arguments=("--cluster-enabled", "yes", "--cluster-port", str(free_port())))


async def test_a_cluster_is_refused(private_redis: StartRedis) -> None:
    """A node of a Redis Cluster is refused with a history, and used without one as before."""
    broker = private_redis(cluster_node())
    await command(broker, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    adapter = cast("RedisBroadcaster", broadcaster_from_url(broker.url))
    await adapter.start(RecordingSink())
    with pytest.raises(BrokerError, match=r"redis\+cluster:// keeps") as raised:
        await adapter.prepare(RULES)
    assert raised.value.retriable is False
    await adapter.publish("room", b"as before")
    await adapter.stop()


async def test_a_worker_without_the_rule_removes_the_envelope(private_redis: StartRedis) -> None:
    """A worker that has no rule receives what was published, and one of an older release takes it for malformed."""
    broker = private_redis()
    client: Any = Redis
    async with (
        linked(broker.url) as (adapter, _),
        Backplane(broker.url) as backplane,
        backplane.subscribe("room") as messages,
        client.from_url(broker.url) as foreign,
    ):
        listening = foreign.pubsub()
        await listening.subscribe("room")
        await listening.get_message(timeout=5)
        payload = codec.encode("hello", origin=b"12345678", published_at=1.0)
        await adapter.keep("room", payload, RULE)
        received = await anext(messages)
        assert received.data == "hello"  # type: ignore[union-attr]
        on_the_wire = (await listening.get_message(timeout=5))["data"]
        await listening.aclose()
        assert (on_the_wire[:4], on_the_wire[28:]) == (b"\xbfBP\x03", payload)
        assert on_the_wire[24:28] == crc32(payload).to_bytes(4)
        assert codec.decode("room", on_the_wire) is None  # what an older worker does with it


async def test_old_messages_of_a_busy_channel_are_not_recalled(private_redis: StartRedis) -> None:
    """A message older than `max_age_seconds` is not recalled, also where newer ones keep the log alive."""
    broker, rule = private_redis(), History(max_messages=100_000, max_age_seconds=0.3)
    async with linked(broker.url) as (adapter, _):

        async def recall(after: Position | None) -> Recalled:
            return await adapter.recall("room", rule, after=after, limit=1000, max_bytes=1 << 22)

        empty = (await recall(None)).top
        receipt = await adapter.keep("room", b"first", rule)
        assert (await recall(empty)).found
        async with asyncio.timeout(30):
            while b"first" in payloads_of(await recall(None)):
                await adapter.keep("room", b"next", rule)
                await asyncio.sleep(0.01)
        await adapter.keep("room", b"last", rule)
        assert not (await recall(empty)).found
        assert await command(broker, "LINDEX", "$backplane/{room}/log", 0) is not None
        newest = await recall(None)
        assert (payloads_of(newest)[-1], newest.more) == (b"last", False)
        assert receipt.position is not None
        life = [await command(broker, "PTTL", f"$backplane/{{room}}/{key}") for key in ("place", "log")]
        assert 86_000_000 < life[0] <= 86_400_000
        assert life[1] <= 1300


async def test_own_keys_cause_no_warning(private_redis: StartRedis, caplog: pytest.LogCaptureFixture) -> None:
    """A server that holds the keys of a history alone is not taken for one that others use."""
    broker = private_redis()
    async with linked(broker.url) as (adapter, _):
        for number in range(1500):
            await adapter.keep(f"room-{number}", b"x", RULE)
    async with linked(broker.url):
        assert "holds keys" not in caplog.text
    await command(broker, "MSET", *(part for number in range(150) for part in (f"session:{number}", "alice")))
    async with linked(broker.url):
        assert "holds keys" in caplog.text


HOSTILE = ["{", "}", "{}", "}{", "%", "%7B", "a b", "\r\n", "\0", "*", "[a-z]", "é" * 100, "{a}b", "x" * 255, "place"]


async def test_hostile_names_have_histories_of_their_own(private_redis: StartRedis) -> None:
    """Whatever a channel is called, its history is its own, and its keys are in one slot."""
    broker = private_redis(cluster_node())
    cluster, plain = broker, private_redis()
    async with linked(plain.url, *HOSTILE) as (adapter, sink):
        for name in HOSTILE:
            await adapter.keep(name, name.encode(), RULE, key=b"key")
        for name in HOSTILE:
            assert payloads_of(await recalled(adapter, channel=name)) == [name.encode()]
        await sink.until(lambda: len(sink.delivered) == len(HOSTILE))
        assert sink.delivered == [(name, name.encode()) for name in HOSTILE]
    keys = await command(plain, "KEYS", "*")
    assert len(keys) == 3 * len(HOSTILE)
    slots: dict[bytes, set[int]] = {}
    for key in keys:
        channel = key.partition(b"}/")[0]
        slots.setdefault(channel, set()).add(await command(cluster, "CLUSTER", "KEYSLOT", key))
    assert [len(of_channel) for of_channel in slots.values()] == [1] * len(HOSTILE)


async def test_large_messages_are_recalled_within_their_bound(private_redis: StartRedis) -> None:
    """Reading stops after the message with which the bound of bytes is exceeded, from either end."""
    async with linked(private_redis().url) as (adapter, _):
        start = (await recalled(adapter)).top
        for number in range(12):
            await adapter.keep("room", bytes([number]) * 1_000_000, RULE)
        forward = await adapter.recall("room", RULE, after=start, limit=1000, max_bytes=2_500_000)
        backward = await adapter.recall("room", RULE, after=None, limit=1000, max_bytes=2_500_000)
        assert [item.payload[0] for item in forward.items] == [0, 1, 2]
        assert [item.payload[0] for item in backward.items] == [9, 10, 11]
        assert (forward.more, backward.more) == (True, True)
        assert forward.items[-1].place.before_check == forward.items[-2].place.check


@pytest.mark.parametrize("seed", range(3))
async def test_recalled_pieces_join_without_a_hole(private_redis: StartRedis, seed: int) -> None:
    """Whatever the sizes and the bounds, what is recalled is a run of the log, as long as the bounds allow."""
    choose = random.Random(seed)
    async with linked(private_redis().url) as (adapter, _):
        sizes = [choose.choice((0, 1, 30, 1000)) for _ in range(150)]
        payloads = [choose.randbytes(size) for size in sizes]
        rule = History(max_messages=120)
        start = (await recalled(adapter)).top
        receipts = [await adapter.keep("room", payload, rule) for payload in payloads]
        positions = [start, *(receipt.position for receipt in receipts)]
        for _ in range(300):
            first, limit = choose.randrange(151), choose.choice((0, 1, 15, 16, 17, 33, 1000))
            max_bytes = choose.choice((1, 100, 1000, 20_000, 1 << 22))
            for after in (positions[first], None):
                found = await adapter.recall("room", rule, after=after, limit=limit, max_bytes=max_bytes)
                kept_ = payloads[29:]  # one more than the rule
                rest = kept_[::-1] if after is None else payloads[first:]
                expected, total = list[bytes](), 0
                for payload in rest:
                    if len(expected) == limit or total > max_bytes:
                        break
                    expected.append(payload)
                    total += len(payload)
                if after is not None and first < 29:
                    assert (found.found, found.items) == (False, [])
                    continue
                assert payloads_of(found) == (expected if after is not None else expected[::-1])
                assert (found.found, found.more) == (True, len(expected) < len(rest))
                assert found.top == positions[-1]
                last = first if after is not None else 150 - len(expected)
                for item, position in zip(found.items, positions[last + 1 :], strict=False):
                    assert item.place == position


async def test_a_lost_reply_is_repeated_once_with_a_key(private_redis: StartRedis) -> None:
    """A publish whose reply was lost is unknown; with a key its repetition is dropped, by whichever worker."""
    broker = private_redis()
    async with FaultProxy(broker.url) as proxy, linked(broker.url, "room") as (other, sink):
        async with linked(proxy.url) as (adapter, _):
            proxy.silence("to_client")
            keeping = asyncio.create_task(adapter.keep("room", b"once", RULE, key=b"k"))
            await sink.until(lambda: sink.payloads("room") == [b"once"])
            proxy.cut()
            with pytest.raises(PublishOutcomeUnknownError):
                await keeping
        receipt = await other.keep("room", b"once", RULE, key=b"k")
        assert receipt == Receipt(position=sink.places[0], duplicate=True)
        assert (await other.keep("lounge", b"once", RULE, key=b"k")).duplicate is False
        await kept(other, b"barrier")
        await sink.until(lambda: b"barrier" in sink.payloads("room"))
        assert sink.payloads("room") == [b"once", b"barrier"]


PUBLISHER = """
import asyncio, sys
from backplane.broker.registry import broadcaster_from_url
from backplane.history_rules import History, HistoryRules
from backplane.testing import RecordingSink

async def main(url, name):
    adapter, rule = broadcaster_from_url(url), History(max_messages=100)
    await adapter.start(RecordingSink())
    await adapter.prepare(HistoryRules({"*": rule}))
    for number in range(20):
        texts = [f"{name} {number * 100 + each}".encode() for each in range(100)]
        await asyncio.gather(*(adapter.keep("room", text, rule) for text in texts))
    await adapter.stop()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_two_processes_publish_in_one_order(private_redis: StartRedis) -> None:
    """What two processes publish at once has one order, the same for every reader, and each names the one before it."""
    broker = private_redis()
    async with linked(broker.url, "room") as (_, one), linked(broker.url, "room") as (reader, two):
        processes = [
            await asyncio.create_subprocess_exec(sys.executable, "-c", PUBLISHER, broker.url, name) for name in "ab"
        ]
        assert [await process.wait() for process in processes] == [0, 0]
        for sink in (one, two):
            await sink.until(lambda sink=sink: len(sink.delivered) == 4000)  # type: ignore[misc]
        assert one.delivered == two.delivered
        assert one.places == two.places
        last = Position(b"", 0, 0)
        for place in one.places:
            assert place is not None
            assert (place.before, place.before_check) == (last.offset, last.check)
            last = place
        for name in (b"a", b"b"):
            numbers = [int(payload.split()[1]) for payload in one.payloads("room") if payload.startswith(name)]
            assert numbers == list(range(2000))
        assert payloads_of(await recalled(reader)) == one.payloads("room")[-101:]


async def test_kept_and_plain_messages_have_one_order(private_redis: StartRedis) -> None:
    """Messages of one channel arrive in the order of the calls, whichever of them are kept."""
    async with linked(private_redis().url, "room") as (adapter, sink):
        await asyncio.gather(
            *(
                adapter.keep("room", b"%d" % number, RULE, key=b"%d" % number if number % 3 else None)
                if number % 2
                else adapter.publish("room", b"%d" % number)
                for number in range(300)
            )
        )
        await sink.until(lambda: len(sink.delivered) == 300)
        assert sink.payloads("room") == [b"%d" % number for number in range(300)]
        assert [place is not None for place in sink.places] == [number % 2 == 1 for number in range(300)]


async def test_cancelled_calls_leave_the_rest_as_it_is(private_redis: StartRedis) -> None:
    """Calls that are cancelled at any moment change neither the order nor the positions of the others."""
    choose = random.Random(3)
    async with linked(private_redis().url, "room") as (adapter, sink):
        finished: list[bytes] = []
        for round_ in range(30):
            payloads = [b"%d %d" % (round_, number) for number in range(20)]
            tasks = {payload: asyncio.create_task(adapter.keep("room", payload, RULE)) for payload in payloads}
            reads = [asyncio.create_task(recalled(adapter)) for _ in range(3)]
            for _ in range(choose.randrange(4)):
                await asyncio.sleep(0)
            for task in choose.sample([*tasks.values(), *reads], 8):
                task.cancel()
            await asyncio.wait([*tasks.values(), *reads])
            finished += [payload for payload, task in tasks.items() if not task.cancelled()]
        await kept(adapter, b"barrier")
        await sink.until(lambda: b"barrier" in sink.payloads("room"))
        received = sink.payloads("room")
        assert [payload for payload in received if payload in set(finished)] == finished
        assert len(set(received)) == len(received)
        assert [place.offset for place in sink.places if place is not None] == list(range(1, len(received) + 1))


def encoded(text: str) -> bytes:
    """Return a message as the core writes it."""
    return codec.encode(text, origin=b"12345678", published_at=1.0)


async def test_a_cut_link_is_repaired_without_a_gap(private_redis: StartRedis) -> None:
    """What is kept while the link of a worker is cut again and again is received once, in order, without a gap."""
    broker = private_redis()
    rule = History(max_messages=10_000)
    async with FaultProxy(broker.url) as proxy, linked(broker.url) as (publisher, _):
        # On an idle machine thousands are published until the link is there again.
        settings = Settings(max_backoff_seconds=0.05, max_recall_messages=10_000, max_recall_bytes=64 * 1024 * 1024)
        async with (
            Backplane(proxy.url, history={"*": rule}, settings=settings) as backplane,
            backplane.subscribe("room", backlog=Backlog(max_messages=10_000)) as messages,
        ):
            published, received = 0, list[object]()
            for _ in range(20):
                generation = (await backplane.health()).generation
                proxy.cut()
                while (await backplane.health()).generation == generation or backplane.state != "live":
                    await publisher.keep("room", encoded(str(published)), rule)
                    published += 1
                async with asyncio.timeout(30):
                    while len(received) < published:
                        received.append(await anext(messages))
        assert [item.data for item in received if isinstance(item, Message)] == [str(n) for n in range(published)]
        assert backplane.statistics().malformed == 0


@pytest.mark.parametrize("deed", ["FLUSHALL", "replaced"])
async def test_what_the_server_lost_is_one_gap(private_redis: StartRedis, deed: str) -> None:
    """Where the server lost what was missed, a subscriber gets exactly one gap, and then what is published after it."""
    broker, other = private_redis(), private_redis()
    async with (
        FaultProxy(broker.url) as proxy,
        Backplane(proxy.url, history={"*": RULE}, settings=Settings(max_backoff_seconds=0.05)) as backplane,
        backplane.subscribe("room") as messages,
    ):
        async with linked(broker.url) as (publisher, _):
            await publisher.keep("room", encoded("before"), RULE)
            assert (await next_message(messages)).data == "before"
            proxy.refuse()
            proxy.cut()
            await publisher.keep("room", encoded("lost"), RULE)
        await command(broker, "FLUSHALL")
        if deed == "replaced":
            proxy.lead_to(other.url)
        proxy.heal()
        async with asyncio.timeout(30):
            gap = await anext(messages)
        assert isinstance(gap, Gap)
        async with linked(other.url if deed == "replaced" else broker.url) as (publisher, _):
            await publisher.keep("room", encoded("after"), RULE)
        assert (await next_message(messages)).data == "after"


async def test_a_start_with_a_history_and_plain_payloads_is_refused(redis_broker: Broker) -> None:
    """A Backplane with a history does not start with `wire_format=plain`, and is left as if it had not been started."""
    backplane = Backplane(f"{redis_broker.url}?wire_format=plain", history={"*": RULE})
    with pytest.raises(ConfigurationError, match="take off that option"):
        await backplane.start()
    assert backplane.state != "live"
