"""Faults of the way to the broker: a proxy breaks the links of some workers, others go past it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import pytest

from tests.chaos.crew import QUICK, talking
from tests.chaos.site import Site

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane import Settings
    from tests.chaos.crew import Member
    from tests.chaos.judge import Judge

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One way to break the way.

    Attributes:
        name: Its name in the table.
        strike: Breaks it.
        found: `soon` by an end of the connection, `by probe`, `never`, or, where either is right, `perhaps`.
        by_speakers: Only who publishes can find it.
        settings: Of the workers.
        filler: What makes each message longer.
    """

    name: str
    strike: Callable[[Site], None]
    found: Literal["soon", "by probe", "never", "perhaps"] = "soon"
    by_speakers: bool = False
    settings: Settings = QUICK
    filler: str = ""


def accept_in_silence(site: Site) -> None:
    """Cut every connection; who comes again is let in and hears nothing."""
    site.proxy.silence()
    site.proxy.cut()


TELLING = [
    Fault(name="RST", strike=lambda site: site.proxy.cut()),
    Fault(name="black hole", strike=lambda site: site.proxy.silence(), found="by probe"),
    Fault(
        name="reply swallowed after publish",
        strike=lambda site: site.proxy.silence("to_client", after=site.publishes),
        found="by probe",
        by_speakers=True,
    ),
]
OTHER = [
    Fault(name="FIN", strike=lambda site: site.proxy.finish()),
    Fault(name="connection refused", strike=lambda site: site.proxy.refuse()),
    Fault(
        name="black hole to the broker",
        strike=lambda site: site.proxy.silence("to_broker"),
        found="by probe",
        by_speakers=True,  # who only listens hears everything
    ),
    Fault(name="black hole to the client", strike=lambda site: site.proxy.silence("to_client"), found="by probe"),
    Fault(name="cut in the middle of a frame", strike=lambda site: site.proxy.cut_after(101)),
    Fault(name="accepted, then silence", strike=accept_in_silence),
    Fault(
        name="200 ms latency",
        strike=lambda site: site.proxy.slow(latency_seconds=0.2),
        found="never",
        settings=replace(QUICK, probe_interval_seconds=2.0, publish_timeout_seconds=5.0),
    ),
    Fault(
        name="50 kB/s under 300",
        strike=lambda site: site.proxy.slow(bytes_per_second=50_000),
        found="perhaps",
        filler="x" * 400,
    ),
]


@pytest.mark.parametrize(
    "fault",
    [
        *(pytest.param(fault, id=fault.name) for fault in TELLING),
        *(pytest.param(fault, id=fault.name, marks=pytest.mark.full) for fault in OTHER),
    ],
)
async def test_a_broken_way_costs_a_gap_and_no_more(fault: Fault, site: Site, judge: Judge) -> None:
    """Workers behind the fault find it and come back with one gap per channel; those beside it notice nothing."""
    lossless, settings, filler = site.lossless, fault.settings, fault.filler
    async with (
        site.proxy,
        talking(site.proxy.url, site.url, lossless=lossless, settings=settings, filler=filler) as crew,
    ):
        struck_at = asyncio.get_running_loop().time()
        fault.strike(site)
        if fault.found in ("never", "perhaps"):
            detected = None
            await asyncio.sleep(3)
        else:
            detected = await crew.detected(struck_at, crew.near[:1] if fault.by_speakers else None)
        site.proxy.heal()
        recovered = await crew.recovered()
    judge(fault.name, site.name, crew, detected=detected, silent=fault.found == "by probe", recovered=recovered)
    if fault.found == "never":
        assert [member.degraded_at for member in crew.members if member.degraded_at] == []


@pytest.mark.parametrize("name", ["redis", "nats"])
async def test_a_join_over_a_dead_way_out_finds_it(name: str, request: pytest.FixtureRequest) -> None:
    """Who hears others all the time finds by a join without an answer that nothing gets out any more."""
    site = Site.at(name, request.getfixturevalue(f"{name}_broker"))
    async with site.proxy, talking(site.proxy.url, site.url) as crew:
        listener = crew.near[1]
        site.proxy.silence("to_broker")
        join = asyncio.create_task(_join(listener, "another"))
        detected = crew.detected(asyncio.get_running_loop().time(), [listener])
        assert await detected <= 2 * QUICK.probe_interval_seconds + 0.3
        site.proxy.heal()
        await join
        await crew.recovered()
    assert crew.verdict().faults == []


async def _join(member: Member, channel: str) -> None:
    async with member.backplane.subscribe(channel):
        pass
