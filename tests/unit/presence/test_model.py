"""`backplane.presence`: under random faults all views come to agree with the truth, and planted faults are found."""

# pyright: reportPrivateUsage=false, reportUnknownArgumentType=false, reportUnknownLambdaType=false

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from backplane.presence.channel import Channel
from backplane.presence.roster import News, Roster
from backplane.presence.view import OwnerView
from tests.unit.presence.model import MODES, Faults, Mode, run_many

if TYPE_CHECKING:
    from backplane.presence.wire import Delta


@pytest.mark.parametrize("mode", MODES)
def test_every_view_comes_to_agree_with_the_truth(mode: Mode) -> None:
    """At quiescence entries, users and their infos are the same on all workers, and changes lead to them."""
    assert run_many(170, mode, start=random.randrange(1_000_000)) == []


def test_versions_that_begin_anew_are_found() -> None:
    """A worker that is started again needs another id."""
    assert run_many(500, "crash", faults=Faults(same_ids=True), most=1)


def test_an_owner_without_a_beacon_at_its_gap_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request may be missing as well as an answer."""
    monkeypatch.setattr(Channel, "owner_gap", lambda *_: None)
    assert run_many(1_500, "contract", most=1)


def test_a_responder_that_is_not_sure_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not know everything must not answer for all."""
    monkeypatch.setattr(Channel, "may_answer_for_all", lambda *_: True)
    assert run_many(1_500, "contract", most=1)


def test_dead_workers_that_late_messages_raise_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a new heartbeat is a sign of life of a worker that is taken for dead."""
    mentioned = Roster.mentioned

    def raises(self: Roster, worker: str, now: float, silent: float = 0.0) -> News:
        self._dead.pop(worker, None)
        return mentioned(self, worker, now, silent)

    monkeypatch.setattr(Roster, "mentioned", raises)
    assert run_many(1_500, "contract", most=1)


def test_silence_that_counts_while_the_link_is_away_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker is declared dead by one that was away itself."""
    monkeypatch.setattr(Roster, "restart", lambda *_: None)
    assert run_many(500, "contract", most=1)


def test_a_difference_to_another_version_that_is_applied_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference is applied to its base alone."""
    apply = OwnerView.apply

    def applies(self: OwnerView, delta: Delta, now: float) -> None:
        apply(self, delta._replace(base=delta.base and self._of(delta.worker, now).version), now)

    monkeypatch.setattr(OwnerView, "apply", applies)
    assert run_many(500, "contract", most=1)


def test_a_version_that_is_named_and_not_asked_for_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What any worker has named must be held in the end."""
    monkeypatch.setattr(OwnerView, "missing", lambda *_: False)
    assert run_many(1_500, "contract", most=1)


def test_an_owner_that_did_not_run_and_names_no_version_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that asked it meanwhile answer others without what it states."""
    monkeypatch.setattr(Channel, "was_late", lambda *_: None)
    assert run_many(1_500, "contract", start=501_000, most=1)
