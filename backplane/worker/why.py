"""Asks all workers why a client does not receive a channel: `Backplane.explain`."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Final

from backplane.cluster_types import Answers, Worker
from backplane.control.messages import Selector
from backplane.errors import BackplaneError, BrokerUnavailableError, PublishOutcomeUnknownError
from backplane.explain.case import Case
from backplane.explain.evidence import parse_evidence
from backplane.explain.verdict import explain
from backplane.explain.wording import place
from backplane.worker.elsewhere import look_elsewhere
from backplane.worker.path_test_publisher import publish_path_test
from backplane.worker.witness import KIND, testify

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backplane.explain.evidence import Question, WorkerEvidence
    from backplane.explain.explanation import Explanation
    from backplane.worker.runtime import Runtime

__all__ = ["ask_why"]

_TEST_ID_BYTES: Final = 8
# The share of the time to answer for which a worker waits for the path test.
_TEST_SHARE: Final = 0.5


async def ask_why(runtime: Runtime, question: Question, *, test: bool, seconds: float) -> Explanation:
    """Ask every worker, after a path test, and return what follows; see `Backplane.explain`."""
    cluster = runtime.members()
    not_tested = "" if test else "it was not asked for"
    test_id = os.urandom(_TEST_ID_BYTES)
    if test and not runtime.settings.path_test:
        not_tested = "Settings(path_test=False)"
    elif test:
        try:
            async with asyncio.timeout(seconds):
                await publish_path_test(runtime, question.channel, test_id)
        except (BackplaneError, TimeoutError) as error:
            not_tested = str(error) or f"the broker did not take it within {seconds:g} s"
    arguments = {
        "channel": question.channel,
        "client": question.client,
        "test": "" if not_tested else test_id.hex(),
        "seconds": seconds * _TEST_SHARE,
    }
    try:
        answers = await cluster.requests.ask(KIND, Selector(), arguments, seconds)
    except (BrokerUnavailableError, PublishOutcomeUnknownError):
        if not cluster.is_member:
            raise
        answers = await _own_answer(runtime, question)
    read = {worker: parse_evidence(answer) for worker, answer in answers.by_worker.items()}
    found = [evidence for evidence in read.values() if evidence is not None]
    unread = [worker for worker, evidence in read.items() if evidence is None]
    case = Case(
        question=question,
        workers=tuple(sorted(found, key=lambda worker: (worker.host, worker.pid, worker.worker))),
        missing=(*answers.missing, *_missed_by_others(answers, found)),
        errors=(*answers.errors.items(), *((worker, "this release cannot read it") for worker in unread)),
        not_tested=not_tested,
        place=place(runtime.broker_url, runtime.prefix),
    )
    if not case.found and not case.homes and not any(each.ended or each.refused_joins for each in found):
        case = replace(case, elsewhere=tuple(await look_elsewhere(runtime, question, KIND, seconds)))
    return explain(case)


async def _own_answer(runtime: Runtime, question: Question) -> Answers:
    """Return what this worker alone knows, where the broker does not take the question: its own link can be the fault.

    Of the others nothing is known while it is lost; while it is live they count as missing.
    """
    evidence, is_live = await testify(runtime, question, 0), runtime.supervisor.state == "live"
    own, *others = runtime.members().workers()
    return Answers(
        by_worker={own: asdict(evidence)},
        errors={},
        missing=[worker for worker in others if worker.is_alive and is_live],
        seconds={},
    )


def _missed_by_others(answers: Answers, found: Iterable[WorkerEvidence]) -> list[Worker]:
    """Return the workers that others know to be alive, and that did not answer: who asks may be new."""
    asked = {*answers.by_worker, *answers.errors, *answers.missing}
    known = {Worker(id=name, host=host, pid=pid) for each in found for name, host, pid in each.others}
    return sorted(known - asked, key=lambda worker: worker.id)
