"""What is known when a question is judged: `Case`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backplane.cluster_types import Worker
    from backplane.explain.evidence import ClientEvidence, Question, WorkerEvidence

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """What is known.

    Attributes:
        question: What was asked.
        workers: What each worker stated.
        missing: The workers that did not answer.
        errors: The workers whose answer is of no use, and why.
        not_tested: Why no path test was published; empty where one was.
        place: Where who asks finds its channels, in words: the broker and the prefix.
        elsewhere: What workers of other deployments stated, of those that have what no worker of this one has.
    """

    question: Question
    workers: tuple[WorkerEvidence, ...]
    missing: tuple[Worker, ...] = ()
    errors: tuple[tuple[Worker, str], ...] = ()
    not_tested: str = ""
    place: str = ""
    elsewhere: tuple[WorkerEvidence, ...] = ()

    @property
    def channel(self) -> str:
        """The channel, as sentences name it."""
        return repr(self.question.channel)

    @property
    def client(self) -> str:
        """The client, as sentences name it."""
        return "any client" if self.question.client is None else f"client {self.question.client!r}"

    @cached_property
    def found(self) -> list[tuple[WorkerEvidence, ClientEvidence]]:
        """The clients that are meant, each with its worker; those that have joined the channel first."""
        found = [(worker, client) for worker in self.workers for client in worker.clients]
        return sorted(found, key=lambda pair: not pair[1].joined)

    @cached_property
    def homes(self) -> list[WorkerEvidence]:
        """The workers on which the message should arrive: those of the client, or all that have subscribers."""
        if self.question.client is None:
            return [worker for worker in self.workers if worker.subscribers]
        joined = [worker for worker, client in self.found if client.joined]
        return list({worker.worker: worker for worker in joined}.values())
