"""`backplane.broker.publisher`: what a publish waits for while the link comes and goes, and in which order."""

from __future__ import annotations

import asyncio

import pytest

from backplane.errors import BrokerUnavailableError
from tests.unit.doubles import Gate, until_idle
from tests.unit.supervised import WAIT_SECONDS, World, supervised

pytestmark = pytest.mark.anyio


def payloads(made: World) -> list[bytes]:
    """Return what the broker took, in order."""
    return [payload for _, payload in made.adapter.published]


async def publish_after_the_loss(made: World, *, later: int) -> list[asyncio.Task[None]]:
    """Publish 0, which the lost link did not take; let others be called before it comes back from there."""
    gate = Gate()
    gate.close()
    made.adapter.publish_gates.append(gate)
    publishing = [asyncio.create_task(made.supervisor.publish("a", b"0"))]
    await made.adapter.until(lambda: "publish" in made.adapter.verbs)
    await made.degrade()
    publishing += [asyncio.create_task(made.supervisor.publish("a", b"%d" % number)) for number in range(1, later + 1)]
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


async def test_without_waiting_nobody_else_is_waited_for() -> None:
    """Without `wait` a publish raises at once while the link is away, however many wait for it."""
    async with supervised() as made:
        publishing = await publish_after_the_loss(made, later=3)
        with pytest.raises(BrokerUnavailableError, match="is away"):
            await asyncio.wait_for(made.supervisor.publish("a", b"4", wait=False), WAIT_SECONDS)
        made.adapter.start_gate.open()
        await asyncio.wait_for(asyncio.gather(*publishing), WAIT_SECONDS)
