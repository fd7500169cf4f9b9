"""Repetitions of one scenario: every candidate once, then each again, so that a drift of the machine affects all."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import uvloop

from benchmarks.harness import histogram, raw_client
from benchmarks.harness.candidate import ROOT
from benchmarks.harness.remote import RemoteError
from benchmarks.harness.result import Outcome, Section
from benchmarks.harness.run import Run
from benchmarks.harness.server import ServerError, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.harness.candidate import Candidate
    from benchmarks.harness.run import Options
    from benchmarks.harness.server import Server

__all__ = ["measure"]


def measure(
    scenario: str,
    title: str,
    run: Callable[[Server, Options], Run],
    candidates: Sequence[Candidate],
    options: Options,
    repetitions: int,
    progress: Callable[[str, int, Run | None], None],
) -> Section:
    """Run `scenario` on each candidate, `repetitions` times in turn.

    A candidate that fails is kept with its reason and not tried again; every omission is reported.

    Args:
        scenario: Its name.
        title: Its heading in the report.
        run: What runs it once.
        candidates: What to measure; ratios are to the first.
        options: How much.
        repetitions: How often.
        progress: Called before and after each run.
    """
    outcomes = [Outcome(name=each.name, kind=each.kind, failed=each.missing) for each in candidates]
    for repetition in range(repetitions):
        for candidate, outcome in zip(candidates, outcomes, strict=True):
            if outcome.failed:
                continue
            progress(candidate.name, repetition, None)
            try:
                outcome.runs.append(_run_raw(candidate, options) if candidate.raw else _run(candidate, run, options))
            except (ServerError, RemoteError, TimeoutError, OSError) as error:
                outcome.failed = str(error).replace(str(ROOT), ".")
            else:
                progress(candidate.name, repetition, outcome.runs[-1])
    values = {each.name: getattr(options, each.name) for each in fields(options)}
    settings = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return Section(scenario=scenario, title=title, settings={**settings, "repetitions": repetitions}, outcomes=outcomes)


def _run(candidate: Candidate, run: Callable[[Server, Options], Run], options: Options) -> Run:
    with serving(candidate, stalls=options.stalls) as server:
        return run(server, options)


def _run_raw(candidate: Candidate, options: Options) -> Run:
    publishing = raw_client.latencies(
        candidate.broker_url, rate=options.rate, seconds=options.seconds, payload=options.payload
    )
    counts = histogram.counts_of(np.array(uvloop.run(publishing)))
    figures = {**histogram.summary(counts, "latency"), **histogram.summary(counts, "last")}
    return Run(figures=figures)
