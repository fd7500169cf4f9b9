"""`backplane.broker.publisher`: what a publish waits for during an outage, and in which order."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from backplane.broker.publish_buffer import PublishBuffer
from backplane.errors import (
    BrokerUnavailableError,
    PublishError,
    PublishOutcomeUnknownError,
)
from tests.unit.doubles import Gate, until_idle
from tests.unit.supervised import (
    SETTINGS,
    WAIT_SECONDS,
    Adapter,
    World,
    supervised,
)

pytestmark = pytest.mark.anyio


def payloads(made: World) -> list[bytes]:
    """Return what the broker took, in order."""
    return [payload for _, payload in made.adapter.published]


async def publish_after_the_loss(made: World, *, later: int) -> list[asyncio.Task[None]]:
    """Publish 0, which the lost link did not take; let others be called before it comes back from there."""
    gate = Gate()
    gate.close()
    made.adapter.publish_gates.append(gate)
    publishing = [asyncio.create_task(made.publisher.publish("a", b"0"))]
    await made.adapter.until(lambda: "publish" in made.adapter.verbs)
    await made.degrade()
    publishing += [asyncio.create_task(made.publisher.publish("a", b"%d" % number)) for number in range(1, later + 1)]
    await until_idle()
    made.adapter.publish_errors["a"] = BrokerUnavailableError("the link ended")
    gate.open()
    await until_idle()
    del made.adapter.publish_errors["a"]
    return publishing


async def test_what_comes_back_from_a_lost_link_keeps_its_place() -> None:
    """A message that a lost link did not take goes out before those of later calls that wait for the next link."""
    async with supervised() as made:
        publishing = await publish_after_the_loss(made, later=3)
        made.adapter.start_gate.open()
        await asyncio.wait_for(asyncio.gather(*publishing), WAIT_SECONDS)
        assert payloads(made) == [b"0", b"1", b"2", b"3"]


async def test_who_gives_up_holds_up_nobody() -> None:
    """A publish that is cancelled while it waits for the link, first in line or not, leaves the others theirs."""
    async with supervised() as made:
        publishing = await publish_after_the_loss(made, later=4)
        for number in (0, 2, 1):
            publishing[number].cancel()
            await until_idle()
        made.adapter.start_gate.open()
        await asyncio.wait_for(asyncio.wait(publishing), WAIT_SECONDS)
        assert payloads(made) == [b"3", b"4"]


async def test_buffer_waits_for_no_other_publish() -> None:
    """A publish that may be kept returns at once while the link is away, however many others wait for it."""
    async with supervised() as made:
        publishing = await publish_after_the_loss(made, later=3)
        buffer = PublishBuffer(made.supervisor.attempts, max_bytes=1024, max_messages=1)
        await asyncio.wait_for(buffer.publish("a", b"4"), WAIT_SECONDS)
        assert len(buffer) == 1
        made.adapter.start_gate.open()
        await asyncio.wait_for(asyncio.gather(*publishing), WAIT_SECONDS)
        await made.adapter.until(lambda: len(made.adapter.published) == 5)
        await asyncio.wait_for(buffer.stop(WAIT_SECONDS), WAIT_SECONDS)


async def test_publish_while_degraded_goes_through_when_the_link_returns() -> None:
    """A publish waits for a lost link, and is sent once."""
    async with supervised() as made:
        await made.degrade()
        publishing = asyncio.create_task(made.publisher.publish("a", b"patient"))
        await until_idle()
        assert "publish" not in made.adapter.verbs
        made.adapter.start_gate.open()
        await asyncio.wait_for(publishing, WAIT_SECONDS)
        assert made.adapter.published == [("a", b"patient")]


async def test_publish_in_the_moment_of_the_loss_waits() -> None:
    """A publish that comes right behind the adapter's report of the loss waits for the next link as well."""
    async with supervised() as made:
        made.adapter.publish_errors["a"] = BrokerUnavailableError("the link is gone")
        made.adapter.start_gate.close()
        made.adapter.cut()
        publishing = asyncio.create_task(made.publisher.publish("a", b"patient"))
        await made.adapter.until(lambda: made.adapter.verbs.count("start") == 2)
        made.adapter.publish_errors.clear()
        made.adapter.start_gate.open()
        await asyncio.wait_for(publishing, WAIT_SECONDS)
        assert made.adapter.published == [("a", b"patient")]


async def test_publish_gives_up_on_a_link_that_stays_away() -> None:
    """After the publish timeout it raises that nothing was published, and nothing is sent later."""
    async with supervised(settings=replace(SETTINGS, publish_timeout_seconds=0.05)) as made:
        await made.degrade()
        with pytest.raises(BrokerUnavailableError, match=r"controlled:// has been away for 0\.05 s; not published$"):
            await asyncio.wait_for(made.publisher.publish("a", b"too late"), WAIT_SECONDS)
        made.adapter.start_gate.open()
        await made.reaches("live", generation=2)
        await until_idle()
        assert "publish" not in made.adapter.verbs


async def test_publish_cancelled_while_it_waits_is_not_sent() -> None:
    """Who gives up waiting for the link has published nothing."""
    async with supervised() as made:
        await made.degrade()
        publishing = asyncio.create_task(made.publisher.publish("a", b"never"))
        await until_idle()
        publishing.cancel()
        await asyncio.wait([publishing])
        made.adapter.start_gate.open()
        await made.reaches("live", generation=2)
        await until_idle()
        assert "publish" not in made.adapter.verbs


async def test_publish_in_a_passing_state_of_the_broker_raises_at_once() -> None:
    """It was certainly not published, the link stands, and the error says that it can be tried again."""
    async with supervised(Adapter(brokered=True)) as made:
        made.adapter.publish_errors["a"] = BrokerUnavailableError("BUSY a script runs")
        with pytest.raises(BrokerUnavailableError, match="BUSY") as caught:
            await made.publisher.publish("a", b"x")
        assert caught.value.retriable
        assert (made.supervisor.state, made.adapter.verbs.count("publish")) == ("live", 1)


@pytest.mark.parametrize("error", [PublishError("refused"), PublishOutcomeUnknownError("cut")], ids=repr)
async def test_publish_raises_what_the_adapter_raises(error: PublishError) -> None:
    """A refusal goes to the publisher as it is, and is not tried again."""
    async with supervised() as made:
        made.adapter.publish_errors["a"] = error
        with pytest.raises(PublishError) as caught:
            await made.publisher.publish("a", b"no")
        assert caught.value is error
        assert made.adapter.verbs.count("publish") == 1


async def test_stop_tells_who_waits_to_publish() -> None:
    """A publish that waits for the link when the stop comes fails then, without waiting for its timeout."""
    async with supervised() as made:
        await made.degrade()
        publishing = asyncio.create_task(made.publisher.publish("a", b"never"))
        await until_idle()
        await made.supervisor.stop()
        done, _ = await asyncio.wait([publishing], timeout=1)
        assert done
        assert publishing.exception() is not None
