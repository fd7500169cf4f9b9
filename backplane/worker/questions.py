"""What a worker answers when others ask: a question is a module that has a `KIND`, and makes the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backplane.worker import recent_events, witness

if TYPE_CHECKING:
    from backplane.worker.cluster import Cluster
    from backplane.worker.runtime import Runtime

__all__ = ["answer_questions"]


def answer_questions(runtime: Runtime, cluster: Cluster) -> None:
    """Let a worker answer them."""
    cluster.add_question(witness.KIND, witness.make_witness(runtime))
    cluster.add_question(recent_events.KIND, recent_events.answer_with(runtime.journal))
