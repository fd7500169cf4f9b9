"""`backplane.broker.probe`: the message to this process itself that detects a silent link."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from backplane.broker.probe import DeliveryProbe
from backplane.broker.session import LinkSession
from backplane.errors import BrokerUnavailableError, PublishError, PublishOutcomeUnknownError
from backplane.message import Gap
from tests.unit.controlled_adapter import Adapter
from tests.unit.doubles import run_passes, until_idle
from tests.unit.kit import (
    BRISK_PROBE,
    ORIGIN,
    PROBE_CHANNEL,
    SETTINGS,
    WAIT_SECONDS,
    SupervisedWorld,
    interrupting_a_spin,
    supervised,
    warnings_of,
)

pytestmark = pytest.mark.anyio


class Pace:
    """Replaces the jitter of the probe, and counts its rounds."""

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
    """A link that accepts everything and delivers nothing is lost after two probes of half an interval each."""
    adapter = Adapter(brokered=True)
    adapter.silent = True
    async with supervised(adapter, BRISK_PROBE) as made:
        subscriber = await made.joined("a")
        begun = asyncio.get_running_loop().time()
        adapter.start_gate.close()
        await made.reaches("degraded")
        # At most 1.0 interval of pause and two halves; the rest of the bound is for a busy machine.
        assert asyncio.get_running_loop().time() - begun < 2 * BRISK_PROBE.probe_interval_seconds + 4
        assert (probes(adapter), made.supervisor.probe.missed, made.supervisor.probe.round_trips.count) == (2, 2, 0)
        assert made.supervisor.status.tally.lost["silent"] == 1
        adapter.silent = False
        adapter.start_gate.open()
        await made.reaches("live", generation=2)
        assert [type(item) for item in await subscriber.receives(1)] == [Gap]


@pytest.mark.parametrize("fault", ["silent", "passing"])
async def test_probe_judges_no_link_of_parts(fault: str) -> None:
    """On a link of parts a probe without an answer concerns one part: it is counted, and the link goes on."""
    adapter = Adapter(brokered=True, parts=True)
    adapter.silent = fault == "silent"
    if fault == "passing":
        adapter.publish_errors[PROBE_CHANNEL] = BrokerUnavailableError("no owner")
    async with supervised(adapter, BRISK_PROBE) as made:
        subscriber = await made.joined("a")
        await adapter.until(lambda: probes(adapter) >= 8)
        assert (made.supervisor.state, made.supervisor.generation, subscriber.received) == ("live", 1, [])
        assert (made.supervisor.probe.missed > 0) == (fault == "silent")
        adapter.silent = False
        adapter.publish_errors.clear()
        missed = made.supervisor.probe.missed
        await adapter.until(lambda: made.supervisor.probe.round_trips.count >= 1)
        assert made.supervisor.probe.missed <= missed + 1


async def test_link_whose_publish_hangs_is_found() -> None:
    """A probe that the broker does not accept counts like one that is not received."""
    adapter = Adapter(brokered=True)
    async with supervised(adapter, BRISK_PROBE) as made:
        await made.joined("a")
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
    """An error of the link during a probe is a lost link."""
    adapter = Adapter(brokered=True)
    async with supervised(adapter, BRISK_PROBE) as made:
        await made.joined("a")
        adapter.publish_errors[PROBE_CHANNEL] = error
        await made.reaches("live", generation=2)


async def test_probe_on_a_replaced_connection_is_one_missed_probe() -> None:
    """An unknown outcome on a live link is one missed probe: the adapter has replaced one of its connections."""
    adapter = Adapter(brokered=True)
    async with supervised(adapter, BRISK_PROBE) as made:
        subscriber = await made.joined("a")
        adapter.publish_errors[PROBE_CHANNEL] = PublishOutcomeUnknownError("replaced")
        await adapter.until(lambda: probes(adapter) == 1)
        del adapter.publish_errors[PROBE_CHANNEL]
        await adapter.until(lambda: probes(adapter) >= 3)
        assert (made.supervisor.generation, subscriber.received) == (1, [])


async def test_probe_keeps_the_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that is received keeps the link live and measures the round trip; subscribers do not receive it."""
    pace = Pace(monkeypatch)
    async with supervised(Adapter(brokered=True), BRISK_PROBE) as made:
        subscriber = await made.joined("a")
        assert made.supervisor.probe.round_trip_seconds is None
        await pace.reaches(4)
        assert made.supervisor.probe.round_trip_seconds is not None
        assert 0 <= made.supervisor.probe.round_trip_seconds < BRISK_PROBE.probe_interval_seconds
        assert probes(made.adapter) == 3
        assert made.adapter.calls.count(("subscribe", (PROBE_CHANNEL,))) == 1
        assert (made.supervisor.state, made.supervisor.generation, subscriber.received) == ("live", 1, [])


@pytest.mark.parametrize("stops", ["in", "out"])
async def test_traffic_both_ways_suppresses_the_probe(stops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While messages are received and publishes answered no probe is sent; one is sent as soon as either ceases."""
    pace = Pace(monkeypatch)
    adapter = Adapter(brokered=True)
    quiet = asyncio.Event()

    async def traffic(made: SupervisedWorld) -> None:
        while not (quiet.is_set() and probes(adapter) > before):
            if not quiet.is_set() or stops == "out":
                adapter.links[-1].deliver("a", b"traffic")
            if not quiet.is_set() or stops == "in":
                await made.publisher.publish("elsewhere", b"traffic")
            await asyncio.sleep(BRISK_PROBE.probe_interval_seconds / 20)

    before = 0
    async with supervised(adapter, BRISK_PROBE) as made:
        await made.joined("a")
        talking = asyncio.create_task(traffic(made))
        await pace.reaches(pace.rounds + 1)
        before = probes(adapter)
        await pace.reaches(pace.rounds + 3)
        assert probes(adapter) == before
        quiet.set()
        async with asyncio.timeout(WAIT_SECONDS):
            await talking
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


async def test_probe_without_channels_tests_the_publish_path_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that only publishes opens no subscription; the broker's answer to a probe shows that the link works."""
    pace = Pace(monkeypatch)
    adapter = Adapter(brokered=True)
    async with supervised(adapter, BRISK_PROBE) as made:
        await pace.reaches(4)
        assert adapter.verbs == ["start", "publish", "publish", "publish"]
        assert made.supervisor.probe.last_reply_at is not None
        await made.joined("a")
        await adapter.until(lambda: ("subscribe", (PROBE_CHANNEL,)) in adapter.calls)
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


async def test_silent_link_without_channels_is_found() -> None:
    """A link on which the broker stops answering is lost, though this process is subscribed to nothing."""
    adapter = Adapter(brokered=True)
    async with supervised(adapter, BRISK_PROBE) as made:
        adapter.publish_gate.close()
        adapter.start_gate.close()
        await made.reaches("degraded")
        adapter.publish_gate.open()
        adapter.start_gate.open()
        await made.reaches("live", generation=2)


async def test_dead_publish_path_is_found_while_messages_are_received() -> None:
    """Received messages show only that the subscribe path works: the probe detects that the publish path is dead."""
    adapter = Adapter(brokered=True)

    async def traffic() -> None:
        while made.supervisor.generation == 1:
            adapter.links[0].deliver("a", b"traffic")
            await asyncio.sleep(BRISK_PROBE.probe_interval_seconds / 20)

    async with supervised(adapter, BRISK_PROBE) as made:
        await made.joined("a")
        adapter.publish_gate.close()
        talking = asyncio.create_task(traffic())
        await made.reaches("live", generation=2)
        await talking
        adapter.publish_gate.open()


async def test_probe_whose_subscription_was_revoked_subscribes_again() -> None:
    """A broker that revokes the probe's subscription does not end the link."""
    adapter = Adapter(brokered=True)
    async with supervised(adapter, BRISK_PROBE) as made:
        await made.joined("a")
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
    """A broker in a passing state answers, so the link stays live, and probes go on."""
    adapter = Adapter(brokered=True)
    if state == "subscribe":
        adapter.unconfirmed[PROBE_CHANNEL] = "BUSY a script runs"
    else:
        adapter.publish_errors[PROBE_CHANNEL] = PASSING[state]
    async with supervised(adapter, BRISK_PROBE) as made:
        await made.joined("a")
        await adapter.until(lambda: max(probes(adapter), adapter.calls.count(("subscribe", (PROBE_CHANNEL,)))) == 3)
        adapter.unconfirmed.clear()
        adapter.publish_errors.clear()
        await adapter.until(lambda: adapter.published[-2:] == [(PROBE_CHANNEL, b"")] * 2)
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)
        assert warnings_of(caplog) == []


async def test_passing_state_that_lasts_rebuilds_the_link() -> None:
    """A link to a broker that stays in a passing state is rebuilt after some intervals."""
    adapter = Adapter(brokered=True)
    adapter.publish_errors[PROBE_CHANNEL] = PASSING["publish"]
    async with supervised(adapter, BRISK_PROBE) as made:
        await made.joined("a")
        await made.reaches("live", generation=2)
        assert probes(adapter) == 6


async def test_probe_that_ends_links_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """Where each link ends at its first probe, no further probe is sent, and a warning is logged."""
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
    """A process that is paused during its probe, for longer than two probes take, keeps its link."""
    adapter = Adapter(brokered=True)
    async with supervised(adapter, BRISK_PROBE) as made:
        await made.joined("a")
        for pauses in (1, 2, 3):
            adapter.publish_gate.close()
            await adapter.until(lambda pauses=pauses: probes(adapter) >= pauses)  # type: ignore[misc]
            asyncio.get_running_loop().call_soon(adapter.publish_gate.open)
            time.sleep(4 * BRISK_PROBE.probe_interval_seconds)
        await adapter.until(lambda: probes(adapter) >= 4)
        assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


async def test_no_probe_without_a_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter without a broker sends no probe, since its link cannot become silent."""
    pace = Pace(monkeypatch)
    async with supervised(Adapter(brokered=False), replace(SETTINGS, probe_interval_seconds=0.001)) as made:
        await made.joined("a")
        await run_passes(20)  # never idle: what the supervisor checks without a broker is due each millisecond
        assert (pace.rounds, made.adapter.verbs) == (0, ["start", "subscribe"])


@pytest.mark.parametrize("refused", ["subscribe", "publish"])
async def test_refused_probe_is_a_warning(refused: str, caplog: pytest.LogCaptureFixture) -> None:
    """A link whose broker forbids the probe stays live, with one warning, and is rebuilt when its loss is reported."""
    adapter = Adapter(brokered=True)
    if refused == "subscribe":
        adapter.refusals[PROBE_CHANNEL] = "not permitted"
    else:
        adapter.publish_errors[PROBE_CHANNEL] = PublishError("not permitted")
    async with supervised(adapter, BRISK_PROBE) as made:
        await made.joined("a")
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
    """A probe that is refused with a retriable error ends neither the link nor the probes."""
    adapter = Adapter(brokered=True)
    if refused == "subscribe":
        adapter.unconfirmed[PROBE_CHANNEL] = "BUSY"
    else:
        adapter.publish_errors[PROBE_CHANNEL] = PublishError("BUSY", retriable=True)
    async with supervised(adapter, BRISK_PROBE) as made:
        await made.joined("a")
        await adapter.until(lambda: adapter.calls.count((refused, (PROBE_CHANNEL,))) == 3)
        assert (made.supervisor.state, made.supervisor.generation, warnings_of(caplog)) == ("live", 1, [])
        adapter.unconfirmed.clear()
        adapter.publish_errors.clear()
        adapter.silent = True
        await made.reaches("degraded")


async def test_message_after_a_missed_probe_resets_the_count() -> None:
    """A message received after a missed probe shows that the subscribe path works; the event loop goes on running."""
    adapter = Adapter(brokered=True)
    adapter.silent = True
    with interrupting_a_spin():
        async with supervised(adapter, BRISK_PROBE) as made:
            await made.joined("a")
            await adapter.until(lambda: probes(adapter) == 1)
            adapter.links[-1].deliver("a", b"alive")
            adapter.silent = False
            await adapter.until(lambda: probes(adapter) == 2)
            assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


async def test_leave_after_a_missed_probe_resets_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the last subscriber leaves after a missed probe, nothing can be missed; the event loop goes on running."""
    pace = Pace(monkeypatch)
    adapter = Adapter(brokered=True)
    adapter.silent = True
    with interrupting_a_spin():
        async with supervised(adapter, replace(BRISK_PROBE, linger_seconds=0.001)) as made:
            subscriber = await made.joined("a")
            await adapter.until(lambda: probes(adapter) == 1)
            made.hub.leave("a", subscriber)
            await pace.reaches(pace.rounds + 2)
            assert (made.supervisor.state, made.supervisor.generation) == ("live", 1)


async def test_back_off_grows_over_links_that_receive_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that ended by the probe and never received anything was not stable, however long it was live."""
    bounds: list[float] = []

    def uniform(low: float, high: float) -> float:
        if low == 0:
            bounds.append(high)
        return low

    adapter = Adapter(brokered=True)
    adapter.silent = True
    settings = replace(BRISK_PROBE, probe_interval_seconds=0.02, max_backoff_seconds=5)
    async with supervised(adapter, settings, stable_seconds=0.0) as made:
        monkeypatch.setattr("backplane.broker.probe.random.uniform", uniform)
        await made.joined("a")
        await made.reaches("live", generation=4)
        assert bounds == [0.1, 0.2, 0.4]


async def test_reply_is_dated() -> None:
    """The time at which a probe was received is kept, by the event loop's clock."""
    adapter = Adapter(brokered=True)
    loop = asyncio.get_running_loop()
    async with supervised(adapter, BRISK_PROBE) as made:
        await made.joined("a")
        assert made.supervisor.probe.last_reply_at is None
        begun = loop.time()
        await adapter.until(lambda: probes(adapter) == 2)
        assert made.supervisor.probe.last_reply_at is not None
        assert begun < made.supervisor.probe.last_reply_at <= loop.time()


LOST = [BrokerUnavailableError("the link ended"), PublishOutcomeUnknownError("the link ended")]


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
async def test_error_of_a_probe_on_a_lost_session_is_raised(error: Exception) -> None:
    """An error of a probe whose session is over is raised, whether it is retriable or not."""
    adapter = Adapter(brokered=True)
    async with supervised(adapter) as made:
        probe = DeliveryProbe(adapter, origin=ORIGIN, wanted=[], interval_seconds=0.02)
        session = LinkSession(made.hub, PROBE_CHANNEL)
        adapter.publish_gate.close()
        watching = asyncio.create_task(probe.watch(session))
        await adapter.until(lambda: probes(adapter) == 1)
        session.lost(BrokerUnavailableError("the link ended"))
        adapter.publish_errors[PROBE_CHANNEL] = error
        adapter.publish_gate.open()
        with pytest.raises(type(error), match="the link ended"):
            await asyncio.wait_for(watching, WAIT_SECONDS)


async def test_verify_needs_an_answer_of_the_broker() -> None:
    """A confirmation and a refusal are answers; an unknown outcome means that the link ended before one."""
    adapter = Adapter(brokered=True)
    async with supervised(adapter) as made:
        probe, session = made.supervisor.probe, made.supervisor.status.session
        assert await probe.verify(session)
        adapter.publish_errors[PROBE_CHANNEL] = PublishError("not yours")
        assert await probe.verify(session)
        adapter.publish_errors[PROBE_CHANNEL] = PublishOutcomeUnknownError("the link ended")
        with pytest.raises(BrokerUnavailableError, match="the link ended before it answered anything"):
            await probe.verify(session)


async def test_verify_gives_up_where_probes_end_links() -> None:
    """After three links that ended during a probe, a new link is not verified by one."""
    adapter = Adapter(brokered=True)
    async with supervised(adapter) as made:
        probe = DeliveryProbe(adapter, origin=ORIGIN, wanted=[], interval_seconds=0.02)
        adapter.publish_gate.close()
        for links in (1, 2, 3):
            session = LinkSession(made.hub, PROBE_CHANNEL)
            watching = asyncio.create_task(probe.watch(session))
            await adapter.until(lambda links=links: probes(adapter) == links)  # type: ignore[misc]
            session.lost(BrokerUnavailableError("the link ended"))
            watching.cancel()
            await asyncio.wait([watching])
        assert not await probe.verify(LinkSession(made.hub, PROBE_CHANNEL))
        assert probes(adapter) == 3
        adapter.publish_gate.open()
