"""`backplane.control.requests`: answers of all, of some, of none, and of workers that do not exist."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from backplane import Answers, BrokerUnavailableError, InvalidDataError, PublishOutcomeUnknownError
from backplane.cluster.topics import CONTROL, inbox_of
from backplane.cluster_types import Worker
from backplane.control import requests as module
from backplane.control.messages import Answer, Selector, parse_command
from backplane.fanout.codec import decode
from tests.unit.control.world import ControlWorker, control_workers
from tests.unit.doubles import until_idle
from tests.unit.kit import AT_ONCE, NEVER, WAIT_SECONDS, warnings_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

ADA = Selector(user="ada")
SILENT = Worker(id="00000000000000aa")
STRANGER = "00000000000000bb"


@pytest.fixture
async def workers() -> AsyncGenerator[list[ControlWorker]]:
    """Three workers."""
    async with control_workers(3) as made:
        yield made


def asking(
    worker: ControlWorker, kind: str = "count", seconds: float = NEVER, *, only: str | None = None
) -> asyncio.Task[Answers]:
    """Begin to ask."""
    selector = Selector(user="ada", worker=only)
    return asyncio.create_task(worker.requests.ask(kind, selector, {"name": "load", "seconds": 5}, seconds))


async def ended(asked: asyncio.Task[Answers]) -> Answers:
    """Return the answers once there are some."""
    async with asyncio.timeout(WAIT_SECONDS):
        return await asked


def question_of(worker: ControlWorker) -> str:
    """Return the id of the last command that was published."""
    for channel, payload in reversed(worker.broker.published):
        message = decode(channel, payload)
        if channel == CONTROL and message is not None and (command := parse_command(str(message.data))) is not None:
            return command.id
    raise AssertionError("no command")


async def forge(worker: ControlWorker, *texts: str | Answer) -> None:
    """Publish to the inbox of a worker."""
    for text in texts:
        worker.broker.deliver(inbox_of(worker.name), (text if isinstance(text, str) else text.encode()).encode())
    await until_idle()


def names(workers: Any) -> list[str]:
    """Return the names of some workers."""
    return [worker.id for worker in workers]


async def test_a_command_that_is_not_confirmed(workers: list[ControlWorker]) -> None:
    """It returns when the broker has it; no worker answers."""
    clients = [worker.add("01", "ada") for worker in workers]
    await workers[0].requests.command("send", ADA, {"data": "x"})
    await until_idle()
    assert [client.sent for client in clients] == [["x"]] * 3
    assert [channel for channel, _ in workers[0].broker.published] == [CONTROL]


async def test_all_answer(workers: list[ControlWorker]) -> None:
    """It returns as soon as the last one has, with each worker's answer."""
    workers[1].add("01", "ada")
    answers = await ended(asking(workers[0]))
    assert {worker.id: answer for worker, answer in answers.by_worker.items()} == {
        worker.name: int(worker is workers[1]) for worker in workers
    }
    assert (answers.errors, answers.missing, answers.complete) == ({}, [], True)


async def test_an_error_is_an_answer(workers: list[ControlWorker]) -> None:
    """A worker without the survey is not waited for, and not complete."""
    for worker in workers[1:]:
        worker.surveys.set("load", lambda _: 1)
    answers = await ended(asking(workers[0], "survey"))
    assert names(answers.by_worker) == [workers[1].name, workers[2].name]
    assert {worker.id: text for worker, text in answers.errors.items()} == {
        workers[0].name: "this worker has no handler of survey 'load'"
    }
    assert (answers.missing, answers.complete) == ([], False)


async def test_a_worker_that_does_not_answer_is_named(workers: list[ControlWorker]) -> None:
    """When the time is up there are the others' answers, and its name; one that answers later changes nothing."""
    workers[0].alive.append(SILENT)
    answers = await ended(asking(workers[0], seconds=0.05))
    assert names(answers.by_worker) == [worker.name for worker in workers]
    assert (answers.missing, answers.complete) == ([SILENT], False)
    late = Answer(id=question_of(workers[0]), worker=SILENT.id, succeeded=True, value=5)
    await forge(workers[0], late)
    assert answers.missing == [SILENT]
    assert vars(workers[0].requests)["_pending"] == {}


async def test_a_worker_that_ends_is_missing_at_once(workers: list[ControlWorker]) -> None:
    """It is not waited for any longer; one that appears meanwhile was not asked."""
    workers[0].alive.append(SILENT)
    asked = asking(workers[0])
    await until_idle()
    workers[0].requests.workers_changed()
    await until_idle()
    assert not asked.done()
    workers[0].alive.remove(SILENT)
    workers[0].alive.append(Worker(id=STRANGER))
    workers[0].requests.workers_changed()
    answers = await ended(asked)
    assert answers.missing == [SILENT]
    workers[0].requests.workers_changed()


async def test_one_that_has_answered_and_then_ends_is_not_missing(workers: list[ControlWorker]) -> None:
    """Its answer counts."""
    workers[0].alive.append(SILENT)
    asked = asking(workers[0])
    await until_idle()
    del workers[0].alive[1]
    workers[0].requests.workers_changed()
    workers[0].alive.remove(SILENT)
    workers[0].requests.workers_changed()
    answers = await ended(asked)
    assert workers[1].name in names(answers.by_worker)
    assert answers.missing == [SILENT]


async def test_soon_after_the_start_all_of_the_time_is_waited(workers: list[ControlWorker]) -> None:
    """A worker that becomes known meanwhile was there before, and is waited for; it ends once all are known."""
    asker = workers[0]
    asker.knows_all, asker.alive = False, asker.alive[:1]
    asked = asking(asker)
    await until_idle()
    assert not asked.done()
    asker.alive.append(SILENT)
    asker.requests.workers_changed()
    asker.knows_all = True
    asker.requests.workers_changed()
    await until_idle()
    assert not asked.done()
    await forge(asker, Answer(id=question_of(asker), worker=SILENT.id, succeeded=True, value=7))
    answers = await ended(asked)
    assert answers.by_worker[SILENT] == 7
    assert len(answers.by_worker) == 4
    assert answers.complete


async def test_no_worker_is_known_and_none_answers() -> None:
    """That is not complete: an observer with another prefix or database would take it for success."""
    async with control_workers() as [worker]:
        worker.alive.clear()
        worker.bus.unsubscribe(CONTROL, worker.commands)
        answers = await ended(asking(worker))
        assert answers == Answers()
        assert not answers.complete


async def test_one_worker_is_asked(workers: list[ControlWorker]) -> None:
    """Then no other is waited for."""
    workers[0].alive.append(SILENT)
    answers = await ended(asking(workers[0], only=workers[1].name))
    assert (names(answers.by_worker), answers.missing) == ([workers[1].name], [])
    answers = await ended(asking(workers[0], only=SILENT.id, seconds=0.01))
    assert (answers.by_worker, answers.missing) == ({}, [SILENT])


# --- forged answers ---


async def test_answers_that_were_not_asked_for(workers: list[ControlWorker], caplog: pytest.LogCaptureFixture) -> None:
    """Unknown ids, and what is no answer, change nothing."""
    workers[0].alive.append(SILENT)
    asked = asking(workers[0])
    await until_idle()
    question = question_of(workers[0])
    await forge(
        workers[0],
        Answer(id="other", worker=SILENT.id, succeeded=True, value=1),
        json.dumps(["answer", question, SILENT.id, 1, 5]),
        json.dumps(["answer", question, "no worker", True, 5]),
        json.dumps(["answer", question, SILENT.id, True]),
        "hello",
        "[" * 50_000,
    )
    assert not asked.done()
    await forge(workers[0], Answer(id=question, worker=SILENT.id, succeeded=True, value=1))
    assert (await ended(asked)).by_worker[SILENT] == 1
    assert warnings_of(caplog, logging.ERROR) == []


async def test_only_the_first_answer_of_a_worker_counts(workers: list[ControlWorker]) -> None:
    """A second one changes nothing."""
    workers[0].alive.append(SILENT)
    asked = asking(workers[0])
    await until_idle()
    question = question_of(workers[0])
    await forge(
        workers[0],
        Answer(id=question, worker=workers[1].name, succeeded=True, value=99),
        Answer(id=question, worker=SILENT.id, succeeded=False, value={"not": "text"}),
        Answer(id=question, worker=SILENT.id, succeeded=True, value=2),
    )
    answers = await ended(asked)
    assert answers.by_worker[Worker(id=workers[1].name)] == 0
    assert answers.errors == {SILENT: "{'not': 'text'}"}


async def test_an_answer_of_an_unknown_worker_is_taken(
    workers: list[ControlWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can have started a moment ago; of invented ones no more are kept than a number, and no known one is lost."""
    workers[0].alive.append(SILENT)
    asked = asking(workers[0])
    await until_idle()
    question = question_of(workers[0])
    await forge(workers[0], Answer(id=question, worker=STRANGER, succeeded=True, value=1))
    invented = [Answer(id=question, worker=f"{number:016x}", succeeded=True, value=1) for number in range(1000, 1010)]
    with monkeypatch.context() as patched:
        patched.setattr(module, "_MAX_UNKNOWN", 6)
        await forge(workers[0], *invented)
    await forge(workers[0], Answer(id=question, worker=SILENT.id, succeeded=True, value=1))
    answers = await ended(asked)
    assert STRANGER in names(answers.by_worker)
    assert len(answers.by_worker) == 7
    assert answers.complete


# --- a broker that does not take it ---


async def test_a_broker_that_refuses(workers: list[ControlWorker]) -> None:
    """Its error is raised, and nothing is left."""
    workers[0].broker.error = BrokerUnavailableError("away")
    with pytest.raises(BrokerUnavailableError):
        await ended(asking(workers[0]))
    assert vars(workers[0].requests)["_pending"] == {}


async def test_a_broker_that_does_not_take_it_in_time(workers: list[ControlWorker]) -> None:
    """It raises: a list of missing workers would look as if they had been asked."""
    workers[0].broker.gate.close()
    with pytest.raises(PublishOutcomeUnknownError, match="may have been published"):
        await ended(asking(workers[0], seconds=AT_ONCE))


async def test_a_question_that_is_no_json(workers: list[ControlWorker]) -> None:
    """It is refused before anything is sent."""
    with pytest.raises(InvalidDataError):
        await workers[0].requests.ask("survey", Selector(), {"question": object()}, NEVER)
    assert workers[0].broker.published == []


# --- the end ---


@pytest.mark.parametrize("passes", range(8))
async def test_a_cancellation_at_any_moment_leaves_nothing(workers: list[ControlWorker], passes: int) -> None:
    """The answers that come later are dropped."""
    asked = asking(workers[0])
    for _ in range(passes):
        await asyncio.sleep(0)
    asked.cancel()
    await asyncio.wait([asked])
    assert vars(workers[0].requests)["_pending"] == {}
    await until_idle()


async def test_the_end_of_the_worker_ends_what_waits(workers: list[ControlWorker]) -> None:
    """It returns with the answers there are; the others are missing."""
    workers[0].alive.append(SILENT)
    asked = asking(workers[0])
    await until_idle()
    workers[0].requests.stop()
    answers = await ended(asked)
    assert (len(answers.by_worker), answers.missing) == (3, [SILENT])
    workers[0].requests.stop()
    workers[0].requests.gap(inbox_of(workers[0].name))
