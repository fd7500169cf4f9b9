"""From the options of the command line to the candidates and scenarios that run."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from backplane.broker.registry import broadcaster_from_url
from benchmarks.competitors import catalog as competitors
from benchmarks.harness import capacity
from benchmarks.harness.candidate import Serving, backplane, floors, raw_clients, sdk
from benchmarks.harness.run import Options
from benchmarks.harness.session import measure
from benchmarks.harness.websocket import SDK, SDK_PROTOBUF
from benchmarks.scenarios import presence
from benchmarks.scenarios.catalog import SCENARIOS, Scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.harness.brokers import Brokers
    from benchmarks.harness.candidate import Candidate
    from benchmarks.harness.result import Section
    from benchmarks.harness.run import Run

__all__ = ["Choice", "check_capacity", "measure_choice", "settled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What to measure.

    Attributes:
        urls: Brokers for backplane, by URL or name.
        lane: Measure it with the direct lane too.
        only_lane: Measure it with the direct lane only.
        handed_over: Measure it with clients that are handed over too, on the lane.
        sdk: Measure it with clients of the Centrifugal client protocol too, handed over.
        floors: Measure the floors too.
        competitors: Names of competitors; `all` for every one.
        serving: Server, workers and loop.
        repetitions: How often each is run.
        options: Options of the scenario that were given, by name.
    """

    urls: Sequence[str] = ("redis",)
    lane: bool = False
    only_lane: bool = False
    handed_over: bool = False
    sdk: bool = False
    floors: bool = False
    competitors: Sequence[str] = ()
    serving: Serving = Serving()  # noqa: RUF009  # frozen
    repetitions: int = 3
    options: tuple[tuple[str, Any], ...] = ()

    def candidates(self, scenario: str, brokers: Brokers) -> list[Candidate]:
        """Return what to measure, the floors first, so that ratios are to the lowest."""
        urls = {name: brokers.url(name) for name in self.urls}
        redis = next((url for url in urls.values() if url.startswith("redis://") and len(url) > len("redis://")), "")
        if self.competitors and not redis:
            redis = brokers.url("redis")
        found = floors(redis) if self.floors else []
        if self.floors and scenario == "fanout":
            found += raw_clients(list(urls.values()))
        for name, url in urls.items():
            app, missing = SCENARIOS[scenario].app, brokers.missing.get(name, "")
            lanes = [True] if self.only_lane else [False, True] if self.lane else [False]
            ours = [backplane(url, self.serving, lane=lane, app=app) for lane in lanes]
            if self.handed_over:
                ours.append(backplane(url, self.serving, handed_over=True, app=app))
            if self.sdk:
                ours += sdk(url, self.serving)
            found += [_with(each, missing) for each in ours]
        return found + competitors.chosen(self.competitors, redis, self.serving)


def measure_choice(
    name: str, choice: Choice, brokers: Brokers, progress: Callable[[str, int, Run | None], None]
) -> Section:
    """Run the scenario `name` as chosen."""
    scenario = SCENARIOS[name]
    choice, options = settled(name, choice)
    options = replace(options, break_broker=brokers.kill, mend_broker=brokers.start_again)
    environment = scenario.environment(options)
    candidates = [
        replace(_with(each, _unable(scenario, each, choice, brokers)), environment={**each.environment, **environment})
        for each in choice.candidates(name, brokers)
    ]
    title = f"{name}: {scenario.about} — {_settings(options, choice)}"
    section = measure(name, title, scenario.run, candidates, options, choice.repetitions, progress)
    section.settings |= {
        "workers": choice.serving.workers,
        "server": choice.serving.server,
        "loop": choice.serving.loop,
    }
    return section


def settled(name: str, choice: Choice) -> tuple[Choice, Options]:
    """Return how the scenario `name` is served and how much it does, with what it has by default."""
    known = {field.name for field in fields(Options)}
    given = {**SCENARIOS[name].defaults, **dict(choice.options)}
    served = {key: given.pop(key) for key in ("workers", "server") if key in given}
    if served and name in _SERVED_ALIKE:
        choice = replace(choice, serving=replace(choice.serving, **served))
    return choice, Options(**{key: value for key, value in given.items() if key in known})


def check_capacity(parts: Sequence[tuple[str, Choice]]) -> None:
    """Check that this machine can hold the sockets of each of `parts`, before the first of them runs.

    Raises:
        CapacityError: It cannot; the message names the scenario.
    """
    for name, choice in parts:
        served, options = settled(name, choice)
        if SCENARIOS[name].opens_sockets:
            try:
                capacity.check(options, workers=served.serving.workers)
            except capacity.CapacityError as error:
                raise capacity.CapacityError(f"{name}: {error}") from None


_SERVED_ALIKE = ("restart",)
"""Scenarios whose own defaults decide how they are served."""

_OF_BACKPLANE = {
    "heartbeats": "what is measured is the heartbeats and the drain of backplane",
    "history": "it has no history",
    "presence": "it has no presence",
    "publishes": "it has no publishes of the application itself",
    "rooms": "it has no rooms of SDK clients beside raw ones",
}
"""What backplane alone has, and why another candidate cannot take part."""


def _with(candidate: Candidate, missing: str) -> Candidate:
    return replace(candidate, missing=candidate.missing or missing)


def _unable(scenario: Scenario, candidate: Candidate, choice: Choice, brokers: Brokers) -> str:
    """Return why a candidate cannot take part; empty if it can."""
    if scenario.needs == "broker" and not candidate.broker_url:
        return "it has no broker to lose"
    if scenario.needs == "broker" and not brokers.may_break(candidate.broker_url):
        return "its broker was given by URL and must not be killed: give its name instead, --url redis"
    if scenario.needs == "workers" and (candidate.workers < 2 or choice.serving.server != "gunicorn"):
        return "it has no workers that are restarted one after the other"
    if scenario.needs in _OF_BACKPLANE and candidate.kind != "backplane":
        return _OF_BACKPLANE[scenario.needs]
    if candidate.dialect in (SDK, SDK_PROTOBUF) and not scenario.has_sdk_clients:
        return "the scenario has clients of its own"
    if scenario.needs in ("history", "publishes") and candidate.workers > 1:
        return "what is measured is one process"
    if scenario.needs == "history" and _keeps(candidate) == "nothing":
        return "its adapter keeps no history"
    if scenario.needs == "presence" and candidate.workers > 1:
        return f"its {presence.WORKERS} workers are started one by one, to be measured apart"
    if scenario.needs == "presence" and candidate.scheme == "memory":
        return "memory:// reaches one worker only"
    return ""


def _keeps(candidate: Candidate) -> str:
    """Return where the adapter of backplane keeps a history; the broker is not asked."""
    return broadcaster_from_url(candidate.environment["BACKPLANE_URL"]).capabilities.keeps


def _settings(options: Options, choice: Choice) -> str:
    serving = choice.serving
    return (
        f"{options.connections:,} sockets, {options.channels:,} channel{'s' * (options.channels > 1)}, "
        f"{options.rate:g}/s, {options.payload:,} B, {serving.server} with {serving.workers} "
        f"worker{'s' * (serving.workers > 1)} on {serving.loop}, {choice.repetitions} x {options.seconds:g} s"
    )
