"""What is wrong with the workers, found by comparing them with each other, and the state of all in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final, Literal

from backplane.stats.overview import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from backplane.stats.overview import WorkerOverview

__all__ = ["Evidence", "problems_of", "verdict_of"]

MAX_CLOCK_OFFSET_SECONDS: Final = 0.1
MAX_LOOP_LAG_SECONDS: Final = 0.5
# A difference of so many control messages can be a matter of when each worker sent its figures.
_LEAST_CONTROL: Final = 4
_LEAST_SHARE: Final = 0.5
_MOST_NAMED: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of the workers.

    Attributes:
        is_live: Whether the link of this process is live.
        url: The broker of this process, its password masked.
        rejected: Messages that were not signed with the secret of this process.
        workers: The workers that answered.
        missing: The names of the workers that are alive and have sent no figures lately.
        silent: Those of them that did not answer when they were asked for, with how old their last heartbeat is.
        refusing: What workers answered that cannot be watched, by name.
        vanished: The names of workers whose heartbeats ended without a goodbye, with how long ago they were last seen.
        settings: A hash of the settings of each worker, by name.
        adapters: The scheme of the URL of each worker, by name.
        control: How many of the messages for all workers each has received lately, by name.
        gaps: How many gaps each worker reported lately, by name.
    """

    is_live: bool
    url: str
    rejected: int
    workers: Sequence[WorkerOverview]
    missing: tuple[str, ...]
    silent: Mapping[str, float]
    refusing: Mapping[str, str]
    vanished: Mapping[str, float]
    settings: Mapping[str, str]
    adapters: Mapping[str, str]
    control: Mapping[str, int]
    gaps: Mapping[str, int]


def problems_of(evidence: Evidence) -> tuple[Problem, ...]:
    """Return all that is wrong, the worst first."""
    return tuple(problem for find in _RULES for problem in find(evidence))


def verdict_of(problems: Sequence[Problem], evidence: Evidence) -> str:
    """Return the state of all workers in one sentence."""
    if problems:
        more = len(problems) - 1
        others = f" ({more} more problem{'s' * (more > 1)})" if more else ""
        return f"{problems[0].text}{others}"
    count = len(evidence.workers)
    missing = len(evidence.missing)
    if missing:
        return f"{count} of {count + missing} workers have answered so far: {_names(evidence.missing)} not yet."
    return "The worker is live." if count == 1 else f"All {count} workers are live."


# --- the rules, the worst first ---


def _own_link(evidence: Evidence) -> Iterable[Problem]:
    if not evidence.is_live:
        yield _error(
            "link_down",
            None,
            f"The link of this process to {evidence.url} is lost: what it shows of other workers is old.",
            "is the broker running, and does this host reach it? `backplane check` tries it",
        )


def _no_worker(evidence: Evidence) -> Iterable[Problem]:
    if evidence.is_live and not evidence.workers and not evidence.missing:
        cure = "start them with cluster=True or presence=..., at this broker, database and prefix"
        if evidence.rejected:
            cure = f"{evidence.rejected} messages were not signed as expected: pass the control_secret of the workers"
        yield _error("no_worker", None, f"No worker is seen at {evidence.url}.", cure)


def _silent(evidence: Evidence) -> Iterable[Problem]:
    for name, seconds in evidence.silent.items():
        yield _error(
            "receives_nothing",
            name,
            f"Worker {name} does not answer, and sent a heartbeat {seconds:.0f} s ago: "
            "it receives nothing, or its event loop is blocked.",
            "look at its log and at `py-spy dump`, then restart it; until then its clients get nothing",
        )


def _receives_less(evidence: Evidence) -> Iterable[Problem]:
    counts = evidence.control
    usual = median(counts.values()) if len(counts) > 1 else 0
    for name, count in counts.items():
        if usual - count >= _LEAST_CONTROL and count < _LEAST_SHARE * usual:
            yield _error(
                "receives_less",
                name,
                f"Worker {name} has received {count} messages of {usual:g} that the others have received: "
                "they do not reach it.",
                "restart it; its clients miss messages too",
            )


def _link_down(evidence: Evidence) -> Iterable[Problem]:
    for worker in evidence.workers:
        if worker.state not in ("live", "closed") and not worker.draining:
            yield _error(
                "link_down",
                worker.worker,
                f"The link of worker {worker.worker} is {worker.state}: its clients get nothing until it is back.",
                "look at its log for the reason, and at the broker",
            )


def _vanished(evidence: Evidence) -> Iterable[Problem]:
    for name, seconds in evidence.vanished.items():
        yield _error(
            "vanished",
            name,
            f"Worker {name} vanished {seconds:.0f} s ago, without a goodbye: it was killed, or its link is lost.",
            "look at its log, and at the memory of its host",
        )


def _refusing(evidence: Evidence) -> Iterable[Problem]:
    for name, words in evidence.refusing.items():
        yield _warning(
            "not_watchable", name, f"Worker {name} sends no figures: {words}.", "run one version in all workers"
        )


def _gaps(evidence: Evidence) -> Iterable[Problem]:
    for name, count in evidence.gaps.items():
        if count:
            yield _warning(
                "gaps",
                name,
                f"Worker {name} reported {count} gap{'s' * (count > 1)} just now: its clients may miss messages.",
                "its log has the reason",
            )


def _failures(evidence: Evidence) -> Iterable[Problem]:
    for worker in evidence.workers:
        failures = (worker.rates or {}).get("failures")
        if failures:
            yield _warning(
                "publishes_fail",
                worker.worker,
                f"Publishes of worker {worker.worker} fail: {failures:.3g} a second.",
                "its log has the reason",
            )


def _mixed(evidence: Evidence) -> Iterable[Problem]:
    versions = {worker.worker: worker.version for worker in evidence.workers}
    yield from _differing("versions_mixed", "versions", versions, "finish the upgrade")
    yield from _differing("adapters_mixed", "kinds of broker URL", evidence.adapters, "give all workers one URL")
    cure = "`backplane doctor` names what differs; give all workers the same"
    yield from _differing("settings_mixed", "settings", evidence.settings, cure, shows_values=False)


def _differing(
    kind: str, what: str, values: Mapping[str, str], cure: str, *, shows_values: bool = True
) -> Iterable[Problem]:
    by_value: dict[str, list[str]] = {}
    for name, value in values.items():
        if value:
            by_value.setdefault(value, []).append(name)
    if len(by_value) > 1:
        fewest = sorted(by_value.items(), key=lambda item: len(item[1]))[:-1]
        odd = "; ".join(f"{value + ' on ' if shows_values else ''}{_names(names)}" for value, names in fewest)
        yield _warning(kind, None, f"The workers have {len(by_value)} different {what}: {odd} differ from most.", cure)


def _clocks(evidence: Evidence) -> Iterable[Problem]:
    for worker in evidence.workers:
        offset = worker.clock_offset
        if offset is not None and abs(offset) > MAX_CLOCK_OFFSET_SECONDS:
            word = "ahead of" if offset > 0 else "late against"
            yield _warning(
                "clock",
                worker.worker,
                f"The clock of worker {worker.worker} is {abs(offset):.3g} s {word} that of this host.",
                "run NTP on both: lags between hosts are wrong by as much, and commands count for 5 minutes",
            )


def _blocked(evidence: Evidence) -> Iterable[Problem]:
    for worker in evidence.workers:
        if worker.loop_lag > MAX_LOOP_LAG_SECONDS:
            yield _warning(
                "loop_blocked",
                worker.worker,
                f"The event loop of worker {worker.worker} stood still for {worker.loop_lag:.2g} s.",
                "find what blocks it: `py-spy dump`, PYTHONASYNCIODEBUG=1",
            )


def _drops(evidence: Evidence) -> Iterable[Problem]:
    for worker in evidence.workers:
        dropped = (worker.rates or {}).get("dropped")
        if dropped:
            yield _warning(
                "dropped",
                worker.worker,
                f"Worker {worker.worker} drops {dropped:.3g} messages a second: {worker.slow} subscribers are slow.",
                "that is their backlog's policy; raise Backlog, or send less to them",
            )


_RULES: Final[tuple[Callable[[Evidence], Iterable[Problem]], ...]] = (
    _own_link,
    _no_worker,
    _silent,
    _receives_less,
    _link_down,
    _vanished,
    _refusing,
    _gaps,
    _failures,
    _mixed,
    _clocks,
    _blocked,
    _drops,
)


def _error(kind: str, worker: str | None, text: str, cure: str) -> Problem:
    return _problem(kind, "error", worker, text, cure)


def _warning(kind: str, worker: str | None, text: str, cure: str) -> Problem:
    return _problem(kind, "warning", worker, text, cure)


def _problem(kind: str, severity: Literal["error", "warning"], worker: str | None, text: str, cure: str) -> Problem:
    return Problem(kind=kind, severity=severity, worker=worker, text=text, cure=cure)


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED])
    return f"{shown} and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else shown
