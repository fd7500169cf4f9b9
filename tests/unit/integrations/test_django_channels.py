"""`backplane.integrations.django_channels`: a channel layer in event loops that come and go, threads and forks."""

# msgpack has no types:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import asyncio
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels_redis.pubsub import RedisPubSubChannelLayer  # type: ignore[import-untyped]

from backplane import (
    BrokerUnavailableError,
    ConfigurationError,
    Gap,
    LifecycleError,
    PublishOutcomeUnknownError,
    Settings,
)
from backplane.integrations.django_channels import BackplaneChannelLayer
from tests.brokers.broker import ProcessBroker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.brokers.broker import Broker
    from tests.conftest import StartRedis

pytestmark = pytest.mark.anyio

HELLO = {"type": "chat.message", "text": "hello", "bytes": b"\xff", "nothing": None}


@pytest.fixture
def layer(ipc_url: str) -> Iterator[BackplaneChannelLayer]:
    """A layer."""
    made = BackplaneChannelLayer(ipc_url)
    yield made
    async_to_sync(made.close)()


@pytest.fixture
def other(ipc_url: str) -> Iterator[BackplaneChannelLayer]:
    """A layer as another process has it."""
    made = BackplaneChannelLayer(ipc_url)
    yield made
    async_to_sync(made.close)()


async def received(layer: BackplaneChannelLayer, channel: str) -> Any:
    """Return the next message of a channel."""
    async with asyncio.timeout(20):
        return await layer.receive(channel)


async def test_two_processes(layer: BackplaneChannelLayer, other: BackplaneChannelLayer) -> None:
    """Groups have members in both, a consumer is reached from the other, and a channel without a `!` reaches both."""
    one, two = await layer.new_channel(), await other.new_channel("chat.")
    assert one.startswith("specific.")
    assert two.startswith("chat.")
    await layer.group_add("g", one)
    await other.group_add("g", two)
    await layer.group_send("g", HELLO)
    assert [await received(layer, one), await received(other, two)] == [HELLO, HELLO]
    await other.send(one, {"type": "a"})
    assert await received(layer, one) == {"type": "a"}
    await layer.group_discard("g", one)
    await other.group_send("g", {"type": "b"})
    await other.send(one, {"type": "c"})
    assert [await received(layer, one), await received(other, two)] == [{"type": "c"}, {"type": "b"}]
    await layer.flush()
    with pytest.raises(LifecycleError, match="a consumer adds its own"):
        await layer.group_add("g", one)
    with pytest.raises(LifecycleError):  # of the other process
        await layer.group_add("g", two)


def test_async_to_sync(layer: BackplaneChannelLayer, other: BackplaneChannelLayer) -> None:
    """Each call makes and ends an event loop; what one has added to a group stays in it (channels_redis #262)."""
    channel = async_to_sync(layer.new_channel)()
    async_to_sync(layer.group_add)("g", channel)
    for number in range(3):  # a second call in one synchronous context (channels #859, channels_redis #332)
        async_to_sync(other.group_send)("g", {"type": str(number)})
    assert [async_to_sync(received)(layer, channel)["type"] for _ in range(3)] == ["0", "1", "2"]
    threads = [thread.name for thread in threading.enumerate() if thread.name == "backplane-sync"]
    assert len(threads) == 2  # one for each layer


async def test_view_of_a_running_application(layer: BackplaneChannelLayer) -> None:
    """A synchronous view in a thread of the application sends to a consumer of the application's event loop."""
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    receiving = asyncio.create_task(received(layer, channel))
    await sync_to_async(async_to_sync(layer.group_send))("g", HELLO)
    assert await receiving == HELLO


def test_many_threads(layer: BackplaneChannelLayer, other: BackplaneChannelLayer) -> None:
    """The first calls of many threads at the same time share one link, and nothing is lost."""
    channel = async_to_sync(layer.new_channel)()
    with ThreadPoolExecutor(8) as threads:
        messages = [{"type": str(number)} for number in range(40)]
        list(threads.map(partial(async_to_sync(other.send), channel), messages))
    numbers = {int(async_to_sync(received)(layer, channel)["type"]) for _ in range(40)}
    assert numbers == set(range(40))


async def test_cancelled_receive(layer: BackplaneChannelLayer) -> None:
    """It ends the channel, as Channels ends a consumer: it leaves its groups, and nothing of it stays."""
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    receiving = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0)
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    async with asyncio.timeout(20):
        while True:
            try:
                await layer.group_add("g", channel)
            except LifecycleError:
                break


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_fork(layer: BackplaneChannelLayer) -> None:
    """A forked process sends over a link of its own, and that of its parent goes on."""
    channel = await layer.new_channel()
    code = (
        "import asyncio, os, sys\n"
        "from asgiref.sync import async_to_sync\n"
        "from backplane.integrations.django_channels import BackplaneChannelLayer\n"
        "layer = BackplaneChannelLayer(sys.argv[1])\n"
        "send = async_to_sync(layer.send)\n"
        "send(sys.argv[2], {'type': 'parent'})\n"
        "child = os.fork()\n"
        "send(sys.argv[2], {'type': 'parent' if child else 'child'})\n"
        "if child:\n"
        "    os.waitpid(child, 0)\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, layer._url or "", channel)  # pyright: ignore[reportPrivateUsage]
    types = sorted([(await received(layer, channel))["type"] for _ in range(3)])
    assert types == ["child", "parent", "parent"]
    assert await process.wait() == 0


async def test_restart_of_redis(private_redis: StartRedis) -> None:
    """After an outage, in which a send raises, the layer receives again, and the consumer is notified of the gap."""
    broker = private_redis()
    assert isinstance(broker, ProcessBroker)
    gaps: list[Gap] = []
    layer = BackplaneChannelLayer(
        broker.url, gap_type="gap", on_gap=gaps.append, settings=Settings(publish_timeout_seconds=0.5)
    )
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    broker.kill9()
    with pytest.raises((BrokerUnavailableError, PublishOutcomeUnknownError)):
        await layer.group_send("g", {"type": "lost"})
    broker.launch()
    groups = {(await received(layer, channel))["group"] for _ in range(2)}
    assert groups == {"g", None}
    await layer.group_send("g", HELLO)
    assert await received(layer, channel) == HELLO
    assert len(gaps) == 2
    await layer.close()


async def test_beside_channels_redis(redis_broker: Broker) -> None:
    """With `wire_format=plain` this and channels_redis' pub/sub layer have the same groups; each sends to its own."""
    new = BackplaneChannelLayer(f"{redis_broker.url}?wire_format=plain")
    old: Any = RedisPubSubChannelLayer(hosts=[redis_broker.url])
    layers, channels = (new, old), [await new.new_channel(), await old.new_channel()]
    for layer, channel in zip(layers, channels, strict=True):
        await layer.group_add("chat", channel)
    for sender in layers:
        await sender.group_send("chat", {**HELLO, "of": type(sender).__name__})
        for layer, channel in zip(layers, channels, strict=True):
            assert await received(layer, channel) == {**HELLO, "of": type(sender).__name__}
    await old.group_discard("chat", channels[1])
    await old.send(channels[0], {"type": "lost"})  # to one consumer of the other kind: each has its own channels
    await new.send(channels[1], {"type": "lost"})
    for layer, channel in zip(layers, channels, strict=True):
        await layer.send(channel, {"type": "own"})
        assert await received(layer, channel) == {"type": "own"}
    await new.close()
    await old.flush()


async def test_names_and_options(layer: BackplaneChannelLayer) -> None:
    """Names are those that Channels allows, a capacity can be given by pattern, and a URL is checked at once."""
    for call in (layer.send, layer.group_send):
        with pytest.raises(TypeError, match="must be a valid unicode string"):
            await call("not valid", HELLO)
    with pytest.raises(TypeError):
        await layer.receive("not valid")
    with pytest.raises(TypeError):
        await layer.send("a", {"type": object()})
    await layer.flush()
    limited = BackplaneChannelLayer("memory://", channel_capacity={"slow.*": 1}, capacity=5)
    assert [limited.get_capacity(name) for name in ("slow.a!b", "other")] == [1, 5]
    for url in ("unknown://", 5):
        with pytest.raises(ConfigurationError):
            BackplaneChannelLayer(url)  # type: ignore[arg-type]


async def test_first_calls_at_the_same_time(layer: BackplaneChannelLayer) -> None:
    """The first calls of several threads get one set of mailboxes: a channel of one is known to the others."""
    channels = await asyncio.gather(*(asyncio.to_thread(async_to_sync(layer.new_channel)) for _ in range(8)))
    for channel in channels:
        await layer.group_add("g", channel)
    await layer.group_send("g", HELLO)
    assert [await received(layer, channel) for channel in channels] == [HELLO] * 8
