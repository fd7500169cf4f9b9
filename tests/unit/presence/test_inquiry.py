"""`backplane.presence.inquiry`: when a view asks, whom, and when it is sure."""

from __future__ import annotations

from math import inf
from random import Random

import pytest

from backplane.presence.inquiry import Inquiry, Step
from backplane.presence.times import PresenceTimes


@pytest.fixture
def inquiry() -> Inquiry:
    """Return an inquiry that has asked nothing."""
    return Inquiry(PresenceTimes(), Random(1))


def test_an_answer_that_is_whole_makes_it_sure(inquiry: Inquiry) -> None:
    """Only one to the last request."""
    inquiry.doubt(0)
    assert inquiry.step(0, missing=False) is Step.ASK
    first = inquiry.asked(0)
    assert inquiry.expects(first)
    assert not inquiry.expects(first + 1)
    assert not inquiry.expects(first - 1)
    second = inquiry.asked(0)
    assert inquiry.expects(first)
    assert not inquiry.answered(first, 0.1, missing=False)
    assert inquiry.answered(second, 0.1, missing=False)
    assert (inquiry.sure, inquiry.next_due()) == (True, inf)
    assert not inquiry.answered(second, 0.2, missing=False)


def test_without_an_answer_everyone_is_asked_and_then_it_is_sure(inquiry: Inquiry) -> None:
    """What has not answered has nothing to state."""
    inquiry.doubt(0)
    inquiry.asked(0)
    assert inquiry.step(0.2, missing=False) is None
    assert inquiry.step(0.3, missing=False) is Step.ASK
    assert inquiry.everyone
    inquiry.asked(0.3)
    assert (inquiry.step(1.3, missing=False), inquiry.sure) == (Step.SURE, True)
    assert not inquiry.everyone


def test_a_gap_after_the_request_makes_the_answer_worthless(inquiry: Inquiry) -> None:
    """Something may be missing that was published after it was made; requests are a second apart."""
    inquiry.doubt(0)
    number = inquiry.asked(0)
    inquiry.doubt(0.1)
    assert not inquiry.answered(number, 0.2, missing=False)
    assert inquiry.next_due() == 1
    assert inquiry.step(1, missing=False) is Step.ASK


def test_a_gap_while_everyone_is_asked_needs_another_request(inquiry: Inquiry) -> None:
    """The end of the time does not make it sure."""
    inquiry.doubt(0)
    inquiry.asked(0)
    inquiry.step(0.3, missing=False)
    inquiry.asked(0.3)
    inquiry.doubt(1.5)
    assert inquiry.step(1.3, missing=False) is None
    assert not inquiry.sure
    assert inquiry.step(1.5, missing=False) is Step.ASK


def test_what_arrives_meanwhile_is_not_asked_for(inquiry: Inquiry) -> None:
    """Most of what seems to be missing is on its way."""
    inquiry.missing(0)
    assert 0.2 <= inquiry.next_due() <= 0.4
    assert inquiry.step(0.4, missing=False) is None
    assert inquiry.next_due() == inf
    inquiry.missing(1)
    assert inquiry.step(1.4, missing=True) is Step.ASK


def test_a_version_that_no_worker_has_is_asked_for_ever_more_rarely(inquiry: Inquiry) -> None:
    """A worker can name a version that does not exist."""
    inquiry.doubt(0)
    asked: list[float] = []
    now = 0.0
    while now < 200:
        now = inquiry.next_due()
        if inquiry.step(now, missing=True) is Step.ASK:
            asked.append(now)
            inquiry.asked(now)
    assert len(asked) < 20
    inquiry.doubt(now)
    assert inquiry.next_due() < now + 2


def test_nothing_is_asked_while_the_link_is_away(inquiry: Inquiry) -> None:
    """A doubt begins anew; without another worker there is nothing to ask."""
    inquiry.doubt(0)
    inquiry.asked(0)
    inquiry.suspend()
    assert (inquiry.next_due(), inquiry.sure) == (inf, False)
    inquiry.doubt(5)
    inquiry.asked(5)
    inquiry.settle(5)
    assert (inquiry.next_due(), inquiry.sure) == (inf, True)


def test_after_a_doubt_what_is_missing_is_asked_for_as_soon_as_at_first(inquiry: Inquiry) -> None:
    """What no worker had before may be answered now: a worker is back, for example."""
    now = 0.0
    inquiry.doubt(now)
    while now < 60:
        now = inquiry.next_due()
        if inquiry.step(now, missing=True) is Step.ASK:
            inquiry.asked(now)
    inquiry.doubt(now)
    asked: list[float] = []
    while len(asked) < 4:
        now = inquiry.next_due()
        if inquiry.step(now, missing=True) is Step.ASK:
            asked.append(now)
            inquiry.asked(now)
    assert asked[-1] - asked[0] < 10
