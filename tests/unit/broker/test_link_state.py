"""`backplane.broker.link_state`: the state of the link, its changes, and what is logged of them."""

from __future__ import annotations

import logging
import re

import pytest

from tests.unit.kit import (
    supervised,
)

pytestmark = pytest.mark.anyio


async def test_lost_link_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A loss and its end are warnings, so that a default configuration shows both; the end shows the duration."""
    caplog.set_level(logging.INFO, "backplane.broker.link_state")
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


async def test_outage_is_counted() -> None:
    """A lost link is counted by its cause, and the outage with its duration once it is over; the stop is no outage."""
    async with supervised() as made:
        await made.recover()
        tally = made.supervisor.status.tally
        assert {cause: count for cause, count in tally.lost.items() if count} == {"closed": 1}
        assert tally.outages.count == 1
    assert (tally.outages.count, sum(tally.lost.values())) == (1, 1)
    assert tally.degraded_seconds == tally.outages.total > 0
