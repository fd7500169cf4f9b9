"""`backplane disconnect`: close the connections of a user, on every worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

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
from backplane.cli.terminal import UrlArgument, fail, note, out, progress, resolve_url, showing_warnings
from backplane.close_codes import CloseCode
from backplane.cluster_types import Answers
from backplane.core import Backplane
from backplane.errors import PublishOutcomeUnknownError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypedDict

    from backplane.cli.observer import Seen

    class _Selected(TypedDict):
        """The arguments of `Backplane.disconnect`."""

        user: str | None
        connection: str | None
        channel: str | None
        code: int
        reason: str


__all__ = ["disconnect"]


@dataclass(frozen=True, slots=True)
class _Result:
    """What is known after it.

    Attributes:
        url: The broker's URL, masked.
        seen: The workers there are; `None` where none is to confirm.
        answers: What they confirmed.
    """

    url: str
    seen: Seen | None = None
    answers: Answers = field(default_factory=Answers)


_UNKNOWN = "the outcome is unknown: the broker may have the command"


def disconnect(
    url: UrlArgument = "env",
    user: Annotated[
        str | None,
        typer.Option(help="Connections of this user: of Who(user=...), else client_key.", show_default=False),
    ] = None,
    channel: Annotated[
        str | None, typer.Option(help="Connections that joined this channel.", show_default=False)
    ] = None,
    connection: Annotated[str | None, typer.Option(metavar="ID", help="The connection.", show_default=False)] = None,
    code: Annotated[int, typer.Option(help="The close code; 4503 keeps clients away.")] = CloseCode.FORBIDDEN.value,
    reason: Annotated[
        str, typer.Option(help="Why, for the close frame, which holds 123 bytes of it.", show_default="none")
    ] = "",
    confirm: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=3600, metavar="S", help="Wait so long for each worker's answer.", show_default=False
        ),
    ] = None,
    seconds: WaitOption = 3.3,
    as_json: JsonOption = False,
    control_secret: SecretOption = None,
) -> None:
    """Close the connections of a user, a channel or an id, on every worker; of several options all must apply.

    It ends when the broker has the command, which states nothing of the workers. With --confirm it
    waits for heartbeats first, to know which workers must answer, and prints what each has closed.

    Exit status: 0 the broker has the command, or every worker has confirmed, 1 certainly not sent,
    or no worker was seen, 2 the URL or an option is wrong,
    3 a worker did not confirm, or it is unknown whether the broker has the command.
    """
    selected: _Selected = {
        "user": user,
        "connection": connection,
        "channel": channel,
        "code": code,
        "reason": reason,
    }
    with showing_warnings(), progress() as on_progress, reporting_errors(as_json=as_json):
        url = resolve_url(url)
        try:
            if confirm is None:
                action = _send(url, control_secret, selected, on_progress)
            else:
                action = _confirmed(url, control_secret, selected, confirm, seconds, on_progress)
            result = run(action, interrupted=_UNKNOWN)
        except PublishOutcomeUnknownError as error:
            problem = f"{_UNKNOWN}: {error}"
            if as_json:
                print_json(ok=False, problem=problem)
            fail(problem, status=UNANSWERED)
    if result.seen is None:
        _print_sent(result, as_json=as_json)
    else:
        _print_confirmed(result, result.seen, as_json=as_json)


async def _send(url: str, secret: str | None, selected: _Selected, on_progress: Callable[[str], None]) -> _Result:
    on_progress("connecting")
    async with Backplane(url, control_secret=secret) as backplane:
        await backplane.disconnect(**selected)
        return _Result(backplane.url)


async def _confirmed(
    url: str,
    secret: str | None,
    selected: _Selected,
    confirm: float,
    seconds: float,
    on_progress: Callable[[str], None],
) -> _Result:
    on_progress("connecting")
    async with observed(url, secret, seconds) as backplane:
        seen = await seen_workers(backplane, secret, seconds, on_progress)
        if not seen.is_linked:  # certainly not sent
            return _Result(backplane.url, seen)
        on_progress(f"waiting for {seen.alive:,} workers to confirm")
        answers = await backplane.disconnect(**selected, confirm_seconds=confirm)
        return _Result(backplane.url, seen, answers)


def _print_sent(result: _Result, *, as_json: bool) -> None:
    if as_json:
        print_json(
            ok=True, problem=None, url=result.url, confirmed=False, closed=None, answers=[], errors=[], missing=[]
        )
        return
    with printing():
        out.print("sent: the broker has the command; --confirm S shows what each worker has closed", soft_wrap=True)


def _print_confirmed(result: _Result, seen: Seen, *, as_json: bool) -> None:
    answers = result.answers
    problem = seen.problem or answers_problem(answers)
    counts = [count for count in answers.by_worker.values() if isinstance(count, int)]
    if as_json:
        print_json(
            ok=problem is None,
            problem=problem,
            url=result.url,
            confirmed=problem is None,
            closed=sum(counts),
            **answers_as_json(answers),
        )
    elif rows := answers_rows(answers, str):
        with printing():
            print_rows(("host", "pid", "id", "closed"), rows, right=(1, 3))
        note(f"{sum(counts):,} closed, {len(counts):,} of {len(rows):,} workers confirmed")
    if problem is not None:
        fail(problem, status=1 if seen.problem else UNANSWERED)
