"""`backplane.broker.publisher`: what a publish waits for during an outage, and in which order."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from backplane.broker.publish_buffer import PublishBuffer
from backplane.errors import (
    BrokerUnavailableError,
    PublishError,
    PublishOutcomeUnknownError,
)
from tests.unit.controlled_adapter import Adapter
from tests.unit.doubles import Gate, until_idle
from tests.unit.kit import (
    SETTINGS,
    WAIT_SECONDS,
    SupervisedWorld,
    supervised,
)

if TYPE_CHECKING:
    from backplane.message import Receipt

pytestmark = pytest.mark.anyio


def payloads(made: SupervisedWorld) -> list[bytes]:
    """Return what the broker accepted, in order."""
    return [payload for _, payload in made.adapter.published]


async def publish_after_the_loss(made: SupervisedWorld, *, later: int) -> list[asyncio.Task[Receipt]]:
    """Publish 0 on a link that is lost before it accepts it, and call others before the error of 0 arrives."""
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


async def test_publish_that_a_lost_link_did_not_accept_keeps_its_place() -> None:
    """A message that a lost link did not accept is published before those of later calls that wait for a link."""
    async with supervised() as made:
        publishing = await publish_after_the_loss(made, later=3)
        made.adapter.start_gate.open()
        await asyncio.wait_for(asyncio.gather(*publishing), WAIT_SECONDS)
        assert payloads(made) == [b"0", b"1", b"2", b"3"]


async def test_cancelled_publish_delays_no_other() -> None:
    """A publish that is cancelled while it waits for the link, first in the queue or not, affects no other."""
    async with supervised() as made:
        publishing = await publish_after_the_loss(made, later=4)
        for number in (0, 2, 1):
            publishing[number].cancel()
            await until_idle()
        made.adapter.start_gate.open()
        await asyncio.wait_for(asyncio.wait(publishing), WAIT_SECONDS)
        assert payloads(made) == [b"3", b"4"]


async def test_buffer_waits_for_no_other_publish() -> None:
    """A publish that may be kept returns at once while the link is down, however many others wait for it."""
    async with supervised() as made:
        publishing = await publish_after_the_loss(made, later=3)
        buffer = PublishBuffer(made.supervisor.attempts, max_bytes=1024, max_messages=1)
        await asyncio.wait_for(buffer.publish("a", b"4"), WAIT_SECONDS)
        assert len(buffer) == 1
        made.adapter.start_gate.open()
        await asyncio.wait_for(asyncio.gather(*publishing), WAIT_SECONDS)
        await made.adapter.until(lambda: len(made.adapter.published) == 5)
        await asyncio.wait_for(buffer.stop(WAIT_SECONDS), WAIT_SECONDS)


async def test_publish_while_degraded_is_sent_on_the_next_link() -> None:
    """A publish waits while the link is being rebuilt, and is sent once."""
    async with supervised() as made:
        await made.degrade()
        publishing = asyncio.create_task(made.publisher.publish("a", b"patient"))
        await until_idle()
        assert "publish" not in made.adapter.verbs
        made.adapter.start_gate.open()
        await asyncio.wait_for(publishing, WAIT_SECONDS)
        assert made.adapter.published == [("a", b"patient")]


async def test_publish_right_after_the_loss_waits() -> None:
    """A publish that is called right after the adapter has reported the loss waits for the next link as well."""
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


async def test_publish_times_out_while_the_link_is_down() -> None:
    """After the publish timeout it raises BrokerUnavailableError, and the message is not sent later."""
    async with supervised(settings=replace(SETTINGS, publish_timeout_seconds=0.05)) as made:
        await made.degrade()
        with pytest.raises(
            BrokerUnavailableError, match=r"controlled:// has been unavailable for 0\.05 s; not published$"
        ):
            await asyncio.wait_for(made.publisher.publish("a", b"too late"), WAIT_SECONDS)
        made.adapter.start_gate.open()
        await made.reaches("live", generation=2)
        await until_idle()
        assert "publish" not in made.adapter.verbs


async def test_publish_cancelled_while_it_waits_is_not_sent() -> None:
    """A publish that is cancelled while it waits for the link is not sent."""
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
    """The message was not published, the link stays live, and the error is retriable."""
    async with supervised(Adapter(brokered=True)) as made:
        made.adapter.publish_errors["a"] = BrokerUnavailableError("BUSY a script runs")
        with pytest.raises(BrokerUnavailableError, match="BUSY") as caught:
            await made.publisher.publish("a", b"x")
        assert caught.value.retriable
        assert (made.supervisor.state, made.adapter.verbs.count("publish")) == ("live", 1)


@pytest.mark.parametrize("error", [PublishError("refused"), PublishOutcomeUnknownError("cut")], ids=repr)
async def test_publish_raises_what_the_adapter_raises(error: PublishError) -> None:
    """A refusal is raised unchanged, and the message is not sent again."""
    async with supervised() as made:
        made.adapter.publish_errors["a"] = error
        with pytest.raises(PublishError) as caught:
            await made.publisher.publish("a", b"no")
        assert caught.value is error
        assert made.adapter.verbs.count("publish") == 1


async def test_stop_ends_publishes_that_wait() -> None:
    """A publish that waits for the link at the stop raises then, without waiting for its timeout."""
    async with supervised() as made:
        await made.degrade()
        publishing = asyncio.create_task(made.publisher.publish("a", b"never"))
        await until_idle()
        await made.supervisor.stop()
        done, _ = await asyncio.wait([publishing], timeout=1)
        assert done
        assert publishing.exception() is not None
