"""The answer to why a client does not receive a channel: `Explanation`, as the application and the tools have it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from backplane.explain.evidence import WorkerEvidence

__all__ = ["Explanation", "Finding", "Station"]

Station = Literal["publisher", "broker", "link", "hub", "outbox", "socket", "client"]
"""A place on the way of a message, in its order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was found.

    Attributes:
        code: What it is, as one word or two that stay the same: `receives nothing`, `not joined`.
        station: Where on the way of a message.
        text: One sentence.
        cure: What to do about it; empty where nothing is to be done.
        worker: The id of the worker concerned; empty where it is none.
        is_fault: It explains why the client receives nothing. Otherwise it is a note.
    """

    code: str
    station: Station
    text: str
    cure: str = ""
    worker: str = ""
    is_fault: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a client receives nothing of a channel, or that it should.

    Attributes:
        verdict: The code of the first fault on the way of a message; `whole` where none was found.
        text: The verdict in a sentence.
        cure: What to do about it; empty where nothing is to be done.
        findings: Everything that was found, faults first, in the order of the way.
        workers: What each worker stated.
        missing: The ids of workers that did not answer, or with an error, of which a finding states the reason.
        channel: What was asked for.
        client: What was asked for.
        tested: A test message was published on the channel, which no client receives.
        not_tested: Why not; empty where it was.
    """

    verdict: str
    text: str
    cure: str = ""
    findings: tuple[Finding, ...] = ()
    workers: tuple[WorkerEvidence, ...] = ()
    missing: tuple[str, ...] = ()
    channel: str = ""
    client: str | None = None
    tested: bool = False
    not_tested: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether no fault was found: what is published reaches the client, as far as can be seen from here."""
        return self.verdict == "whole"

    def to_json(self) -> dict[str, Any]:
        """Return it as values that JSON can hold, with `asked` and `answered` beside: how many workers."""
        shown = asdict(self)
        return {"asked": len(self.workers) + len(self.missing), "answered": len(self.workers), **shown}
