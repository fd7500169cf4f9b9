"""`backplane.explain.evidence`: what another worker states, whatever its version is."""

from __future__ import annotations

from dataclasses import asdict

from backplane.explain.evidence import ClientEvidence, WorkerEvidence, is_client_name, parse_evidence


def test_parse() -> None:
    """What was sent as JSON is what was stated; what is unknown is dropped, what lacks has its default."""
    evidence = WorkerEvidence(worker="w1", host="web", pid=7, clients=(ClientEvidence(id="c1"),))
    assert parse_evidence(asdict(evidence)) == evidence
    assert parse_evidence({"worker": "w1", "of a later version": 1}) == WorkerEvidence(worker="w1")
    assert evidence.name == "web/7"
    assert WorkerEvidence(worker="w1").name == "?/0"


def test_no_evidence() -> None:
    """What is none is no evidence."""
    answers: tuple[object, ...] = (None, 3, "w1", [], {}, {"worker": 3}, {"worker": "w1", "clients": "x"})
    for answer in answers:
        assert parse_evidence(answer) is None


def test_names() -> None:
    """A client is asked for by a text that is neither empty nor very long, and can be sent."""
    assert all(map(is_client_name, ("a", "x" * 512, "\0", "é")))
    assert not any(map(is_client_name, ("", "x" * 513, 3, "\ud800")))
