"""`backplane.fanout.traffic`: what passes the hub is counted once for a batch, and everything adds up."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane.errors import SlowConsumerError
from backplane.fanout.backlog import Backlog
from backplane.fanout.batch import Batch, FinalMessage
from backplane.fanout.broker_subscriptions import BrokerSubscriptions
from backplane.fanout.channel_groups import ChannelGroups, Grouping
from backplane.fanout.codec import encode
from backplane.fanout.hub import Hub
from backplane.fanout.outbox import Outbox
from backplane.fanout.subscription import Subscription
from backplane.fanout.traffic import Traffic
from backplane.message import Gap, Message
from backplane.statistics import Counters
from tests.unit.doubles import until_idle
from tests.unit.kit import NEVER, ORIGIN, World, new_hub, running

if TYPE_CHECKING:
    from backplane.fanout.backlog import FullPolicy
    from backplane.histogram import Histogram

pytestmark = pytest.mark.anyio

OTHER = b"a worker"
DAY = 86_400.0
NOW = 1_700_000_000.0


def traffic_of(world: World) -> Traffic:
    """Return what the hub of a world counts."""
    return world.hub.traffic


def published(world: World, *ages: float, origin: bytes = ORIGIN, channel: str = "a") -> None:
    """Let the broker deliver messages that were published so many seconds ago, in one pass of the event loop."""
    for age in ages:
        payload = encode("four", origin=origin, published_at=time.time() - age)
        world.hub.deliver(channel, payload)


def within(histogram: Histogram) -> dict[float, int]:
    """Return how many values a histogram has within each bound that has any."""
    bounds = (*histogram.bounds, float("inf"))
    return {bound: count for bound, count in zip(bounds, histogram.counts, strict=True) if count}


def lags(traffic: Traffic) -> tuple[dict[float, int], ...]:
    """Return the lags that were counted: received self and other, written self and other."""
    histograms = traffic.own.received, traffic.others.received, traffic.own.written, traffic.others.written
    return tuple(within(histogram) for histogram in histograms)


async def test_messages_and_deliveries() -> None:
    """Messages count once, deliveries once for each subscriber, with their size; and only of channels of theirs."""
    async with running() as world:
        for _ in range(3):
            await world.joined("a")
        world.deliver("a", "1", "22")
        world.deliver("other", "333")
        await until_idle()
        traffic = traffic_of(world)
        assert (traffic.received, traffic.received_bytes, traffic.offered, traffic.offered_bytes) == (2, 3, 6, 9)
        assert world.hub.delivered == 2


async def test_lag_is_that_of_the_first_message() -> None:
    """It is counted once for a batch, apart for this worker and others; with one slice both stages are the same."""
    async with running() as world:
        await world.joined("a", "b")
        published(world, 3.0, 0.02, channel="a")
        published(world, 6.0, channel="b", origin=OTHER)
        await until_idle()
        traffic = traffic_of(world)
        assert lags(traffic) == ({5.0: 1}, {10.0: 1}, {5.0: 1}, {10.0: 1})
        assert 3.0 <= traffic.own.received.total < 5.0
        assert traffic.clock_ahead == 0


async def test_clock_ahead() -> None:
    """A publisher whose clock is ahead counts as no lag, and is counted once; a microsecond is no such clock."""
    async with running() as world:
        await world.joined("a")
        published(world, -30.0, origin=OTHER)
        await until_idle()
        traffic = traffic_of(world)
        assert (traffic.clock_ahead, lags(traffic)) == (1, ({}, {0.001: 1}, {}, {0.001: 1}))
        assert traffic.others.received.total == 0.0
        traffic.count_lag(Message(channel="a", data="", published_at=10.0005), 10.0, None, None)
        assert traffic.clock_ahead == 1


async def test_no_lag_without_a_header() -> None:
    """A message of another program states neither who published it nor when."""
    async with running() as world:
        await world.joined("a")
        world.deliver("a", "x")
        await until_idle()
        assert lags(traffic_of(world)) == ({}, {}, {}, {})
        assert traffic_of(world).unknown_lags == 1


@pytest.mark.parametrize("published_at", [0.0, 1.0, NOW - 2 * DAY, NOW + 2 * DAY, 253_402_300_799.0])
async def test_times_that_cannot_be(published_at: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher without a clock, or with one that was never set, adds nothing to the lag, and is counted."""
    monkeypatch.setattr("backplane.fanout.channel_subscribers.time", lambda: NOW)
    async with running() as world:
        await world.joined("a")
        world.hub.deliver("a", encode("x", origin=OTHER, published_at=published_at))
        await until_idle()
        traffic = traffic_of(world)
        assert lags(traffic) == ({}, {}, {}, {})
        assert (traffic.received, traffic.unknown_lags, traffic.clock_ahead) == (1, 1, 0)


async def test_late_but_possible() -> None:
    """After an outage of hours what the broker has kept is late, and counts as that."""
    async with running() as world:
        await world.joined("a")
        published(world, 7_200.0, origin=OTHER)
        await until_idle()
        assert lags(traffic_of(world)) == ({}, {float("inf"): 1}, {}, {float("inf"): 1})
        assert 7_200.0 <= traffic_of(world).others.written.total < 7_300.0


async def test_exemplars() -> None:
    """A batch whose delivery is traced leaves the trace at the buckets of its lag; one without leaves nothing."""
    async with running(slice_size=2, pass_seconds=0.0) as world:
        await asyncio.gather(*(world.joined("a") for _ in range(3)))
        published(world, 0.2)
        await until_idle()
        own = traffic_of(world).own
        assert (own.written.exemplars, own.received.exemplars) == ({}, {})
        world.hub.tracer = Mock()
        for trace_id, age in (("f" * 32, 0.2), ("", 0.2), ("e" * 32, 3.0)):
            world.hub.tracer.deliver.return_value.trace_id = trace_id
            published(world, age)
            await until_idle()
        for histogram in (own.written, own.received):
            found = {histogram.bounds[place]: each for place, each in histogram.exemplars.items()}
            assert {bound: each.trace_id for bound, each in found.items()} == {0.25: "f" * 32, 5.0: "e" * 32}
            assert 0.2 <= found[0.25].value <= 0.25
            assert found[0.25].at <= time.time()
        assert own.received.exemplars != own.written.exemplars, "the first slice is done before the last one"


async def test_groups() -> None:
    """Figures are those of the group of the channel, and add up; what no channel is known of is in the last group."""
    groups = ChannelGroups(Grouping.of({"room:*": "rooms"}))
    broker_subscriptions = BrokerSubscriptions(linger_seconds=NEVER, timeout_seconds=60.0)
    world = World(broker_subscriptions, Hub(broker_subscriptions, traffic=Traffic(ORIGIN, groups)))
    async with world.linked():
        subscribers = [await world.joined("room:1", "room:2", "a") for _ in range(2)]
        for channel in ("room:1", "room:2", "a"):
            world.deliver(channel, "four")
        world.hub.deliver_local(
            "users",
            Batch(FinalMessage(channel="", data="xy")),
            subscribers,
            dict.fromkeys(subscribers, 1),
            lambda: None,
        )
        await until_idle()
        found = {
            group.name: (group.messages, group.size_bytes, group.offered, group.offered_bytes) for group in groups.all
        }
        assert found == {"other": (1, 4, 4, 12), "rooms": (2, 8, 4, 16)}
        traffic = traffic_of(world)
        assert (traffic.received, traffic.received_bytes, traffic.offered, traffic.offered_bytes) == (3, 12, 8, 28)


@pytest.mark.parametrize("traced", [False, True])
async def test_slices(traced: bool) -> None:
    """A fan-out in slices is one message received and one lag of each stage; those that left meanwhile do not count."""
    async with running(slice_size=2, pass_seconds=0.0) as world:
        if traced:
            world.hub.tracer = Mock()
        subscribers = [await world.joined("a") for _ in range(7)]
        published(world, 3.0)
        await asyncio.sleep(0)
        traffic = traffic_of(world)
        assert (traffic.received, traffic.offered, lags(traffic)) == (0, 0, ({}, {}, {}, {}))
        world.hub.leave("a", subscribers[-1])
        world.hub.leave("a", subscribers[0])
        await until_idle()
        assert (traffic.received, traffic.offered, lags(traffic)) == (1, 6, ({5.0: 1}, {}, {5.0: 1}, {}))
        assert 3.0 <= traffic.own.received.total < traffic.own.written.total


async def test_all_have_left() -> None:
    """What was collected for subscribers that have all left before their turn is dropped, and not received."""
    async with running() as world:
        subscriber = await world.joined("a")
        world.deliver("a", "1")
        world.hub.leave("a", subscriber)
        await until_idle()
        assert (subscriber.received, traffic_of(world).received, world.hub.under_way) == ([], 0, 0)


async def test_reserved_channels_do_not_count() -> None:
    """What workers exchange is no message of the application."""
    async with running() as world:
        await world.joined("$backplane/workers")
        world.deliver("$backplane/workers", "1")
        await until_idle()
        traffic = traffic_of(world)
        assert (traffic.received, traffic.offered, world.hub.channels["$backplane/workers"].messages) == (0, 0, 0)


async def test_what_this_worker_has_made_itself() -> None:
    """It is offered, and was not received."""
    async with running() as world:
        one, two = await world.joined("a"), await world.joined("a")
        batch = Batch(FinalMessage(channel="", data="xy"))
        world.hub.deliver_local("a", batch, [two], {one: 1, two: 1}, lambda: None)
        await until_idle()
        traffic = traffic_of(world)
        assert (traffic.received, traffic.offered, traffic.offered_bytes) == (0, 1, 2)


async def test_a_channel_that_is_not_counted() -> None:
    """It is delivered all the same: the benchmark compares the two."""
    async with running() as world:
        subscriber = await world.joined("a")
        world.hub.channels["a"].is_counted = False
        world.deliver("a", "1")
        await until_idle()
        assert (subscriber.received, world.hub.delivered, world.hub.channels["a"].messages) == (["1"], 0, 0)


# --- everything adds up ----------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """What happens next.

    Attributes:
        kind: The method of `Play`.
        subscriber: Which subscriber it is about.
        channel: Which channel.
    """

    kind: str
    subscriber: int
    channel: str


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(["publish", "publish", "publish", "join", "join", "leave", "take", "end", "lose"]),
        st.integers(0, 3),
        st.sampled_from("ab"),
    ),
    max_size=60,
)
POLICIES: list[FullPolicy] = ["close", "drop_oldest", "drop_newest", "latest"]


class Ledger:
    """One subscription, and each message that it is owed: what was published while it was in the channel.

    Attributes:
        owed: The messages that were published while it was joined.
        missed: Those of them that were published while the link was lost.
        taken: The messages that it returned.
        gaps: How many gaps it returned.
    """

    def __init__(self, world: World, policy: FullPolicy, counters: Counters) -> None:
        outbox = Outbox(Backlog(max_messages=3, when_full=policy))
        self.subscription = Subscription(world.hub, None, outbox, statistics=counters)
        self.owed: list[str] = []
        self.missed: list[str] = []
        self.taken: list[str | bytes] = []
        self.gaps = 0

    async def take(self, count: int) -> None:
        """Take up to so many items of what waits."""
        for _ in range(count):
            try:
                async with asyncio.timeout(0):
                    item = await anext(self.subscription)
            except (TimeoutError, StopAsyncIteration, SlowConsumerError):
                return
            if isinstance(item, Gap):
                self.gaps += 1
            else:
                self.taken.append(item.data)


class Play:
    """Four subscriptions, each with another policy, and what happens to them.

    Attributes:
        received: How many messages were published to a channel with a subscriber, while the link was there.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.counters = Counters()
        self.ledgers = [Ledger(world, policy, self.counters) for policy in POLICIES]
        self.received = 0

    def there(self, channel: str) -> list[Ledger]:
        """Return the subscriptions that have joined a channel."""
        return [each for each in self.ledgers if channel in each.subscription.channels]

    async def publish(self, step: Step, text: str) -> None:
        """Publish to a channel."""
        self.received += bool(self.there(step.channel))
        for each in self.there(step.channel):
            each.owed.append(text)
        self.world.deliver(step.channel, text)
        await until_idle()

    async def join(self, step: Step, _: str) -> None:
        """Join a channel, unless the subscription has ended."""
        subscription = self.ledgers[step.subscriber].subscription
        if not subscription.is_over:
            await subscription.join(step.channel)

    async def leave(self, step: Step, _: str) -> None:
        """Leave a channel."""
        await self.ledgers[step.subscriber].subscription.leave(step.channel)

    async def take(self, step: Step, _: str) -> None:
        """Take two items."""
        await self.ledgers[step.subscriber].take(2)

    async def end(self, step: Step, _: str) -> None:
        """End a subscription, for which something can wait."""
        self.ledgers[step.subscriber].subscription.discard()

    async def lose(self, step: Step, text: str) -> None:
        """Lose the link, publish what no worker receives, and open another link."""
        hub = self.world.hub
        before, reported = set(hub.channels), hub.gaps.reported
        await self.world.lose_link()
        for each in self.there(step.channel):
            each.missed.append(text)
        self.world.open_link()
        await until_idle()
        # A gap that does not fit ends its subscriber too, of which the other channels then need no notice.
        assert len(before & set(hub.channels)) <= hub.gaps.reported - reported <= len(before)

    async def check(self) -> None:
        """Take what waits, end, and compare what the subscriptions have with what was counted."""
        assert self.world.hub.gaps.reported == self.world.hub.gaps.causes["link_lost"]
        for ledger in self.ledgers:
            await ledger.take(1_000)
            assert Counter(ledger.taken) <= Counter(ledger.owed), "a message was delivered twice, or to the wrong one"
            assert not set(ledger.missed) & set(ledger.taken)
            ledger.subscription.discard()
        traffic, counted = traffic_of(self.world), self.counters.snapshot()
        delivered = sum(len(ledger.taken) for ledger in self.ledgers)
        dropped = (
            counted.dropped_oldest + counted.dropped_newest + counted.replaced + counted.overrun + counted.discarded
        )
        assert traffic.received == self.received
        assert traffic.offered == sum(len(ledger.owed) for ledger in self.ledgers) == delivered + dropped


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_every_message_is_in_exactly_one_figure(steps: list[Step]) -> None:
    """With random joins, leaves, drops, ends and lost links each message is delivered, dropped or missed, and once."""

    async def run() -> None:
        world = World(*new_hub())
        async with world.linked():
            play = Play(world)
            for ledger in play.ledgers:  # one that never had a channel cannot be iterated
                await ledger.subscription.join("first")
            for number, step in enumerate(steps):
                await getattr(play, step.kind)(step, f"{number}")
            await until_idle()
            await play.check()

    asyncio.run(run())
