"""`backplane.adapters.amqp.numbering`: which messages a queue has missed."""

from __future__ import annotations

import pytest

from backplane.adapters.amqp.numbering import Numbering, SeenNumbers
from backplane.adapters.amqp.wire import Content

_Sent = tuple[int, int, int]  # number, link, base


def missed(*sent: _Sent, worker: bytes = b"w") -> list[int]:
    """Return what is missed before each of the messages of one worker."""
    seen = SeenNumbers(bound=0.0, bound_at=1000.0)
    return [seen.missed(Content(1, worker, *numbers, age_seconds=50.0, began_at=900), 10.0) for numbers in sent]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([(5, 1, 0), (6, 1, 0)], [0, 0]),
        ([(5, 1, 0), (8, 1, 0)], [0, 2]),
        # Of link 1 all up to 7 were confirmed, and link 2 begins after it.
        ([(7, 1, 0), (8, 2, 7)], [0, 0]),
        ([(5, 1, 0), (8, 2, 7)], [0, 2]),
        ([(7, 1, 0), (10, 2, 7)], [0, 2]),
        ([(5, 1, 0), (10, 2, 7)], [0, 4]),
        # 8 and 9 of link 1 were not confirmed, arrived all the same, and their numbers are used again.
        ([(9, 1, 0), (8, 2, 7), (9, 2, 7)], [0, 0, 0]),
        ([(9, 1, 0), (9, 2, 7)], [0, 1]),
        # All of link 2 is missing.
        ([(7, 1, 0), (12, 3, 11)], [0, 4]),
        # Late, from a server that the worker has left.
        ([(7, 1, 0), (8, 2, 7), (8, 1, 0), (9, 2, 7)], [0, 0, 0, 0]),
    ],
)
def test_what_a_queue_has_missed(sent: list[_Sent], expected: list[int]) -> None:
    """What was confirmed and did not arrive is missed, over links too; what was not confirmed is not."""
    assert missed(*sent) == expected


@pytest.mark.parametrize(
    ("age_seconds", "began_at", "expected"),
    [(5.0, 1003, 2), (5.0, 1001, 0), (15.0, 1003, 0)],
)
def test_a_link_that_began_later_is_known_from_its_first_message(
    age_seconds: float, began_at: int, expected: int
) -> None:
    """Both its age and its clock must show that it began after the queue."""
    seen = SeenNumbers(bound=0.0, bound_at=1000.0)
    content = Content(1, b"w", 13, 2, 10, age_seconds=age_seconds, began_at=began_at)
    assert seen.missed(content, 10.0) == expected


def test_the_workers_that_are_remembered_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was silent for longest is forgotten: what it missed is not noticed."""
    monkeypatch.setattr("backplane.adapters.amqp.numbering._MAX_WORKERS", 2)
    seen = SeenNumbers(bound=0.0, bound_at=1000.0)
    for worker in (b"one", b"two", b"one", b"three"):
        seen.missed(Content(1, worker, 1, 1, 0, 50.0, 900), 10.0)
    assert [seen.missed(Content(1, w, 3, 1, 0, 50.0, 900), 10.0) for w in (b"one", b"two")] == [1, 0]


def test_two_workers_have_two_names() -> None:
    """Numbers of two are not mixed up."""
    assert Numbering().worker != Numbering().worker
