"""`backplane survey`: a question to every worker of an application."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic_core import from_json

from backplane.cli.observer import (
    UNANSWERED,
    JsonOption,
    SecretOption,
    WaitOption,
    answers_as_json,
    answers_problem,
    answers_rows,
    observed,
    print_json,
    print_rows,
    printing,
    reporting_errors,
    run,
    seen_workers,
)
from backplane.cli.terminal import fail, note, progress, resolve_url, showing_warnings, url_option
from backplane.cluster_types import Answers
from backplane.errors import InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.cli.observer import Seen

__all__ = ["survey"]


def survey(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Which handler answers: @backplane.on_survey(NAME).", show_default=False),
    ],
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="What the handler is passed, as JSON.", show_default="null")
    ] = "null",
    url: Annotated[str, url_option("BACKPLANE_URL")] = "env",
    timeout: Annotated[float, typer.Option(min=0.01, max=60, metavar="S", help="How long to wait for answers.")] = 2,
    seconds: WaitOption = 3.3,
    as_json: JsonOption = False,
    control_secret: SecretOption = None,
) -> None:
    """Ask every worker, and print what each answers, and which do not.

    Exit status: 0 every worker answered, 1 no worker was seen, or the broker
    is not usable, 2 the URL, the question or an option is wrong,
    3 a worker did not answer, or answered with an error.
    """
    with showing_warnings(), progress() as on_progress, reporting_errors(as_json=as_json):
        url = resolve_url(url)
        asked = run(_ask(url, name, _parsed(question), timeout, control_secret, seconds, on_progress))
    masked, seen, answers = asked
    problem = seen.problem or answers_problem(answers)
    if as_json:
        print_json(ok=problem is None, problem=problem, url=masked, name=name, **answers_as_json(answers))
    elif rows := answers_rows(answers, lambda answer: json.dumps(answer, ensure_ascii=False)):
        with printing():
            print_rows(("host", "pid", "id", "answer"), rows, right=(1,))
        note(f"{len(answers.by_worker):,} of {len(rows):,} answered")
    if problem is not None:
        fail(problem, status=1 if seen.problem else UNANSWERED)


def _parsed(question: str) -> Any:
    try:
        return from_json(question, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidDataError(f"the question is not JSON: {error}") from None


async def _ask(
    url: str,
    name: str,
    question: Any,
    timeout: float,
    secret: str | None,
    seconds: float,
    on_progress: Callable[[str], None],
) -> tuple[str, Seen, Answers]:
    on_progress("connecting")
    async with observed(url, secret, seconds) as backplane:
        seen = await seen_workers(backplane, secret, seconds, on_progress)
        if not seen.is_linked:
            return backplane.url, seen, Answers()
        on_progress(f"waiting for the answers of {seen.alive:,} workers")
        return backplane.url, seen, await backplane.survey(name, question, timeout_seconds=timeout)
