"""What is particular to Redis Sentinel: finding the primary, following it, and words for what stands in the way."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from backplane import (
    Backplane,
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    ConfigurationError,
    Gap,
    Message,
    Settings,
)
from backplane.broadcaster import SupportsLinkCheck
from backplane.broker.registry import broadcaster_from_url
from backplane.testing import FaultProxy, RecordingSink
from tests.brokers.process import free_port
from tests.brokers.redis import RedisConfig
from tests.brokers.redis_sentinel import SERVICE, sentinel_of

if TYPE_CHECKING:
    from pathlib import Path

    from backplane import Subscription
    from tests.brokers.broker import Broker
    from tests.brokers.redis_sentinel import RedisSentinels
    from tests.conftest import StartRedis, StartSentinels

pytestmark = pytest.mark.anyio

QUICK = Settings(probe_interval_seconds=0.3, max_backoff_seconds=0.2)


def subscribers(service: RedisSentinels) -> list[int]:
    """Return how many subscribers of `room` each data node has."""
    return [service.ask(node, "PUBSUB", "NUMSUB", "room")[1] for node in service.nodes]


async def started(url: str, sink: RecordingSink) -> Any:
    """Return a started adapter, one that checks."""
    broadcaster = broadcaster_from_url(url)
    await broadcaster.start(sink)
    assert isinstance(broadcaster, SupportsLinkCheck)
    return broadcaster


async def refusal(url: str) -> BrokerError:
    """Return the error with which a start fails, and see that no password stands in it."""
    with pytest.raises(BrokerError) as raised:
        await Backplane(url, settings=Settings(start_timeout_seconds=1)).start()
    assert "hunter2" not in f"{raised.value} {raised.value!r} {raised.value.__cause__!r}"
    return raised.value


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_the_sentinels_lead_to_the_primary(private_sentinels: StartSentinels, tls: bool) -> None:
    """With passwords at the data nodes and others at the sentinels, one of which runs, messages go by the primary."""
    service = private_sentinels(password="hunter1", sentinel_password="hunter2", tls=tls)
    for sentinel in service.sentinels[:2]:
        sentinel.stop()
    async with Backplane(service.url) as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", "hello")
        heard = await anext(messages)
        assert isinstance(heard, Message)
        assert heard.data == "hello"
        assert subscribers(service) == [1, 0]


async def test_a_failover_is_followed(private_sentinels: StartSentinels) -> None:
    """After `SENTINEL FAILOVER` there is a gap, and everybody is on the new primary and hears each other there."""
    service = private_sentinels()
    async with (
        Backplane(service.url, settings=QUICK) as one,
        Backplane(service.url, settings=QUICK) as two,
        one.subscribe("room") as first,
        two.subscribe("room") as second,
        asyncio.timeout(40),
    ):
        await asyncio.to_thread(service.failover)
        assert isinstance(await anext(first), Gap)
        assert isinstance(await anext(second), Gap)
        while subscribers(service) != [0, 2]:
            await asyncio.sleep(0.05)
        for attempt in count():  # a sentinel that is late may send somebody back and forth once more, with a gap
            await one.publish("room", f"one {attempt}")
            await two.publish("room", f"two {attempt}")
            texts = [f"one {attempt}", f"two {attempt}"]
            if [await next_texts(messages, texts) for messages in (first, second)] == [texts, texts]:
                break
        assert subscribers(service) == [0, 2]


async def next_texts(messages: Subscription, texts: list[str]) -> list[str]:
    """Return what comes of `texts`, in its order, until a gap."""
    heard: list[str] = []
    while len(heard) < len(texts) and isinstance(item := await anext(messages), Message):
        if item.data in texts:
            heard.append(str(item.data))
    return heard


async def test_sentinels_that_the_url_does_not_name_are_learned(private_sentinels: StartSentinels) -> None:
    """With the only sentinel of the URL gone, a failover is followed by what the others report."""
    service = private_sentinels()
    url = service.url_of(service.sentinels[2:])
    async with Backplane(url, settings=QUICK) as backplane, backplane.subscribe("room") as messages:
        service.sentinels[2].stop()
        service.nodes[0].kill9()
        async with asyncio.timeout(30):
            assert isinstance(await anext(messages), Gap)
            await backplane.wait_for_state("live")
        await backplane.publish("room", "after")
        heard = await anext(messages)
        assert isinstance(heard, Message)
        assert heard.data == "after"
        assert service.ask(service.nodes[1], "PUBSUB", "NUMSUB", "room")[1] == 1


async def test_learned_sentinels_that_cannot_be_reached_hold_nobody_up(private_sentinels: StartSentinels) -> None:
    """The sentinel of the URL is enough, whatever addresses it names for the others."""
    service = private_sentinels()
    for sentinel in service.sentinels[1:]:
        sentinel.freeze()
    async with Backplane(service.url_of(service.sentinels[:1]), settings=QUICK) as backplane:
        broadcaster = await started(service.url_of(service.sentinels[:1]), RecordingSink())
        async with asyncio.timeout(2):
            await broadcaster.check()
            await broadcaster.check()
        await broadcaster.stop()
        await backplane.publish("room", "hello")
    for sentinel in service.sentinels[1:]:
        sentinel.thaw()


async def test_nobody_stays_on_a_primary_that_was_replaced(private_sentinels: StartSentinels) -> None:
    """An old primary that goes on as one, connections and all, is left as soon as the sentinels name another."""
    service = private_sentinels()
    async with Backplane(service.url, settings=QUICK) as backplane, backplane.subscribe("room") as messages:
        await asyncio.to_thread(service.replace_unseen)
        async with asyncio.timeout(10):
            gap = await anext(messages)
        assert isinstance(gap, Gap)
        assert "was replaced" in gap.reason
        assert service.ask(service.nodes[0], "ROLE")[0] == "master"
        assert subscribers(service) == [0, 1]


async def test_nobody_stays_on_a_primary_that_became_a_replica(private_sentinels: StartSentinels) -> None:
    """A primary that an operator demotes keeps its connections and takes PUBLISH; only `ROLE` tells, and is asked."""
    service = private_sentinels()
    sink = RecordingSink()
    broadcaster = await started(service.url, sink)
    await broadcaster.check()
    service.ask(service.nodes[0], "REPLICAOF", "127.0.0.1", str(service.nodes[1].port))
    await broadcaster.publish("room", b"nobody hears it")
    with pytest.raises(BrokerUnavailableError, match=r"became a replica of 127\.0\.0\.1:"):
        await broadcaster.check()
    assert sink.losses == []
    await broadcaster.stop()
    with pytest.raises(BrokerUnavailableError):
        await broadcaster.check()


async def test_a_replica_is_no_place_to_start(private_redis: StartRedis, tmp_path: Path) -> None:
    """What the sentinels name and says itself that it is a replica is refused; a later try may find better."""
    primary = private_redis()
    replica = private_redis(RedisConfig(arguments=("--replicaof", "127.0.0.1", primary.url.rpartition(":")[2])))
    with lone_sentinel(replica, tmp_path) as sentinel:
        error = await refusal(url_of(sentinel))
    assert isinstance(error, BrokerUnavailableError)
    assert f"is a replica of 127.0.0.1:{primary.url.rpartition(':')[2]}" in str(error)


async def test_a_check_with_no_sentinel_left_says_nothing(private_sentinels: StartSentinels) -> None:
    """Sentinels that are all gone are no reason to give up a primary that answers."""
    service = private_sentinels()
    broadcaster = await started(service.url, RecordingSink())
    for sentinel in service.sentinels:
        sentinel.kill9()
    await broadcaster.check()
    await broadcaster.stop()


async def test_the_newest_configuration_wins(private_sentinels: StartSentinels, private_redis: StartRedis) -> None:
    """Where two sentinels answer, that which took part in a failover is right and that which was set up anew is not."""
    service = private_sentinels()
    await asyncio.to_thread(service.failover)
    service.sentinels[2].stop()
    name_instead(service, private_redis().url)
    async with Backplane(service.url) as backplane, backplane.subscribe("room"):
        assert subscribers(service) == [0, 1]


async def test_a_check_does_not_believe_an_older_configuration(private_sentinels: StartSentinels) -> None:
    """A sentinel that was set up anew, alone, and names the server of long ago, costs nobody a good link."""
    service = private_sentinels()
    await asyncio.to_thread(service.failover)
    broadcaster = await started(service.url, RecordingSink())
    for sentinel in service.sentinels[1:]:
        sentinel.stop()
    name_instead(service, service.nodes[0].url)
    await broadcaster.check()
    await broadcaster.stop()


async def test_a_sentinel_that_hangs_holds_nobody_up(private_sentinels: StartSentinels) -> None:
    """Two of three that agree are enough: the third, who takes a connection and stays silent, is not waited for."""
    service = private_sentinels()
    async with FaultProxy(f"redis://127.0.0.1:{service.sentinels[0].port}") as hanging:
        hanging.silence()
        port = hanging.url.rpartition(":")[2]
        url = service.url.replace(str(service.sentinels[0].port), port) + "?connect_timeout_seconds=30"
        async with Backplane(url) as backplane, backplane.subscribe("room"):
            assert subscribers(service) == [1, 0]


def name_instead(service: RedisSentinels, url: str) -> None:
    """Have the first sentinel name the server at `url`, as it would had it been set up anew."""
    host, _, port = url.removeprefix("redis://").partition(":")
    service.ask(service.sentinels[0], "SENTINEL", "REMOVE", SERVICE)
    service.ask(service.sentinels[0], "SENTINEL", "MONITOR", SERVICE, host, port, "2")


def lone_sentinel(broker: Broker, folder: Path) -> Any:
    """Return a sentinel, not started, that watches over `broker` by itself."""
    return sentinel_of(int(broker.url.rpartition(":")[2]), folder, down_after_milliseconds=60_000)


def url_of(*sentinels: Any, login: str = "") -> str:
    """Return the URL of the service at `sentinels`."""
    return f"redis+sentinel://{login}{','.join(f'127.0.0.1:{sentinel.port}' for sentinel in sentinels)}/{SERVICE}"


async def test_a_role_that_is_not_granted_is_taken_on_trust(private_redis: StartRedis, tmp_path: Path) -> None:
    """Where an ACL denies `ROLE`, the word of the sentinels is enough, at the start and in a check."""
    broker = private_redis(RedisConfig(users=("alice on >secret +@all -role allchannels",)))
    with lone_sentinel(broker, tmp_path) as sentinel:
        broadcaster = await started(url_of(sentinel, login="alice:secret@"), RecordingSink())
        await broadcaster.check()
        await broadcaster.stop()


async def test_sentinels_that_contradict_each_other(private_redis: StartRedis, tmp_path: Path) -> None:
    """Two sentinels that watch over two servers by one name are refused, with what each of them says."""
    brokers = [private_redis(), private_redis()]
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with lone_sentinel(brokers[0], folders[0]) as one, lone_sentinel(brokers[1], folders[1]) as two:
        error = await refusal(url_of(one, two, login=":hunter2@"))
    assert isinstance(error, BrokerUnavailableError)
    assert "contradict each other" in str(error)
    for broker, sentinel in zip(brokers, (one, two), strict=True):
        assert f"127.0.0.1:{sentinel.port}: {broker.url.removeprefix('redis://')}" in str(error)


async def test_an_unknown_service_fails_the_start_at_once(private_sentinels: StartSentinels) -> None:
    """A service that no sentinel knows is refused in one try, by its name and with where the name stands."""
    service = private_sentinels()
    error = await refusal(service.url.replace("//", "//:hunter2@").replace(f"/{SERVICE}", "/romos"))
    assert "knows no service 'romos': the path of the URL" in str(error)
    assert error.retriable is False
    assert error.__cause__ is not None


async def test_sentinels_that_are_down_fail_the_start() -> None:
    """With no sentinel there, start raises `BrokerUnavailableError` and names every place where it looked."""
    ports = [free_port() for _ in range(2)]
    hosts = [f"127.0.0.1:{port}" for port in ports]
    error = await refusal(f"redis+sentinel://alice:hunter2@{','.join(hosts)}/rooms?sentinel_password=hunter2")
    assert isinstance(error, BrokerUnavailableError)
    assert f"no sentinel of redis+sentinel://alice:***@{','.join(hosts)}/rooms names a primary of 'rooms'" in str(error)
    assert all(f"cannot reach the sentinel {host}" in str(error) for host in hosts)


@pytest.mark.parametrize("query", ["", "?sentinel_password=hunter2", "?sentinel_password=hunter2&sentinel_username=x"])
async def test_a_wrong_password_at_the_sentinels_fails_the_start_at_once(
    private_sentinels: StartSentinels, query: str
) -> None:
    """A missing or wrong password of the sentinels raises `BrokerAuthenticationError` and names the option."""
    service = private_sentinels(sentinel_password="right")
    error = await refusal(service.url.partition("?")[0] + query)
    assert isinstance(error, BrokerAuthenticationError)
    assert "the sentinel 127.0.0.1:" in str(error)
    assert "set sentinel_password" in str(error)


async def test_a_wrong_password_at_the_primary_fails_the_start_at_once(private_sentinels: StartSentinels) -> None:
    """A wrong password of the data nodes raises `BrokerAuthenticationError` and names the primary."""
    service = private_sentinels(password="right")
    error = await refusal(service.url.replace(":right@", ":hunter2@"))
    assert isinstance(error, BrokerAuthenticationError)
    assert f"127.0.0.1:{service.nodes[0].port} (the primary" in str(error)


async def test_a_data_node_is_no_sentinel(redis_broker: Broker) -> None:
    """A URL that names a data node where a sentinel should be is refused with that question."""
    error = await refusal(f"redis+sentinel://{redis_broker.url.rpartition('@')[2].removeprefix('redis://')}/rooms")
    assert "is it a sentinel?" in str(error)


def test_no_password_is_shown() -> None:
    """Neither URL nor options show a password."""
    broadcaster = broadcaster_from_url("redis+sentinel://alice:hunter2@one,two/rooms?sentinel_password=hunter2")
    assert str(broadcaster.url) == "redis+sentinel://alice:***@one,two/rooms"
    assert "hunter2" not in f"{broadcaster.url!r} {broadcaster.options!r} {broadcaster.options}"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("localhost", "the name of the service, not ''"),
        ("localhost/", "the name of the service, not '/'"),
        ("localhost/rooms/0", "the name of the service, not '/rooms/0'"),
        ("localhost:1,localhost:notaport/rooms", "'localhost:…' is not host:port"),
    ],
)
def test_a_url_that_makes_no_sense_is_refused(address: str, words: str) -> None:
    """A missing service, more than one, and a port that is none, are refused before anything is opened."""
    with pytest.raises(ConfigurationError) as raised:
        Backplane(f"redis+sentinel://{address}")
    assert words in str(raised.value)
