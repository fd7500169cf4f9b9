"""`backplane.fanout.subscription`: channels as an async iterator, for consumers without a socket."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

from backplane import (
    Backlog,
    Backplane,
    ConfigurationError,
    Gap,
    InvalidChannelError,
    LifecycleError,
    Message,
    NotStartedError,
    SlowConsumerError,
)
from backplane.errors import ClosedError, SubscribeError
from backplane.fanout.batch import Batch
from backplane.fanout.outbox import Outbox, Waiting
from backplane.fanout.subscriber_options import SubscriberOptions
from backplane.fanout.subscription import Subscription
from backplane.message import ALL, Joined, Position
from backplane.statistics import Counters
from tests.unit import kit
from tests.unit.doubles import ControlledBroadcaster, until_idle
from tests.unit.keeping_hub import KeepingHub
from tests.unit.kit import running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.fanout.backlog import FullPolicy
    from backplane.fanout.hub import Hub

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0


user: ContextVar[str] = ContextVar("user", default="anonymous")


def subscription_on(hub: Hub, *, when_full: FullPolicy = "close", max_messages: int = 1024) -> Subscription:
    """Return a subscription that has joined nothing yet."""
    return Subscription(hub, None, Outbox(Backlog(max_bytes=1024, max_messages=max_messages, when_full=when_full)))


async def take(subscription: Subscription, count: int) -> list[str | bytes | Gap]:
    """Return the next `count` items, the messages as their data."""
    taken: list[str | bytes | Gap] = []
    async with asyncio.timeout(WAIT_SECONDS):
        async for item in subscription:
            taken.append(item.data if isinstance(item, Message) else item)
            if len(taken) == count:
                break
    return taken


async def rest(subscription: Subscription) -> list[str | bytes | Gap]:
    """Return everything up to the end of the iteration."""
    async with asyncio.timeout(WAIT_SECONDS):
        return [item.data if isinstance(item, Message) else item async for item in subscription]


async def test_messages_in_order() -> None:
    """Messages of one channel come in the order of their publishing, whole messages with channel and origin."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a") as messages:
        for number in range(100):
            await backplane.publish("a", str(number))
        assert await take(messages, 99) == [str(number) for number in range(99)]
        last = await anext(aiter(messages))
        assert isinstance(last, Message)
        assert (last.channel, last.data) == ("a", "99")
        assert last.origin is not None
        assert last.published_at is not None


async def test_several_channels() -> None:
    """One subscription receives all its channels, each message once, and no other channel."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a", "b", "a") as messages:
        for channel in ("a", "b", "c", "a"):
            await backplane.publish(channel, channel)
        assert await take(messages, 3) == ["a", "b", "a"]


async def test_what_was_published_before_iterating() -> None:
    """From the entering on nothing is missed, whether or not the iteration has begun."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a") as messages:
        await backplane.publish("a", "early")
        assert await take(messages, 1) == ["early"]


async def test_gap_in_its_place() -> None:
    """A gap stands between the last message before the stretch and the first one after it."""
    async with running() as world:
        subscription = subscription_on(world.hub)
        await subscription.join("a")
        world.hub.deliver("a", b"before")
        world.hub.gap(ALL, "overrun")
        world.hub.deliver("a", b"after")
        assert await take(subscription, 3) == ["before", Gap(channel="a", reason="overrun"), "after"]
        subscription.end()


async def test_gap_wakes_the_consumer() -> None:
    """A consumer that waits receives a gap as soon as it is known."""
    async with running() as world:
        subscription = subscription_on(world.hub)
        await subscription.join("a")
        taking = asyncio.create_task(take(subscription, 1))
        await until_idle()
        world.hub.gap(["a"], "overrun")
        assert await taking == [Gap(channel="a", reason="overrun")]
        subscription.end()


async def test_slow_consumer_is_cut_after_what_waited() -> None:
    """With the policy `close` the consumer gets what fitted, then the error, again and again, and has left the hub."""
    async with running() as world:
        subscription = subscription_on(world.hub, max_messages=2)
        await subscription.join("a")
        for payload in (b"1", b"2", b"3", b"4"):
            world.hub.deliver("a", payload)
        await until_idle()
        assert list(world.hub.channels) == []
        assert await take(subscription, 2) == ["1", "2"]
        for _ in range(2):
            with pytest.raises(SlowConsumerError, match="subscribe again"):
                await take(subscription, 1)


async def test_slow_consumer_does_not_disturb_the_others() -> None:
    """One that is cut takes nothing from those beside it."""
    async with (
        Backplane("memory://") as backplane,
        backplane.subscribe("a", backlog=Backlog(max_messages=1)) as slow,
        backplane.subscribe("a") as quick,
    ):
        for number in range(10):
            await backplane.publish("a", str(number))
        assert await take(quick, 10) == [str(number) for number in range(10)]
        with pytest.raises(SlowConsumerError):
            await rest(slow)


async def test_slow_consumer_in_bytes() -> None:
    """The bound counts bytes as well as messages."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a", backlog=Backlog(max_bytes=10)) as messages:
        await backplane.publish("a", "12345678")
        await backplane.publish("a", "abc")
        assert await take(messages, 1) == ["12345678"]
        with pytest.raises(SlowConsumerError):
            await take(messages, 1)


@pytest.mark.parametrize(
    ("when_full", "expected"),
    [("drop_oldest", ["3", "4"]), ("drop_newest", ["1", "2"]), ("latest", ["4"])],
)
async def test_drop_policies(when_full: FullPolicy, expected: list[str]) -> None:
    """A consumer with a dropping policy loses what the policy drops, which is counted, and goes on."""
    async with running() as world:
        subscription = subscription_on(world.hub, when_full=when_full, max_messages=2)
        await subscription.join("a")
        for payload in (b"1", b"2", b"3", b"4"):
            world.hub.deliver("a", payload)
        await until_idle()
        assert subscription.dropped == 4 - len(expected)
        assert await take(subscription, len(expected)) == expected
        world.hub.deliver("a", b"5")
        assert await take(subscription, 1) == ["5"]
        assert subscription.dropped == 4 - len(expected)
        subscription.end()


async def test_a_gap_is_no_message_that_is_lost() -> None:
    """What the policy drops counts as lost only where it is a message, and so does what waits at the end."""
    async with running() as world:
        counters, outbox = Counters(), Outbox(Backlog(when_full="drop_oldest", max_messages=1))
        subscription = Subscription(world.hub, None, outbox, statistics=counters)
        await subscription.join("a")
        world.hub.gap(["a"], "lost")
        world.hub.deliver("a", b"1")
        world.hub.deliver("a", b"2")
        await until_idle()
        assert counters.losses == {("subscription", "dropped_oldest"): 1}
        world.hub.gap(["a"], "lost")
        subscription.discard()
        assert counters.losses == {("subscription", "dropped_oldest"): 2}


async def test_what_is_offered_after_the_end_is_counted() -> None:
    """It is in no figure of the policy: nothing was too slow."""
    async with running() as world:
        counters = Counters()
        subscription = Subscription(world.hub, None, Outbox(Backlog()), statistics=counters)
        subscription.end()
        subscription.offer(Batch(Message(channel="a", data="1"), Message(channel="a", data="2")))
        assert counters.losses == {("subscription", "discarded"): 2}


async def test_end_of_the_backplane_ends_the_iteration() -> None:
    """A stop wakes a consumer that waits, and its loop ends as if the stream were over."""
    backplane = Backplane("memory://")
    await backplane.start()
    async with backplane.subscribe("a") as messages:
        resting = asyncio.create_task(rest(messages))
        await until_idle()
        await backplane.stop()
        assert await resting == []
        assert await rest(messages) == []


async def test_end_of_the_backplane_ends_after_what_waits() -> None:
    """What was delivered before the stop is still consumed."""
    backplane = Backplane("memory://")
    await backplane.start()
    async with backplane.subscribe("a") as messages:
        await backplane.publish("a", "last")
        await until_idle()
        await backplane.stop()
        assert await rest(messages) == ["last"]


async def test_message_of_the_moment_of_the_stop() -> None:
    """A message whose publish has returned is consumed though the stop follows at once."""
    backplane = Backplane("memory://")
    await backplane.start()
    async with backplane.subscribe("a") as messages:
        await backplane.publish("a", "last")
        await backplane.stop()
        assert await rest(messages) == ["last"]


async def test_cancelling_the_iteration_loses_nothing() -> None:
    """A cancelled `anext` leaves the next message for the next one."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a") as messages:
        for number in range(3):
            taking = asyncio.create_task(take(messages, 1))
            await until_idle()
            taking.cancel()
            await asyncio.wait([taking])
            assert taking.cancelled()
            await backplane.publish("a", str(number))
            assert await take(messages, 1) == [str(number)]


async def test_cancelling_in_the_moment_of_a_message_loses_nothing() -> None:
    """A message that arrives in the same pass as the cancellation is still there."""
    async with running() as world:
        subscription = subscription_on(world.hub)
        await subscription.join("a")
        taking = asyncio.create_task(take(subscription, 1))
        await until_idle()
        subscription.offer(Batch(Message(channel="a", data="now")))
        taking.cancel()
        await asyncio.wait([taking])
        assert taking.cancelled()
        assert await take(subscription, 1) == ["now"]
        subscription.end()


async def test_two_consumers() -> None:
    """A second task that iterates raises at once, and takes nothing from the first; when that has ended it may."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a") as messages:
        taking = asyncio.create_task(take(messages, 2), name="first")
        await until_idle()
        for _ in range(2):
            with pytest.raises(LifecycleError, match="'first' receives from this subscription already"):
                await take(messages, 1)
            await backplane.publish("a", "for the first")
        assert await taking == ["for the first", "for the first"]
        await backplane.publish("a", "for the second")
        assert await take(messages, 1) == ["for the second"]


@pytest.mark.parametrize("at_a_message", [False, True])
async def test_consumer_after_a_cancelled_one(at_a_message: bool) -> None:
    """A task that is being cancelled may be followed at once, and its end takes nothing from its successor."""
    async with running() as world:
        subscription = subscription_on(world.hub)
        await subscription.join("a")
        first = asyncio.create_task(take(subscription, 1))
        await until_idle()
        if at_a_message:
            subscription.offer(Batch(Message(channel="a", data="now")))
        first.cancel()
        second = asyncio.create_task(take(subscription, 1), name="second")
        await until_idle()
        assert first.cancelled()
        if not at_a_message:
            with pytest.raises(LifecycleError, match="'second' receives"):
                await take(subscription, 1)
            world.hub.deliver("a", b"now")
        assert await second == ["now"]
        subscription.end()


async def test_consumer_that_went_on_after_a_cancellation() -> None:
    """A task that was cancelled before, and went on, is a consumer as any other: a second one raises."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a") as messages:

        async def take_after_all() -> list[str | bytes | Gap]:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return await take(messages, 1)

        first = asyncio.create_task(take_after_all(), name="first")
        await until_idle()
        first.cancel()
        await until_idle()
        with pytest.raises(LifecycleError, match="'first' receives"):
            await asyncio.wait_for(take(messages, 1), WAIT_SECONDS)
        await backplane.publish("a", "for the first")
        assert await first == ["for the first"]


async def test_leaving_the_block_leaves_the_channel() -> None:
    """After the block nothing is received, and an iteration that still runs ends."""
    async with Backplane("memory://") as backplane:
        async with backplane.subscribe("a") as messages:
            pass
        await backplane.publish("a", "unreceived")
        await until_idle()
        assert await rest(messages) == []


async def test_error_in_the_block_leaves_the_channel() -> None:
    """An error of the consumer goes on, and the subscription has ended."""
    entered: list[Subscription] = []

    async def consume(backplane: Backplane) -> None:
        async with backplane.subscribe("a") as messages:
            entered.append(messages)
            raise KeyError("mine")

    async with Backplane("memory://") as backplane:
        with pytest.raises(KeyError, match="mine"):
            await consume(backplane)
        await backplane.publish("a", "unreceived")
        assert await rest(entered[0]) == []


async def test_join_later() -> None:
    """A channel joined later is received from then on; to iterate before that raises."""
    async with Backplane("memory://") as backplane, backplane.subscribe() as messages:
        await backplane.publish("a", "unreceived")
        with pytest.raises(LifecycleError, match="join one before iterating"):
            await take(messages, 1)  # it would wait for ever
        await messages.join("a")
        await backplane.publish("a", "x")
        assert await take(messages, 1) == ["x"]


async def test_refused_channel_leaves_nothing() -> None:
    """A subscription of which one channel is refused has left the others."""
    broker = ControlledBroadcaster()
    broker.refusals["secret"] = "not permitted"
    async with running(broker) as world:
        subscription = subscription_on(world.hub)
        await subscription.join("a")
        with pytest.raises(SubscribeError, match="not permitted"):
            await subscription.join("secret")
        assert list(world.hub.channels) == ["a"]
        subscription.end()
        assert list(world.hub.channels) == []


async def test_illegal_name() -> None:
    """A name that is not legal raises before the block, and leaves nothing."""
    async with Backplane("memory://") as backplane:
        with pytest.raises(InvalidChannelError):
            async with backplane.subscribe("a", ""):
                pytest.fail("the block was entered")


async def test_later_join_of_an_illegal_name() -> None:
    """A name that is not legal is refused by `join` as well: reserved channels stay the package's own."""
    async with Backplane("memory://") as backplane, backplane.subscribe() as messages:
        for channel in ("", "$backplane/probe", "x" * 256):
            with pytest.raises(InvalidChannelError):
                await messages.join(channel)


async def test_join_after_the_end() -> None:
    """A subscription that has ended joins nothing and leaves nothing in the hub."""
    async with running() as world:
        subscription = subscription_on(world.hub)
        subscription.end()
        with suppress(ClosedError):
            await subscription.join("a")
        assert list(world.hub.channels) == []


async def test_join_that_the_end_overtakes() -> None:
    """A join the broker confirms after the end leaves nothing in the hub."""
    broker = ControlledBroadcaster()
    async with running(broker) as world:
        subscription = subscription_on(world.hub)
        broker.subscribe_gate.close()
        joining = asyncio.create_task(subscription.join("a"))
        await broker.until(lambda: len(broker.calls) == 1)
        subscription.end()
        broker.subscribe_gate.open()
        with suppress(ClosedError):
            await asyncio.wait_for(joining, WAIT_SECONDS)
        assert list(world.hub.channels) == []


@pytest.mark.parametrize(
    "options", [{"when_full": "explode"}, {"max_bytes": 0}, {"max_messages": -1}, {"max_outbox_bytes": 1}], ids=str
)
async def test_wrong_options(options: dict[str, Any]) -> None:
    """An unknown policy, or a bound of nothing, is refused before anything is joined."""
    async with Backplane("memory://") as backplane:
        with pytest.raises(ConfigurationError):
            async with backplane.subscribe("a", backlog=Backlog(**options)):
                pytest.fail("the block was entered")


async def test_not_started() -> None:
    """A subscription needs a running backplane."""
    with pytest.raises(NotStartedError):
        async with Backplane("memory://").subscribe("a"):
            pytest.fail("the block was entered")


@pytest.mark.parametrize(("channel", "exact", "warnings"), [("prices.*", True, 0), ("quotes.>", False, 1)])
async def test_plain_name(
    channel: str, exact: bool, warnings: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name like a pattern of a broker receives what is published to exactly that name, and is warned about."""
    monkeypatch.setattr("backplane.channels._warned_about", set[str]())
    async with Backplane("memory://") as backplane, backplane.subscribe(channel, exact=exact) as messages:
        await backplane.publish("prices.dax", "1")
        await backplane.publish("quotes.dax", "2")
        await backplane.publish(channel, "3")
        assert await take(messages, 1) == ["3"]
    assert len([text for text in caplog.messages if "looks like a pattern" in text]) == warnings


@pytest.mark.parametrize(
    ("when_full", "expected"),
    [
        ("close", {"slow_subscriptions": 1}),
        ("drop_oldest", {"dropped_oldest": 3}),
        ("drop_newest", {"dropped_newest": 3}),
        ("latest", {"replaced": 4}),
    ],
)
async def test_slow_consumer_is_counted(
    when_full: FullPolicy, expected: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """What a consumer loses, or that it was cut, is in the statistics; a cut is in the log too."""
    async with (
        Backplane("memory://") as backplane,
        backplane.subscribe("a", backlog=Backlog(when_full=when_full, max_messages=2)),
    ):
        for number in range(5):
            await backplane.publish("a", str(number))
        await until_idle()
        counted = backplane.statistics()
        assert {name: counted.as_dict()[name] for name in expected} == expected
    slow = [text for text in caplog.messages if "is too slow" in text]
    assert len(slow) == (when_full == "close")
    assert all("for channel 'a'" in text for text in slow)


async def test_keys_in_the_context_of_the_consumer() -> None:
    """With `latest_by` the last message of each key waits; it is called with the variables of the consumer."""
    seen: set[str] = set()

    def key(message: Message) -> object:
        seen.add(user.get())
        return message.data[0]

    user.set("alice")
    async with Backplane("memory://") as backplane:
        backlog = Backlog(when_full="latest", latest_by=key)
        async with backplane.subscribe("a", backlog=backlog) as messages:
            user.set("mallory")
            for data in ("a1", "b1", "a2"):
                await backplane.publish("a", data)
            assert await take(messages, 2) == ["b1", "a2"]
    assert seen == {"alice"}


async def test_log_line_of_an_overrun_is_the_consumers() -> None:
    """That a consumer is too slow is logged with its own variables, not with those of the publisher."""
    seen: list[str] = []

    def see(_: logging.LogRecord) -> bool:
        seen.append(user.get())
        return True

    async with running() as world:
        user.set("alice")
        slow = subscription_on(world.hub, max_messages=1)
        user.set("mallory")
        logging.getLogger("backplane.fanout.subscription").addFilter(see)
        try:
            slow.offer(Batch(*(Message(channel="a", data=text) for text in "123")))
        finally:
            logging.getLogger("backplane.fanout.subscription").removeFilter(see)
    assert seen == ["alice"]


# --- history ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def keeping() -> AsyncGenerator[KeepingHub]:
    """Run a hub that keeps messages."""
    broker_subscriptions, _ = kit.new_hub()
    world = kit.World(broker_subscriptions, hub := KeepingHub(broker_subscriptions))
    async with world.linked():
        yield hub


async def test_resume() -> None:
    """What was published after the position comes first, once, and then what is published."""
    async with keeping() as hub:
        seen = [hub.keep("kept", str(number)) for number in range(4)]
        subscription = subscription_on(hub)
        await subscription.join("kept", since=str(seen[1]))
        hub.keep("kept", "live")
        assert (await take(subscription, 3), subscription.resumed) == (["2", "3", "live"], True)
        subscription.end()


async def test_position_of_what_was_iterated() -> None:
    """Before the first message it is where the subscription began, and then that of each item that was returned."""
    async with keeping() as hub:
        seen = [hub.keep("kept", str(number)) for number in range(3)]
        subscription = subscription_on(hub)
        await subscription.join("kept", since=str(seen[0]))
        await subscription.join("a")
        positions = [subscription.position("kept")]
        for _ in range(2):
            await take(subscription, 1)
            positions.append(subscription.position("kept"))
        assert positions == seen
        later = Position(b"an epoch", 77, 7)
        hub.gap(["a"], "overrun")
        subscription.gap(Gap(channel="kept", reason="trimmed", position=later))
        await take(subscription, 2)
        assert (subscription.position("kept"), subscription.position("a")) == (later, None)
        await subscription.leave("kept")
        assert subscription.position("kept") is None
        subscription.end()


async def test_position_that_is_not_known() -> None:
    """A kept channel whose beginning is not known has a position from its first message on."""
    async with keeping() as hub:
        subscription = subscription_on(hub)
        subscription.joined(Joined(channel="kept"))
        assert subscription.position("kept") is None
        position = hub.keep("kept", "0")
        subscription.offer(Batch(Message(channel="kept", data="0", position=position)))
        await take(subscription, 1)
        assert subscription.position("kept") == position
        subscription.end()


async def test_join_that_cannot_resume() -> None:
    """A gap comes first, in place of what is not kept, then the rewind; the position never passes what is to come."""
    async with keeping() as hub:
        before = hub.keep("kept", "0")
        hub.keep("kept", "1")
        subscription = subscription_on(hub, max_messages=1)
        await subscription.join("kept", since="gone", rewind=1)
        gap, message = await take(subscription, 2)
        assert isinstance(gap, Gap)
        assert (gap.position, message, subscription.resumed) == (before, "1", False)
        assert subscription.position("kept") == hub.position("kept")
        subscription.end()


async def test_more_than_the_backlog_is_given_back() -> None:
    """It makes no consumer slow; what is published meanwhile waits after it."""
    async with keeping() as hub:
        for number in range(50):
            hub.keep("kept", str(number))
        subscription = subscription_on(hub, max_messages=4)
        await subscription.join("kept", rewind=50)
        hub.keep("kept", "live")
        assert await take(subscription, 51) == [*map(str, range(50)), "live"]
        for number in range(5):
            hub.keep("kept", str(number))
        await until_idle()
        with pytest.raises(SlowConsumerError):
            await take(subscription, 5)


async def test_what_excludes_it_is_not_given_back() -> None:
    """Neither what names its own id, nor what names the one it had before, missed or live."""
    async with keeping() as hub:
        outbox = Outbox(Backlog())
        subscription = Subscription(hub, None, outbox, options=SubscriberOptions(previous=b"previous"))
        for excluded in (subscription.token, b"previous", None):
            hub.keep("kept", "old", excluded)
        await subscription.join("kept", rewind=3)
        hub.keep("kept", "live of before", b"previous")
        hub.keep("kept", "live")
        assert await take(subscription, 2) == ["old", "live"]
        subscription.end()


async def test_nothing_is_left_of_what_is_given_back() -> None:
    """All of it names the subscription."""
    async with keeping() as hub:
        subscription = subscription_on(hub)
        hub.keep("kept", "old", subscription.token)
        await subscription.join("kept", rewind=3)
        hub.keep("kept", "live")
        assert await take(subscription, 1) == ["live"]
        subscription.end()


async def test_discarded() -> None:
    """What waits for a subscription that nothing iterates any more is dropped, and counts no more."""
    async with running() as worker:
        waiting = Waiting()
        subscription = Subscription(worker.hub, None, Outbox(Backlog(), waiting=waiting))
        await subscription.join("a")
        worker.deliver("a", "1")
        await until_idle()
        assert waiting.messages == 1
        subscription.discard()
        assert waiting.messages == 0
        assert [item async for item in subscription] == []
