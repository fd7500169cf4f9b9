"""`backplane.adapters.nats.channel_order`: publishes and kept messages take their turns in the order of the calls."""

from __future__ import annotations

import asyncio
import random

import pytest

from backplane.adapters.nats.channel_order import ChannelOrder

pytestmark = pytest.mark.anyio


async def test_a_publish_waits_for_the_kept_messages_before_it() -> None:
    """It is sent when these are answered, and a message that is kept after it waits for it; other channels do not."""
    order, sent = ChannelOrder(), list[str]()
    await order.enter_keep("a")
    await order.enter_keep("a")
    publish = asyncio.create_task(order.enter_publish("a"))
    publish.add_done_callback(lambda _: sent.append("publish"))
    await asyncio.sleep(0)
    keep = asyncio.create_task(order.enter_keep("a"))
    keep.add_done_callback(lambda _: sent.append("keep"))
    await order.enter_publish("b")
    await order.enter_keep("b")
    order.leave_keep("b")
    order.leave_keep("a")
    await asyncio.sleep(0)
    assert not sent
    order.leave_keep("a")
    await asyncio.gather(publish, keep)
    assert sent == ["publish", "keep"]
    order.leave_keep("a")
    assert "a" not in order


@pytest.mark.parametrize("seed", range(50))
async def test_the_order_of_the_calls_is_kept(seed: int) -> None:
    """Calls at random, of which some are cancelled, are sent in their order; none is forgotten, and nothing is left."""
    chosen = random.Random(seed)
    order, sent, pending = ChannelOrder(), list[int](), list[int]()

    async def keep(number: int) -> None:
        await order.enter_keep("a")
        sent.append(number)
        pending.append(number)
        try:
            for _ in range(chosen.randrange(6)):
                await asyncio.sleep(0)
        finally:
            pending.remove(number)
            order.leave_keep("a")

    async def publish(number: int) -> None:
        await order.enter_publish("a")
        assert not pending
        sent.append(number)

    calls = list[asyncio.Task[None]]()
    for number in range(60):
        calls.append(asyncio.create_task(chosen.choice((keep, publish))(number)))
        for _ in range(chosen.randrange(3)):
            await asyncio.sleep(0)
        if chosen.random() < 0.2:
            chosen.choice(calls).cancel()
    async with asyncio.timeout(30):
        await asyncio.gather(*calls, return_exceptions=True)
    done = [number for number, call in enumerate(calls) if not call.cancelled()]
    assert sent == sorted(set(sent))
    assert set(done) <= set(sent)
    assert "a" not in order
