"""What the commands share that ask the workers of an application: a link that sees them, and how they are shown."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from sys import maxsize
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from backplane.broker.registry import broadcaster_from_url
from backplane.cli.terminal import discard_output, exiting_on_errors, fail, note, out, visible
from backplane.core import Backplane
from backplane.errors import BackplaneError, ConfigurationError
from backplane.presence.roster import HEARTBEATS_PER_SECOND
from backplane.presence_types import Presence
from backplane.settings import Settings
from backplane.worker.cluster import SETTLE_HEARTBEATS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Sequence

    from backplane.cluster_types import Answers, Worker

__all__ = [
    "INTERRUPTED",
    "UNANSWERED",
    "JsonOption",
    "SecretOption",
    "Seen",
    "WaitOption",
    "answers_as_json",
    "answers_problem",
    "answers_rows",
    "format_seconds",
    "observed",
    "print_json",
    "print_rows",
    "printing",
    "reporting_errors",
    "run",
    "seen_workers",
    "short_worker",
]

_T = TypeVar("_T")

UNANSWERED: Final = 3
"""Exit status where a worker did not answer, or answered with an error."""

INTERRUPTED: Final = 130
"""Exit status at Ctrl-C, as of a shell."""

_VARIABLE: Final = "BACKPLANE_CONTROL_SECRET"
_STEP_SECONDS: Final = 0.1
# What the workers exchange is shown as it is: whether a channel has too many entries is for their rule to decide.
_PRESENCE: Final = {"*": Presence(grace_seconds=0, max_entries=maxsize)}


def _warn_of_argument(context: typer.Context, secret: str | None) -> str | None:
    source = context.get_parameter_source("control_secret")
    if source is not None and source.name == "COMMANDLINE":
        note(f"backplane: the process list shows --control-secret to every user of the machine: set {_VARIABLE}")
    return secret


SecretOption = Annotated[
    str | None,
    typer.Option(
        "--control-secret",
        metavar="SECRET",
        envvar=_VARIABLE,
        callback=_warn_of_argument,
        help="The control_secret of the application, if it has one. Set the variable: every user of the machine can "
        "read an argument.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
WaitOption = Annotated[
    float,
    typer.Option(
        "--seconds",
        min=0.01,
        max=3600,
        metavar="S",
        help="How long to wait for heartbeats: 1.1 times the worker_heartbeat_seconds of the application. With more "
        "than 150 workers it waits as much longer as they send them more rarely.",
    ),
]


@asynccontextmanager
async def observed(url: str, secret: str | None, seconds: float) -> AsyncGenerator[Backplane]:
    """Open a link that sees the workers and can ask them, and is none of them.

    Args:
        url: The broker.
        secret: Signs what is asked, and checks what is received.
        seconds: After which time all workers are known.

    Raises:
        ConfigurationError: The URL or the secret cannot be used.
        BrokerError: The broker cannot be reached, or refuses a channel.
    """
    broadcaster = broadcaster_from_url(url)
    if broadcaster.capabilities.reach == "process":
        raise ConfigurationError(
            f"{broadcaster.url} reaches this process only, which has no worker: look at the workers from inside, with "
            "backplane.overviews() or the live page"
        )
    settings = Settings(worker_heartbeat_seconds=seconds / SETTLE_HEARTBEATS)
    async with Backplane(
        url, cluster="observer", presence=_PRESENCE, control_secret=secret, settings=settings
    ) as backplane:
        yield backplane


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The workers whose heartbeats were received.

    Attributes:
        workers: Those that are alive first, then those that have ended meanwhile.
        problem: Why this is not all; `None` where it is.
        remark: What else was noticed.
        is_linked: Whether the link to the broker is live: nothing can be asked without.
    """

    workers: list[Worker]
    problem: str | None = None
    remark: str | None = None
    is_linked: bool = True

    @property
    def alive(self) -> int:
        """How many are alive."""
        return sum(worker.is_alive for worker in self.workers)


async def seen_workers(
    backplane: Backplane, secret: str | None, seconds: float, on_progress: Callable[[str], None]
) -> Seen:
    """Wait until all workers have had the time for a heartbeat, and return them."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    while True:
        alive = sum(worker.is_alive for worker in await backplane.workers())
        needed = max(seconds, SETTLE_HEARTBEATS * alive / HEARTBEATS_PER_SECOND)
        waited = loop.time() - started
        if waited >= needed:
            break
        on_progress(f"waiting for heartbeats: {_count(alive, 'worker')}, {waited:.1f} of {needed:.1f} s")
        await asyncio.sleep(min(_STEP_SECONDS, needed - waited))
    workers = await backplane.workers()
    workers.sort(key=lambda worker: (not worker.is_alive, worker.host, worker.pid, worker.id))
    remark = _rejected(backplane, secret)
    problem = None
    is_linked = backplane.state == "live"
    if not is_linked:
        problem = f"the link to {backplane.url} was lost meanwhile: workers may be missing here"
    elif not any(worker.is_alive for worker in workers):
        hint = remark or "do they run with cluster=True or presence=..., at this broker, with this prefix?"
        problem, remark = f"no worker was seen at {backplane.url} within {waited:.1f} s: {hint}", None
    return Seen(workers=workers, problem=problem, remark=remark, is_linked=is_linked)


def _rejected(backplane: Backplane, secret: str | None) -> str | None:
    rejected = backplane.statistics().cluster_rejected
    if not rejected:
        return None
    if secret is None:
        return f"{_count(rejected, 'message')} not understood: if the workers have a control_secret, set {_VARIABLE}"
    return (
        f"{_count(rejected, 'message')} not signed with this secret: is {_VARIABLE} the control_secret of the workers?"
    )


# --- running ---


def run(action: Coroutine[Any, Any, _T], *, interrupted: str = "interrupted") -> _T:
    """Return what a command's coroutine returns; Ctrl-C and SIGTERM end it in order, with a status of their own."""
    try:
        return asyncio.run(_ended_by_signal(action))
    except (KeyboardInterrupt, asyncio.CancelledError):
        fail(interrupted, status=INTERRUPTED)


async def _ended_by_signal(action: Coroutine[Any, Any, _T]) -> _T:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await action


@contextmanager
def reporting_errors(*, as_json: bool) -> Generator[None]:
    """End the command where the package raises, as `exiting_on_errors` does; with `--json` after an object."""
    with exiting_on_errors():
        try:
            yield
        except BackplaneError as error:
            if as_json:
                print_json(ok=False, problem=str(error))
            raise


# --- output ---


@contextmanager
def printing() -> Generator[None]:
    """Keep the exit status where the result cannot be printed, as the reader went away: it is of what was done."""
    try:
        yield
    except OSError as error:
        discard_output()
        if not isinstance(error, BrokenPipeError):
            note(f"backplane: the result could not be printed: {error}")


def print_json(**members: Any) -> None:
    """Print one JSON object."""
    with printing():
        typer.echo(json.dumps(members))


def print_rows(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Print rows in columns, one line each however wide the terminal is.

    Args:
        header: The names of the columns.
        rows: What is in them.
        right: The columns that are aligned to the right.
    """
    lines = [list(header), *([visible(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for number, line in enumerate(lines):
        cells = [
            f"{cell:>{width}}" if index in right else f"{cell:<{width}}"
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        out.print("  ".join(cells).rstrip(), soft_wrap=True, style="dim" if not number else None)


def format_seconds(seconds: float) -> str:
    """Return a time in its two largest units: `3 s`, `4 min 2 s`, `2 h 10 min`, `3 d 4 h`."""
    whole = max(0, round(seconds))
    units = [("d", whole // 86_400), ("h", whole // 3600 % 24), ("min", whole // 60 % 60), ("s", whole % 60)]
    first = next((index for index, (_, count) in enumerate(units) if count), len(units) - 1)
    return " ".join(f"{count} {unit}" for unit, count in units[first : first + 2] if count) or "0 s"


def short_worker(worker: Worker) -> dict[str, Any]:
    """Return what names a worker in JSON."""
    return {"id": worker.id, "host": worker.host, "pid": worker.pid}


def answers_as_json(answers: Answers) -> dict[str, Any]:
    """Return what workers answered as members of a JSON object: `answers`, `errors`, `missing`."""
    return {
        "answers": [{"worker": short_worker(worker), "answer": answer} for worker, answer in answers.by_worker.items()],
        "errors": [{"worker": short_worker(worker), "error": error} for worker, error in answers.errors.items()],
        "missing": [short_worker(worker) for worker in answers.missing],
    }


def answers_rows(answers: Answers, shown: Callable[[Any], str]) -> list[tuple[str, str, str, str]]:
    """Return a row for each worker: its host, its pid, its id, and its answer."""
    texts = {worker: shown(answer) for worker, answer in answers.by_worker.items()}
    texts |= {worker: f"error: {error}" for worker, error in answers.errors.items()}
    texts |= dict.fromkeys(answers.missing, "no answer")
    by_place = sorted(texts.items(), key=lambda item: (item[0].host, item[0].pid, item[0].id))
    return [(worker.host or "?", str(worker.pid or "?"), worker.id, text) for worker, text in by_place]


def answers_problem(answers: Answers) -> str | None:
    """Return which workers did not answer as they should, in words; `None` if all did."""
    parts: list[str] = []
    if answers.missing:
        parts.append(f"no answer of {_names(answers.missing)}")
    if answers.errors:
        parts.append(f"an error of {_names(answers.errors)}")
    return "; ".join(parts) or None


def _names(workers: Iterable[Worker]) -> str:
    names = [f"{worker.host or 'worker'} {worker.pid or worker.id}" for worker in workers]
    most = 5
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{_count(len(names), 'worker')}: {', '.join(names[:most])}{more}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
