"""What `backplane doctor` checks of the workers: how many there are, whether they are alike, and what reaches them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from backplane.cli.doctor_broker import inspect_configuration
from backplane.cli.observer import observed
from backplane.cluster.topics import CONTROL
from backplane.errors import BackplaneError, BrokerError
from backplane.findings import Finding
from backplane.stats.overview import worker_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from backplane.cluster_types import Answers, Worker
    from backplane.core import Backplane
    from backplane.stats.overview import Overview, Problem

__all__ = ["inspect_workers"]

_ANSWER_SECONDS: Final = 2.0
_FILES_SHARE: Final = 0.8
_FINE: Final = {
    "receives_nothing": "every worker answers",
    "link_down": "the link of every worker is live",
    "versions_mixed": "all workers run {versions}",
    "clock": "all clocks are within 0.1 s",
    "loop_blocked": "no event loop stood still for more than 0.5 s",
}
"""What holds where no problem of a kind was found."""


async def inspect_workers(
    url: str,
    channels: Sequence[str],
    expected: int | None,
    seconds: float,
    secret: str | None,
    on_progress: Callable[[str], None],
) -> AsyncIterator[Finding]:
    """Yield what is found by asking all workers.

    Args:
        url: The broker.
        channels: The channels to test.
        expected: How many workers there should be, if that is known.
        seconds: After which time all workers are known.
        secret: Signs what is asked.
        on_progress: Called with a line about each step.
    """
    try:
        async with observed(url, secret, seconds) as backplane:
            yield Finding(
                check="reserved", level="ok", text="channels that start with $backplane/ may be subscribed to"
            )
            on_progress("waiting for the workers")
            async with backplane.overviews(with_rates=True) as overviews:
                overview = await anext(overviews)
            for finding in _of_overview(overview, expected):
                yield finding
            if overview.asked:
                on_progress("asking the workers for their settings")
                for finding in _of_descriptions(await _described(backplane)):
                    yield finding
            on_progress("asking the broker for its limits")
            for finding in await inspect_configuration(url, {CONTROL: overview.answered} if overview.answered else {}):
                yield finding
            for channel in channels:
                on_progress(f"testing channel {channel!r}")
                for finding in await _of_channel(backplane, channel):
                    yield finding
    except BrokerError as error:
        notes = " ".join(getattr(error, "__notes__", ()))
        cure = notes or "this program must be allowed to publish and subscribe channels that start with $backplane/"
        yield Finding(check="reserved", level="error", text=str(error), cure=cure)


def _of_overview(overview: Overview, expected: int | None) -> Iterator[Finding]:
    count = f"{overview.asked} worker{'s' * (overview.asked != 1)}"
    if expected is not None and overview.asked != expected:
        cure = "the others have another broker, database, prefix or secret, are not started, or lack cluster=True"
        text = f"{count} of {expected} {'is' if overview.asked == 1 else 'are'} seen"
        yield Finding(check="workers", level="error", text=text, cure=cure)
    elif overview.asked:
        yield Finding(check="workers", level="ok", text=f"{count} seen, {overview.answered} of them with figures")
    found = Counter(problem.kind for problem in overview.problems)
    for problem in overview.problems:
        yield _of_problem(problem)
    versions = ", ".join(sorted({worker.version for worker in overview.workers}))
    if overview.workers:
        for kind, text in _FINE.items():
            if not found[kind]:
                yield Finding(check=kind, level="ok", text=text.format(versions=versions))


def _of_problem(problem: Problem) -> Finding:
    return Finding(check=problem.kind, level=problem.severity, text=problem.text.rstrip("."), cure=problem.cure)


# --- what each worker states of itself ---


async def _described(backplane: Backplane) -> Answers:
    runtime = backplane._runtime  # pyright: ignore[reportPrivateUsage]
    assert runtime is not None  # it is started
    return await runtime.members().lists.describe(_ANSWER_SECONDS)


def _of_descriptions(answers: Answers) -> Iterator[Finding]:
    described = _objects(answers)
    for name, reason in _without(answers).items():
        cure = "run one version in all workers; without this its settings and channels are not compared"
        yield Finding(
            check="described", level="warning", text=f"worker {name} states nothing of itself: {reason}", cure=cure
        )
    yield from _settings(described)
    yield from _files(described)
    without = [name for name, about in described.items() if about.get("loop") == "asyncio"]
    if without:
        cure = 'pip install "uvicorn[standard]": deliveries take less CPU time'
        yield Finding(check="workers_loop", level="warning", text=f"without uvloop: {_names(without)}", cure=cure)
    traced = [name for name, about in described.items() if about.get("asgi_instrumentation")]
    if traced:
        text = f"OpenTelemetry's ASGI instrumentation is loaded in {_names(traced)}"
        cure = 'unless it has exclude_spans=["receive", "send"], a broadcast makes a span for each client'
        yield Finding(check="send_spans", level="warning", text=text, cure=cure)


def _settings(described: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    """Compare what must be the same in all workers; the values may be long, so that they are only named."""
    is_alike = True
    settings = {worker: _object(about.get("settings")) for worker, about in described.items()}
    names = sorted({name for of_worker in settings.values() for name in of_worker})
    for name in names:
        values = {worker: str(of_worker.get(name, "not stated")) for worker, of_worker in settings.items()}
        counted = Counter(values.values())
        if len(counted) > 1:
            is_alike = False
            usual = counted.most_common(1)[0][0]
            odd = {worker: value for worker, value in values.items() if value != usual}
            value = next(iter(odd.values()))
            text = f"{name} differs: {_short(value)} in {_names(list(odd))}, {_short(usual)} in the others"
            cure = "give all workers the same: configuration that came by a part of the hosts, or a deploy that goes on"
            yield Finding(check="settings", level="error", text=text, cure=cure)
    if is_alike and described:
        yield Finding(check="settings", level="ok", text=f"alike in all workers: {', '.join(names)}")


def _files(described: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    for name, about in described.items():
        opened, most = about.get("open_files"), about.get("max_files")
        if isinstance(opened, int) and isinstance(most, int) and 0 < most * _FILES_SHARE <= opened:
            cure = "raise it (ulimit -n, LimitNOFILE=), or set max_connections: above it no client can connect"
            text = f"worker {name} has {opened:,} of {most:,} files open"
            yield Finding(check="workers_files", level="warning", text=text, cure=cure)


# --- a channel ---


async def _of_channel(backplane: Backplane, channel: str) -> list[Finding]:
    """Return what an explanation finds of a channel: whether a test message reaches every worker with a subscriber."""
    check = "path"
    try:
        found = await backplane.explain(channel=channel, timeout_seconds=_ANSWER_SECONDS)
    except BackplaneError as error:
        return [Finding(check=check, level="skipped", text=f"{channel!r} was not tested: {error}")]
    if found.verdict == "no subscribers":
        return [Finding(check=check, level="warning", text=found.text, cure=found.cure)]
    if not any(worker.subscribers for worker in found.workers):
        return [
            Finding(check=check, level="skipped", text=f"{channel!r} was not tested: {found.text}", cure=found.cure)
        ]
    if faults := [finding for finding in found.findings if finding.is_fault]:
        return [Finding(check=check, level="error", text=fault.text, cure=fault.cure) for fault in faults]
    if not found.tested:
        return [Finding(check=check, level="skipped", text=f"{channel!r} was not tested: {found.not_tested}")]
    reached = sum(worker.test_received is True for worker in found.workers)
    text = f"a test on {channel!r} reached {reached} worker{'s' * (reached > 1)} with subscribers"
    text += f"; no answer of {len(found.missing)}" * bool(found.missing)
    return [Finding(check=check, level="ok", text=text)]


def _without(answers: Answers) -> dict[str, str]:
    """Return why each worker did not describe itself, for those that did not."""
    return {
        **{_name(worker): "no answer" for worker in answers.missing},
        **{_name(worker): error for worker, error in answers.errors.items()},
    }


def _objects(answers: Answers) -> dict[str, dict[str, Any]]:
    """Return what each worker answered; another program can have answered anything."""
    return {_name(worker): _object(answer) for worker, answer in answers.by_worker.items()}


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def _name(worker: Worker) -> str:
    return worker_name(worker.host, worker.pid, worker.id)


def _names(names: Sequence[str]) -> str:
    most = 5
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"
