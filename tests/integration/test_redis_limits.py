"""What a Redis server does to its clients that is no outage: passing states, idle times, limits of sizes."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from backplane import (
    Backplane,
    BrokerUnavailableError,
    Gap,
    Message,
    PublishError,
    PublishOutcomeUnknownError,
    Settings,
)
from backplane.broker.registry import broadcaster_from_url
from backplane.testing import FaultProxy, RecordingSink
from tests.brokers.redis import RedisConfig

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from backplane import Subscription
    from tests.conftest import StartRedis

pytestmark = pytest.mark.anyio

QUICK = Settings(probe_interval_seconds=0.3, max_backoff_seconds=0.2)
PATIENT = Settings(probe_interval_seconds=30)
BUSY = RedisConfig(arguments=("--busy-reply-threshold", "20"))


def client(url: str) -> Any:
    """Return a foreign client, which speaks as an operator."""
    made: Any = Redis
    return made.from_url(url, socket_timeout=20)


@asynccontextmanager
async def busy(url: str) -> AsyncGenerator[None]:
    """Have the server run a script that does not end, for as long as the block."""
    async with client(url) as runner, client(url) as operator:
        running = asyncio.create_task(runner.eval("while true do end", 0))
        async with asyncio.timeout(10):
            while not await refuses(operator, "BUSY"):
                await asyncio.sleep(0.01)
        try:
            yield
        finally:
            await operator.execute_command("SCRIPT", "KILL")
            with pytest.raises(ResponseError):
                await running


async def refuses(operator: Any, word: str) -> bool:
    """Whether the server answers PING with this error."""
    try:
        await operator.ping()
    except Exception as error:
        return type(error).__name__ == "BusyLoadingError" or word in str(error)
    return False


async def receive(messages: Subscription) -> Message:
    """Return the next item, which is a message and no gap."""
    async with asyncio.timeout(10):
        item = await anext(messages)
    assert isinstance(item, Message), item
    return item


async def test_a_join_outlasts_a_script_that_runs_long(private_redis: StartRedis) -> None:
    """A join while somebody's script keeps the server BUSY is not refused: it waits, and then receives."""
    broker = private_redis(BUSY)
    async with Backplane(broker.url, settings=PATIENT) as backplane, backplane.subscribe("other") as others:
        joined = asyncio.Event()

        async def join() -> str | bytes:
            async with backplane.subscribe("room") as messages:
                joined.set()
                return (await receive(messages)).data

        async with busy(broker.url):
            joining = asyncio.create_task(join())
            await asyncio.wait([joining], timeout=0.3)
            assert not joining.done()
            assert not joined.is_set()
        async with asyncio.timeout(5):
            await joined.wait()
        await backplane.publish("room", "after")
        await backplane.publish("other", "no gap")
        assert await joining == "after"
        assert (await receive(others)).data == "no gap"


async def test_a_join_that_a_script_outlasts_is_unavailable(private_redis: StartRedis) -> None:
    """A join whose time ends while the server is BUSY raises what a client may try again, with the server's words."""
    broker = private_redis(BUSY)
    settings = Settings(probe_interval_seconds=30, subscribe_timeout_seconds=0.3)
    async with Backplane(broker.url, settings=settings) as backplane, backplane.subscribe("other"):
        async with busy(broker.url):
            with pytest.raises(BrokerUnavailableError, match="BUSY"):
                async with backplane.subscribe("room"):
                    pass
        assert backplane.state == "live"


async def test_a_publish_to_a_busy_server_is_retriable(private_redis: StartRedis) -> None:
    """A publish that the server refuses for the time being is marked as retriable."""
    broker = private_redis(BUSY)
    async with Backplane(broker.url, settings=PATIENT) as backplane:
        async with busy(broker.url):
            with pytest.raises(PublishError, match="BUSY") as raised:
                await backplane.publish("room", "hello")
            assert raised.value.retriable
        await backplane.publish("room", "hello")


async def test_a_busy_server_costs_nobody_a_gap(private_redis: StartRedis, caplog: pytest.LogCaptureFixture) -> None:
    """Probes and checks that a BUSY server refuses leave the link alone, and go on when it is free."""
    broker = private_redis(BUSY)
    async with Backplane(broker.url, settings=QUICK) as backplane, backplane.subscribe("room") as messages:
        async with busy(broker.url):
            await asyncio.sleep(4 * QUICK.probe_interval_seconds)  # some intervals: what must not happen has no event
        await backplane.publish("room", "no gap")
        assert (await receive(messages)).data == "no gap"
        assert "no delivery probe" not in caplog.text


async def test_a_leave_during_a_script_is_made_up_for(private_redis: StartRedis) -> None:
    """An UNSUBSCRIBE that a BUSY server refuses costs no gap, and the server holds nothing for us in the end."""
    broker = private_redis(BUSY)
    settings = Settings(probe_interval_seconds=0.3, linger_seconds=0.01)
    async with (
        client(broker.url) as operator,
        Backplane(broker.url, settings=settings) as backplane,
        backplane.subscribe("room") as messages,
    ):
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(backplane.subscribe("left"))
            async with busy(broker.url):
                await stack.aclose()
                await asyncio.sleep(0.2)  # past the moment it lingers: UNSUBSCRIBE is answered with BUSY
            async with asyncio.timeout(10):
                while await operator.pubsub_channels("left"):
                    await asyncio.sleep(0.01)
        await backplane.publish("room", "no gap")
        assert (await receive(messages)).data == "no gap"


async def test_a_start_waits_for_a_busy_server(private_redis: StartRedis) -> None:
    """A start while the server is BUSY is tried again until it is free."""
    broker = private_redis(BUSY)
    backplane = Backplane(broker.url, settings=Settings(start_timeout_seconds=20, max_backoff_seconds=0.1))
    async with busy(broker.url):
        starting = asyncio.create_task(backplane.start())
        await asyncio.wait([starting], timeout=0.3)
        assert not starting.done()
    await starting
    await backplane.stop()


async def test_a_start_waits_for_a_loading_server(private_redis: StartRedis) -> None:
    """A start while the server reads its data from disk is tried again; each try names the state."""
    loading = ("--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024")
    broker = private_redis(RedisConfig(arguments=("--enable-debug-command", "local", *loading)))
    async with client(broker.url) as reloader, client(broker.url) as operator:
        await operator.execute_command("DEBUG", "POPULATE", "400", "key", "200")
        reloading = asyncio.create_task(reloader.execute_command("DEBUG", "RELOAD"))
        async with asyncio.timeout(10):
            while not await refuses(operator, "LOADING"):
                await asyncio.sleep(0.01)
        with pytest.raises(BrokerUnavailableError, match="takes no commands at present: LOADING"):
            await broadcaster_from_url(broker.url).start(RecordingSink())
        async with Backplane(broker.url, settings=Settings(start_timeout_seconds=20, max_backoff_seconds=0.1)):
            pass
        await reloading


async def test_a_server_without_a_place_is_unavailable(private_redis: StartRedis) -> None:
    """A server that has as many clients as it may is tried again, in its own words."""
    broker = private_redis(RedisConfig(arguments=("--maxclients", "1")))
    async with client(broker.url) as only:
        await only.ping()
        with pytest.raises(BrokerUnavailableError, match="max number of clients"):
            await Backplane(broker.url, settings=Settings(start_timeout_seconds=0.2)).start()


async def test_a_server_that_cannot_save_publishes(private_redis: StartRedis) -> None:
    """A server whose disk fails answers PING with MISCONF, and is used all the same."""
    broker = private_redis(RedisConfig(arguments=("--dbfilename", "folder")))
    (broker.folder / "folder").mkdir()  # type: ignore[attr-defined]
    async with client(broker.url) as operator:
        await operator.config_set("save", "3600 1000")
        await operator.bgsave()
        async with asyncio.timeout(10):
            while not await refuses(operator, "MISCONF"):
                await asyncio.sleep(0.01)
    async with Backplane(broker.url, settings=QUICK) as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", "hello")
        assert (await receive(messages)).data == "hello"
    broker.kill9()  # on SIGTERM it would not end before it can save


async def test_an_idle_time_of_the_server_ends_no_link(private_redis: StartRedis) -> None:
    """With `timeout 1`, a worker that only listens to a busy channel keeps its connection that publishes."""
    broker = private_redis(RedisConfig(arguments=("--timeout", "1")))
    async with (
        client(broker.url) as outside,
        Backplane(broker.url, settings=QUICK) as backplane,
        backplane.subscribe("room") as messages,
    ):
        before = await publishers(outside)
        for number in range(35):  # 3.5 s, past the server's timeout three times
            await outside.publish("room", f"{number}")
            assert (await receive(messages)).data == f"{number}"
            await asyncio.sleep(0.1)
        await backplane.publish("room", "mine")
        assert (await receive(messages)).data == "mine"
        assert await publishers(outside) == before


async def publishers(operator: Any) -> set[int]:
    """Return the ids of the connections that are not subscribed, the operator's own left out."""
    own = await operator.client_id()
    return {int(entry["id"]) for entry in await operator.client_list() if entry["sub"] == "0"} - {own}


async def test_an_idle_connection_that_the_server_ends_is_replaced(private_redis: StartRedis) -> None:
    """Where the server's idle time is shorter than the probe interval, nobody has a gap and the next publish works."""
    broker = private_redis()
    async with (
        client(broker.url) as operator,
        Backplane(broker.url, settings=PATIENT) as backplane,
        backplane.subscribe("room") as messages,
    ):
        for _ in range(3):
            before = await publishers(operator)
            await operator.execute_command("CLIENT", "KILL", "ID", str(before.pop()))
            await backplane.publish("room", "after")
            assert (await receive(messages)).data == "after"


async def test_publishes_that_wait_for_the_replacement_keep_their_order(private_redis: StartRedis) -> None:
    """What is published while the connection is replaced leaves in the order of the calls, one copy each."""
    broker = private_redis()
    async with (
        client(broker.url) as operator,
        Backplane(broker.url, settings=PATIENT) as backplane,
        backplane.subscribe("room") as messages,
    ):
        for round_ in range(2):
            await operator.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            first = round_ * 100
            results = await asyncio.gather(
                *(backplane.publish("room", f"{first + number}") for number in range(100)), return_exceptions=True
            )
            certain = [first + number for number, result in enumerate(results) if result is None]
            unknown = {first + n for n, result in enumerate(results) if isinstance(result, PublishOutcomeUnknownError)}
            assert len(certain) + len(unknown) == 100
            await backplane.publish("room", "barrier")
            received: list[int] = []
            while (data := (await receive(messages)).data) != "barrier":
                received.append(int(data))
            assert received == sorted(received)
            assert set(certain) <= set(received) <= set(certain) | unknown


async def until_mine(messages: Subscription) -> AsyncIterator[str | bytes]:
    """Yield the data of what comes, gaps aside, up to the message `mine`."""
    async for item in messages:
        if isinstance(item, Message):
            yield item.data
            if item.data == "mine":
                return


async def test_a_half_open_connection_that_publishes_is_replaced(private_redis: StartRedis) -> None:
    """A middlebox that forgets the flow of a worker which only listens is found, by the adapter or by the probe.

    The adapter replaces the one connection, the probe the link, with a gap; whichever comes first, publishing works.
    """
    broker = private_redis()
    forgotten: list[bytes] = []

    def is_first(sent: bytes) -> bool:
        if b"ROLE" in sent and not forgotten:
            forgotten.append(sent)
            return True
        return False

    async with (
        client(broker.url) as outside,
        FaultProxy(broker.url) as proxy,
        Backplane(proxy.url, settings=QUICK) as backplane,
        backplane.subscribe("room") as messages,
    ):
        before = await publishers(outside)
        proxy.silence(after=is_first)
        number = 0
        async with asyncio.timeout(10):
            while await publishers(outside) <= before:
                number += 1
                await outside.publish("room", f"{number}")
                await asyncio.sleep(0.02)
            await backplane.wait_for_state("live")
            await backplane.publish("room", "mine")
            assert [item async for item in until_mine(messages)][-1:] == ["mine"]


async def test_a_pause_of_the_process_is_no_silence_of_the_server(private_redis: StartRedis) -> None:
    """A process that is paused while it connects, for longer than connecting may take, has its link all the same."""
    url = f"{private_redis().url}?connect_timeout_seconds=0.2"
    for passes in range(1, 8):
        broadcaster = broadcaster_from_url(url)
        starting = asyncio.create_task(broadcaster.start(RecordingSink()))
        for _ in range(passes):
            await asyncio.sleep(0)
        time.sleep(0.35)
        await starting
        await broadcaster.stop()


async def test_a_payload_over_the_servers_limit_is_its_publishers_alone(private_redis: StartRedis) -> None:
    """A publish over `proto-max-bulk-len` is refused with what to set; nobody has a gap and the next one works."""
    broker = private_redis(RedisConfig(arguments=("--proto-max-bulk-len", "1mb")))
    async with Backplane(broker.url, settings=PATIENT) as backplane, backplane.subscribe("room") as messages:
        for _ in range(2):
            with pytest.raises(PublishError) as raised:
                await backplane.publish("room", bytes(2 * 1024 * 1024))
            assert "max_payload_bytes" in str(raised.value) or isinstance(raised.value, PublishOutcomeUnknownError)
            await backplane.publish("room", "small")
            assert (await receive(messages)).data == "small"


async def test_a_publish_that_ends_its_connection_is_not_repeated(private_redis: StartRedis) -> None:
    """A publish over `client-query-buffer-limit` ends the connection and is unknown: no gap, and no second try."""
    broker = private_redis(RedisConfig(arguments=("--client-query-buffer-limit", "1mb")))
    async with Backplane(broker.url, settings=PATIENT) as backplane, backplane.subscribe("room") as messages:
        for _ in range(2):
            with pytest.raises(PublishOutcomeUnknownError):
                await backplane.publish("room", bytes(3 * 1024 * 1024))
            await backplane.publish("room", "small")
            assert (await receive(messages)).data == "small"


async def test_the_longest_names_fit_into_the_smallest_limit(private_redis: StartRedis) -> None:
    """A batch of the longest names, with the longest prefix, passes the smallest `client-query-buffer-limit`."""
    broker = private_redis(RedisConfig(arguments=("--client-query-buffer-limit", "1mb")))
    names = [f"{number:0255}" for number in range(1500)]
    async with Backplane(f"{broker.url}?prefix={'p' * 255}") as backplane, backplane.subscribe(*names) as messages:
        await backplane.publish(names[-1], "hello")
        assert (await receive(messages)).channel == names[-1]


async def test_a_cut_for_slowness_is_an_ordinary_gap(private_redis: StartRedis) -> None:
    """A server that ends the connection which receives is reported as a gap, for that one misses messages."""
    broker = private_redis()
    async with (
        client(broker.url) as operator,
        Backplane(broker.url, settings=QUICK) as backplane,
        backplane.subscribe("room") as messages,
    ):
        await operator.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        async with asyncio.timeout(10):
            assert isinstance(await anext(messages), Gap)
        await backplane.publish("room", "after")
        assert (await receive(messages)).data == "after"
