"""`backplane.broker.outage_log`: how an outage that lasts is logged."""

from __future__ import annotations

import pytest

from backplane.errors import (
    BrokerAuthenticationError,
    BrokerUnavailableError,
)
from tests.unit.kit import (
    supervised,
    warnings_of,
)

pytestmark = pytest.mark.anyio


async def test_outage_of_many_tries_is_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Tries that fail with a known kind of error are not logged one by one, whatever their text."""
    async with supervised() as made:
        made.adapter.start_errors = [BrokerUnavailableError("refused")] * 30
        made.adapter.cut()
        await made.reaches("live", generation=32)
        assert len(warnings_of(caplog)) == 2


@pytest.mark.parametrize("error", [BrokerAuthenticationError("wrong password"), RuntimeError("a fault")], ids=repr)
async def test_outage_of_another_kind_is_logged_once(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """Another kind of error than that of the loss is logged once, a fault with its traceback."""
    async with supervised() as made:
        made.adapter.start_errors = [error] * 10
        made.adapter.cut()
        await made.reaches("live", generation=12)
        _, line, _ = warnings_of(caplog)
        assert line == f"still no link to controlled:// after 0 s, tries: 1: {error}"
        assert [bool(record.exc_info) for record in caplog.records] == [False, isinstance(error, RuntimeError), False]


async def test_outage_that_lasts_is_logged_rarely(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged again in intervals that double, with the number of tries and the last error."""
    async with supervised(outage_log_seconds=0.05) as made:
        made.adapter.start_error = BrokerUnavailableError("refused")
        made.adapter.cut()
        await made.adapter.until(lambda: len(warnings_of(caplog)) == 4)
        made.adapter.start_error = None
        await made.reaches("live", generation=2)
        assert made.supervisor.generation > 10
        assert len(warnings_of(caplog)) <= 6
        assert warnings_of(caplog)[1].startswith("still no link to controlled:// after 0 s, tries: ")
