"""`backplane.broker.session`: one generation of the link, which is heard only while its time lasts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backplane.broker.session import LinkSession
from backplane.errors import BrokerUnavailableError
from backplane.fanout.broker_subscriptions import BrokerSubscriptions
from backplane.fanout.hub import Hub
from backplane.message import ALL, Gap
from tests.unit.doubles import until_idle
from tests.unit.supervised import PROBE_CHANNEL, Adapter, supervised

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
    """Report a subscription that was taken away."""
    link.revoked(["a"], "late")


def lose_late(link: Sink) -> None:
    """Report a loss."""
    link.lost(BrokerUnavailableError("late"))


LATE = pytest.mark.parametrize("report", [deliver_late, gap_late, revoke_late, lose_late])


@LATE
async def test_late_report_behind_a_newer_link_is_not_heard(report: Callable[[Sink], None]) -> None:
    """What an adapter still reports on its old link belongs to the past."""
    async with supervised(Adapter(resumes=True)) as made:
        listener = await made.listener("a")
        old = made.adapter.links[-1]
        await made.recover()
        report(old)
        await until_idle()
        assert (listener.heard, made.supervisor.state, made.supervisor.generation) == ([], "live", 2)


@LATE
async def test_late_report_while_degraded_is_not_heard(report: Callable[[Sink], None]) -> None:
    """Between two links nothing of the lost one is heard."""
    async with supervised(Adapter(resumes=True)) as made:
        listener = await made.listener("a")
        old = made.adapter.links[-1]
        await made.degrade()
        report(old)
        await until_idle()
        assert (listener.heard, made.supervisor.generation) == ([], 2)
        made.adapter.start_gate.open()
        await made.reaches("live", generation=2)


@LATE
async def test_late_report_after_stop_is_not_heard(report: Callable[[Sink], None]) -> None:
    """After the stop nothing is heard at all."""
    async with supervised() as made:
        listener = await made.listener("a")
        await made.supervisor.stop()
        report(made.adapter.links[-1])
        await until_idle()
        assert (listener.heard, made.supervisor.state, made.supervisor.generation) == ([], "closed", 1)


async def test_loss_is_known_before_its_owner_acts() -> None:
    """Who looks at a link that was lost a moment ago sees that it is over, and a second loss changes nothing."""
    link = LinkSession(Hub(BrokerSubscriptions(linger_seconds=1, timeout_seconds=1)), PROBE_CHANNEL)
    assert (link.is_over, link.carried) == (False, False)
    link.lost(BrokerUnavailableError("first"))
    link.lost(BrokerUnavailableError("second"))
    assert link.is_over
    with pytest.raises(BrokerUnavailableError, match="first"):
        await link.ended


async def test_gap_before_the_confirmation_waits_for_it() -> None:
    """A gap found while resuming is told once the channels are confirmed, a later one at once."""
    async with supervised(Adapter()) as made:
        listener = await made.listener("a")
        link = LinkSession(made.hub, PROBE_CHANNEL)
        link.gap(["a"], "early")
        assert listener.heard == []
        link.confirm()
        assert listener.heard == [Gap(channel="a", reason="early")]
        link.gap(ALL, "late")
        assert listener.heard[1:] == [Gap(channel="a", reason="late")]


async def test_messages_after_an_early_gap_stay_after_it() -> None:
    """What is received between a gap found while resuming and the confirmation is delivered after that gap."""
    async with supervised(Adapter()) as made:
        listener = await made.listener("a")
        link = LinkSession(made.hub, PROBE_CHANNEL)
        link.gap(["a"], "early")
        link.deliver("a", b"first")
        link.deliver("a", b"second")
        assert listener.heard == []
        link.confirm()
        link.deliver("a", b"third")
        assert await listener.hears(4) == [Gap(channel="a", reason="early"), "first", "second", "third"]


async def test_probe_is_carried_and_never_reaches_the_hub() -> None:
    """The echo settles who waits for it, once; a second one is no error, and one that nobody awaits neither."""
    hub = Hub(BrokerSubscriptions(linger_seconds=1, timeout_seconds=1))
    link = LinkSession(hub, PROBE_CHANNEL)
    link.deliver(PROBE_CHANNEL, b"")
    link.echo = asyncio.get_running_loop().create_future()
    link.deliver(PROBE_CHANNEL, b"")
    link.deliver(PROBE_CHANNEL, b"")
    assert (link.echo.done(), link.carried, hub.malformed) == (True, True, 0)


async def test_revoked_subscription_is_a_gap_once_it_is_back() -> None:
    """What the broker took away is subscribed again, and its subscribers are notified of one gap, others of none."""
    async with supervised(Adapter()) as made:
        listener = await made.listener("a")
        other = await made.listener("b")
        made.adapter.links[-1].revoked(["a"], "maximum subscriptions exceeded")
        assert await listener.hears(1) == [Gap(channel="a", reason="maximum subscriptions exceeded")]
        assert other.heard == []
        assert made.adapter.verbs[-1] == "subscribe"
