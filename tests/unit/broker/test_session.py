"""`backplane.broker.session`: one session of the link, whose reports are ignored once it is retired."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backplane.broker.session import LinkSession
from backplane.errors import BrokerUnavailableError
from backplane.fanout.broker_subscriptions import BrokerSubscriptions
from backplane.fanout.hub import Hub
from backplane.message import ALL, Gap
from tests.unit.controlled_adapter import Adapter
from tests.unit.doubles import until_idle
from tests.unit.kit import PROBE_CHANNEL, supervised

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.broadcaster import Sink

pytestmark = pytest.mark.anyio


def deliver_late(link: Sink) -> None:
    """Report a message."""
    link.deliver("a", b"late")


def gap_late(link: Sink) -> None:
    """Report a gap."""
    link.gap(ALL, "late")


def revoke_late(link: Sink) -> None:
    """Report a revoked subscription."""
    link.revoked(["a"], "late")


def lose_late(link: Sink) -> None:
    """Report a loss."""
    link.lost(BrokerUnavailableError("late"))


LATE = pytest.mark.parametrize("report", [deliver_late, gap_late, revoke_late, lose_late])


@LATE
async def test_late_report_of_an_old_session_is_ignored(report: Callable[[Sink], None]) -> None:
    """What an adapter reports on an old session, after the next one is live, is ignored."""
    async with supervised(Adapter(resumes=True)) as made:
        subscriber = await made.joined("a")
        old = made.adapter.links[-1]
        await made.recover()
        report(old)
        await until_idle()
        assert (subscriber.received, made.supervisor.state, made.supervisor.generation) == ([], "live", 2)


@LATE
async def test_late_report_while_degraded_is_ignored(report: Callable[[Sink], None]) -> None:
    """Between two links, reports of the lost one are ignored."""
    async with supervised(Adapter(resumes=True)) as made:
        subscriber = await made.joined("a")
        old = made.adapter.links[-1]
        await made.degrade()
        report(old)
        await until_idle()
        assert (subscriber.received, made.supervisor.generation) == ([], 2)
        made.adapter.start_gate.open()
        await made.reaches("live", generation=2)


@LATE
async def test_late_report_after_stop_is_ignored(report: Callable[[Sink], None]) -> None:
    """After the stop every report is ignored."""
    async with supervised() as made:
        subscriber = await made.joined("a")
        await made.supervisor.stop()
        report(made.adapter.links[-1])
        await until_idle()
        assert (subscriber.received, made.supervisor.state, made.supervisor.generation) == ([], "closed", 1)


async def test_loss_is_visible_before_the_supervisor_runs() -> None:
    """A lost session is over at once, and a second report of a loss changes nothing."""
    link = LinkSession(Hub(BrokerSubscriptions(linger_seconds=1, timeout_seconds=1)), PROBE_CHANNEL)
    assert (link.is_over, link.received_any) == (False, False)
    link.lost(BrokerUnavailableError("first"))
    link.lost(BrokerUnavailableError("second"))
    assert link.is_over
    with pytest.raises(BrokerUnavailableError, match="first"):
        await link.failure


async def test_gap_before_the_confirmation_waits_for_it() -> None:
    """A gap found while resuming is delivered once the channels are confirmed, a later one at once."""
    async with supervised(Adapter()) as made:
        subscriber = await made.joined("a")
        link = LinkSession(made.hub, PROBE_CHANNEL)
        link.gap(["a"], "early")
        assert subscriber.received == []
        link.confirm()
        assert subscriber.received == [Gap(channel="a", reason="early")]
        link.gap(ALL, "late")
        assert subscriber.received[1:] == [Gap(channel="a", reason="late")]


async def test_messages_after_an_early_gap_stay_after_it() -> None:
    """What is received between a gap found while resuming and the confirmation is delivered after that gap."""
    async with supervised(Adapter()) as made:
        subscriber = await made.joined("a")
        link = LinkSession(made.hub, PROBE_CHANNEL)
        link.gap(["a"], "early")
        link.deliver("a", b"first")
        link.deliver("a", b"second")
        assert subscriber.received == []
        link.confirm()
        link.deliver("a", b"third")
        assert await subscriber.receives(4) == [Gap(channel="a", reason="early"), "first", "second", "third"]


async def test_probe_completes_its_reply_and_does_not_reach_the_hub() -> None:
    """A received probe completes the reply, once; a second one is ignored, and so is one that is not awaited."""
    hub = Hub(BrokerSubscriptions(linger_seconds=1, timeout_seconds=1))
    link = LinkSession(hub, PROBE_CHANNEL)
    link.deliver(PROBE_CHANNEL, b"")
    link.probe_reply = asyncio.get_running_loop().create_future()
    link.deliver(PROBE_CHANNEL, b"")
    link.deliver(PROBE_CHANNEL, b"")
    assert (link.probe_reply.done(), link.received_any, hub.malformed) == (True, True, 0)


async def test_revoked_subscription_is_a_gap_once_it_is_back() -> None:
    """A revoked channel is subscribed again, and its subscribers get one gap, others none."""
    async with supervised(Adapter()) as made:
        subscriber = await made.joined("a")
        other = await made.joined("b")
        made.adapter.links[-1].revoked(["a"], "maximum subscriptions exceeded")
        assert await subscriber.receives(1) == [Gap(channel="a", reason="maximum subscriptions exceeded")]
        assert other.received == []
        assert made.adapter.verbs[-1] == "subscribe"
