"""`backplane.broker.probe`: the message to oneself that finds a link which stands and carries nothing."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from backplane.errors import BrokerUnavailableError, PublishError, PublishOutcomeUnknownError
from backplane.message import Gap
from tests.unit.doubles import until_idle
from tests.unit.supervised import (
    BRISK_PROBE,
    PROBE_CHANNEL,
    SETTINGS,
    WAIT_SECONDS,
    Adapter,
    World,
    interrupting_a_spin,
    supervised,
    warnings_of,
)

pytestmark = pytest.mark.anyio


class Pace:
    """Stands in for the jitter of the probe, and counts its rounds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rounds = 0
        self._changed = asyncio.Event()
        monkeypatch.setattr("backplane.broker.probe.random.uniform", self._uniform)

    async def reaches(self, rounds: int) -> None:
        """Wait until the probe has begun its round number `rounds`."""
        async with asyncio.timeout(WAIT_SECONDS):
            while self.rounds < rounds:
                self._changed.clear()
                await self._changed.wait()

    def _uniform(self, low: float, _: float) -> float:
        if low > 0:  # the probe's; a back-off begins at 0
            self.rounds += 1
            self._changed.set()
        return low


def probes(adapter: Adapter) -> int:
    """Return how many probes were published."""
    return adapter.calls.count(("publish", (PROBE_CHANNEL,)))


async def test_silent_link_is_found_within_two_probe_intervals() -> None:
    """A broker that accepts everything and delivers nothing is left after two probes of half an interval each."""
    adapter = Adapter(brokered=True)
    adapter.silent = True
    async with supervised(adapter, BRISK_PROBE) as made:
        listener = await made.listener("a")
        begun = asyncio.get_running_loop().time()
        adapter.start_gate.close()
        await made.reaches("degraded")
        # At most 1.0 interval of pause and two halves; the rest of the bound is for a busy machine.
        assert asyncio.get_running_loop().time() - begun < 2 * BRISK_PROBE.probe_interval_seconds + 1
        assert probes(adapter) == 2
        adapter.silent = False
        adapter.start_gate.open()
        await made.reaches("live", generation=2)
        assert [type(item) for item in await listener.hears(1)] == [Gap]


async def test_link_whose_publish_hangs_is_found() -> None:
    """A probe the broker does not even accept counts as one that did not come back."""
    adapter = Adapter(brokered=True)
    async with supervised(adapter, BRISK_PROBE) as made:
        await made.listener("a")
        adapter.publish_gate.close()
        adapter.start_gate.close()
        await made.reaches("degraded")
        adapter.publish_gate.open()
        adapter.start_gate.open()
        await made.reaches("live", generation=2)


@pytest.mark.parametrize(
    "error", [BrokerUnavailableError("gone"), PublishOutcomeUnknownError("cut"), RuntimeError("a fault")], ids=repr
)
async def test_probe_that_fails_rebuilds_the_link(error: Exception) -> None:
    """An error of the link while probing is a lost link."""
    adapter = Adapter(brokered=True)
    async with supervised(adapter, BRISK_PROBE) as made:
        await made.listener("a")
        adapter.publish_errors[PROBE_CHANNEL] = error
        await made.reaches("live", generation=2)


async def test_probe_over_a_replaced_connection_is_one_missed_probe() -> None:
    """An unknown outcome on a link that stands is a missed probe: the adapter has replaced a connection of its own."""
    adapter = Adapter(brokered=True)
    async with supervised(adapter, BRISK_PROBE) as made:
        listener = await made.listener("a")
        adapter.publish_errors[PROBE_CHANNEL] = PublishOutcomeUnknownError("replaced")
        await adapter.until(lambda: probes(adapter) == 1)
        del adapter.publish_errors[PROBE_CHANNEL]
        await adapter.until(lambda: probes(adapter) >= 3)
        assert (made.supervisor.generation, listener.heard) == (1, [])


async def test_probe_keeps_the_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that comes back keeps the link live and says how long the way took; subscribers do not see it."""
    pace = Pace(monkeypatch)
    async with supervised(Adapter(brokered=True), BRISK_PROBE) as made:
        listener = await made.listener("a")
        assert made.supervisor.probe.round_trip_seconds is None
        await pace.reaches(4)
        assert made.supervisor.probe.round_trip_seconds is not None
        assert 0 <= made.supervisor.probe.round_trip_seconds < BRISK_PROBE.probe_interval_seconds
        assert probes(made.adapter) == 3
        assert made.adapter.calls.count(("subscribe", (PROBE_CHANNEL,))) == 1
        assert (made.supervisor.state, made.supervisor.generation, listener.heard) == ("live", 1, [])


@pytest.mark.parametrize("stops", ["in", "out"])
async def test_traffic_both_ways_suppresses_the_probe(stops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While messages come in and publishes are answered no probe is sent, and one is as soon as either ceases."""
    pace = Pace(monkeypatch)
    adapter = Adapter(brokered=True)
    quiet = asyncio.Event()

    async def traffic(made: World) -> None:
        while not (quiet.is_set() and probes(adapter) > before):
            if not quiet.is_set() or stops == "out":
                adapter.links[-1].deliver("a", b"traffic")
            if not quiet.is_set() or stops == "in":
                await made.supervisor.publish("elsewhere", b"traffic")
            await asyncio.sleep(BRISK_PROBE.probe_interval_seconds / 20)

    before = 0
    async with supervised(adapter, BRISK_PROBE) as made:
        await made.listener("a")
        talking = asyncio.create_task(traffic(made))
        await pace.reaches(pace.rounds + 1)
        before = probes(adapter)
        await pace.reaches(pace.rounds + 3)
        assert probes(adapter) == before
        quiet.set()
        async with asyncio.timeout(WAIT_SECONDS):
            await talking
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


async def test_probe_without_channels_asks_the_way_out_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that only publishes opens no subscription; the broker's answer to a probe shows that its link works."""
    pace = Pace(monkeypatch)
    adapter = Adapter(brokered=True)
    async with supervised(adapter, BRISK_PROBE) as made:
        await pace.reaches(4)
        assert adapter.verbs == ["start", "publish", "publish", "publish"]
        assert made.supervisor.probe.answered_at is not None
        await made.listener("a")
        await adapter.until(lambda: ("subscribe", (PROBE_CHANNEL,)) in adapter.calls)
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


async def test_silent_link_without_channels_is_found() -> None:
    """A broker that answers nothing any more is left, though nobody here is subscribed to anything."""
    adapter = Adapter(brokered=True)
    async with supervised(adapter, BRISK_PROBE) as made:
        adapter.publish_gate.close()
        adapter.start_gate.close()
        await made.reaches("degraded")
        adapter.publish_gate.open()
        adapter.start_gate.open()
        await made.reaches("live", generation=2)


async def test_dead_way_out_is_found_while_messages_come_in() -> None:
    """What is received stands for the way in alone: a busy listener finds by its probe that its way out has died."""
    adapter = Adapter(brokered=True)

    async def traffic() -> None:
        while made.supervisor.generation == 1:
            adapter.links[0].deliver("a", b"traffic")
            await asyncio.sleep(BRISK_PROBE.probe_interval_seconds / 20)

    async with supervised(adapter, BRISK_PROBE) as made:
        await made.listener("a")
        adapter.publish_gate.close()
        talking = asyncio.create_task(traffic())
        await made.reaches("live", generation=2)
        await talking
        adapter.publish_gate.open()


async def test_probe_whose_subscription_was_taken_away_subscribes_again() -> None:
    """A broker that takes the probe's subscription away costs no link."""
    adapter = Adapter(brokered=True)
    async with supervised(adapter, BRISK_PROBE) as made:
        await made.listener("a")
        await adapter.until(lambda: probes(adapter) == 1)
        adapter.channels.discard(PROBE_CHANNEL)
        adapter.links[-1].revoked([PROBE_CHANNEL], "maximum subscriptions exceeded")
        await adapter.until(lambda: adapter.calls.count(("subscribe", (PROBE_CHANNEL,))) == 2)
        await adapter.until(lambda: probes(adapter) == 4)
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


PASSING = {
    "publish": BrokerUnavailableError("BUSY a script runs"),
    "full": PublishError("publish slower", retriable=True),
}


@pytest.mark.parametrize("state", ["publish", "full", "subscribe"])
async def test_passing_state_postpones_the_probe(state: str, caplog: pytest.LogCaptureFixture) -> None:
    """A broker that is busy for a while answers: the link is neither silent nor without a probe from then on."""
    adapter = Adapter(brokered=True)
    if state == "subscribe":
        adapter.doubts[PROBE_CHANNEL] = "BUSY a script runs"
    else:
        adapter.publish_errors[PROBE_CHANNEL] = PASSING[state]
    async with supervised(adapter, BRISK_PROBE) as made:
        await made.listener("a")
        await adapter.until(lambda: max(probes(adapter), adapter.calls.count(("subscribe", (PROBE_CHANNEL,)))) == 3)
        adapter.doubts.clear()
        adapter.publish_errors.clear()
        await adapter.until(lambda: adapter.published[-2:] == [(PROBE_CHANNEL, b"")] * 2)
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)
        assert warnings_of(caplog) == []


async def test_passing_state_that_lasts_rebuilds_the_link() -> None:
    """A broker that is busy without end is left after some intervals: the next link may lead to one that is not."""
    adapter = Adapter(brokered=True)
    adapter.publish_errors[PROBE_CHANNEL] = PASSING["publish"]
    async with supervised(adapter, BRISK_PROBE) as made:
        await made.listener("a")
        await made.reaches("live", generation=2)
        assert probes(adapter) == 6


async def test_probe_over_which_links_end_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """Where each link ends at its first probe the probe is sent no more, and a line says so."""
    adapter = Adapter(brokered=True)
    adapter.publish_gate.close()
    async with supervised(adapter, BRISK_PROBE) as made:
        for links in (1, 2, 3):
            await adapter.until(lambda links=links: probes(adapter) == links)  # type: ignore[misc]
            adapter.cut()
            await made.reaches("live", generation=links + 1)
        await until_idle()
        assert (made.supervisor.state, probes(adapter)) == ("live", 3)
        assert "allow channel $backplane/*: 3 links ended over it" in warnings_of(caplog)[-1]
        adapter.publish_gate.open()


async def test_pause_of_the_process_is_no_missed_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was paused while its probe was under way, for longer than two probes take, keeps its link."""
    adapter = Adapter(brokered=True)
    async with supervised(adapter, BRISK_PROBE) as made:
        await made.listener("a")
        for pauses in (1, 2, 3):
            adapter.publish_gate.close()
            await adapter.until(lambda pauses=pauses: probes(adapter) >= pauses)  # type: ignore[misc]
            asyncio.get_running_loop().call_soon(adapter.publish_gate.open)
            time.sleep(4 * BRISK_PROBE.probe_interval_seconds)
        await adapter.until(lambda: probes(adapter) >= 4)
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


async def test_no_probe_without_a_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter with no server between publisher and subscriber has no way that could go silent."""
    pace = Pace(monkeypatch)
    async with supervised(Adapter(brokered=False), replace(SETTINGS, probe_interval_seconds=0.001)) as made:
        await made.listener("a")
        await until_idle()
        assert (pace.rounds, made.adapter.verbs) == (0, ["start", "subscribe"])


@pytest.mark.parametrize("refused", ["subscribe", "publish"])
async def test_refused_probe_is_a_warning(refused: str, caplog: pytest.LogCaptureFixture) -> None:
    """A broker whose rules forbid the probe's channel keeps a live link, and a loss it reports is still healed."""
    adapter = Adapter(brokered=True)
    if refused == "subscribe":
        adapter.refusals[PROBE_CHANNEL] = "not permitted"
    else:
        adapter.publish_errors[PROBE_CHANNEL] = PublishError("not permitted")
    async with supervised(adapter, BRISK_PROBE) as made:
        await made.listener("a")
        await adapter.until(lambda: (refused, (PROBE_CHANNEL,)) in adapter.calls)
        await until_idle()
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)
        (warning,) = warnings_of(caplog)
        assert warning.startswith("no delivery probe, a silent link will go unnoticed: allow channel $backplane/*: ")
        await made.recover()


@pytest.mark.parametrize("refused", ["subscribe", "publish"])
async def test_broker_that_accepts_nothing_at_present_is_probed_again(
    refused: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A probe that is refused for the time being ends neither the link nor the probing."""
    adapter = Adapter(brokered=True)
    if refused == "subscribe":
        adapter.doubts[PROBE_CHANNEL] = "BUSY"
    else:
        adapter.publish_errors[PROBE_CHANNEL] = PublishError("BUSY", retriable=True)
    async with supervised(adapter, BRISK_PROBE) as made:
        await made.listener("a")
        await adapter.until(lambda: adapter.calls.count((refused, (PROBE_CHANNEL,))) == 3)
        assert (made.supervisor.state, made.supervisor.generation, warnings_of(caplog)) == ("live", 1, [])
        adapter.doubts.clear()
        adapter.publish_errors.clear()
        adapter.silent = True
        await made.reaches("degraded")


async def test_message_behind_a_missed_probe_ends_the_doubt() -> None:
    """A message that arrives while the first probe is out proves the way back, and the event loop goes on turning."""
    adapter = Adapter(brokered=True)
    adapter.silent = True
    with interrupting_a_spin():
        async with supervised(adapter, BRISK_PROBE) as made:
            await made.listener("a")
            await adapter.until(lambda: probes(adapter) == 1)
            adapter.links[-1].deliver("a", b"alive")
            adapter.silent = False
            await adapter.until(lambda: probes(adapter) == 2)
            assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


async def test_leave_behind_a_missed_probe_ends_the_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the last subscriber leaves while the first probe is out nothing is in doubt, and the event loop turns on."""
    pace = Pace(monkeypatch)
    adapter = Adapter(brokered=True)
    adapter.silent = True
    with interrupting_a_spin():
        async with supervised(adapter, replace(BRISK_PROBE, linger_seconds=0.001)) as made:
            listener = await made.listener("a")
            await adapter.until(lambda: probes(adapter) == 1)
            made.hub.leave("a", listener)
            await pace.reaches(pace.rounds + 2)
            assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


async def test_back_off_grows_over_links_that_carry_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that was given up by the probe and never carried anything is no good one, however long that took."""
    bounds: list[float] = []

    def uniform(low: float, high: float) -> float:
        if low == 0:
            bounds.append(high)
        return low

    monkeypatch.setattr("backplane.broker.supervisor._STABLE_SECONDS", 0.0)
    adapter = Adapter(brokered=True)
    adapter.silent = True
    settings = replace(BRISK_PROBE, probe_interval_seconds=0.02, max_backoff_seconds=5)
    async with supervised(adapter, settings) as made:
        monkeypatch.setattr("backplane.broker.probe.random.uniform", uniform)
        await made.listener("a")
        await made.reaches("live", generation=4)
        assert bounds == [0.1, 0.2, 0.4]


async def test_answer_is_dated() -> None:
    """A probe that came back says when, by the event loop's clock."""
    adapter = Adapter(brokered=True)
    loop = asyncio.get_running_loop()
    async with supervised(adapter, BRISK_PROBE) as made:
        await made.listener("a")
        assert made.supervisor.probe.answered_at is None
        begun = loop.time()
        await adapter.until(lambda: probes(adapter) == 2)
        assert made.supervisor.probe.answered_at is not None
        assert begun < made.supervisor.probe.answered_at <= loop.time()
