"""`backplane.broker.link_tally`: lost links by cause, and how long there was none."""

from __future__ import annotations

import pytest

from backplane.broker.link_tally import LinkTally
from backplane.broker.probe import SilentLinkError
from backplane.errors import BrokerAuthenticationError, BrokerError, BrokerUnavailableError, PublishError


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (SilentLinkError("no answer"), "silent"),
        (BrokerUnavailableError("cut"), "closed"),
        (BrokerAuthenticationError("wrong password"), "refused"),
        (PublishError("not allowed"), "refused"),
        (BrokerError("another"), "refused"),
        (RuntimeError("a fault"), "fault"),
    ],
    ids=repr,
)
def test_cause(error: Exception, cause: str) -> None:
    """The class of the error decides, never its words; each cause is there from the start."""
    tally = LinkTally()
    assert tally.lost == {"silent": 0, "closed": 0, "refused": 0, "fault": 0}
    tally.count_lost(error)
    assert {name: count for name, count in tally.lost.items() if count} == {cause: 1}


def test_outages() -> None:
    """An outage grows while it lasts, and is in the histogram once it is over."""
    now = [100.0]
    tally = LinkTally(lambda: now[0])
    tally.ended()  # a first link is no end of an outage
    assert (tally.degraded_seconds, tally.outages.count) == (0.0, 0)
    tally.began()
    now[0] += 3.0
    assert (tally.degraded_seconds, tally.outages.count) == (3.0, 0)
    tally.ended()
    now[0] += 50.0
    tally.began()
    now[0] += 0.25
    tally.ended()
    assert (tally.degraded_seconds, tally.outages.count, tally.outages.total) == (3.25, 2, 3.25)
