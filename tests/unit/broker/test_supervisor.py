"""`backplane.broker.supervisor`: one owner per link, from the first try to the stop, through every loss."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from backplane.errors import (
    BrokerAuthenticationError,
    BrokerUnavailableError,
    PublishError,
    PublishOutcomeUnknownError,
    SubscribeError,
)
from backplane.message import ALL, Gap
from tests.unit.doubles import Gate, until_idle
from tests.unit.supervised import (
    BRISK_PROBE,
    PROBE_CHANNEL,
    SETTINGS,
    WAIT_SECONDS,
    Adapter,
    Listener,
    World,
    supervised,
    warnings_of,
    world,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection

    from backplane.broker.supervisor import StateChange


pytestmark = pytest.mark.anyio

# --- start ---------------------------------------------------------------------------------------------------------


async def test_start_opens_the_link_and_stop_closes_it() -> None:
    """The state goes from starting over live to closed, along with the adapter."""
    made = world()
    assert (made.supervisor.state, made.supervisor.generation) == ("starting", 0)
    await made.supervisor.start()
    assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)
    await made.supervisor.stop()
    assert (made.supervisor.state, made.supervisor.generation) == ("closed", 1)
    assert made.adapter.verbs == ["start", "stop"]


async def test_start_asks_for_what_is_wanted_already() -> None:
    """A join made while the first link is being opened is confirmed by it."""
    made = world()
    made.adapter.start_gate.close()
    starting = asyncio.create_task(made.supervisor.start())
    joining = asyncio.create_task(made.listener("a"))
    await made.adapter.until(lambda: made.adapter.verbs == ["start"])
    made.adapter.start_gate.open()
    await asyncio.wait_for(asyncio.gather(starting, joining), WAIT_SECONDS)
    assert made.adapter.channels == {"a"}
    await made.supervisor.stop()


async def test_start_tries_again_after_a_retriable_error() -> None:
    """A broker that is not there yet is tried until it is."""
    adapter = Adapter()
    adapter.start_errors = [BrokerUnavailableError("not yet"), BrokerUnavailableError("not yet")]
    async with supervised(adapter) as made:
        assert adapter.verbs.count("start") == 3
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 3)


async def test_start_raises_the_last_error_when_time_is_up() -> None:
    """A broker that stays away costs the start timeout, and the error of the last try is the one raised."""
    made = world(settings=replace(SETTINGS, start_timeout_seconds=0.2, max_backoff_seconds=0.02))
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
    made = world()
    made.adapter.start_error = error
    with pytest.raises(type(error)) as caught:
        await asyncio.wait_for(made.supervisor.start(), WAIT_SECONDS)
    assert caught.value is error
    assert made.adapter.verbs == ["start", "stop"]


async def test_start_that_never_answers_is_cut_off() -> None:
    """A broker that accepts and says nothing costs the start timeout and no more."""
    made = world(settings=replace(SETTINGS, start_timeout_seconds=0.05))
    made.adapter.start_gate.close()
    with pytest.raises(BrokerUnavailableError, match=r"^no answer from controlled:// within "):
        await asyncio.wait_for(made.supervisor.start(), WAIT_SECONDS)
    assert made.adapter.verbs == ["start", "stop"]


async def test_start_that_is_cut_off_raises_what_an_earlier_try_found() -> None:
    """The last try, which ended with the time, explains less than the one before it."""
    made = world(settings=replace(SETTINGS, start_timeout_seconds=0.3, max_backoff_seconds=0.02))
    made.adapter.start_errors = [BrokerUnavailableError("no TLS here")]
    starting = asyncio.create_task(made.supervisor.start())
    await made.adapter.until(lambda: made.adapter.verbs.count("start") == 1)
    made.adapter.start_gate.close()
    with pytest.raises(BrokerUnavailableError, match="no TLS here"):
        await asyncio.wait_for(starting, WAIT_SECONDS)


async def test_start_cancelled_stops_the_adapter() -> None:
    """A cancelled start leaves neither a link nor a task."""
    made = world()
    made.adapter.start_gate.close()
    starting = asyncio.create_task(made.supervisor.start())
    await made.adapter.until(lambda: made.adapter.verbs == ["start"])
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled()
    assert made.adapter.verbs == ["start", "stop"]


async def test_start_stops_the_adapter_before_it_starts_it_again() -> None:
    """A first link whose subscriptions fail is closed before the next is opened: `start` and `stop` alternate."""
    made = world()
    made.adapter.start_gate.close()
    made.adapter.error = BrokerUnavailableError("gone while subscribing")
    starting = asyncio.create_task(made.supervisor.start())
    joining = asyncio.create_task(made.listener("a"))
    await made.adapter.until(lambda: made.adapter.verbs == ["start"])
    made.adapter.start_gate.open()
    await made.adapter.until(lambda: made.adapter.verbs.count("start") == 2)
    made.adapter.error = None
    await asyncio.wait_for(asyncio.gather(starting, joining), WAIT_SECONDS)
    verbs = made.adapter.verbs
    await made.supervisor.stop()
    assert verbs[:4] == ["start", "subscribe", "stop", "start"]


async def test_start_raises_its_own_error_though_stop_raises_too() -> None:
    """What the user reads is why the start failed, not that the adapter then failed to stop."""
    made = world()
    made.adapter.start_error = BrokerAuthenticationError("wrong password")
    made.adapter.stop_error = RuntimeError("cannot stop")
    with pytest.raises(BrokerAuthenticationError, match=r"^wrong password$"):
        await asyncio.wait_for(made.supervisor.start(), WAIT_SECONDS)


async def test_start_fails_in_time_though_stop_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter that hangs in `stop` does not hold the error of a failed start back."""
    monkeypatch.setattr("backplane.broker.supervisor._STOP_SECONDS", 0.05)
    made = world()
    made.adapter.start_error = BrokerAuthenticationError("wrong password")
    made.adapter.stop_gate.close()
    with pytest.raises(BrokerAuthenticationError, match=r"^wrong password$"):
        await asyncio.wait_for(made.supervisor.start(), 2)


# --- a lost link ---------------------------------------------------------------------------------------------------


async def test_lost_link_is_rebuilt() -> None:
    """A loss leads to: degraded, adapter stopped, started again, every wanted channel subscribed again, live."""
    async with supervised() as made:
        await made.listener("a", "b")
        before = len(made.adapter.calls)
        await made.degrade()
        assert (made.supervisor.state, made.supervisor.generation) == ("degraded", 2)
        made.adapter.start_gate.open()
        await made.reaches("live", generation=2)
        stop, start, (verb, channels) = made.adapter.calls[before:]
        assert (stop, start) == (("stop", ()), ("start", ()))
        assert (verb, sorted(channels)) == ("subscribe", ["a", "b"])
        assert made.adapter.channels == {"a", "b"}


async def test_lost_link_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Loss and return are warnings, so that a default set-up shows both; the return says how long it took."""
    caplog.set_level(logging.INFO, "backplane.broker.supervisor")
    async with supervised() as made:
        await made.recover()
    lines = [
        (record.levelname, re.sub(r"after \d+\.\d s", "after N s", record.getMessage())) for record in caplog.records
    ]
    assert lines == [
        ("INFO", "starting -> live (generation 1): connected to controlled://"),
        ("WARNING", "live -> degraded (generation 1): cut"),
        ("WARNING", "degraded -> live (generation 2): connected to controlled:// after N s"),
        ("INFO", "live -> closed (generation 2): stopped"),
    ]


async def test_outage_of_many_tries_is_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Tries that fail in the way that is known already are not logged one by one, for whatever reason."""
    async with supervised() as made:
        made.adapter.start_errors = [BrokerUnavailableError("refused")] * 30
        made.adapter.cut()
        await made.reaches("live", generation=32)
        assert len(warnings_of(caplog)) == 2


@pytest.mark.parametrize("error", [BrokerAuthenticationError("wrong password"), RuntimeError("a fault")], ids=repr)
async def test_outage_of_another_kind_is_logged_once(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """An error that the loss did not name is logged at once, a fault with its traceback, and not at every try."""
    async with supervised() as made:
        made.adapter.start_errors = [error] * 10
        made.adapter.cut()
        await made.reaches("live", generation=12)
        _, line, _ = warnings_of(caplog)
        assert line == f"still no link to controlled:// after 0 s, tries: 1: {error}"
        assert [bool(record.exc_info) for record in caplog.records] == [False, isinstance(error, RuntimeError), False]


async def test_outage_that_lasts_is_logged_rarely(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported again in intervals that double, with the number of tries and the last error."""
    monkeypatch.setattr("backplane.broker.supervisor._OUTAGE_LOG_SECONDS", 0.05)
    async with supervised() as made:
        made.adapter.start_error = BrokerUnavailableError("refused")
        made.adapter.cut()
        await made.adapter.until(lambda: len(warnings_of(caplog)) == 4)
        made.adapter.start_error = None
        await made.reaches("live", generation=2)
        assert made.supervisor.generation > 10
        assert len(warnings_of(caplog)) <= 6
        assert warnings_of(caplog)[1].startswith("still no link to controlled:// after 0 s, tries: ")


async def test_loss_reported_twice_is_one_loss() -> None:
    """An adapter that says it twice costs one reconnect."""
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
    """Once it was live, no error ends the owner: the broker's rules, or its password, may be put right."""
    async with supervised() as made:
        await made.listener("a")
        made.adapter.start_errors = [error] * 4
        made.adapter.cut()
        await made.reaches("live", generation=6)
        assert made.adapter.verbs[-11:] == ["stop", "start"] * 5 + ["subscribe"]
        assert made.adapter.channels == {"a"}


async def test_reconnect_that_never_answers_is_cut_off() -> None:
    """A broker that accepts and says nothing is left after the start timeout and tried again."""
    async with supervised(settings=replace(SETTINGS, start_timeout_seconds=0.05)) as made:
        await made.degrade()
        await made.adapter.until(lambda: made.adapter.verbs.count("start") == 3)
        made.adapter.start_gate.open()
        await made.reaches("live", generation=3)


async def test_reconnect_lost_while_subscribing_is_tried_again() -> None:
    """A link that ends before every channel is subscribed was none: stop, start, and all channels again."""
    async with supervised() as made:
        listener = await made.listener("a")
        made.adapter.error = BrokerUnavailableError("gone while subscribing")
        made.adapter.cut()
        await made.adapter.until(lambda: made.adapter.verbs.count("subscribe") == 3)
        assert (made.supervisor.state, listener.heard) == ("degraded", [])
        made.adapter.error = None
        await made.reaches("live", generation=4)
        assert [type(item) for item in await listener.hears(1)] == [Gap]


async def test_back_off_doubles_to_its_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause is drawn evenly between 0 and a bound that doubles from 0.1 s up to the cap."""
    bounds: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        bounds.append((low, high))
        return 0.0

    async with supervised(settings=replace(SETTINGS, max_backoff_seconds=0.5)) as made:
        monkeypatch.setattr("backplane.broker.supervisor.random.uniform", uniform)
        made.adapter.start_errors = [BrokerUnavailableError("refused")] * 4
        await made.recover()
    assert bounds == [(0, 0.1), (0, 0.2), (0, 0.4), (0, 0.5), (0, 0.5)]


@pytest.mark.parametrize(("stable_seconds", "expected"), [(-1.0, [0.1, 0.1]), (1000.0, [0.1, 0.2])])
async def test_back_off_begins_anew_after_a_good_link(
    monkeypatch: pytest.MonkeyPatch, stable_seconds: float, expected: list[float]
) -> None:
    """A link that stood for a while resets the back-off; one that fell at once does not."""
    bounds: list[float] = []

    def uniform(_: float, high: float) -> float:
        bounds.append(high)
        return 0.0

    monkeypatch.setattr("backplane.broker.supervisor._STABLE_SECONDS", stable_seconds)
    async with supervised(settings=replace(SETTINGS, max_backoff_seconds=5)) as made:
        monkeypatch.setattr("backplane.broker.supervisor.random.uniform", uniform)
        await made.recover()
        await made.recover()
    assert bounds == expected


# --- gaps ----------------------------------------------------------------------------------------------------------


async def test_gap_stands_behind_the_confirmation_and_before_the_next_message() -> None:
    """Each subscriber hears one gap per channel, once the broker has confirmed it again."""
    async with supervised() as made:
        first, both = await made.listener("a"), await made.listener("a", "b")
        made.adapter.links[-1].deliver("a", b"before")
        made.adapter.subscribe_gate.close()
        made.adapter.cut()
        await made.adapter.until(lambda: made.adapter.verbs[-1] == "subscribe" and len(made.adapter.links) == 2)
        await until_idle()
        assert (first.heard, both.heard) == (["before"], ["before"])
        made.adapter.subscribe_gate.open()
        await made.reaches("live", generation=2)
        made.adapter.links[-1].deliver("a", b"after")
        await until_idle()
        gap = Gap(channel="a", reason="the link to the broker was lost: cut")
        assert first.heard == ["before", gap, "after"]
        assert sorted(map(str, both.heard)) == sorted(
            map(str, ["before", gap, Gap(channel="b", reason=gap.reason), "after"])
        )


async def test_gap_stands_before_a_message_that_overtakes_the_confirmation() -> None:
    """A message of the new link that arrives before `subscribe` has returned comes behind the gap, told once."""
    async with supervised() as made:
        listener = await made.listener("a")
        made.adapter.subscribe_gate.close()
        made.adapter.cut()
        await made.adapter.until(lambda: made.adapter.verbs[-1] == "subscribe" and len(made.adapter.links) == 2)
        made.adapter.links[-1].deliver("a", b"early")
        assert [type(item) for item in await listener.hears(2)] == [Gap, str]
        made.adapter.subscribe_gate.open()
        await made.reaches("live", generation=2)
        await until_idle()
        assert len(listener.heard) == 2


async def test_gap_is_told_to_those_who_were_there() -> None:
    """Who joins while the link is down missed nothing it was promised, and who left hears nothing more."""
    async with supervised() as made:
        stays, leaves = await made.listener("a"), await made.listener("a")
        await made.degrade()
        made.hub.leave("a", leaves)
        joining = asyncio.create_task(made.listener("a"))
        await until_idle()
        assert not joining.done()
        made.adapter.start_gate.open()
        joins = await asyncio.wait_for(joining, WAIT_SECONDS)
        await stays.hears(1)
        await until_idle()
        assert [len(listener.heard) for listener in (stays, leaves, joins)] == [1, 0, 0]


async def test_gap_is_told_once_for_each_loss() -> None:
    """Two losses with a live link between them are two gaps."""
    async with supervised() as made:
        listener = await made.listener("a")
        await made.recover()
        await made.recover()
        assert [type(item) for item in await listener.hears(2)] == [Gap, Gap]
        await until_idle()
        assert len(listener.heard) == 2


async def test_link_that_ends_between_two_batches_is_a_loss_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel whose gap was reported on a link that ended before it was live has a second one, the others one."""

    class Adrift(Adapter):
        is_cut = False

        async def subscribe(self, channels: Collection[str]) -> None:
            if self.is_cut and self.verbs[-1] == "subscribe":
                self.is_cut = False
                raise BrokerUnavailableError("gone between two batches")
            await super().subscribe(channels)

    monkeypatch.setattr("backplane.fanout.broker_subscriptions._BATCH", 1)
    adapter = Adrift()
    async with supervised(adapter) as made:
        listeners = [await made.listener("a"), await made.listener("b")]
        adapter.is_cut = True
        adapter.cut()
        await made.reaches("live", generation=3)
        for listener in listeners:
            await listener.hears(1)
        await until_idle()
        assert sorted(len(listener.heard) for listener in listeners) == [1, 2]


async def test_no_gap_where_the_adapter_resumes() -> None:
    """An adapter that goes on where it was has missed nothing."""
    async with supervised(Adapter(resumes=True)) as made:
        listener = await made.listener("a")
        await made.recover()
        made.adapter.links[-1].deliver("a", b"after")
        assert await listener.hears(1) == ["after"]


async def test_gap_of_the_adapter_is_told_at_once() -> None:
    """A queue that overran on a standing link is told in its place, and the link stays live."""
    async with supervised() as made:
        listener = await made.listener("a")
        other = await made.listener("b")
        link = made.adapter.links[-1]
        link.deliver("a", b"before")
        link.gap(["a"], "overrun")
        link.deliver("a", b"after")
        await listener.hears(3)
        assert listener.heard == ["before", Gap(channel="a", reason="overrun"), "after"]
        assert other.heard == []
        link.gap(ALL, "all of it")
        assert other.heard == [Gap(channel="b", reason="all of it")]
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


# --- publish -------------------------------------------------------------------------------------------------------


async def test_publish_while_degraded_goes_through_when_the_link_returns() -> None:
    """A publish waits for a lost link, and is sent once."""
    async with supervised() as made:
        await made.degrade()
        publishing = asyncio.create_task(made.supervisor.publish("a", b"patient"))
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
        publishing = asyncio.create_task(made.supervisor.publish("a", b"patient"))
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
            await asyncio.wait_for(made.supervisor.publish("a", b"too late"), WAIT_SECONDS)
        made.adapter.start_gate.open()
        await made.reaches("live", generation=2)
        await until_idle()
        assert "publish" not in made.adapter.verbs


async def test_publish_without_an_answer_has_an_unknown_outcome() -> None:
    """A broker that does not answer may have published it."""
    async with supervised(settings=replace(SETTINGS, publish_timeout_seconds=0.05)) as made:
        made.adapter.publish_gate.close()
        with pytest.raises(PublishOutcomeUnknownError, match=r"^no answer within 0\.05 s; it may have been published$"):
            await asyncio.wait_for(made.supervisor.publish("a", b"who knows"), WAIT_SECONDS)
        assert made.supervisor.state == "live"


@pytest.mark.parametrize("error", [PublishError("refused"), PublishOutcomeUnknownError("cut")], ids=repr)
async def test_publish_raises_what_the_adapter_raises(error: PublishError) -> None:
    """A refusal goes to the publisher as it is, and is not tried again."""
    async with supervised() as made:
        made.adapter.publish_errors["a"] = error
        with pytest.raises(PublishError) as caught:
            await made.supervisor.publish("a", b"no")
        assert caught.value is error
        assert made.adapter.verbs.count("publish") == 1


async def test_publish_cancelled_while_it_waits_is_not_sent() -> None:
    """Who gives up waiting for the link has published nothing."""
    async with supervised() as made:
        await made.degrade()
        publishing = asyncio.create_task(made.supervisor.publish("a", b"never"))
        await until_idle()
        publishing.cancel()
        await asyncio.wait([publishing])
        made.adapter.start_gate.open()
        await made.reaches("live", generation=2)
        await until_idle()
        assert "publish" not in made.adapter.verbs


# --- faults of an adapter ------------------------------------------------------------------------------------------


async def test_adapter_that_raises_in_stop_does_not_end_the_owner(caplog: pytest.LogCaptureFixture) -> None:
    """A `stop` that raises is logged, and the next start is tried all the same."""
    async with supervised() as made:
        made.adapter.stop_error = RuntimeError("cannot stop")
        await made.recover()
        assert "the adapter of controlled:// failed to stop" in warnings_of(caplog, logging.ERROR)
    assert made.supervisor.state == "closed"


async def test_adapter_that_hangs_in_stop_does_not_end_the_owner(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A `stop` that never returns is cut off and logged, and the next start is tried all the same."""
    monkeypatch.setattr("backplane.broker.supervisor._STOP_SECONDS", 0.05)
    async with supervised() as made:
        made.adapter.stop_gate.close()
        await made.recover()
        assert "the adapter of controlled:// failed to stop" in warnings_of(caplog, logging.ERROR)
    assert made.supervisor.state == "closed"


async def test_unexpected_error_while_subscribing_is_healed_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A fault of the adapter costs a reconnect and a loud log line, and the join goes through on the next link."""
    async with supervised() as made:
        made.adapter.error = RuntimeError("a fault")
        made.adapter.subscribe_gate.close()
        joining = asyncio.create_task(made.listener("a"))
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


async def test_lost_link_while_joining_is_healed() -> None:
    """A join the broker has not confirmed when the link is lost is asked again on the next one."""
    async with supervised() as made:
        made.adapter.subscribe_gate.close()
        joining = asyncio.create_task(made.listener("a"))
        await made.adapter.until(lambda: made.adapter.verbs[-1] == "subscribe")
        made.adapter.cut()
        await made.adapter.until(lambda: made.adapter.verbs.count("subscribe") == 2)
        assert not joining.done()
        made.adapter.subscribe_gate.open()
        listener = await asyncio.wait_for(joining, WAIT_SECONDS)
        await made.reaches("live", generation=2)
        assert listener.heard == []


# --- a channel over which links end --------------------------------------------------------------------------------


class TouchyAdapter(Adapter):
    """An adapter whose broker ends the link when it is asked for a channel.

    Attributes:
        touchy: The channels.
        batches: What was asked for, call by call, without the probe.
    """

    def __init__(self, *touchy: str) -> None:
        super().__init__(brokered=True)
        self.touchy = set(touchy)
        self.batches: list[set[str]] = []

    async def subscribe(self, channels: Collection[str]) -> None:
        """End the link over a touchy channel, else subscribe."""
        self.batches.append(set(channels))
        if self.touchy.intersection(channels):
            self.cut()
            raise BrokerUnavailableError("the link is lost")
        await super().subscribe(channels)


async def test_channel_over_which_links_end_is_refused() -> None:
    """Its join is refused after three links, the others come back before it is tried alone, and it is left in peace."""
    adapter = TouchyAdapter("evil")
    async with supervised(adapter) as made:
        listener = await made.listener("a", "b")
        with pytest.raises(SubscribeError, match="'evil': the link to the broker ended each time"):
            await made.listener("evil")
        assert adapter.batches == [{"a"}, {"b"}, {"evil"}, {"a", "b", "evil"}, {"a", "b"}, {"evil"}]
        await made.reaches("live", generation=4)
        asked = len(adapter.batches)
        with pytest.raises(SubscribeError, match="it is asked for rarely now"):
            await made.listener("evil")
        await made.recover()
        assert [batch for batch in adapter.batches[asked:] if "evil" in batch] == []
        assert adapter.channels == {"a", "b"}
        adapter.links[-1].deliver("a", b"after")
        heard = await listener.hears(len(listener.heard) + 1)
        assert heard[-1] == "after"


async def test_channel_that_turns_bad_notifies_its_subscribers() -> None:
    """A channel that was fine until the broker changed ends in a refusal to its subscribers; a newcomer is refused."""
    adapter = TouchyAdapter()
    async with supervised(adapter) as made:
        names = [f"room-{number}" for number in range(400)]
        good, bad = await made.listener(*names), await made.listener("evil")
        adapter.touchy.add("evil")
        adapter.cut()
        async with asyncio.timeout(WAIT_SECONDS):
            while not bad.heard:
                await bad.hears(1)
        (gap,) = bad.heard
        assert isinstance(gap, Gap)
        assert "the broker refused the channel: the link to the broker ended each time" in gap.reason
        await adapter.until(lambda: adapter.channels.issuperset(names))
        # One loss each to count it twice, to find the piece of 25 and the channel in it.
        assert sum("evil" in batch for batch in adapter.batches) <= 6
        adapter.links[-1].deliver("room-7", b"after")
        async with asyncio.timeout(WAIT_SECONDS):
            while "after" not in good.heard:
                await good.hears(len(good.heard) + 1)


async def test_channel_over_which_links_end_does_not_hold_up_a_start() -> None:
    """A strict start with such a channel among those wanted already comes up, with all the others."""
    adapter = TouchyAdapter("evil")
    made = world(adapter)
    joining = {name: asyncio.create_task(made.listener(name)) for name in ("a", "evil", "b")}
    await until_idle()
    await asyncio.wait_for(made.supervisor.start(), WAIT_SECONDS)
    await asyncio.wait_for(asyncio.gather(joining["a"], joining["b"]), WAIT_SECONDS)
    with pytest.raises(SubscribeError):
        await asyncio.wait_for(joining["evil"], WAIT_SECONDS)
    await made.supervisor.stop()
    made.hub.close()


async def test_batch_that_is_too_large_is_divided() -> None:
    """Where the broker ends the link over the size of a batch every channel is subscribed in smaller ones."""

    class Narrow(TouchyAdapter):
        async def subscribe(self, channels: Collection[str]) -> None:
            self.touchy = set(channels if len(channels) > 50 else ())
            await super().subscribe(channels)

    adapter = Narrow()
    async with supervised(adapter) as made:
        names = [f"room-{number}" for number in range(400)]
        joining = [asyncio.create_task(made.listener(name)) for name in names]
        await asyncio.wait_for(asyncio.gather(*joining), WAIT_SECONDS)
        assert adapter.channels == set(names)
        assert made.supervisor.generation == 4


async def test_losses_by_chance_convict_nobody() -> None:
    """A link that is cut again and again while the same join is under way refuses nothing, once it stands."""
    async with supervised() as made:
        made.adapter.subscribe_gate.close()
        joining = asyncio.create_task(made.listener("a"))
        for subscribes in (1, 2):
            await made.adapter.until(lambda n=subscribes: made.adapter.verbs.count("subscribe") == n)  # type: ignore[misc]
            made.adapter.cut()
        made.adapter.subscribe_gate.open()
        await asyncio.wait_for(joining, WAIT_SECONDS)


# --- channels refused after a reconnect ----------------------------------------------------------------------------


@asynccontextmanager
async def refused_after_reconnect(adapter: Adapter) -> AsyncGenerator[tuple[World, Listener]]:
    """Reconnect to a broker whose rules have changed meanwhile: it refuses channel `a`."""
    async with supervised(adapter, BRISK_PROBE) as made:
        listener = await made.listener("a")
        await made.listener("b")
        adapter.refusals["a"] = "not permitted any more"
        await made.recover()
        yield made, listener


async def test_channel_refused_after_a_reconnect_tells_a_gap(caplog: pytest.LogCaptureFixture) -> None:
    """It is told at once and logged; the others are live."""
    async with refused_after_reconnect(Adapter(brokered=True)) as (made, listener):
        assert [type(item) for item in await listener.hears(1)] == [Gap]
        assert (made.supervisor.state, made.adapter.channels) == ("live", {"b"})
    assert (
        "the broker refuses channels, their subscribers receive nothing: "
        "subscription refused: 'a': not permitted any more"
    ) in warnings_of(caplog, logging.ERROR)


async def test_channel_refused_after_a_reconnect_is_asked_again() -> None:
    """The broker's rules may be put right: it is asked at every probe, and the channel is live again."""
    adapter = Adapter(brokered=True)
    async with refused_after_reconnect(adapter) as (_, listener):
        asked = adapter.calls.count(("subscribe", ("a",)))
        await adapter.until(lambda: adapter.calls.count(("subscribe", ("a",))) >= asked + 2)
        adapter.refusals.clear()
        await adapter.until(lambda: "a" in adapter.channels)
        adapter.links[-1].deliver("a", b"again")
        async with asyncio.timeout(WAIT_SECONDS):
            while "again" not in listener.heard:
                await listener.hears(len(listener.heard) + 1)


async def test_channel_allowed_again_tells_a_gap_of_what_was_missed() -> None:
    """Who reloaded at the refusal has missed what came until the channel was back: a second gap says so."""
    adapter = Adapter(brokered=True)
    async with refused_after_reconnect(adapter) as (_, listener):
        assert [type(item) for item in await listener.hears(1)] == [Gap]
        adapter.refusals.clear()
        await adapter.until(lambda: "a" in adapter.channels)
        adapter.links[-1].deliver("a", b"again")
        await listener.hears(2)
        await until_idle()
        assert [type(item) for item in listener.heard] == [Gap, Gap, str]


async def test_channel_refused_is_asked_again_where_the_probe_is_refused_too() -> None:
    """Rules that forbid the probe as well do not keep a channel dead once it is allowed again."""
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
    """A stop does not wait for a broker that is away, and leaves no task."""
    before = asyncio.all_tasks()
    async with supervised() as made:
        await made.listener("a")
        await made.degrade()
        await asyncio.wait_for(made.supervisor.stop(), WAIT_SECONDS)
        assert (made.supervisor.state, made.adapter.verbs[-1]) == ("closed", "stop")
        assert asyncio.all_tasks() == before


async def test_stop_tells_who_waits_for_a_channel() -> None:
    """A join that is still unconfirmed at the stop is told that the broker is gone, without waiting for its timeout."""
    async with supervised() as made:
        made.adapter.subscribe_gate.close()
        joining = asyncio.create_task(made.listener("a"))
        await made.adapter.until(lambda: made.adapter.verbs[-1] == "subscribe")
        await made.supervisor.stop()
        with pytest.raises(BrokerUnavailableError, match="stopped"):
            await asyncio.wait_for(joining, WAIT_SECONDS)


async def test_stop_tells_who_waits_to_publish() -> None:
    """A publish that waits for the link when the stop comes fails then, without waiting for its timeout."""
    async with supervised() as made:
        await made.degrade()
        publishing = asyncio.create_task(made.supervisor.publish("a", b"never"))
        await until_idle()
        await made.supervisor.stop()
        done, _ = await asyncio.wait([publishing], timeout=1)
        assert done
        assert publishing.exception() is not None


async def test_stop_cancelled_can_be_finished() -> None:
    """A stop that is cancelled ends the owner, and a second one closes the link."""
    async with supervised() as made:
        await made.listener("a")
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
    """A stop that is cancelled before its first turn is over leaves no open link: any await can be cancelled."""
    async with supervised() as made:
        stopping = asyncio.create_task(made.supervisor.stop())
        await asyncio.sleep(0)
        stopping.cancel()
        await asyncio.wait([stopping])
        await until_idle()
        assert made.adapter.sink is None


@pytest.mark.parametrize("passes", range(8))
async def test_stop_right_behind_a_loss(passes: int) -> None:
    """A stop ends the owner wherever it stands in handling a loss: worker and broker often end together."""
    async with supervised(Adapter(brokered=True)) as made:
        await made.listener("a")
        made.adapter.cut()
        for _ in range(passes):
            await asyncio.sleep(0)
        await asyncio.wait_for(made.supervisor.stop(), 1)
        assert (made.supervisor.state, made.adapter.sink) == ("closed", None)


async def test_stop_while_the_adapter_cleans_up_behind_a_loss() -> None:
    """A stop ends the owner though a call of the adapter, cancelled by the loss, takes its time to end."""
    async with supervised() as made:
        made.adapter.subscribe_gate.close()
        made.adapter.cancel_gate.close()
        joining = asyncio.create_task(made.listener("a"))
        await made.adapter.until(lambda: made.adapter.verbs[-1] == "subscribe")
        made.adapter.cut()
        await until_idle()
        stopping = asyncio.create_task(made.supervisor.stop())
        await until_idle()
        made.adapter.cancel_gate.open()
        done, _ = await asyncio.wait([stopping], timeout=1)
        joining.cancel()
        assert done, f"stop does not return, the state is {made.supervisor.state}"
        assert made.supervisor.state == "closed"


async def test_stop_while_the_adapter_answers_cancellation_with_an_error() -> None:
    """A stop ends the owner though an adapter turns the cancellation of a call into an error of its own."""
    async with supervised() as made:
        made.adapter.subscribe_gate.close()
        made.adapter.cancel_error = BrokerUnavailableError("the link is being closed")
        joining = asyncio.create_task(made.listener("a"))
        await made.adapter.until(lambda: made.adapter.verbs[-1] == "subscribe")
        stopping = asyncio.create_task(made.supervisor.stop())
        done, _ = await asyncio.wait([stopping], timeout=1)
        joining.cancel()
        assert done, f"stop does not return, the state is {made.supervisor.state}"
        assert made.supervisor.state == "closed"


# --- a way out that is dead ----------------------------------------------------------------------------------------

QUICK_PUBLISH = replace(SETTINGS, publish_timeout_seconds=0.05)


async def unanswered(made: World) -> None:
    """Publish what gets no answer."""
    with pytest.raises(PublishOutcomeUnknownError):
        await made.supervisor.publish("a", b"x")


async def test_two_publishes_without_an_answer_rebuild_a_link_that_hears() -> None:
    """Where only the way out is dead no probe is sent, since messages arrive: the publishes themselves find it."""
    async with supervised(Adapter(brokered=True), QUICK_PUBLISH) as made:
        listener = await made.listener("a")
        made.adapter.publish_gate.close()
        made.adapter.links[-1].deliver("a", b"the way in carries")
        await unanswered(made)
        await until_idle()
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)
        made.adapter.links[-1].deliver("a", b"still")
        await unanswered(made)
        await made.reaches("live", generation=2)
        assert [type(item) for item in await listener.hears(3)] == [str, str, Gap]
        made.adapter.publish_gate.open()


async def test_answer_between_two_publishes_without_one_keeps_the_link() -> None:
    """Only publishes in a row speak against a link."""
    async with supervised(Adapter(brokered=True), QUICK_PUBLISH) as made:
        for _ in range(3):
            made.adapter.publish_gate.close()
            await unanswered(made)
            made.adapter.publish_gate.open()
            await made.supervisor.publish("a", b"answered")
        await until_idle()
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


async def test_unanswered_publishes_do_not_speak_against_a_link_without_a_broker() -> None:
    """Where no server stands between there is no answer that could be owed: a slow worker tells itself no gap."""
    async with supervised(Adapter(brokered=False), QUICK_PUBLISH) as made:
        listener = await made.listener("a")
        made.adapter.publish_gate.close()
        for _ in range(3):
            await unanswered(made)
        await until_idle()
        assert (made.supervisor.state, made.supervisor.generation, listener.heard) == ("live", 1, [])
        made.adapter.publish_gate.open()


async def test_long_queue_is_no_silence() -> None:
    """A burst that the broker works off for longer than the publish timeout is answered whole, and costs no link."""
    adapter = Adapter(brokered=True)
    async with supervised(adapter, replace(SETTINGS, publish_timeout_seconds=0.3)) as made:
        adapter.publish_gates = [Gate() for _ in range(8)]
        for gate in adapter.publish_gates:
            gate.close()
        publishing = [asyncio.create_task(made.supervisor.publish("a", b"%d" % number)) for number in range(8)]
        for gate in list(adapter.publish_gates):
            await asyncio.sleep(0.15)
            gate.open()
        await asyncio.gather(*publishing)
        assert adapter.published == [("a", b"%d" % number) for number in range(8)]
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


async def test_pause_of_the_process_leaves_publishes_their_answers() -> None:
    """Publishes under way while the process is paused are answered, and the link stands."""
    adapter = Adapter(brokered=True)
    async with supervised(adapter, replace(SETTINGS, publish_timeout_seconds=0.3)) as made:
        listener = await made.listener("a")
        adapter.publish_gate.close()
        publishing = [asyncio.create_task(made.supervisor.publish("a", b"%d" % number)) for number in range(5)]
        await adapter.until(lambda: adapter.verbs.count("publish") == 5)
        asyncio.get_running_loop().call_later(0.05, adapter.publish_gate.open)  # an answer that is read after the pause
        time.sleep(1)
        await asyncio.gather(*publishing)
        assert await listener.hears(5) == [str(number) for number in range(5)]
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


async def test_publish_in_a_passing_state_of_the_broker_raises_at_once() -> None:
    """It was certainly not published, the link stands, and the error says that it can be tried again."""
    async with supervised(Adapter(brokered=True)) as made:
        made.adapter.publish_errors["a"] = BrokerUnavailableError("BUSY a script runs")
        with pytest.raises(BrokerUnavailableError, match="BUSY") as caught:
            await made.supervisor.publish("a", b"x")
        assert caught.value.retriable
        assert (made.supervisor.state, made.adapter.verbs.count("publish")) == ("live", 1)


async def test_unanswered_publishes_of_an_old_link_do_not_cost_the_new_one() -> None:
    """What was sent on a link that is gone says nothing about the next."""
    async with supervised(Adapter(brokered=True), QUICK_PUBLISH) as made:
        made.adapter.publish_gate.close()
        async with asyncio.TaskGroup() as publishing:
            for _ in range(3):
                publishing.create_task(unanswered(made))
            await made.adapter.until(lambda: made.adapter.verbs.count("publish") == 3)
            await made.recover()
        await until_idle()
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 2)
        made.adapter.publish_gate.open()


# --- the adapter's own check ---------------------------------------------------------------------------------------


class CheckingAdapter(Adapter):
    """An adapter that can tell whether it is linked to the right server."""

    def __init__(self) -> None:
        super().__init__()
        self.check_gate = Gate()
        self.check_error: Exception | None = None

    async def check(self) -> None:
        """Answer as told, behind the gate."""
        self._record("check")
        await self.check_gate.passage()
        if self.check_error is not None:
            raise self.check_error


@pytest.mark.parametrize("error", [BrokerUnavailableError("a replica now"), RuntimeError("a fault")], ids=repr)
async def test_check_that_raises_rebuilds_the_link(error: Exception) -> None:
    """A link that leads to the wrong place is rebuilt, and its subscribers are told."""
    adapter = CheckingAdapter()
    async with supervised(adapter, BRISK_PROBE) as made:
        listener = await made.listener("a")
        await adapter.until(lambda: adapter.verbs.count("check") == 2)
        assert (made.supervisor.generation, listener.heard) == (1, [])
        adapter.check_error = error
        await adapter.until(lambda: adapter.verbs.count("start") == 2)
        adapter.check_error = None
        await made.reaches("live", generation=2)
        assert [type(item) for item in await listener.hears(1)] == [Gap]


async def test_check_without_an_answer_twice_in_a_row_is_a_silent_link() -> None:
    """It may ask over a connection that nothing else uses while others carry: two in a row count like two probes."""
    changes: list[StateChange] = []
    adapter = CheckingAdapter()
    adapter.check_gate.close()
    async with supervised(adapter, BRISK_PROBE, changes.append) as made:
        await adapter.until(lambda: adapter.verbs.count("check") == 2)
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)
        await made.reaches("live", generation=2)
        assert changes[1].reason == "the link is silent: 2 checks got no answer"
        adapter.check_gate.open()


async def test_check_without_an_answer_once_is_asked_again() -> None:
    """One late answer is no silence."""
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


@pytest.mark.parametrize(
    "error", [BrokerUnavailableError("refused"), BrokerAuthenticationError("wrong password")], ids=repr
)
async def test_lazy_start_comes_up_degraded_and_goes_on_trying(error: Exception) -> None:
    """A start without the broker returns; its channels are confirmed, without a gap, when the broker is there."""
    adapter = Adapter()
    adapter.start_errors = [error] * 3
    changes: list[StateChange] = []
    async with supervised(adapter, LAZY, changes.append) as made:
        assert (made.supervisor.state, made.supervisor.is_alive) == ("degraded", True)
        listener = await made.listener("a")
        await made.reaches("live", generation=4)
        assert listener.heard == []
    assert [(change.old, change.new, change.generation) for change in changes] == [
        ("starting", "degraded", 1),
        ("degraded", "live", 4),
        ("live", "closed", 4),
    ]
    assert changes[0].reason == f"started without the broker: {error}"


async def test_lazy_start_that_never_answers_is_cut_off() -> None:
    """A broker that hangs holds a lazy start for as long as the settings say, no longer."""
    adapter = Adapter()
    adapter.start_gate.close()
    async with supervised(adapter, replace(LAZY, start_timeout_seconds=0.02)) as made:
        assert made.supervisor.state == "degraded"
        adapter.start_gate.open()
        await made.reaches("live")


async def test_lazy_start_does_not_hide_a_fault() -> None:
    """What is no error of a broker is raised, and nothing goes on in the background."""
    made = world(settings=LAZY)
    made.adapter.start_error = RuntimeError("a fault")
    with pytest.raises(RuntimeError, match="a fault"):
        await made.supervisor.start()
    assert made.adapter.verbs == ["start", "stop"]


# --- what stop waits for, and who looks after the link -------------------------------------------------------------


async def test_stop_waits_for_publishes_in_flight() -> None:
    """What the broker has and has not answered yet is answered before the link closes."""
    async with supervised() as made:
        made.adapter.publish_gate.close()
        publishing = asyncio.create_task(made.supervisor.publish("a", b"last words"))
        await made.adapter.until(lambda: "publish" in made.adapter.verbs)
        stopping = asyncio.create_task(made.supervisor.stop())
        await until_idle()
        assert (made.supervisor.state, stopping.done()) == ("live", False)
        made.adapter.publish_gate.open()
        await asyncio.wait_for(publishing, WAIT_SECONDS)
        await asyncio.wait_for(stopping, WAIT_SECONDS)
        assert made.adapter.published == [("a", b"last words")]


async def test_stop_is_bounded_by_a_publish_that_gets_no_answer() -> None:
    """A broker that never answers holds up the stop no longer than the publish itself."""
    async with supervised(Adapter(brokered=True), QUICK_PUBLISH) as made:
        made.adapter.publish_gate.close()
        publishing = asyncio.create_task(unanswered(made))
        await made.adapter.until(lambda: "publish" in made.adapter.verbs)
        await asyncio.wait_for(made.supervisor.stop(), WAIT_SECONDS)
        await publishing
        made.adapter.publish_gate.open()


def fail(*_: object) -> None:
    """Fail."""
    raise RuntimeError("a fault")


async def test_owner_that_dies_is_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the owner of the link ever die, the worker is not live any more and everyone can see it."""
    async with supervised() as made:
        assert made.supervisor.is_alive
        monkeypatch.setattr(made.hub, "open_gap", fail)
        made.adapter.cut()
        async with asyncio.timeout(WAIT_SECONDS):
            while made.supervisor.is_alive:
                await asyncio.sleep(0)
        await until_idle()
        assert made.supervisor.state == "degraded"
        assert "the owner of the link died" in warnings_of(caplog, logging.CRITICAL)[0]
