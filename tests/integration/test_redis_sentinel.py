"""Behaviour specific to Redis Sentinel: finding the primary, following it, and the errors where that fails."""

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
    """Return a started adapter, which supports `check`."""
    broadcaster = broadcaster_from_url(url)
    await broadcaster.start(sink)
    assert isinstance(broadcaster, SupportsLinkCheck)
    return broadcaster


async def refusal(url: str) -> BrokerError:
    """Return the error with which a start fails, and check that it holds no password."""
    with pytest.raises(BrokerError) as raised:
        await Backplane(url, settings=Settings(start_timeout_seconds=1)).start()
    assert "hunter2" not in f"{raised.value} {raised.value!r} {raised.value.__cause__!r}"
    return raised.value


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_the_sentinels_lead_to_the_primary(private_sentinels: StartSentinels, tls: bool) -> None:
    """With one of three sentinels running, and different passwords at sentinels and data nodes, the primary is used."""
    service = private_sentinels(password="hunter1", sentinel_password="hunter2", tls=tls)
    for sentinel in service.sentinels[:2]:
        sentinel.stop()
    async with Backplane(service.url) as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", "hello")
        received = await anext(messages)
        assert isinstance(received, Message)
        assert received.data == "hello"
        assert subscribers(service) == [1, 0]


async def test_a_failover_is_followed(private_sentinels: StartSentinels) -> None:
    """After `SENTINEL FAILOVER` every subscriber gets a gap, and all workers are at the new primary."""
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
        for attempt in count():  # a sentinel that is late may move a worker back and forth once more, with a gap
            await one.publish("room", f"one {attempt}")
            await two.publish("room", f"two {attempt}")
            texts = [f"one {attempt}", f"two {attempt}"]
            if [await next_texts(messages, texts) for messages in (first, second)] == [texts, texts]:
                break
        assert subscribers(service) == [0, 2]


async def next_texts(messages: Subscription, texts: list[str]) -> list[str]:
    """Return those of `texts` that are received before the next gap, in their order."""
    received: list[str] = []
    while len(received) < len(texts) and isinstance(item := await anext(messages), Message):
        if item.data in texts:
            received.append(str(item.data))
    return received


async def test_sentinels_that_the_url_does_not_name_are_asked(private_sentinels: StartSentinels) -> None:
    """Where the only sentinel of the URL is gone, a failover is followed by the answers of the others."""
    service = private_sentinels()
    url = service.url_of(service.sentinels[2:])
    async with Backplane(url, settings=QUICK) as backplane, backplane.subscribe("room") as messages:
        service.sentinels[2].stop()
        service.nodes[0].kill9()
        async with asyncio.timeout(30):
            assert isinstance(await anext(messages), Gap)
            await backplane.wait_for_state("live")
        await backplane.publish("room", "after")
        received = await anext(messages)
        assert isinstance(received, Message)
        assert received.data == "after"
        assert service.ask(service.nodes[1], "PUBSUB", "NUMSUB", "room")[1] == 1


async def test_unreachable_sentinels_cause_no_delay(private_sentinels: StartSentinels) -> None:
    """The answer of the sentinel in the URL is enough, whatever addresses it names for the others."""
    service = private_sentinels()
    for sentinel in service.sentinels[1:]:
        sentinel.freeze()
    url = f"{service.url_of(service.sentinels[:1])}?connect_timeout_seconds=60"
    async with Backplane(url, settings=QUICK) as backplane:
        broadcaster = await started(url, RecordingSink())
        async with asyncio.timeout(30):
            await broadcaster.check()
            await broadcaster.check()
        await broadcaster.stop()
        await backplane.publish("room", "hello")
    for sentinel in service.sentinels[1:]:
        sentinel.thaw()


async def test_a_replaced_primary_is_left(private_sentinels: StartSentinels) -> None:
    """A former primary that goes on as one, and keeps its connections, is left when the sentinels name another."""
    service = private_sentinels()
    async with Backplane(service.url, settings=QUICK) as backplane, backplane.subscribe("room") as messages:
        await asyncio.to_thread(service.replace_unseen)
        async with asyncio.timeout(30):
            gap = await anext(messages)
        assert isinstance(gap, Gap)
        assert "was replaced" in gap.reason
        assert service.ask(service.nodes[0], "ROLE")[0] == "master"
        assert subscribers(service) == [0, 1]


async def test_a_demoted_primary_is_found_by_its_role(private_sentinels: StartSentinels) -> None:
    """A demoted primary keeps its connections and accepts PUBLISH; the check finds it by `ROLE`."""
    service = private_sentinels()
    sink = RecordingSink()
    broadcaster = await started(service.url, sink)
    await broadcaster.check()
    service.ask(service.nodes[0], "REPLICAOF", "127.0.0.1", str(service.nodes[1].port))
    await broadcaster.publish("room", b"no subscriber receives it")
    with pytest.raises(BrokerUnavailableError, match=r"became a replica of 127\.0\.0\.1:"):
        await broadcaster.check()
    assert sink.losses == []
    await broadcaster.stop()
    with pytest.raises(BrokerUnavailableError):
        await broadcaster.check()


async def test_a_replica_is_refused_at_the_start(private_redis: StartRedis, tmp_path: Path) -> None:
    """A server that the sentinels name, and that reports to be a replica, raises a retriable error."""
    primary = private_redis()
    replica = private_redis(RedisConfig(arguments=("--replicaof", "127.0.0.1", primary.url.rpartition(":")[2])))
    with lone_sentinel(replica, tmp_path) as sentinel:
        error = await refusal(url_of(sentinel))
    assert isinstance(error, BrokerUnavailableError)
    assert f"is a replica of 127.0.0.1:{primary.url.rpartition(':')[2]}" in str(error)


async def test_a_check_without_any_sentinel_passes(private_sentinels: StartSentinels) -> None:
    """Where all sentinels are gone, a primary that answers is kept."""
    service = private_sentinels()
    broadcaster = await started(service.url, RecordingSink())
    for sentinel in service.sentinels:
        sentinel.kill9()
    await broadcaster.check()
    await broadcaster.stop()


async def test_the_newest_configuration_wins(private_sentinels: StartSentinels, private_redis: StartRedis) -> None:
    """Of two sentinels the one that took part in a failover is followed, and not the one that was set up anew."""
    service = private_sentinels()
    await asyncio.to_thread(service.failover)
    service.sentinels[2].stop()
    name_instead(service, private_redis().url)
    async with Backplane(service.url) as backplane, backplane.subscribe("room"):
        assert subscribers(service) == [0, 1]


async def test_a_check_ignores_an_older_configuration(private_sentinels: StartSentinels) -> None:
    """A sentinel that was set up anew, and alone names a former primary, does not end the link."""
    service = private_sentinels()
    await asyncio.to_thread(service.failover)
    broadcaster = await started(service.url, RecordingSink())
    for sentinel in service.sentinels[1:]:
        sentinel.stop()
    name_instead(service, service.nodes[0].url)
    await broadcaster.check()
    await broadcaster.stop()


async def test_a_silent_sentinel_causes_no_delay(private_sentinels: StartSentinels) -> None:
    """Two of three sentinels that agree are enough: one that accepts and does not answer is not awaited."""
    service = private_sentinels()
    async with FaultProxy(f"redis://127.0.0.1:{service.sentinels[0].port}") as hanging:
        hanging.silence()
        port = hanging.url.rpartition(":")[2]
        url = service.url.replace(str(service.sentinels[0].port), port) + "?connect_timeout_seconds=30"
        async with Backplane(url) as backplane, backplane.subscribe("room"):
            assert subscribers(service) == [1, 0]


def name_instead(service: RedisSentinels, url: str) -> None:
    """Have the first sentinel name the server at `url`, as one that was set up anew does."""
    host, _, port = url.removeprefix("redis://").partition(":")
    service.ask(service.sentinels[0], "SENTINEL", "REMOVE", SERVICE)
    service.ask(service.sentinels[0], "SENTINEL", "MONITOR", SERVICE, host, port, "2")


def lone_sentinel(broker: Broker, folder: Path) -> Any:
    """Return a sentinel, not started, that monitors `broker` alone."""
    return sentinel_of(int(broker.url.rpartition(":")[2]), folder, down_after_milliseconds=60_000)


def url_of(*sentinels: Any, login: str = "") -> str:
    """Return the URL of the service at `sentinels`."""
    return f"redis+sentinel://{login}{','.join(f'127.0.0.1:{sentinel.port}' for sentinel in sentinels)}/{SERVICE}"


async def test_a_denied_role_is_accepted(private_redis: StartRedis, tmp_path: Path) -> None:
    """Where an ACL denies `ROLE`, the answer of the sentinels is enough, at the start and in a check."""
    broker = private_redis(RedisConfig(users=("alice on >secret +@all -role allchannels",)))
    with lone_sentinel(broker, tmp_path) as sentinel:
        broadcaster = await started(url_of(sentinel, login="alice:secret@"), RecordingSink())
        await broadcaster.check()
        await broadcaster.stop()


async def test_contradicting_sentinels_are_refused(private_redis: StartRedis, tmp_path: Path) -> None:
    """Two sentinels that name different servers for one service raise an error, with the answer of each."""
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
    """A service that no sentinel knows is refused at the first try, with its name and the part of the URL."""
    service = private_sentinels()
    error = await refusal(service.url.replace("//", "//:hunter2@").replace(f"/{SERVICE}", "/romos"))
    assert "knows no service 'romos': the path of the URL" in str(error)
    assert error.retriable is False
    assert error.__cause__ is not None


async def test_missing_sentinels_fail_the_start() -> None:
    """With no sentinel there, start raises `BrokerUnavailableError`, which names every address."""
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


async def test_a_data_node_in_place_of_a_sentinel_is_refused(redis_broker: Broker) -> None:
    """A URL that names a data node in place of a sentinel is refused, and the error asks about it."""
    error = await refusal(f"redis+sentinel://{redis_broker.url.rpartition('@')[2].removeprefix('redis://')}/rooms")
    assert "is it a sentinel?" in str(error)


def test_no_password_is_shown() -> None:
    """Neither the URL nor the options show a password."""
    broadcaster = broadcaster_from_url("redis+sentinel://alice:hunter2@one,two/rooms?sentinel_password=hunter2")
    assert str(broadcaster.url) == "redis+sentinel://alice:***@one,two/rooms"
    assert "hunter2" not in f"{broadcaster.url!r} {broadcaster.options!r} {broadcaster.options}"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("localhost", "the name of the service, not ''"),
        ("localhost/", "the name of the service, not '/'"),
        ("localhost/rooms/0", "the name of the service, not '/rooms/0'"),
        ("localhost:1,localhost:notaport/rooms", "'localhost:…' is not host:port"),
    ],
)
def test_a_malformed_url_is_refused(address: str, message: str) -> None:
    """A missing service, more than one, and a malformed port are refused before anything is opened."""
    with pytest.raises(ConfigurationError) as raised:
        Backplane(f"redis+sentinel://{address}")
    assert message in str(raised.value)
