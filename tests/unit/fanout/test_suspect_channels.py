"""`backplane.fanout.suspect_channels`: which channel links end over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backplane.fanout import suspect_channels as module
from backplane.fanout.suspect_channels import Suspects

if TYPE_CHECKING:
    import pytest

NAMES = [f"room-{number}" for number in range(500)]


def test_one_loss_is_chance() -> None:
    """What was under way at one loss is asked for as before."""
    suspects = Suspects()
    assert suspects.link_ended(NAMES, proved=True) is None
    assert not any(suspects.is_apart(name) for name in NAMES)


def test_second_loss_sets_apart() -> None:
    """What was under way twice is asked for apart, in pieces; what was under way once is not."""
    suspects = Suspects()
    suspects.link_ended(NAMES[:100], proved=True)
    suspects.link_ended(NAMES[50:250], proved=True)
    assert [name for name in NAMES if suspects.is_apart(name)] == NAMES[50:100]
    assert suspects.piece(NAMES[50:100]) == NAMES[50:62]


def test_culprit_is_found_in_few_losses() -> None:
    """One of five hundred that ends every link is alone at the fifth loss, and convicted."""
    suspects = Suspects()
    culprit, losses = None, 0
    pending = list(NAMES)
    while culprit is None:
        batch = suspects.piece(pending) if suspects.is_apart(NAMES[77]) else pending
        if NAMES[77] in batch:
            losses += 1
            culprit = suspects.link_ended(batch, proved=True)
            pending = batch
        else:
            suspects.answered(batch)
            pending = [name for name in pending if name not in batch]
    assert (culprit, losses) == (NAMES[77], 4)
    assert suspects.is_convicted(culprit)
    assert not any(suspects.is_convicted(name) for name in NAMES if name != culprit)


def test_answer_acquits() -> None:
    """An answer of the broker ends the suspicion, and a conviction too."""
    suspects = Suspects()
    for _ in range(3):
        suspects.link_ended(["evil"], proved=True)
    assert suspects.is_convicted("evil")
    suspects.answered(["evil"])
    assert not suspects.is_convicted("evil")
    assert not suspects.is_apart("evil")


def test_sentence_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A culprit is tried again after a minute, then two, up to an hour, apart from the others and alone."""
    now = 0.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    suspects = Suspects()
    for _ in range(2):
        suspects.link_ended(["evil"], proved=True)
    for seconds in (60, 120, 240, 480, 960, 1920, 3600, 3600):
        assert suspects.link_ended(["evil"], proved=True) == "evil"
        now += seconds - 1
        assert suspects.is_convicted("evil")
        now += 1
        assert not suspects.is_convicted("evil")
        assert suspects.is_apart("evil")
        assert suspects.piece(["evil", "other"]) == ["evil"]


def test_names_at_will_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who names one culprit after the other fills no memory: the oldest are forgotten."""
    monkeypatch.setattr(module, "_MAX_CULPRITS", 10)
    monkeypatch.setattr(module, "_MAX_SUSPECTS", 100)
    suspects = Suspects()
    for number in range(30):
        for _ in range(3):
            suspects.link_ended([f"evil-{number}"], proved=True)
    assert [number for number in range(30) if suspects.is_convicted(f"evil-{number}")] == list(range(20, 30))
    suspects.link_ended(NAMES[:60], proved=True)
    suspects.link_ended(NAMES[:60], proved=True)
    assert suspects.is_apart(NAMES[0])
    suspects.link_ended(NAMES[60:], proved=True)
    suspects.link_ended(NAMES[60:], proved=True)
    assert not suspects.is_apart(NAMES[0])


def test_link_that_answered_nothing_convicts_nobody() -> None:
    """Where links end before they have answered anything nothing is counted, and the next one has to prove itself."""
    suspects = Suspects()
    for _ in range(10):
        assert suspects.link_ended(["a"], proved=False) is None
        assert suspects.needs_proof
    assert not suspects.is_apart("a")
    suspects.link_ended([], proved=False)
    assert not suspects.needs_proof
