"""`backplane.fanout.delivery`: which subscribers of a channel get a batch while others leave or fail."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backplane.fanout.batch import Batch, FinalMessage
from backplane.fanout.codec import encode
from tests.unit.doubles import RecordingSubscriber, run_passes, until_idle
from tests.unit.kit import counts, crowd, running

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backplane.fanout.delivery import Subscriber
    from backplane.message import Message

pytestmark = pytest.mark.anyio


async def test_leave_during_a_long_fan_out() -> None:
    """A subscriber that leaves before its slice receives nothing, and the others everything."""
    async with running(slice_size=3, pass_seconds=0.0) as worker:
        subscribers = await crowd(worker, "a", 10)
        worker.deliver("a", "1")
        await run_passes(1)
        for number in (0, 5, 9):
            worker.hub.leave("a", subscribers[number])
        worker.deliver("a", "2")
        await run_passes(20)
        expected = [["1", "2"]] * 10
        expected[0], expected[5], expected[9] = ["1"], [], []
        assert [subscriber.received for subscriber in subscribers] == expected


async def test_all_leave_during_a_long_fan_out() -> None:
    """When all have left, nothing more of the batch is offered; a new subscriber receives later messages."""
    async with running(slice_size=3, pass_seconds=0.0) as worker:
        subscribers = await crowd(worker, "a", 10)
        worker.deliver("a", "1")
        await run_passes(1)
        for subscriber in subscribers:
            worker.hub.leave("a", subscriber)
        newcomer = await worker.joined("a")
        await until_idle()
        assert (counts(subscribers), newcomer.received) == ((3,), [])
        worker.deliver("a", "2")
        await until_idle()
        assert newcomer.received == ["2"]


async def test_leave_from_within_an_offer() -> None:
    """Subscribers that another one makes leave, while it is offered a batch, do not receive that batch."""
    async with running(slice_size=3, pass_seconds=0.0) as worker:
        subscribers = await crowd(worker, "a", 5)
        offer = subscribers[0].offer

        def offer_and_end(messages: Sequence[Message]) -> None:
            offer(messages)
            for subscriber in subscribers:
                worker.hub.leave("a", subscriber)

        subscribers[0].offer = offer_and_end  # type: ignore[method-assign]
        worker.deliver("a", "1")
        await until_idle()
        assert [subscriber.received for subscriber in subscribers] == [["1"], [], [], [], []]


async def test_exclusions_in_slices() -> None:
    """A subscriber that one message of a batch excludes gets the others, in whichever slice it is."""
    async with running(slice_size=3, pass_seconds=0.0) as worker:
        subscribers = await crowd(worker, "a", 7)
        for data, excluded in (("1", subscribers[0].token), ("2", None), ("3", subscribers[6].token)):
            worker.hub.deliver("a", encode(data, origin=b"ORIGIN_8", published_at=0.0, excluded=excluded))
        await run_passes(20)
        expected = [["1", "2", "3"]] * 7
        expected[0], expected[6] = ["2", "3"], ["1", "2"]
        assert [subscriber.received for subscriber in subscribers] == expected


async def test_subscriber_that_raises() -> None:
    """A subscriber that raises, which it must not, affects neither the others nor any later message."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, __: None)
    async with running() as worker:
        bad, good = await worker.joined("a"), await worker.joined("a")

        def fail(_: Sequence[Message]) -> None:
            raise KeyError("a fault")

        bad.offer = fail  # type: ignore[method-assign,assignment]
        worker.deliver("a", "1")
        await until_idle()
        worker.deliver("a", "2")
        await until_idle()
        loop.set_exception_handler(None)
        assert good.received == ["1", "2"]


async def test_a_local_delivery_is_sliced_and_reports_its_end() -> None:
    """Recipients that are no subscribers any more when it is their turn are left out, and the end is reported once."""
    async with running(slice_size=3, pass_seconds=0.0) as worker:
        recipients = [RecordingSubscriber() for _ in range(10)]
        subscribers: dict[Subscriber, int] = dict.fromkeys(recipients, 1)
        done: list[int] = []
        batch = Batch(FinalMessage(channel="", data="x"))
        worker.hub.deliver_local("local", batch, recipients, subscribers, lambda: done.append(sum(counts(recipients))))
        await run_passes(1)
        del subscribers[recipients[5]]
        await run_passes(20)
        assert [subscriber.received for subscriber in recipients] == [["x"]] * 5 + [[]] + [["x"]] * 4
        assert len(done) == 1


async def test_a_local_delivery_that_is_delivered_at_once() -> None:
    """What must follow it makes the hub deliver all of it; the end can begin another one."""
    async with running(slice_size=3, pass_seconds=0.0) as worker:
        recipients = [RecordingSubscriber() for _ in range(10)]
        subscribers: dict[Subscriber, int] = dict.fromkeys(recipients, 1)

        def begin(data: str) -> None:
            batch, following = Batch(FinalMessage(channel="", data=data)), {"1": "2", "2": "3"}.get(data)
            worker.hub.deliver_local(
                "local", batch, recipients, subscribers, lambda: None if following is None else begin(following)
            )

        begin("1")
        await run_passes(1)
        worker.hub._flush()  # pyright: ignore[reportPrivateUsage]
        assert [subscriber.received for subscriber in recipients] == [["1", "2", "3"]] * 10
        await until_idle()
        assert [subscriber.received for subscriber in recipients] == [["1", "2", "3"]] * 10
