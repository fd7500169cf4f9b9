"""`backplane.broker.supervisor`: the link from the first try to the stop, and how it is rebuilt after each loss."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from backplane.errors import (
    BrokerAuthenticationError,
    BrokerUnavailableError,
    SubscribeError,
)
from backplane.message import ALL, Gap
from tests.unit.controlled_adapter import Adapter
from tests.unit.doubles import Gate, RecordingSubscriber, until_idle
from tests.unit.kit import (
    BRISK_PROBE,
    PROBE_CHANNEL,
    SETTINGS,
    WAIT_SECONDS,
    SupervisedWorld,
    supervised,
    warnings_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection

    from backplane.broker.link_state import StateChange


pytestmark = pytest.mark.anyio

# --- start ---------------------------------------------------------------------------------------------------------


async def test_start_opens_the_link_and_stop_closes_it() -> None:
    """The state is starting, live and closed in turn, as the adapter is started and stopped."""
    made = SupervisedWorld()
    assert (made.supervisor.state, made.supervisor.generation) == ("starting", 0)
    await made.supervisor.start()
    assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)
    await made.supervisor.stop()
    assert (made.supervisor.state, made.supervisor.generation) == ("closed", 1)
    assert made.adapter.verbs == ["start", "stop"]


async def test_start_subscribes_to_what_is_wanted_already() -> None:
    """A join that is called while the first link is being opened is confirmed on it."""
    made = SupervisedWorld()
    made.adapter.start_gate.close()
    starting = asyncio.create_task(made.supervisor.start())
    joining = asyncio.create_task(made.joined("a"))
    await made.adapter.until(lambda: made.adapter.verbs == ["start"])
    made.adapter.start_gate.open()
    await asyncio.wait_for(asyncio.gather(starting, joining), WAIT_SECONDS)
    assert made.adapter.channels == {"a"}
    await made.supervisor.stop()


async def test_start_tries_again_after_a_retriable_error() -> None:
    """A start tries again until the broker can be reached."""
    adapter = Adapter()
    adapter.start_errors = [BrokerUnavailableError("not yet"), BrokerUnavailableError("not yet")]
    async with supervised(adapter) as made:
        assert adapter.verbs.count("start") == 3
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 3)


async def test_start_raises_the_last_error_when_time_is_up() -> None:
    """Where no try succeeds, the start ends at its timeout and raises the error of the last try."""
    made = SupervisedWorld(settings=replace(SETTINGS, start_timeout_seconds=0.2, max_backoff_seconds=0.02))
    made.adapter.start_errors = [BrokerUnavailableError(f"try {number}") for number in range(1, 100_000)]
    loop = asyncio.get_running_loop()
    begun = loop.time()
    with pytest.raises(BrokerUnavailableError) as caught:
        await asyncio.wait_for(made.supervisor.start(), WAIT_SECONDS)
    tries = made.adapter.verbs.count("start")
    assert str(caught.value) == f"try {tries}"
    assert tries > 1
    assert 0.2 - 0.02 <= loop.time() - begun < WAIT_SECONDS
    assert made.adapter.verbs[-1] == "stop"


@pytest.mark.parametrize("error", [BrokerAuthenticationError("wrong password"), RuntimeError("a fault")], ids=repr)
async def test_start_raises_at_once_what_another_try_cannot_help(error: Exception) -> None:
    """Refused credentials, or a fault of the adapter, are raised after one try."""
    made = SupervisedWorld()
    made.adapter.start_error = error
    with pytest.raises(type(error)) as caught:
        await asyncio.wait_for(made.supervisor.start(), WAIT_SECONDS)
    assert caught.value is error
    assert made.adapter.verbs == ["start", "stop"]


async def test_start_without_an_answer_times_out() -> None:
    """A broker that accepts the connection and never answers delays the start by its timeout and no more."""
    made = SupervisedWorld(settings=replace(SETTINGS, start_timeout_seconds=0.05))
    made.adapter.start_gate.close()
    with pytest.raises(BrokerUnavailableError, match=r"^no answer from controlled:// within "):
        await asyncio.wait_for(made.supervisor.start(), WAIT_SECONDS)
    assert made.adapter.verbs == ["start", "stop"]


async def test_start_that_times_out_raises_the_error_of_an_earlier_try() -> None:
    """The last try was cut short by the timeout, so the error of the try before it is raised."""
    made = SupervisedWorld(settings=replace(SETTINGS, start_timeout_seconds=0.3, max_backoff_seconds=0.02))
    made.adapter.start_errors = [BrokerUnavailableError("no TLS here")]
    starting = asyncio.create_task(made.supervisor.start())
    await made.adapter.until(lambda: made.adapter.verbs.count("start") == 1)
    made.adapter.start_gate.close()
    with pytest.raises(BrokerUnavailableError, match="no TLS here"):
        await asyncio.wait_for(starting, WAIT_SECONDS)


async def test_start_cancelled_stops_the_adapter() -> None:
    """A cancelled start leaves neither a link nor a task."""
    made = SupervisedWorld()
    made.adapter.start_gate.close()
    starting = asyncio.create_task(made.supervisor.start())
    await made.adapter.until(lambda: made.adapter.verbs == ["start"])
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled()
    assert made.adapter.verbs == ["start", "stop"]


async def test_start_stops_the_adapter_before_it_starts_it_again() -> None:
    """A first link whose subscriptions fail is closed before the next is opened: `start` and `stop` alternate."""
    made = SupervisedWorld()
    made.adapter.start_gate.close()
    made.adapter.error = BrokerUnavailableError("gone while subscribing")
    starting = asyncio.create_task(made.supervisor.start())
    joining = asyncio.create_task(made.joined("a"))
    await made.adapter.until(lambda: made.adapter.verbs == ["start"])
    made.adapter.start_gate.open()
    await made.adapter.until(lambda: made.adapter.verbs.count("start") == 2)
    made.adapter.error = None
    await asyncio.wait_for(asyncio.gather(starting, joining), WAIT_SECONDS)
    verbs = made.adapter.verbs
    await made.supervisor.stop()
    assert verbs[:4] == ["start", "subscribe", "stop", "start"]


async def test_start_raises_its_own_error_though_stop_raises_too() -> None:
    """The start raises why it failed, not that the adapter then failed to stop."""
    made = SupervisedWorld()
    made.adapter.start_error = BrokerAuthenticationError("wrong password")
    made.adapter.stop_error = RuntimeError("cannot stop")
    with pytest.raises(BrokerAuthenticationError, match=r"^wrong password$"):
        await asyncio.wait_for(made.supervisor.start(), WAIT_SECONDS)


async def test_start_fails_in_time_though_stop_hangs() -> None:
    """An adapter that hangs in `stop` does not delay the error of a failed start."""
    made = SupervisedWorld(stop_seconds=0.05)
    made.adapter.start_error = BrokerAuthenticationError("wrong password")
    made.adapter.stop_gate.close()
    with pytest.raises(BrokerAuthenticationError, match=r"^wrong password$"):
        await asyncio.wait_for(made.supervisor.start(), WAIT_SECONDS)


# --- a lost link ---------------------------------------------------------------------------------------------------


async def test_lost_link_is_rebuilt() -> None:
    """After a loss the adapter is stopped and started, every wanted channel is subscribed, and the state is live."""
    async with supervised() as made:
        await made.joined("a", "b")
        before = len(made.adapter.calls)
        await made.degrade()
        assert (made.supervisor.state, made.supervisor.generation) == ("degraded", 2)
        made.adapter.start_gate.open()
        await made.reaches("live", generation=2)
        stop, start, (verb, channels) = made.adapter.calls[before:]
        assert (stop, start) == (("stop", ()), ("start", ()))
        assert (verb, sorted(channels)) == ("subscribe", ["a", "b"])
        assert made.adapter.channels == {"a", "b"}


async def test_loss_reported_twice_is_one_loss() -> None:
    """An adapter that reports a loss twice causes one reconnect."""
    async with supervised() as made:
        made.adapter.cut()
        made.adapter.cut()
        await made.reaches("live", generation=2)
        await until_idle()
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 2)


@pytest.mark.parametrize(
    "error",
    [BrokerUnavailableError("refused"), BrokerAuthenticationError("wrong password"), RuntimeError("a fault")],
    ids=repr,
)
async def test_reconnect_is_tried_until_it_succeeds(error: Exception) -> None:
    """Once the link was live, no error ends the tries: the broker's rules, or its password, may be corrected."""
    async with supervised() as made:
        await made.joined("a")
        made.adapter.start_errors = [error] * 4
        made.adapter.cut()
        await made.reaches("live", generation=6)
        assert made.adapter.verbs[-11:] == ["stop", "start"] * 5 + ["subscribe"]
        assert made.adapter.channels == {"a"}


async def test_reconnect_without_an_answer_times_out() -> None:
    """A try that gets no answer ends at the start timeout, and another one follows."""
    async with supervised(settings=replace(SETTINGS, start_timeout_seconds=0.05)) as made:
        await made.degrade()
        await made.adapter.until(lambda: made.adapter.verbs.count("start") == 3)
        made.adapter.start_gate.open()
        await made.reaches("live", generation=3)


async def test_reconnect_lost_while_subscribing_is_tried_again() -> None:
    """A link that ends while channels are subscribed is no live one: all are subscribed on the next link."""
    async with supervised() as made:
        subscriber = await made.joined("a")
        made.adapter.error = BrokerUnavailableError("gone while subscribing")
        made.adapter.cut()
        await made.adapter.until(lambda: made.adapter.verbs.count("subscribe") == 3)
        assert (made.supervisor.state, subscriber.received) == ("degraded", [])
        made.adapter.error = None
        await made.reaches("live", generation=4)
        assert [type(item) for item in await subscriber.receives(1)] == [Gap]


async def test_back_off_doubles_to_its_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause is drawn evenly between 0 and a bound that doubles from 0.1 s up to the cap."""
    bounds: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        bounds.append((low, high))
        return 0.0

    async with supervised(settings=replace(SETTINGS, max_backoff_seconds=0.5)) as made:
        monkeypatch.setattr("backplane.broker.backoff.random.uniform", uniform)
        made.adapter.start_errors = [BrokerUnavailableError("refused")] * 4
        await made.recover()
    assert bounds == [(0, 0.1), (0, 0.2), (0, 0.4), (0, 0.5), (0, 0.5)]


@pytest.mark.parametrize(("stable_seconds", "expected"), [(-1.0, [0.1, 0.1]), (1000.0, [0.1, 0.2])])
async def test_back_off_is_reset_after_a_stable_link(
    monkeypatch: pytest.MonkeyPatch, stable_seconds: float, expected: list[float]
) -> None:
    """A link that was live for a while resets the back-off; one that was lost at once does not."""
    bounds: list[float] = []

    def uniform(_: float, high: float) -> float:
        bounds.append(high)
        return 0.0

    async with supervised(settings=replace(SETTINGS, max_backoff_seconds=5), stable_seconds=stable_seconds) as made:
        monkeypatch.setattr("backplane.broker.backoff.random.uniform", uniform)
        await made.recover()
        await made.recover()
    assert bounds == expected


# --- gaps ----------------------------------------------------------------------------------------------------------


async def test_gap_is_reported_after_the_confirmation_and_before_the_next_message() -> None:
    """Each subscriber gets one gap per channel, once the broker has confirmed the channel again."""
    async with supervised() as made:
        first, both = await made.joined("a"), await made.joined("a", "b")
        made.adapter.links[-1].deliver("a", b"before")
        made.adapter.subscribe_gate.close()
        made.adapter.cut()
        await made.adapter.until(lambda: made.adapter.verbs[-1] == "subscribe" and len(made.adapter.links) == 2)
        await until_idle()
        assert (first.received, both.received) == (["before"], ["before"])
        made.adapter.subscribe_gate.open()
        await made.reaches("live", generation=2)
        made.adapter.links[-1].deliver("a", b"after")
        await until_idle()
        gap = Gap(channel="a", reason="the link to the broker was lost: cut")
        assert first.received == ["before", gap, "after"]
        assert sorted(map(str, both.received)) == sorted(
            map(str, ["before", gap, Gap(channel="b", reason=gap.reason), "after"])
        )


async def test_gap_is_reported_before_a_message_that_overtakes_the_confirmation() -> None:
    """A message of the new link that arrives before `subscribe` has returned is delivered after the one gap."""
    async with supervised() as made:
        subscriber = await made.joined("a")
        made.adapter.subscribe_gate.close()
        made.adapter.cut()
        await made.adapter.until(lambda: made.adapter.verbs[-1] == "subscribe" and len(made.adapter.links) == 2)
        made.adapter.links[-1].deliver("a", b"early")
        assert [type(item) for item in await subscriber.receives(2)] == [Gap, str]
        made.adapter.subscribe_gate.open()
        await made.reaches("live", generation=2)
        await until_idle()
        assert len(subscriber.received) == 2


async def test_loss_between_an_early_message_and_the_confirmation_is_a_gap() -> None:
    """A link that is lost after a message overtook the broker's confirmation leaves a second gap on that channel."""
    async with supervised() as made:
        subscriber = await made.joined("a")
        made.adapter.subscribe_gate.close()
        made.adapter.cut()
        await made.adapter.until(lambda: made.adapter.verbs.count("subscribe") == 2)
        made.adapter.links[-1].deliver("a", b"early")
        assert len(await subscriber.receives(2)) == 2
        made.adapter.subscribe_gate.open()
        made.adapter.error = BrokerUnavailableError("cut once more")
        await made.adapter.until(lambda: made.adapter.verbs.count("subscribe") > 2)
        made.adapter.error = None
        reasons = [item.reason if isinstance(item, Gap) else item for item in await subscriber.receives(3)]
        assert reasons == [
            "the link to the broker was lost: cut",
            "early",
            "the link to the broker was lost: cut once more",
        ]


async def test_refusal_after_an_early_message_is_reported() -> None:
    """A channel that is refused after a message overtook the answer is reported, and once more when it is confirmed."""
    async with supervised() as made:
        subscriber = await made.joined("a", "b")
        made.adapter.refusals["a"] = "not yours"
        made.adapter.subscribe_gate.close()
        made.adapter.cut()
        await made.adapter.until(lambda: made.adapter.verbs.count("subscribe") == 3)
        made.adapter.links[-1].deliver("a", b"early")
        made.adapter.subscribe_gate.open()
        refused = Gap(channel="a", reason="the broker refused the channel: not yours")
        lost = Gap(channel="a", reason="the link to the broker was lost: cut")
        await made.reaches("live")
        assert [item for item in await subscriber.receives(4) if item != replace(lost, channel="b")] == [
            lost,
            "early",
            refused,
        ]
        del made.adapter.refusals["a"]
        made.broker_subscriptions.retry_refused()
        assert (await subscriber.receives(5))[-1] == refused


async def test_gap_is_reported_to_the_subscribers_of_the_lost_link() -> None:
    """A subscriber that joins while the link is down gets no gap, nor does one that left."""
    async with supervised() as made:
        stays, leaves = await made.joined("a"), await made.joined("a")
        await made.degrade()
        made.hub.leave("a", leaves)
        joining = asyncio.create_task(made.joined("a"))
        await until_idle()
        assert not joining.done()
        made.adapter.start_gate.open()
        joins = await asyncio.wait_for(joining, WAIT_SECONDS)
        await stays.receives(1)
        await until_idle()
        assert [len(subscriber.received) for subscriber in (stays, leaves, joins)] == [1, 0, 0]


async def test_gap_is_reported_once_for_each_loss() -> None:
    """Two losses with a live link between them are two gaps."""
    async with supervised() as made:
        subscriber = await made.joined("a")
        await made.recover()
        await made.recover()
        assert [type(item) for item in await subscriber.receives(2)] == [Gap, Gap]
        await until_idle()
        assert len(subscriber.received) == 2


async def test_link_that_ends_between_two_batches_is_a_loss_of_its_own() -> None:
    """A channel whose gap was reported on a link that ended before it was live has a second one, the others one."""

    class Adrift(Adapter):
        is_cut = False

        async def subscribe(self, channels: Collection[str]) -> None:
            if self.is_cut and self.verbs[-1] == "subscribe":
                self.is_cut = False
                raise BrokerUnavailableError("gone between two batches")
            await super().subscribe(channels)

    adapter = Adrift()
    async with supervised(adapter, batch_size=1) as made:
        subscribers = [await made.joined("a"), await made.joined("b")]
        adapter.is_cut = True
        adapter.cut()
        await made.reaches("live", generation=3)
        for subscriber in subscribers:
            await subscriber.receives(1)
        await until_idle()
        assert sorted(len(subscriber.received) for subscriber in subscribers) == [1, 2]


async def test_no_gap_where_the_adapter_resumes() -> None:
    """An adapter that resumes has missed nothing."""
    async with supervised(Adapter(resumes=True)) as made:
        subscriber = await made.joined("a")
        await made.recover()
        made.adapter.links[-1].deliver("a", b"after")
        assert await subscriber.receives(1) == ["after"]


async def test_gap_of_the_adapter_is_reported_at_once() -> None:
    """A gap that the adapter finds on a live link is reported in its place, and the link remains live."""
    async with supervised() as made:
        subscriber = await made.joined("a")
        other = await made.joined("b")
        link = made.adapter.links[-1]
        link.deliver("a", b"before")
        link.gap(["a"], "overrun")
        link.deliver("a", b"after")
        await subscriber.receives(3)
        assert subscriber.received == ["before", Gap(channel="a", reason="overrun"), "after"]
        assert other.received == []
        link.gap(ALL, "all of it")
        assert other.received == [Gap(channel="b", reason="all of it")]
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


# --- faults of an adapter ------------------------------------------------------------------------------------------


async def test_adapter_that_raises_in_stop_does_not_end_the_supervisor(caplog: pytest.LogCaptureFixture) -> None:
    """A `stop` that raises is logged, and the next start is tried all the same."""
    async with supervised() as made:
        made.adapter.stop_error = RuntimeError("cannot stop")
        await made.recover()
        assert "the adapter of controlled:// failed to stop" in warnings_of(caplog, logging.ERROR)
    assert made.supervisor.state == "closed"


async def test_adapter_that_hangs_in_stop_does_not_end_the_supervisor(caplog: pytest.LogCaptureFixture) -> None:
    """A `stop` that never returns is cancelled and logged, and the next start is tried all the same."""
    async with supervised(stop_seconds=0.05) as made:
        made.adapter.stop_gate.close()
        await made.recover()
        assert "the adapter of controlled:// failed to stop" in warnings_of(caplog, logging.ERROR)
    assert made.supervisor.state == "closed"


async def test_unexpected_error_while_subscribing_is_a_logged_loss(caplog: pytest.LogCaptureFixture) -> None:
    """A fault of the adapter is logged with its traceback, and the join is confirmed on the next link."""
    async with supervised() as made:
        made.adapter.error = RuntimeError("a fault")
        made.adapter.subscribe_gate.close()
        joining = asyncio.create_task(made.joined("a"))
        await made.adapter.until(lambda: made.adapter.verbs[-1] == "subscribe")
        made.adapter.start_gate.close()
        made.adapter.subscribe_gate.open()
        await made.adapter.until(lambda: made.adapter.verbs.count("start") == 2)
        assert made.supervisor.state == "degraded"
        made.adapter.error = None
        made.adapter.start_gate.open()
        await asyncio.wait_for(joining, WAIT_SECONDS)
        await made.reaches("live", generation=2)
    assert "unexpected error on the link to controlled://" in warnings_of(caplog, logging.ERROR)


async def test_join_on_a_lost_link_is_confirmed_on_the_next() -> None:
    """A join that the broker has not confirmed when the link is lost is requested again on the next one."""
    async with supervised() as made:
        made.adapter.subscribe_gate.close()
        joining = asyncio.create_task(made.joined("a"))
        await made.adapter.until(lambda: made.adapter.verbs[-1] == "subscribe")
        made.adapter.cut()
        await made.adapter.until(lambda: made.adapter.verbs.count("subscribe") == 2)
        assert not joining.done()
        made.adapter.subscribe_gate.open()
        subscriber = await asyncio.wait_for(joining, WAIT_SECONDS)
        await made.reaches("live", generation=2)
        assert subscriber.received == []


async def test_subscription_without_an_answer_ends_the_link(caplog: pytest.LogCaptureFixture) -> None:
    """Where the broker does not answer a subscription in time, the link is silent, and is rebuilt."""
    settings = replace(SETTINGS, subscribe_timeout_seconds=0.1)
    async with supervised(Adapter(brokered=True), settings) as made:
        made.adapter.subscribe_gate.close()
        with pytest.raises(BrokerUnavailableError, match="did not confirm channel 'a'"):
            await made.joined("a")
        await made.adapter.until(lambda: made.adapter.verbs.count("start") == 2)
        made.adapter.subscribe_gate.open()
        await made.reaches("live", generation=2)
    assert any("the link is silent: no answer to a subscription within 0.1 s" in line for line in warnings_of(caplog))


# --- a channel that ends links -------------------------------------------------------------------------------------


class TouchyAdapter(Adapter):
    """An adapter whose broker ends the link when one of some channels is subscribed.

    Attributes:
        touchy: The channels.
        batches: What was asked for, call by call, without the probe.
    """

    def __init__(self, *touchy: str) -> None:
        super().__init__(brokered=True)
        self.touchy = set(touchy)
        self.batches: list[set[str]] = []

    async def subscribe(self, channels: Collection[str]) -> None:
        """End the link because of such a channel, else subscribe."""
        self.batches.append(set(channels))
        if self.touchy.intersection(channels):
            self.cut()
            raise BrokerUnavailableError("the link is lost")
        await super().subscribe(channels)


async def test_channel_that_ends_links_is_refused() -> None:
    """Its join is refused after three links, the others are confirmed before it is tried alone, no retry follows."""
    adapter = TouchyAdapter("evil")
    async with supervised(adapter) as made:
        subscriber = await made.joined("a", "b")
        with pytest.raises(SubscribeError, match="'evil': the link to the broker ended each time"):
            await made.joined("evil")
        assert adapter.batches == [{"a"}, {"b"}, {"evil"}, {"a", "b", "evil"}, {"a", "b"}, {"evil"}]
        await made.reaches("live", generation=4)
        asked = len(adapter.batches)
        with pytest.raises(SubscribeError, match="it is not tried again for a minute or more"):
            await made.joined("evil")
        await made.recover()
        assert [batch for batch in adapter.batches[asked:] if "evil" in batch] == []
        assert adapter.channels == {"a", "b"}
        adapter.links[-1].deliver("a", b"after")
        received = await subscriber.receives(len(subscriber.received) + 1)
        assert received[-1] == "after"


async def test_joined_channel_that_begins_to_end_links_is_a_gap() -> None:
    """A channel that begins to end links is refused: its subscribers get a gap, and a further join raises."""
    adapter = TouchyAdapter()
    async with supervised(adapter) as made:
        names = [f"room-{number}" for number in range(400)]
        good, bad = await made.joined(*names), await made.joined("evil")
        adapter.touchy.add("evil")
        adapter.cut()
        async with asyncio.timeout(WAIT_SECONDS):
            while not bad.received:
                await bad.receives(1)
        (gap,) = bad.received
        assert isinstance(gap, Gap)
        assert "the broker refused the channel: the link to the broker ended each time" in gap.reason
        await adapter.until(lambda: adapter.channels.issuperset(names))
        # One loss each to count it twice, to find the piece of 25 and the channel in it.
        assert sum("evil" in batch for batch in adapter.batches) <= 6
        adapter.links[-1].deliver("room-7", b"after")
        async with asyncio.timeout(WAIT_SECONDS):
            while "after" not in good.received:
                await good.receives(len(good.received) + 1)


async def test_channel_that_ends_links_does_not_delay_a_start() -> None:
    """A strict start with such a channel among the wanted ones succeeds, with all the others."""
    adapter = TouchyAdapter("evil")
    made = SupervisedWorld(adapter)
    joining = {name: asyncio.create_task(made.joined(name)) for name in ("a", "evil", "b")}
    await until_idle()
    await asyncio.wait_for(made.supervisor.start(), WAIT_SECONDS)
    await asyncio.wait_for(asyncio.gather(joining["a"], joining["b"]), WAIT_SECONDS)
    with pytest.raises(SubscribeError):
        await asyncio.wait_for(joining["evil"], WAIT_SECONDS)
    await made.supervisor.stop()
    made.hub.close()


async def test_batch_that_is_too_large_is_split() -> None:
    """Where the broker ends the link because of the size of a batch, all channels are subscribed in smaller ones."""

    class Narrow(TouchyAdapter):
        async def subscribe(self, channels: Collection[str]) -> None:
            self.touchy = set(channels if len(channels) > 50 else ())
            await super().subscribe(channels)

    adapter = Narrow()
    async with supervised(adapter) as made:
        names = [f"room-{number}" for number in range(400)]
        joining = [asyncio.create_task(made.joined(name)) for name in names]
        await asyncio.wait_for(asyncio.gather(*joining), WAIT_SECONDS)
        assert adapter.channels == set(names)
        assert made.supervisor.generation == 4


async def test_losses_by_chance_quarantine_no_channel() -> None:
    """A join during which the link is lost several times is confirmed once a link stays."""
    async with supervised() as made:
        made.adapter.subscribe_gate.close()
        joining = asyncio.create_task(made.joined("a"))
        for subscribes in (1, 2):
            await made.adapter.until(lambda n=subscribes: made.adapter.verbs.count("subscribe") == n)  # type: ignore[misc]
            made.adapter.cut()
        made.adapter.subscribe_gate.open()
        await asyncio.wait_for(joining, WAIT_SECONDS)


# --- channels refused after a reconnect ----------------------------------------------------------------------------


@asynccontextmanager
async def refused_after_reconnect(adapter: Adapter) -> AsyncGenerator[tuple[SupervisedWorld, RecordingSubscriber]]:
    """Reconnect to a broker whose rules have changed: it refuses channel `a`."""
    async with supervised(adapter, BRISK_PROBE) as made:
        subscriber = await made.joined("a")
        await made.joined("b")
        adapter.refusals["a"] = "not permitted any more"
        await made.recover()
        yield made, subscriber


async def test_channel_refused_after_a_reconnect_is_a_gap(caplog: pytest.LogCaptureFixture) -> None:
    """The gap is reported at once and the refusal logged; other channels are not affected."""
    async with refused_after_reconnect(Adapter(brokered=True)) as (made, subscriber):
        assert [type(item) for item in await subscriber.receives(1)] == [Gap]
        assert (made.supervisor.state, made.adapter.channels) == ("live", {"b"})
    assert (
        "the broker refuses channels, their subscribers receive nothing: "
        "subscription refused: 'a': not permitted any more"
    ) in warnings_of(caplog, logging.ERROR)


async def test_channel_refused_after_a_reconnect_is_retried() -> None:
    """It is subscribed to again at each probe interval, and is confirmed once the broker's rules allow it."""
    adapter = Adapter(brokered=True)
    async with refused_after_reconnect(adapter) as (_, subscriber):
        asked = adapter.calls.count(("subscribe", ("a",)))
        await adapter.until(lambda: adapter.calls.count(("subscribe", ("a",))) >= asked + 2)
        adapter.refusals.clear()
        await adapter.until(lambda: "a" in adapter.channels)
        adapter.links[-1].deliver("a", b"again")
        async with asyncio.timeout(WAIT_SECONDS):
            while "again" not in subscriber.received:
                await subscriber.receives(len(subscriber.received) + 1)


async def test_channel_allowed_again_is_a_second_gap() -> None:
    """A client that reloaded at the refusal has missed messages until the confirmation, which a second gap reports."""
    adapter = Adapter(brokered=True)
    async with refused_after_reconnect(adapter) as (_, subscriber):
        assert [type(item) for item in await subscriber.receives(1)] == [Gap]
        adapter.refusals.clear()
        await adapter.until(lambda: "a" in adapter.channels)
        adapter.links[-1].deliver("a", b"again")
        await subscriber.receives(2)
        await until_idle()
        assert [type(item) for item in subscriber.received] == [Gap, Gap, str]


async def test_refused_channel_is_retried_where_the_probe_is_refused_too() -> None:
    """Where the broker forbids the probe too, a channel is confirmed all the same once it is allowed again."""
    adapter = Adapter(brokered=True)
    adapter.refusals[PROBE_CHANNEL] = "not permitted"
    async with refused_after_reconnect(adapter):
        await adapter.until(lambda: adapter.calls.count(("subscribe", (PROBE_CHANNEL,))) >= 1)
        asked = adapter.calls.count(("subscribe", ("a",)))
        await adapter.until(lambda: adapter.calls.count(("subscribe", ("a",))) > asked + 1, timeout_seconds=1)


# --- stop ----------------------------------------------------------------------------------------------------------


async def test_stop_twice() -> None:
    """Stopping again changes nothing."""
    async with supervised() as made:
        await made.supervisor.stop()
        await made.supervisor.stop()
        assert (made.supervisor.state, made.adapter.sink) == ("closed", None)


async def test_stop_while_degraded() -> None:
    """A stop does not wait for an unreachable broker, and leaves no task."""
    before = asyncio.all_tasks()
    async with supervised() as made:
        await made.joined("a")
        await made.degrade()
        await asyncio.wait_for(made.supervisor.stop(), WAIT_SECONDS)
        assert (made.supervisor.state, made.adapter.verbs[-1]) == ("closed", "stop")
        assert asyncio.all_tasks() == before


async def test_stop_ends_joins_that_wait() -> None:
    """A join that is unconfirmed at the stop raises then, without waiting for its timeout."""
    async with supervised() as made:
        made.adapter.subscribe_gate.close()
        joining = asyncio.create_task(made.joined("a"))
        await made.adapter.until(lambda: made.adapter.verbs[-1] == "subscribe")
        await made.supervisor.stop()
        with pytest.raises(BrokerUnavailableError, match="stopped"):
            await asyncio.wait_for(joining, WAIT_SECONDS)


async def test_cancelled_stop_can_be_repeated() -> None:
    """A stop that is cancelled ends the task, and a second stop closes the link."""
    async with supervised() as made:
        await made.joined("a")
        made.adapter.stop_gate.close()
        stopping = asyncio.create_task(made.supervisor.stop())
        await made.adapter.until(lambda: made.adapter.verbs[-1] == "stop")
        stopping.cancel()
        await asyncio.wait([stopping])
        assert stopping.cancelled()
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "backplane-supervisor"]
        made.adapter.stop_gate.open()
        await made.supervisor.stop()
        assert (made.supervisor.state, made.adapter.sink) == ("closed", None)


async def test_stop_cancelled_at_once_closes_the_link() -> None:
    """A stop that is cancelled at its first await leaves no open link."""
    async with supervised() as made:
        stopping = asyncio.create_task(made.supervisor.stop())
        await asyncio.sleep(0)
        stopping.cancel()
        await asyncio.wait([stopping])
        await until_idle()
        assert made.adapter.sink is None


@pytest.mark.parametrize("passes", range(8))
async def test_stop_right_after_a_loss(passes: int) -> None:
    """A stop ends the task at whichever point of handling a loss it is."""
    async with supervised(Adapter(brokered=True)) as made:
        await made.joined("a")
        made.adapter.cut()
        for _ in range(passes):
            await asyncio.sleep(0)
        await asyncio.wait_for(made.supervisor.stop(), WAIT_SECONDS)
        assert (made.supervisor.state, made.adapter.sink) == ("closed", None)


async def test_stop_while_the_adapter_cleans_up_after_a_loss() -> None:
    """A stop ends the task though a call of the adapter, cancelled by the loss, takes time to end."""
    async with supervised() as made:
        made.adapter.subscribe_gate.close()
        made.adapter.cancel_gate.close()
        joining = asyncio.create_task(made.joined("a"))
        await made.adapter.until(lambda: made.adapter.verbs[-1] == "subscribe")
        made.adapter.cut()
        await until_idle()
        stopping = asyncio.create_task(made.supervisor.stop())
        await until_idle()
        made.adapter.cancel_gate.open()
        done, _ = await asyncio.wait([stopping], timeout=WAIT_SECONDS)
        joining.cancel()
        assert done, f"stop does not return, the state is {made.supervisor.state}"
        assert made.supervisor.state == "closed"


async def test_stop_while_the_adapter_answers_cancellation_with_an_error() -> None:
    """A stop ends the task though an adapter turns the cancellation of a call into another error."""
    async with supervised() as made:
        made.adapter.subscribe_gate.close()
        made.adapter.cancel_error = BrokerUnavailableError("the link is being closed")
        joining = asyncio.create_task(made.joined("a"))
        await made.adapter.until(lambda: made.adapter.verbs[-1] == "subscribe")
        stopping = asyncio.create_task(made.supervisor.stop())
        done, _ = await asyncio.wait([stopping], timeout=WAIT_SECONDS)
        joining.cancel()
        assert done, f"stop does not return, the state is {made.supervisor.state}"
        assert made.supervisor.state == "closed"


async def test_stop_while_a_reconnect_answers_cancellation_with_an_error() -> None:
    """A stop ends the attempts to reconnect though an adapter turns the cancellation of one into another error."""
    async with supervised() as made:
        await made.joined("a")
        made.adapter.subscribe_gate.close()
        made.adapter.cancel_error = BrokerUnavailableError("the link is being closed")
        subscribes = made.adapter.verbs.count("subscribe")
        made.adapter.cut()
        await made.adapter.until(lambda: made.adapter.verbs.count("subscribe") > subscribes)
        starts = made.adapter.verbs.count("start")
        await asyncio.wait_for(made.supervisor.stop(), WAIT_SECONDS)
        assert (made.supervisor.state, made.adapter.sink) == ("closed", None)
        assert made.adapter.verbs.count("start") == starts


# --- the adapter's own check ---------------------------------------------------------------------------------------


class CheckingAdapter(Adapter):
    """An adapter that can check whether it is linked to the right server."""

    def __init__(self) -> None:
        super().__init__()
        self.check_gate = Gate()
        self.check_error: Exception | None = None

    async def check(self) -> None:
        """Answer as the test decides, once the gate is open."""
        self._record("check")
        await self.check_gate.passage()
        if self.check_error is not None:
            raise self.check_error


@pytest.mark.parametrize("error", [BrokerUnavailableError("a replica now"), RuntimeError("a fault")], ids=repr)
async def test_check_that_raises_rebuilds_the_link(error: Exception) -> None:
    """A link that leads to the wrong server is rebuilt, and its subscribers get a gap."""
    adapter = CheckingAdapter()
    async with supervised(adapter, BRISK_PROBE) as made:
        subscriber = await made.joined("a")
        await adapter.until(lambda: adapter.verbs.count("check") == 2)
        assert (made.supervisor.generation, subscriber.received) == (1, [])
        adapter.check_error = error
        await adapter.until(lambda: adapter.verbs.count("start") == 2)
        adapter.check_error = None
        await made.reaches("live", generation=2)
        assert [type(item) for item in await subscriber.receives(1)] == [Gap]


async def test_check_without_an_answer_twice_in_a_row_is_a_silent_link() -> None:
    """A check can use a connection that nothing else uses, so two in a row without an answer count like two probes."""
    changes: list[StateChange] = []
    adapter = CheckingAdapter()
    adapter.check_gate.close()
    async with supervised(adapter, BRISK_PROBE, changes.append) as made:
        await adapter.until(lambda: adapter.verbs.count("check") == 2)
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)
        await made.reaches("live", generation=2)
        assert changes[1].reason == "the link is silent: 2 checks got no answer"
        adapter.check_gate.open()


async def test_check_without_an_answer_once_is_repeated() -> None:
    """One check without an answer does not end the link."""
    adapter = CheckingAdapter()
    async with supervised(adapter, BRISK_PROBE) as made:
        for checks in (1, 3, 5):
            adapter.check_gate.close()
            await adapter.until(lambda checks=checks: adapter.verbs.count("check") == checks + 1)  # type: ignore[misc]
            adapter.check_gate.open()
            await adapter.until(lambda checks=checks: adapter.verbs.count("check") == checks + 2)  # type: ignore[misc]
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


# --- start without the broker --------------------------------------------------------------------------------------

LAZY = replace(SETTINGS, start="lazy")


async def test_lazy_start_with_the_broker_is_live() -> None:
    """A lazy start that opens the link at its first try is live when it returns."""
    async with supervised(settings=LAZY) as made:
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


@pytest.mark.parametrize(
    "error", [BrokerUnavailableError("refused"), BrokerAuthenticationError("wrong password")], ids=repr
)
async def test_lazy_start_is_degraded_and_tries_again(error: Exception) -> None:
    """A start without the broker returns; the channels are confirmed without a gap once the broker can be reached."""
    adapter = Adapter()
    adapter.start_errors = [error] * 3
    changes: list[StateChange] = []
    async with supervised(adapter, LAZY, changes.append) as made:
        assert (made.supervisor.state, made.supervisor.is_alive) == ("degraded", True)
        subscriber = await made.joined("a")
        await made.reaches("live", generation=4)
        assert subscriber.received == []
    assert [(change.old, change.new, change.generation) for change in changes] == [
        ("starting", "degraded", 1),
        ("degraded", "live", 4),
        ("live", "closed", 4),
    ]
    assert changes[0].reason == f"started without the broker: {error}"


async def test_lazy_start_without_an_answer_times_out() -> None:
    """A broker that does not answer delays a lazy start by the start timeout, no longer."""
    adapter = Adapter()
    adapter.start_gate.close()
    async with supervised(adapter, replace(LAZY, start_timeout_seconds=0.02)) as made:
        assert made.supervisor.state == "degraded"
        adapter.start_gate.open()
        await made.reaches("live")


async def test_lazy_start_does_not_hide_a_fault() -> None:
    """An error that is not the broker's is raised, and nothing runs in the background."""
    made = SupervisedWorld(settings=LAZY)
    made.adapter.start_error = RuntimeError("a fault")
    with pytest.raises(RuntimeError, match="a fault"):
        await made.supervisor.start()
    assert made.adapter.verbs == ["start", "stop"]


# --- a supervisor that dies ----------------------------------------------------------------------------------------


def fail(*_: object) -> None:
    """Fail."""
    raise RuntimeError("a fault")


async def test_supervisor_that_dies_is_degraded_and_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the task of the supervisor fails, the state is degraded, the error is logged, and health checks fail."""
    async with supervised() as made:
        assert made.supervisor.is_alive
        monkeypatch.setattr(made.hub, "open_gap", fail)
        made.adapter.cut()
        async with asyncio.timeout(WAIT_SECONDS):
            while made.supervisor.is_alive:
                await asyncio.sleep(0)
        await until_idle()
        assert made.supervisor.state == "degraded"
        assert "the supervisor of the link failed" in warnings_of(caplog, logging.CRITICAL)[0]
