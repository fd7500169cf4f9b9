"""`backplane.control.surveys`: handlers that answer, hang, raise, and go on after their cancellation."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from backplane import ConfigurationError
from backplane.control.surveys import SurveyError, Surveys
from tests.unit.doubles import until_idle
from tests.unit.kit import AT_ONCE, NEVER

pytestmark = pytest.mark.anyio


async def test_functions_and_coroutine_functions_answer() -> None:
    """Both are passed the question."""
    surveys = Surveys()

    async def later(question: Any) -> Any:
        await asyncio.sleep(0)
        return [question]

    surveys.set("now", lambda question: question)
    surveys.set("later", later)
    assert await surveys.answer("now", 1, NEVER) == 1
    assert await surveys.answer("later", 1, NEVER) == [1]


@pytest.mark.parametrize("name", ["", None, 5, b"load", ["load"]])
def test_names_that_cannot_be_used(name: object) -> None:
    """A survey is named by a text."""
    with pytest.raises(ConfigurationError, match="is a text such as 'load'"):
        Surveys().set(name, str)


def test_a_name_has_one_handler() -> None:
    """A second one is refused: which of two answers would be left to chance."""
    surveys = Surveys()
    surveys.set("load", str)
    with pytest.raises(ConfigurationError, match="has a handler already"):
        surveys.set("load", repr)


async def test_an_unknown_survey() -> None:
    """The one that asks is notified, with no more than the begin of what it asked for."""
    with pytest.raises(SurveyError, match="no handler of survey") as refused:
        await Surveys().answer("x" * 10_000, None, NEVER)
    assert len(str(refused.value)) < 200


async def test_a_handler_that_raises() -> None:
    """The one that asks is given the class of the error; its text, which can hold data, stays here as the cause."""
    surveys = Surveys()

    def fail(_: Any) -> None:
        raise LookupError("some data")

    surveys.set("load", fail)
    with pytest.raises(SurveyError, match="the handler raised LookupError") as failed:
        await surveys.answer("load", None, NEVER)
    assert str(failed.value) == "the handler raised LookupError"
    assert isinstance(failed.value.__cause__, LookupError)


async def test_a_handler_that_hangs_is_cancelled() -> None:
    """When the time is up it is cancelled."""
    surveys, cancelled = Surveys(), asyncio.Event()

    async def hang(_: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    surveys.set("load", hang)
    with pytest.raises(SurveyError, match="took longer than"):
        await surveys.answer("load", None, 0.001)
    await until_idle()
    assert cancelled.is_set()


@pytest.mark.parametrize("end", ["raises", "returns", "is cancelled"])
async def test_a_handler_that_ignores_its_cancellation_is_not_waited_for(end: str) -> None:
    """The answer does not wait for it, and how it ends later is reported nowhere."""
    surveys, goes_on, ended = Surveys(), asyncio.Event(), asyncio.Event()
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    async def ignore(_: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await goes_on.wait()
            ended.set()
            if end == "raises":
                raise LookupError from None
            if end == "is cancelled":
                raise

    surveys.set("load", ignore)
    with pytest.raises(SurveyError, match="took longer than"):
        await surveys.answer("load", None, AT_ONCE)
    await until_idle()
    gc.collect()  # it is still there: an event loop alone would not keep it
    goes_on.set()
    await until_idle()
    gc.collect()
    assert ended.is_set()
    assert reported == []


async def test_a_handler_that_is_cancelled_itself() -> None:
    """What it awaited was cancelled: the one that asks is notified of that, and its own task goes on."""
    surveys = Surveys()

    async def give_up(_: Any) -> None:
        raise asyncio.CancelledError

    surveys.set("load", give_up)
    with pytest.raises(SurveyError, match="was cancelled"):
        await surveys.answer("load", None, NEVER)


async def test_the_end_of_the_worker_ends_its_handlers() -> None:
    """Where the task that answers is cancelled, the handler is too."""
    surveys, cancelled = Surveys(), asyncio.Event()

    async def hang(_: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    surveys.set("load", hang)
    answering = asyncio.create_task(surveys.answer("load", None, NEVER))
    await until_idle()
    answering.cancel()
    await asyncio.wait([answering])
    await until_idle()
    assert cancelled.is_set()
    assert answering.cancelled()


async def test_a_handler_that_is_not_waited_for_is_kept() -> None:
    """Nothing else refers to it: an event loop alone would let it be destroyed, and report that."""
    surveys = Surveys()
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    async def ignore(_: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()

    surveys.set("load", ignore)
    with pytest.raises(SurveyError, match="took longer than"):
        await surveys.answer("load", None, 0.001)
    await until_idle()
    gc.collect()
    assert reported == []
    [call] = surveys._calls  # pyright: ignore[reportPrivateUsage]
    call.cancel()
    await asyncio.wait([call])
    assert surveys._calls == set()  # pyright: ignore[reportPrivateUsage]
