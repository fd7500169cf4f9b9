"""`backplane.fanout.patterns`: who receives what by pattern, how often, and what is reported after a loss."""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from backplane import (
    Backlog,
    Backplane,
    BrokerUnavailableError,
    ClosedError,
    ConfigurationError,
    Gap,
    History,
    InvalidChannelError,
    Message,
    SlowConsumerError,
    SubscribeError,
)
from backplane.fanout.broker_subscriptions import BrokerSubscriptions
from backplane.fanout.codec import encode_path_test
from backplane.fanout.hub import Hub
from backplane.fanout.traffic import Traffic
from backplane.message import ALL
from tests.unit.controlled_adapter import Adapter
from tests.unit.doubles import RecordingSubscriber, run_passes, until_idle
from tests.unit.kit import AT_ONCE, NEVER, ORIGIN, SETTINGS, WAIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection

    from backplane import Subscription
    from backplane.broadcaster import Capabilities, Sink

pytestmark = pytest.mark.anyio


class PrefixAdapter(Adapter):
    """An adapter with prefixes, each recorded as it is asked for.

    Attributes:
        prefixes: What is subscribed.
        fatal: Prefixes that end the link.
    """

    def __init__(self, *, resumes: bool = False) -> None:
        super().__init__(resumes=resumes)
        self.prefixes: set[str] = set()
        self.fatal: set[str] = set()

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return replace(super().capabilities, patterns=True)

    async def stop(self) -> None:
        """Forget everything."""
        await super().stop()
        self.prefixes.clear()

    async def subscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Subscribe to what is not refused."""
        await self._called("subscribe_prefixes", prefixes, self.subscribe_gate)
        if self.fatal.intersection(prefixes):
            self.cut()
            raise BrokerUnavailableError("cut")
        refused = {prefix: self.refusals[prefix] for prefix in prefixes if prefix in self.refusals}
        unconfirmed = {prefix: self.unconfirmed[prefix] for prefix in prefixes if prefix in self.unconfirmed}
        self.prefixes.update(set(prefixes) - refused.keys() - unconfirmed.keys())
        if refused or unconfirmed:
            raise SubscribeError(refused, unconfirmed=unconfirmed)

    async def unsubscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Drop prefixes."""
        await self._called("unsubscribe_prefixes", prefixes, self.unsubscribe_gate)
        self.prefixes.difference_update(prefixes)
        self._changed.set()

    def arrive(self, channel: str, *texts: str) -> None:
        """Let the broker deliver texts on the present link."""
        for text in texts:
            self.links[-1].deliver(channel, text.encode())


class ResumingAdapter(PrefixAdapter):
    """One that goes on where it was, with its prefixes."""

    def __init__(self) -> None:
        super().__init__(resumes=True)

    async def suspend(self) -> None:
        """Keep the prefixes."""
        self.sink = None
        self.channels.clear()

    async def resume(self, sink: Sink, channels: Collection[str]) -> None:
        """Open the link again."""
        self._record("resume")
        await self.start_gate.passage()
        self.links.append(sink)
        self.sink = sink
        self.channels.update(channels)
        self._changed.set()


class PatternWorld:
    """A hub with patterns, whose broker confirms every prefix at once."""

    def __init__(self, *, linger_seconds: float = 0, **options: Any) -> None:
        self.names = BrokerSubscriptions(linger_seconds=linger_seconds, timeout_seconds=WAIT_SECONDS)
        self.prefixes = BrokerSubscriptions(linger_seconds=linger_seconds, timeout_seconds=WAIT_SECONDS)
        self.hub = Hub(self.names, prefixes=self.prefixes, traffic=Traffic(ORIGIN), most_rest_seconds=0, **options)
        self.adapter = Adapter()

    @asynccontextmanager
    async def linked(self) -> AsyncGenerator[PatternWorld]:
        """Keep the broker in line for as long as the block."""
        tasks = [asyncio.create_task(each.run(self.adapter)) for each in (self.names, self.prefixes)]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self.names.close()
            self.prefixes.close()
            self.hub.close()

    async def joined(self, *patterns: str, names: Collection[str] = ()) -> RecordingSubscriber:
        """Return a subscriber of patterns and names."""
        subscriber = RecordingSubscriber()
        async with asyncio.timeout(WAIT_SECONDS):
            for pattern in patterns:
                await self.hub.patterns.join(pattern, subscriber)
            for name in names:
                await self.hub.join(name, subscriber)
        return subscriber

    def deliver(self, channel: str, *texts: str) -> None:
        """Let the broker deliver."""
        for text in texts:
            self.hub.deliver(channel, text.encode())


async def take(messages: Subscription, count: int) -> list[tuple[str, object]]:
    """Return the next items, a gap by its type."""
    async with asyncio.timeout(WAIT_SECONDS):
        items = [await anext(messages) for _ in range(count)]
    return [(item.channel, item.data if isinstance(item, Message) else Gap) for item in items]


def kinds(subscriber: RecordingSubscriber) -> list[str | bytes]:
    """Return what was received, a gap by its channel."""
    return [item.channel if isinstance(item, Gap) else item for item in subscriber.received]


# --- what is received ----------------------------------------------------------------------------------------------


async def test_names_and_patterns_mix() -> None:
    """A message has its real channel, and comes once to a subscriber that wants it in three ways."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a.*", "a.x", "*", "b") as messages:
        for channel in ("a.x", "b", "c", "a.", "a.*", "a"):
            await backplane.publish(channel, "")
        assert [channel for channel, _ in await take(messages, 6)] == ["a.x", "b", "c", "a.", "a.*", "a"]
        assert (list(messages.channels), list(messages.patterns)) == (["a.x", "b"], ["a.*", "*"])
        assert backplane.statistics().delivered == 6


async def test_a_pattern_is_left() -> None:
    """After `leave` only what is wanted in another way comes; a pattern and a name of the same text are two things."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a.*", "a.x") as messages:
        await messages.join("a.*", exact=True)
        await messages.leave("a.*")
        await messages.leave("a.*")
        for channel in ("a.y", "a.x", "a.*"):
            await backplane.publish(channel, "")
        assert [channel for channel, _ in await take(messages, 2)] == ["a.x", "a.*"]
        await messages.leave("a.*", exact=True)
        await backplane.publish("a.*", "")
        await backplane.publish("a.x", "last")
        assert await take(messages, 1) == [("a.x", "last")]


async def test_exact_names() -> None:
    """With `exact=True` a `*` is a plain character, and nothing is logged."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a.*", exact=True) as messages:
        await backplane.publish("a.x", "")
        await backplane.publish("a.*", "")
        assert await take(messages, 1) == [("a.*", "")]
        assert (list(messages.channels), list(messages.patterns)) == (["a.*"], [])


@pytest.mark.parametrize(
    "channel", ["$backplane/probe/00", "__keyspace@0__:key", "__sentinel__:hello", "__redis__:invalidate"]
)
async def test_no_pattern_matches_a_reserved_channel(channel: str) -> None:
    """Channels of the package and of the broker never reach a pattern, whatever the broker delivers."""
    async with PatternWorld().linked() as world:
        subscriber = await world.joined("*", "$*", "__*")
        world.deliver(channel, "1")
        world.deliver("", "2")
        world.deliver("a", "3")
        await until_idle()
        assert subscriber.received == ["3"]


@pytest.mark.parametrize("options", [{"rewind": 3}, {"since": "AQ"}, {"since": {"a.*": "AQ"}}])
async def test_a_pattern_has_no_position(options: Any) -> None:
    """`since` and `rewind` are refused, with the reason; a mapping for the names beside it is not."""
    async with Backplane("memory://", history={"kept*": History()}) as backplane:
        with pytest.raises(ConfigurationError, match="has no position"):
            async with backplane.subscribe("a.*", **options):
                pytest.fail("the block was entered")
        async with backplane.subscribe("kept", "b.*", since={"kept": "AQ"}) as messages:
            assert await take(messages, 1) == [("kept", Gap)]
            with pytest.raises(ConfigurationError, match="has no position"):
                await messages.join("a.*", **options)


@pytest.mark.parametrize("pattern", ["*" * 256, "$backplane/*", "__keyspace@*", "\ud800*"])
async def test_a_pattern_that_is_no_valid_name(pattern: str) -> None:
    """A pattern is checked as a channel is."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a") as messages:
        with pytest.raises(InvalidChannelError):
            await messages.join(pattern)


async def test_a_broker_without_patterns_is_named() -> None:
    """The error names the broker, and what to do."""
    async with Backplane(Adapter(url="controlled://somewhere")) as backplane:
        with pytest.raises(ConfigurationError, match=r"controlled://somewhere cannot .* 'a\.\*'.*pubsub=classic"):
            async with backplane.subscribe("a.*"):
                pytest.fail("the block was entered")
        async with backplane.subscribe("a.*", exact=True):
            pass


async def test_what_excludes_a_subscriber() -> None:
    """A message that excludes it does not reach it through a pattern either."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a.*") as messages:
        await backplane.publish("a.x", "1", exclude=messages.id)
        await backplane.publish("a.x", "2")
        assert await take(messages, 1) == [("a.x", "2")]


async def test_a_slow_consumer_of_a_pattern() -> None:
    """The bound of its backlog holds for everything that it matches together."""
    async with (
        Backplane("memory://") as backplane,
        backplane.subscribe("*", backlog=Backlog(max_messages=10)) as messages,
        backplane.subscribe("*", backlog=Backlog(max_messages=10, when_full="drop_oldest")) as dropping,
    ):
        for number in range(20):
            await backplane.publish(f"a{number}", "")
        with pytest.raises(SlowConsumerError):
            await take(messages, 20)
        await dropping.leave("*")
        assert (await take(dropping, 10))[-1] == ("a19", "")
        assert dropping.dropped == 10


async def test_reserved_channels_by_name_are_received_beside_every_channel() -> None:
    """Who is subscribed to a channel of this package by its name receives it, also where `*` is subscribed."""
    async with PatternWorld().linked() as world:
        everything, workers = await world.joined("*"), await world.joined(names=["$backplane/workers"])
        world.deliver("$backplane/workers", "1")
        await until_idle()
        assert (everything.received, workers.received, world.hub.delivered) == ([], ["1"], 0)


async def test_path_tests_and_malformed_payloads_are_counted_once() -> None:
    """What is no message reaches no subscriber, and is counted as on a channel with a name."""
    async with PatternWorld().linked() as world:
        subscriber = await world.joined("a.*", "*")
        world.hub.deliver("a.x", encode_path_test(b"TEST_ID8", origin=ORIGIN, published_at=1.0))
        world.hub.deliver("a.x", b"\xbfBP\x07")
        world.hub.deliver("b", b"\xbfBP\x07")
        await until_idle()
        assert (subscriber.received, world.hub.path_tests, world.hub.malformed) == ([], 1, 2)


async def test_what_is_counted() -> None:
    """A message counts once for the worker, once for each pattern, and once for each subscriber it is offered to."""
    async with PatternWorld().linked() as world:
        await world.joined("a.*", "a.x*", names=["a.x"])
        await world.joined("a.*")
        world.deliver("a.x", "12", "34")
        world.deliver("a.y", "56")
        await until_idle()
        counts = {text: (each.messages, each.size_bytes) for text, each in world.hub.patterns.subscribed.items()}
        assert counts == {"a.*": (3, 6), "a.x*": (2, 4)}
        assert (world.hub.channels["a.x"].messages, world.hub.delivered, world.hub.traffic.offered) == (2, 3, 6)


# --- joins and leaves ----------------------------------------------------------------------------------------------


async def test_prefixes_are_asked_for_once_and_left_with_the_last() -> None:
    """Patterns of one prefix share a subscription; it is unsubscribed after the last leave."""
    async with PatternWorld().linked() as world:
        one = await world.joined("a.*", "a.*x", "b*")
        two = await world.joined("a.*")
        assert sorted(world.adapter.channels) == ["a.", "b"]
        for pattern in ("a.*", "a.*x", "b*", "not joined"):
            world.hub.patterns.leave(pattern, one)
        world.hub.patterns.leave("a.*", one)
        await world.adapter.until(lambda: world.adapter.channels == {"a."})
        world.deliver("a.x", "1")
        await until_idle()
        assert (one.received, two.received) == ([], ["1"])


async def test_a_join_that_fails_undoes_itself_alone() -> None:
    """A refused or cancelled join leaves the other subscriber of the pattern, and the same one's first join."""
    async with PatternWorld().linked() as world:
        world.adapter.refusals["no."] = "it may not"
        with pytest.raises(SubscribeError, match="it may not"):
            await world.joined("no.*")
        assert world.hub.patterns.subscribed == {}
        world.adapter.subscribe_gate.close()
        subscriber = RecordingSubscriber()
        joins = [asyncio.create_task(world.hub.patterns.join("a.*", subscriber)) for _ in range(2)]
        await world.adapter.until(lambda: ("subscribe", ("a.",)) in world.adapter.calls)
        joins[0].cancel()
        await asyncio.wait([joins[0]])
        world.adapter.subscribe_gate.open()
        await joins[1]
        world.deliver("a.x", "1")
        await until_idle()
        assert subscriber.received == ["1"]


async def test_a_leave_during_a_join_that_is_repeated() -> None:
    """A join whose pattern was left meanwhile by another one joins again."""
    async with PatternWorld(linger_seconds=NEVER).linked() as world:
        world.adapter.subscribe_gate.close()
        subscriber = RecordingSubscriber()
        joining = asyncio.create_task(world.hub.patterns.join("a.*", subscriber))
        await world.adapter.until(lambda: ("subscribe", ("a.",)) in world.adapter.calls)
        world.hub.patterns.leave("a.*", subscriber)
        other = asyncio.create_task(world.joined("a.*"))
        world.adapter.subscribe_gate.open()
        await joining
        await other
        world.deliver("a.x", "1")
        await until_idle()
        assert subscriber.received == ["1"]


async def test_a_leave_while_delivering() -> None:
    """Who leaves between two slices gets nothing more; who leaves one of two ways still gets it, once."""
    async with PatternWorld(slice_size=1, pass_seconds=0).linked() as world:
        first = await world.joined("a.*")
        leaving = await world.joined("a.*")
        staying = await world.joined("a.*", "*", names=["a.x"])
        world.deliver("a.x", "1")
        await run_passes(1)  # who is subscribed by name is first
        assert [each.received for each in (first, leaving, staying)] == [[], [], ["1"]]
        world.hub.patterns.leave("a.*", leaving)
        world.hub.patterns.leave("a.*", first)
        await world.hub.patterns.join("*", first)
        await until_idle()
        assert [each.received for each in (first, leaving, staying)] == [["1"], [], ["1"]]


async def test_patterns_come_and_go_under_load() -> None:
    """A subscriber that stays misses nothing and gets nothing twice while thousands of others come and go."""
    async with PatternWorld().linked() as world:
        staying = await world.joined("a.*")
        others = [RecordingSubscriber() for _ in range(20)]
        for number in range(200):
            other, pattern = others[number % 20], f"a.{number % 7}*"
            await world.hub.patterns.join(pattern, other)
            world.deliver(f"a.{number % 7}", str(number))
            await until_idle()
            world.hub.patterns.leave(pattern, other)
        assert staying.received == [str(number) for number in range(200)]
        assert sorted(int(str(text)) for other in others for text in other.received) == list(range(200))


async def test_ten_thousand_patterns() -> None:
    """Each receives its own; all of them leave nothing in memory."""
    async with PatternWorld().linked() as world:
        subscriber = RecordingSubscriber()
        await asyncio.gather(*(world.hub.patterns.join(f"user:{number}:*", subscriber) for number in range(10_000)))
        for number in range(0, 10_000, 1_000):
            world.deliver(f"user:{number}:x", str(number))
        world.deliver("user:10000:x", "none")
        await until_idle()
        assert subscriber.received == [str(number) for number in range(0, 10_000, 1_000)]
        for number in range(10_000):
            world.hub.patterns.leave(f"user:{number}:*", subscriber)
        assert (world.hub.patterns.subscribed, world.hub.patterns.match("user:1:x")) == ({}, None)


async def test_what_is_remembered_of_channels_is_bounded() -> None:
    """Clients can name any number of channels."""
    async with PatternWorld().linked() as world:
        await world.joined("a*")
        for number in range(25_000):
            assert world.hub.patterns.match(f"b{number}") is None
        assert world.hub.patterns.texts("a") == ["a*"]
        assert len(world.hub.patterns._remembered) <= 10_000  # pyright: ignore[reportPrivateUsage]


# --- losses --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def backplane_on(adapter: PrefixAdapter) -> AsyncGenerator[Backplane]:
    """Start a backplane whose link a test cuts."""
    async with Backplane(adapter, settings=replace(SETTINGS, linger_seconds=AT_ONCE)) as backplane:
        yield backplane


async def test_a_lost_link_is_one_gap_for_each_pattern() -> None:
    """The gap names the pattern, and comes before what the next link delivers; names have gaps of their own."""
    adapter = PrefixAdapter()
    async with backplane_on(adapter) as backplane, backplane.subscribe("a.*", "b") as messages:
        adapter.arrive("a.x", "1")
        adapter.cut()
        await adapter.until(
            lambda: len(adapter.links) == 2 and adapter.prefixes == {"a."} and adapter.channels == {"b"}
        )
        await until_idle()
        adapter.arrive("a.y", "2")
        assert sorted(map(str, await take(messages, 4))) == sorted(
            map(str, [("a.x", "1"), ("b", Gap), ("a.*", Gap), ("a.y", "2")])
        )


async def test_what_overtakes_the_confirmation_is_in_the_gap() -> None:
    """A message that another prefix brings does not end the gap of a pattern that is not confirmed."""
    adapter = PrefixAdapter()
    async with (
        backplane_on(adapter) as backplane,
        backplane.subscribe("a.x.*") as narrow,
        backplane.subscribe("a.*") as wide,
    ):
        adapter.unconfirmed["a."] = "it is loading"
        adapter.cut()
        await adapter.until(lambda: len(adapter.links) == 2 and adapter.prefixes == {"a.x."})
        await until_idle()
        adapter.arrive("a.x.1", "1")
        assert await take(narrow, 2) == [("a.x.*", Gap), ("a.x.1", "1")]
        adapter.unconfirmed.clear()
        await adapter.until(lambda: adapter.prefixes == {"a.x.", "a."})
        await until_idle()
        adapter.arrive("a.x.1", "2")
        items = await take(wide, 2)
        assert items[-1] == ("a.x.1", "2")
        assert items[0] == ("a.*", Gap)


async def test_a_refusal_after_a_lost_link_is_reported() -> None:
    """A prefix that is refused now is a gap at once, and one more when it is confirmed again."""
    adapter = PrefixAdapter()
    settings = replace(SETTINGS, linger_seconds=AT_ONCE, probe_interval_seconds=0.05)
    async with Backplane(adapter, settings=settings) as backplane, backplane.subscribe("a.*") as messages:
        adapter.refusals["a."] = "it may not"
        adapter.cut()
        assert await take(messages, 1) == [("a.*", Gap)]
        adapter.refusals.clear()
        assert await take(messages, 1) == [("a.*", Gap)]


async def test_a_gap_of_known_channels_names_those_that_match() -> None:
    """Each channel that matches is named once, in its place; one of another channel is not reported."""
    async with PatternWorld().linked() as world:
        subscriber = await world.joined("a.*", "*.x", names=["a.y"])
        other = await world.joined("b*")
        world.deliver("a.x", "1")
        world.hub.gap(["a.x", "a.y", "c.y"], "lost some")
        world.deliver("a.x", "2")
        await until_idle()
        assert sorted(kinds(subscriber)) == sorted(["1", "a.x", "a.y", "2"])
        assert kinds(subscriber).index("1") < kinds(subscriber).index("a.x") < kinds(subscriber).index("2")
        assert other.received == []


async def test_a_gap_of_everything_is_reported_once() -> None:
    """It follows what was received before, and names the pattern."""
    async with PatternWorld().linked() as world:
        subscriber = await world.joined("a.*")
        world.deliver("a.x", "1")
        world.hub.gap(ALL, "lost some")
        world.deliver("a.x", "2")
        await until_idle()
        assert kinds(subscriber) == ["1", "a.*", "2"]


async def test_many_are_notified_in_slices_before_what_follows() -> None:
    """However many subscribe to a pattern, none gets a message before the gap."""
    async with PatternWorld(slice_size=3, pass_seconds=0).linked() as world:
        subscribers = [await world.joined("a.*") for _ in range(20)]
        world.hub.gap(ALL, "lost some")
        world.deliver("a.x", "1")
        world.hub.gap(["a.x"], "lost more")
        world.deliver("a.x", "2")
        for subscriber in subscribers:
            await subscriber.receives(4)
        for subscriber in subscribers:
            assert kinds(subscriber) == ["a.*", "1", "a.x", "2"]


async def test_a_revoked_name_is_reported_to_patterns() -> None:
    """Where the broker takes a name away, what it delivered until then may be missing for a pattern too."""
    async with PatternWorld().linked() as world:
        named, matching = await world.joined(names=["a.x"]), await world.joined("a.*")
        world.hub.revoke(["a.x"], "taken away")
        await until_idle()
        assert kinds(matching) == ["a.x"]
        await world.adapter.until(lambda: world.adapter.calls.count(("subscribe", ("a.x",))) == 2)
        await until_idle()
        assert kinds(named) == ["a.x"]


async def test_a_link_that_resumes_is_no_gap() -> None:
    """An adapter that resumes keeps its prefixes; what was left meanwhile is unsubscribed."""
    adapter = ResumingAdapter()
    async with backplane_on(adapter) as backplane, backplane.subscribe("a.*", "b.*") as messages:
        adapter.start_gate.close()
        adapter.cut()
        await adapter.until(lambda: "resume" in adapter.verbs)
        await messages.leave("b.*")
        adapter.start_gate.open()
        await adapter.until(lambda: len(adapter.links) == 2)
        adapter.arrive("a.x", "1")
        assert await take(messages, 1) == [("a.x", "1")]
        await adapter.until(lambda: adapter.prefixes == {"a."})


async def test_an_unconfirmed_prefix_of_a_resumed_link_is_a_gap() -> None:
    """Where the broker does not confirm a prefix again, messages may be missing after all."""
    adapter = ResumingAdapter()
    async with backplane_on(adapter) as backplane, backplane.subscribe("a.*") as messages:
        adapter.unconfirmed["a."] = "it is loading"
        adapter.cut()
        await adapter.until(lambda: len(adapter.links) == 2)
        adapter.unconfirmed.clear()
        assert await take(messages, 1) == [("a.*", Gap)]


async def test_a_prefix_that_ends_the_link_is_refused_alone() -> None:
    """The links go on ending until the prefix is alone; then its join is refused, and the others receive."""
    adapter = PrefixAdapter()
    adapter.fatal = {"fatal."}
    async with backplane_on(adapter) as backplane, backplane.subscribe("a.*") as messages:
        with pytest.raises(SubscribeError, match="the link to the broker ended"):
            async with asyncio.timeout(WAIT_SECONDS):
                await messages.join("fatal.*")
        await adapter.until(lambda: adapter.prefixes == {"a."})
        await until_idle()
        adapter.arrive("a.x", "1")
        async with asyncio.timeout(WAIT_SECONDS):
            while not isinstance(item := await anext(messages), Message):
                pass
        assert item.data == "1"


async def test_a_subscription_that_ends_during_the_join() -> None:
    """It is in no pattern afterwards, though the broker has confirmed the prefix."""
    adapter = PrefixAdapter()
    async with backplane_on(adapter) as backplane, backplane.subscribe("b") as messages:
        adapter.subscribe_gate.close()
        joining = asyncio.create_task(messages.join("a.*"))
        await adapter.until(lambda: ("subscribe_prefixes", ("a.",)) in adapter.calls)
        messages.end()
        adapter.subscribe_gate.open()
        with pytest.raises(ClosedError):
            await joining
        assert list(messages.patterns) == []


async def test_what_a_worker_has_of_a_channel() -> None:
    """Subscribers of its name and of patterns count once, and the broker delivers it by its prefix."""
    async with PatternWorld().linked() as world:
        patterns = world.hub.patterns
        assert (world.hub.audience("a.x"), patterns.is_wanted("a.x", confirmed=False)) == (0, False)
        await world.joined("a.*", "*", names=["a.x"])
        await world.joined("a.*")
        assert [world.hub.audience(channel) for channel in ("a.x", "a.y", "b", "$backplane/x")] == [2, 2, 1, 0]
        assert [patterns.is_wanted("a.x", confirmed=each) for each in (False, True)] == [True, True]
        assert not patterns.is_wanted("$backplane/x", confirmed=False)


async def test_a_gap_of_known_channels_of_a_lost_link() -> None:
    """What a link had lost before it was lost itself is reported once the prefix is confirmed."""
    async with PatternWorld().linked() as world:
        subscriber = await world.joined("a.*")
        other = await world.joined("b.*")
        world.hub.open_gap(["a.x"], "lost some", "adapter")
        world.deliver("a.x", "in the gap")
        await until_idle()
        world.hub.patterns.gaps.report(["a.*"])
        assert (kinds(subscriber), other.received) == (["a.*"], [])


async def test_a_join_that_waits_ends_with_the_backplane() -> None:
    """The stop ends it, and the link has a task for prefixes no longer."""
    adapter = PrefixAdapter()
    async with backplane_on(adapter) as backplane:
        adapter.subscribe_gate.close()

        async def subscribe() -> None:
            async with backplane.subscribe("a.*"):
                pytest.fail("the block was entered")

        joining = asyncio.create_task(subscribe())
        await adapter.until(lambda: ("subscribe_prefixes", ("a.",)) in adapter.calls)
    with pytest.raises(BrokerUnavailableError):
        await joining


async def test_an_unsubscribed_prefix_is_not_kept_over_a_link() -> None:
    """What was left while the link was lost is not subscribed on the next one."""
    adapter = PrefixAdapter()
    async with backplane_on(adapter) as backplane, backplane.subscribe("a.*", "b.*") as messages:
        await messages.leave("b.*")
        await adapter.until(lambda: adapter.prefixes == {"a."})
        adapter.cut()
        await adapter.until(lambda: len(adapter.links) == 2 and adapter.prefixes == {"a."})


# --- history -------------------------------------------------------------------------------------------------------


async def test_a_pattern_gets_what_is_kept_live() -> None:
    """A message of a channel with a history reaches it once, whether or not its name is joined, and in order."""
    async with (
        Backplane("memory://", history={"kept.*": History()}) as backplane,
        backplane.subscribe("kept.*") as by_pattern,
    ):
        await backplane.publish("kept.a", "1")
        async with backplane.subscribe("kept.a", rewind=5) as by_name:
            await backplane.publish("kept.a", "2")
            await by_pattern.join("kept.a")
            await backplane.publish("kept.a", "3")
            await by_pattern.leave("kept.a")
            await backplane.publish("kept.a", "4")
            assert await take(by_name, 4) == [("kept.a", str(number)) for number in (1, 2, 3, 4)]
        await backplane.publish("kept.a", "5")
        assert await take(by_pattern, 5) == [("kept.a", str(number)) for number in (1, 2, 3, 4, 5)]
        assert backplane.statistics().delivered == 5


async def test_order_where_a_channel_becomes_kept_and_is_no_longer() -> None:
    """What waits for a slow fan-out is neither lost, repeated nor overtaken when its name is joined and left."""
    async with (
        Backplane("memory://", history={"kept.*": History()}) as backplane,
        backplane.subscribe("other") as by_name,
        AsyncExitStack() as stack,
    ):
        matching = [await stack.enter_async_context(backplane.subscribe("kept.*")) for _ in range(7)]
        hub = hub_of(backplane)
        hub._slice_size, hub._pass_seconds = 1, 0.0  # pyright: ignore[reportPrivateUsage]
        hub.deliver("kept.a", b"1")
        await run_passes(2)
        hub.deliver("kept.a", b"2")
        await by_name.join("kept.a")
        await backplane.publish("kept.a", "3")
        hub.deliver("kept.a", b"4")
        await by_name.leave("kept.a")
        await backplane.publish("kept.a", "5")
        for messages in matching:
            assert await take(messages, 5) == [("kept.a", str(number)) for number in (1, 2, 3, 4, 5)]


async def test_a_name_that_is_left_in_doubt_is_a_gap() -> None:
    """What is held back while a channel is read is in neither way for a subscriber that keeps only its pattern."""
    async with (
        Backplane("memory://", history={"kept.*": History()}) as backplane,
        backplane.subscribe("kept.a", "kept.*") as messages,
        backplane.subscribe("kept.a") as by_name,
    ):
        await backplane.publish("kept.a", "1")
        await until_idle()
        hub_of(backplane).gap(["kept.a"], "lost some")
        await messages.leave("kept.a")
        await by_name.leave("kept.a")
        await backplane.publish("kept.a", "2")
        assert await take(messages, 3) == [("kept.a", "1"), ("kept.a", Gap), ("kept.a", "2")]


async def test_what_is_kept_waits_for_the_gap_of_a_pattern() -> None:
    """While its prefix is not confirmed a pattern gets nothing of a kept channel either: the gap covers it."""
    async with (
        Backplane("memory://", history={"kept.*": History()}) as backplane,
        backplane.subscribe("kept.a") as by_name,
        backplane.subscribe("kept.*") as messages,
        backplane.subscribe("other*") as other,
    ):
        hub = hub_of(backplane)
        hub.patterns.open_gap(ALL, "lost some", "link_lost", resumed=False)
        await backplane.publish("kept.a", "1")
        assert await take(by_name, 1) == [("kept.a", "1")]
        hub.patterns.gaps.report(["kept.*", "other*"])
        await messages.leave("kept.*")
        await backplane.publish("kept.a", "2")
        await backplane.publish("other", "3")
        assert await take(messages, 1) == [("kept.*", Gap)]
        assert await take(other, 2) == [("other*", Gap), ("other", "3")]


def hub_of(backplane: Backplane) -> Hub:
    """Return the hub of a started backplane."""
    runtime = backplane._runtime  # pyright: ignore[reportPrivateUsage]
    assert runtime is not None
    return runtime.hub


async def test_nothing_stays_in_memory() -> None:
    """A thousand subscriptions of patterns leave no object in memory."""
    async with Backplane("memory://") as backplane:

        async def one(number: int) -> None:
            async with backplane.subscribe(f"a{number}.*", "*") as messages:
                await backplane.publish(f"a{number}.x", "")
                await anext(messages)

        async def counted() -> int:
            await until_idle()
            gc.collect()
            return len(gc.get_objects())

        for number in range(20):
            await one(number)
        before = await counted()
        for number in range(200):
            await one(number)
        assert await counted() - before < 200 * 5
