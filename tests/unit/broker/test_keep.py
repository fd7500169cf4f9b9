"""`backplane.broker.keep`: when a message may be sent a second time, and what its caller gets at the end."""

from __future__ import annotations

import pytest

from backplane.broker.keep import Keep
from backplane.errors import BrokerError, BrokerUnavailableError, ClosedError, PublishError, PublishOutcomeUnknownError
from backplane.history_rules import History

RULE = History()
UNAVAILABLE = BrokerUnavailableError("the link is lost")
REFUSED = PublishError("no permission")
BUSY = PublishError("too many wait", retriable=True)
UNKNOWN = PublishOutcomeUnknownError("no answer")


class Clocks:
    """The two clocks by which the age of a key is measured."""

    def __init__(self) -> None:
        self.monotonic = 1_000.0
        self.time = 1_800_000_000.0


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    """Clocks that a test sets."""
    clocks = Clocks()
    monkeypatch.setattr("backplane.broker.keep.monotonic", lambda: clocks.monotonic)
    monkeypatch.setattr("backplane.broker.keep.time", lambda: clocks.time)
    return clocks


@pytest.mark.parametrize("key", [None, b"k"])
@pytest.mark.parametrize(("error", "repeats"), [(UNAVAILABLE, True), (BUSY, True), (REFUSED, False)], ids=repr)
def test_what_was_not_published_follows_its_error(key: bytes | None, error: BrokerError, repeats: bool) -> None:
    """With and without a key, what was certainly not published is sent again where the error is a passing one."""
    keep = Keep(RULE, key)
    assert [keep.repeats_after(error) for _ in range(10)] == [repeats] * 10
    assert not keep.in_doubt
    assert keep.final_error(error) is error


def test_an_unknown_outcome_without_a_key_is_final() -> None:
    """Without a key nothing is sent again after an attempt that got no answer."""
    keep = Keep(RULE)
    assert not keep.repeats_after(UNKNOWN)
    assert not keep.repeats_after(UNAVAILABLE)


def test_an_unknown_outcome_with_a_key_is_repeated_a_few_times() -> None:
    """With a key another attempt follows, but not for ever: the message can be what ends the link."""
    keep = Keep(RULE, b"k")
    keep.begin_attempt()
    assert [keep.repeats_after(UNKNOWN) for _ in range(6)] == [True] * 4 + [False] * 2


@pytest.mark.parametrize(("error", "repeats"), [(UNAVAILABLE, True), (BUSY, True), (REFUSED, False)], ids=repr)
def test_after_an_unknown_outcome_no_error_is_certain(error: BrokerError, repeats: bool) -> None:
    """What fails after an attempt without an answer leaves open whether the first one published the message."""
    keep = Keep(RULE, b"k")
    keep.begin_attempt()
    assert keep.repeats_after(UNKNOWN)
    assert keep.repeats_after(error) is repeats
    assert keep.in_doubt
    for last in (error, ClosedError("stopped")):
        final = keep.final_error(last)
        assert isinstance(final, PublishOutcomeUnknownError)
        assert str(final) == f"an attempt got no answer, so it may have been published; then: {last}"
    assert keep.final_error(UNKNOWN) is UNKNOWN


@pytest.mark.parametrize("clock", ["monotonic", "time"])
def test_a_key_that_the_broker_may_have_forgotten_is_not_sent_again(clocks: Clocks, clock: str) -> None:
    """By either clock, 240 s after the first attempt without an answer nothing is sent again."""
    keep = Keep(RULE, b"k")
    keep.begin_attempt()
    assert keep.repeats_after(UNKNOWN)
    setattr(clocks, clock, getattr(clocks, clock) + 239)
    keep.begin_attempt()
    assert keep.repeats_after(UNKNOWN)
    setattr(clocks, clock, getattr(clocks, clock) + 1)
    assert not keep.repeats_after(UNAVAILABLE)
    with pytest.raises(PublishOutcomeUnknownError, match="after 240 s the broker may have forgotten the key"):
        keep.begin_attempt()


def test_the_age_of_a_key_begins_with_the_first_attempt_without_an_answer(clocks: Clocks) -> None:
    """Attempts that certainly published nothing before it do not count, however long they took."""
    keep = Keep(RULE, b"k")
    keep.begin_attempt()
    assert keep.repeats_after(UNAVAILABLE)
    clocks.monotonic += 1_000
    keep.begin_attempt()
    assert keep.repeats_after(UNKNOWN)
    clocks.monotonic += 239
    keep.begin_attempt()
