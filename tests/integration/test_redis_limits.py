"""Behaviour of a Redis server that is not an outage: passing states, idle timeouts, limits of sizes."""

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
    Receipt,
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

QUICK = Settings(probe_interval_seconds=0.8, max_backoff_seconds=0.2)
PATIENT = Settings(probe_interval_seconds=30)
BUSY = RedisConfig(arguments=("--busy-reply-threshold", "20"))


def client(url: str) -> Any:
    """Return a client of redis-py, for an operator and for other applications."""
    made: Any = Redis
    return made.from_url(url, socket_timeout=20)


@asynccontextmanager
async def busy(url: str) -> AsyncGenerator[None]:
    """Have the server run a script that does not end, for as long as the block runs."""
    async with client(url) as runner, client(url) as operator:
        running = asyncio.create_task(runner.eval("while true do end", 0))
        async with asyncio.timeout(30):
            while not await refuses(operator, "BUSY"):
                await asyncio.sleep(0.01)
        try:
            yield
        finally:
            await operator.execute_command("SCRIPT", "KILL")
            with pytest.raises(ResponseError):
                await running


async def refuses(operator: Any, code: str) -> bool:
    """Whether the server answers PING with this error."""
    try:
        await operator.ping()
    except Exception as error:
        return type(error).__name__ == "BusyLoadingError" or code in str(error)
    return False


async def receive(messages: Subscription) -> Message:
    """Return the next item, which must be a message and not a gap."""
    async with asyncio.timeout(30):
        item = await anext(messages)
    assert isinstance(item, Message), item
    return item


async def test_a_join_waits_for_a_busy_server(private_redis: StartRedis) -> None:
    """A join while a script keeps the server BUSY is not refused: it waits, and then receives messages."""
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
        async with asyncio.timeout(30):
            await joined.wait()
        await backplane.publish("room", "after")
        await backplane.publish("other", "no gap")
        assert await joining == "after"
        assert (await receive(others)).data == "no gap"


async def test_a_join_over_its_time_at_a_busy_server_is_unavailable(private_redis: StartRedis) -> None:
    """A join whose time limit ends while the server is BUSY raises a retriable error with the server's text."""
    broker = private_redis(BUSY)
    settings = Settings(probe_interval_seconds=30, subscribe_timeout_seconds=2)
    async with Backplane(broker.url, settings=settings) as backplane, backplane.subscribe("other"):
        async with busy(broker.url):
            with pytest.raises(BrokerUnavailableError, match="BUSY"):
                async with backplane.subscribe("room"):
                    pass
        assert backplane.state == "live"


async def test_a_publish_to_a_busy_server_is_retriable(private_redis: StartRedis) -> None:
    """A publish that the server refuses in a passing state raises a retriable error."""
    broker = private_redis(BUSY)
    async with Backplane(broker.url, settings=PATIENT) as backplane:
        async with busy(broker.url):
            with pytest.raises(PublishError, match="BUSY") as raised:
                await backplane.publish("room", "hello")
            assert raised.value.retriable
        await backplane.publish("room", "hello")


async def test_a_busy_server_causes_no_gap(private_redis: StartRedis, caplog: pytest.LogCaptureFixture) -> None:
    """Probes and checks that a BUSY server refuses do not end the link, and succeed when it is free."""
    broker = private_redis(BUSY)
    async with Backplane(broker.url, settings=QUICK) as backplane, backplane.subscribe("room") as messages:
        async with busy(broker.url):
            await asyncio.sleep(
                3 * QUICK.probe_interval_seconds
            )  # some probe intervals: there is no event to wait for where nothing must happen
        await backplane.publish("room", "no gap")
        assert (await receive(messages)).data == "no gap"
        assert "no delivery probe" not in caplog.text


async def test_an_unsubscribe_at_a_busy_server_is_repeated(private_redis: StartRedis) -> None:
    """An UNSUBSCRIBE that a BUSY server refuses causes no gap, and is repeated until the channel is dropped."""
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
                await asyncio.sleep(0.2)  # past `linger_seconds`: the reply to UNSUBSCRIBE is BUSY
            async with asyncio.timeout(30):
                while await operator.pubsub_channels("left"):
                    await asyncio.sleep(0.01)
        await backplane.publish("room", "no gap")
        assert (await receive(messages)).data == "no gap"


async def test_a_start_waits_for_a_busy_server(private_redis: StartRedis) -> None:
    """A start while the server is BUSY is tried again until the server is free."""
    broker = private_redis(BUSY)
    backplane = Backplane(broker.url, settings=Settings(start_timeout_seconds=20, max_backoff_seconds=0.1))
    async with busy(broker.url):
        starting = asyncio.create_task(backplane.start())
        await asyncio.wait([starting], timeout=0.3)
        assert not starting.done()
    await starting
    await backplane.stop()


async def test_a_start_waits_for_a_loading_server(private_redis: StartRedis) -> None:
    """A start while the server loads its data is tried again; the error of each try names the state."""
    loading = ("--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024")
    broker = private_redis(RedisConfig(arguments=("--enable-debug-command", "local", *loading)))
    async with client(broker.url) as reloader, client(broker.url) as operator:
        await operator.execute_command("DEBUG", "POPULATE", "400", "key", "200")
        reloading = asyncio.create_task(reloader.execute_command("DEBUG", "RELOAD"))
        async with asyncio.timeout(30):
            while not await refuses(operator, "LOADING"):
                await asyncio.sleep(0.01)
        with pytest.raises(BrokerUnavailableError, match="takes no commands at present: LOADING"):
            await broadcaster_from_url(broker.url).start(RecordingSink())
        async with Backplane(broker.url, settings=Settings(start_timeout_seconds=20, max_backoff_seconds=0.1)):
            pass
        await reloading


async def test_a_server_at_its_limit_of_clients_is_unavailable(private_redis: StartRedis) -> None:
    """A server at `maxclients` is tried again, and the error holds that of the server."""
    broker = private_redis(RedisConfig(arguments=("--maxclients", "1")))
    async with client(broker.url) as only:
        await only.ping()
        with pytest.raises(BrokerUnavailableError, match="max number of clients"):
            await Backplane(broker.url, settings=Settings(start_timeout_seconds=2)).start()


async def test_a_server_that_cannot_save_publishes(private_redis: StartRedis) -> None:
    """A server that cannot write to its disk answers PING with MISCONF, and publishes nevertheless."""
    broker = private_redis(RedisConfig(arguments=("--dbfilename", "folder")))
    (broker.folder / "folder").mkdir()  # type: ignore[attr-defined]
    async with client(broker.url) as operator:
        await operator.config_set("save", "3600 1000")
        await operator.bgsave()
        async with asyncio.timeout(30):
            while not await refuses(operator, "MISCONF"):
                await asyncio.sleep(0.01)
    async with Backplane(broker.url, settings=QUICK) as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", "hello")
        assert (await receive(messages)).data == "hello"
    broker.kill9()  # on SIGTERM it would not exit before it can save


async def test_an_idle_timeout_of_the_server_ends_no_link(private_redis: StartRedis) -> None:
    """With `timeout 2`, a worker that only receives keeps its connection that publishes."""
    broker = private_redis(RedisConfig(arguments=("--timeout", "2")))
    async with (
        client(broker.url) as outside,
        Backplane(broker.url, settings=QUICK) as backplane,
        backplane.subscribe("room") as messages,
    ):
        before = await publishers(outside)
        for number in range(50):  # 5 s, more than twice the timeout of the server
            await outside.publish("room", f"{number}")
            assert (await receive(messages)).data == f"{number}"
            await asyncio.sleep(0.1)
        await backplane.publish("room", "mine")
        assert (await receive(messages)).data == "mine"
        assert await publishers(outside) == before


async def publishers(operator: Any) -> set[int]:
    """Return the ids of the connections without a subscription, but for that of the operator."""
    own = await operator.client_id()
    return {int(entry["id"]) for entry in await operator.client_list() if entry["sub"] == "0"} - {own}


async def test_an_idle_connection_that_the_server_ends_is_replaced(private_redis: StartRedis) -> None:
    """Where the server closes the idle connection that publishes, there is no gap, and the next publish succeeds."""
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


async def test_publishes_during_the_replacement_keep_their_order(private_redis: StartRedis) -> None:
    """What is published while the connection is replaced is sent in the order of the calls, one copy each."""
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
            certain = [first + number for number, result in enumerate(results) if isinstance(result, Receipt)]
            unknown = {first + n for n, result in enumerate(results) if isinstance(result, PublishOutcomeUnknownError)}
            assert len(certain) + len(unknown) == 100
            await backplane.publish("room", "barrier")
            received: list[int] = []
            while (data := (await receive(messages)).data) != "barrier":
                received.append(int(data))
            assert received == sorted(received)
            assert set(certain) <= set(received) <= set(certain) | unknown


async def until_mine(messages: Subscription) -> AsyncIterator[str | bytes]:
    """Yield the data of each message, without the gaps, up to the message `mine`."""
    async for item in messages:
        if isinstance(item, Message):
            yield item.data
            if item.data == "mine":
                return


async def test_a_half_open_connection_that_publishes_is_replaced(private_redis: StartRedis) -> None:
    """Where a middlebox drops the flow of the connection that publishes, publishing works again.

    The check of the adapter replaces that connection, or the probe rebuilds the link, with a gap, whichever is first.
    """
    broker = private_redis()
    dropped: list[bytes] = []

    def is_first(sent: bytes) -> bool:
        if b"ROLE" in sent and not dropped:
            dropped.append(sent)
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
        async with asyncio.timeout(30):
            while await publishers(outside) <= before:
                number += 1
                await outside.publish("room", f"{number}")
                await asyncio.sleep(0.02)
            await backplane.wait_for_state("live")
            await backplane.publish("room", "mine")
            assert [item async for item in until_mine(messages)][-1:] == ["mine"]


async def test_a_pause_of_the_process_is_not_silence_of_the_server(private_redis: StartRedis) -> None:
    """A process that is paused while it connects, for longer than `connect_timeout_seconds`, connects nevertheless."""
    url = f"{private_redis().url}?connect_timeout_seconds=0.4"
    for passes in range(1, 8):
        broadcaster = broadcaster_from_url(url)
        starting = asyncio.create_task(broadcaster.start(RecordingSink()))
        for _ in range(passes):
            await asyncio.sleep(0)
        time.sleep(0.55)
        await starting
        await broadcaster.stop()


async def test_a_payload_over_the_servers_limit_fails_alone(private_redis: StartRedis) -> None:
    """A publish over `proto-max-bulk-len` is refused with the option to set; it causes no gap and ends no later one."""
    broker = private_redis(RedisConfig(arguments=("--proto-max-bulk-len", "1mb")))
    async with Backplane(broker.url, settings=PATIENT) as backplane, backplane.subscribe("room") as messages:
        for _ in range(2):
            with pytest.raises(PublishError) as raised:
                await backplane.publish("room", bytes(2 * 1024 * 1024))
            assert "max_payload_bytes" in str(raised.value) or isinstance(raised.value, PublishOutcomeUnknownError)
            await backplane.publish("room", "small")
            assert (await receive(messages)).data == "small"


async def test_a_publish_that_ends_its_connection_is_not_repeated(private_redis: StartRedis) -> None:
    """A publish over `client-query-buffer-limit` has an unknown outcome, causes no gap, and is not sent again."""
    broker = private_redis(RedisConfig(arguments=("--client-query-buffer-limit", "1mb")))
    async with Backplane(broker.url, settings=PATIENT) as backplane, backplane.subscribe("room") as messages:
        for _ in range(2):
            with pytest.raises(PublishOutcomeUnknownError):
                await backplane.publish("room", bytes(3 * 1024 * 1024))
            await backplane.publish("room", "small")
            assert (await receive(messages)).data == "small"


async def test_the_longest_names_fit_into_the_smallest_limit(private_redis: StartRedis) -> None:
    """A batch of the longest names, with the longest prefix, is within the smallest `client-query-buffer-limit`."""
    broker = private_redis(RedisConfig(arguments=("--client-query-buffer-limit", "1mb")))
    names = [f"{number:0255}" for number in range(1500)]
    async with Backplane(f"{broker.url}?prefix={'p' * 255}") as backplane, backplane.subscribe(*names) as messages:
        await backplane.publish(names[-1], "hello")
        assert (await receive(messages)).channel == names[-1]


async def test_the_end_of_the_receiving_connection_is_a_gap(private_redis: StartRedis) -> None:
    """Where the server closes the connection that receives, subscribers get a gap, because messages may be missed."""
    broker = private_redis()
    async with (
        client(broker.url) as operator,
        Backplane(broker.url, settings=QUICK) as backplane,
        backplane.subscribe("room") as messages,
    ):
        await operator.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        async with asyncio.timeout(30):
            assert isinstance(await anext(messages), Gap)
        await backplane.publish("room", "after")
        assert (await receive(messages)).data == "after"
