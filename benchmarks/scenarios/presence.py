"""What presence costs four workers at a steady churn, how soon a list is complete, when a dead worker's users leave.

Four processes with presence and four without it are driven alike and at the same time, on one broker but in places of
their own, so a drift of the machine affects both. The connections are clients without sockets (`servers.presence_app`):
two cores hold 20,000 of them, and they join and leave by the code that all clients do.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

from benchmarks.harness.run import Run
from benchmarks.harness.server import Server, cpu_seconds, serving
from tests.brokers.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from benchmarks.harness.candidate import Candidate
    from benchmarks.harness.run import Options

__all__ = ["WORKERS", "run"]

WORKERS: Final = 4
LIFETIME_SECONDS: Final = 600.0
"""How long a connection lives: so much of the connections leaves, and comes back as others, in a second."""

_ASKED_ROOMS: Final = 20
_LEFT_SECONDS: Final = 30.0
_PLACES: Final = {
    "redis": "prefix=presence:",
    "redis+cluster": "prefix=presence:",
    "nats": "prefix=presence.",
    "kafka": "topic=presence",
    "postgres": "notify=presence",
    "amqp": "exchange=presence",
}
"""The option of a URL that keeps the workers with presence apart from those without."""
_KINDS: Final = ("delta", "beacon", "request", "state", "snapshot", "heartbeat")


@dataclass(frozen=True, slots=True)
class _Rooms:
    """How the connections are spread: each worker has as many in each room."""

    count: int
    of_each_worker: int

    @property
    def users(self) -> int:
        """How many users a room has."""
        return WORKERS * self.of_each_worker

    @property
    def connections_of_worker(self) -> int:
        """How many connections a worker has."""
        return self.count * self.of_each_worker


def run(server: Server, options: Options) -> Run:
    """Measure the CPU of the churn with and without presence, then `present`, then a `kill -9` of one worker.

    Every worker with presence watches every room: it holds the entries of all others, as where each room has a client
    that is notified of the others.
    """
    rooms = _Rooms(options.channels, max(1, options.connections // options.channels // WORKERS))
    found = Run()
    with _workers(server) as (with_presence, without):
        for worker in (*with_presence, *without):
            worker.ask("fill", connections=rooms.connections_of_worker, rooms=rooms.count)
        for worker in with_presence:
            worker.ask("watch", rooms=rooms.count)
        for worker in with_presence:
            worker.ask("complete", rooms=rooms.count, users=rooms.users)
        _measure_churn(with_presence, without, rooms, options, found)
        _measure_present(with_presence, rooms, found)
        _wait_for_graces(with_presence)
        _measure_death(with_presence, found)
    return found


@contextmanager
def _workers(server: Server) -> Generator[tuple[list[Server], list[Server]]]:
    """Yield the workers with presence, and those without, of which `server` is the first."""
    with ExitStack() as stack:
        with_presence = [
            stack.enter_context(serving(_with_presence(server.candidate, number))) for number in range(WORKERS)
        ]
        others = [stack.enter_context(serving(server.candidate)) for _ in range(WORKERS - 1)]
        yield with_presence, [server, *others]


def _with_presence(candidate: Candidate, number: int) -> Candidate:
    parts = urlsplit(candidate.environment["BACKPLANE_URL"])
    if parts.scheme in _PLACES:
        parts = parts._replace(query="&".join(filter(None, (parts.query, _PLACES[parts.scheme]))))
    else:
        parts = parts._replace(netloc=f"{parts.netloc}-presence")
    environment = {"BACKPLANE_URL": urlunsplit(parts), "BENCH_PRESENCE": "1", "BENCH_WORKER": str(number)}
    return replace(candidate, environment={**candidate.environment, **environment})


def _measure_churn(
    with_presence: Sequence[Server], without: Sequence[Server], rooms: _Rooms, options: Options, found: Run
) -> None:
    """Let all of them churn, and compare the processor time of each process."""
    workers = (*with_presence, *without)
    for worker in workers:
        worker.ask("churn", per_second=rooms.connections_of_worker / LIFETIME_SECONDS, rooms=rooms.count)
    time.sleep(options.warm_up_seconds)
    before, began = [worker.ask("noted") for worker in workers], time.monotonic()
    used = [cpu_seconds([worker.process.pid]) for worker in workers]
    time.sleep(options.seconds)
    used = [cpu_seconds([worker.process.pid]) - then for worker, then in zip(workers, used, strict=True)]
    seconds = time.monotonic() - began
    after = [worker.ask("noted") for worker in workers]
    for worker in workers:
        worker.ask("churn", per_second=0)
    percent = [each / seconds * 100 for each in used]
    on, off = percent[: len(with_presence)], percent[len(with_presence) :]
    mean_off = sum(off) / len(off)
    found.figures |= {
        "presence_cpu_percent": sum(on) / len(on),
        "presence_off_cpu_percent": mean_off,
        "presence_extra_percent": sum(on) / len(on) - mean_off,
        "presence_extra_max_percent": max(on) - mean_off,
        "joins_per_second": sum(now["churned"] - then["churned"] for now, then in _pairs(after, before, on)) / seconds,
    }
    messages = [(now["messages"], then["messages"]) for now, then in _pairs(after, before, on)]
    for kind in ("", *_KINDS):
        sent = sum(_grown(now, then, f"out.{kind}") for now, then in messages)
        found.figures[f"presence_{kind or 'sent'}_per_second"] = sent / seconds
    received = sum(_grown(now, then, "in.") for now, then in messages)
    found.figures["presence_received_per_second"] = received / seconds / len(with_presence)


def _pairs(after: Sequence[Any], before: Sequence[Any], some: Sequence[object]) -> list[tuple[Any, Any]]:
    """Return what the first workers had noted, now and then."""
    return list(zip(after, before, strict=True))[: len(some)]


def _grown(now: Mapping[str, int], then: Mapping[str, int], name: str) -> int:
    """Return by how much the counters grew whose names begin so."""
    return sum(count - then.get(each, 0) for each, count in now.items() if each.startswith(name))


def _measure_present(workers: Sequence[Server], rooms: _Rooms, found: Run) -> None:
    """Ask at one worker for rooms whose connections are at the others, which watch them or do not."""
    *others, asked = workers
    users = rooms.of_each_worker * len(others)
    for name, watched in (("unwatched", False), ("watched", True)):
        for worker in others:
            worker.ask("fill", connections=_ASKED_ROOMS * rooms.of_each_worker, rooms=_ASKED_ROOMS, name=f"{name}-")
        if watched:
            for worker in others:
                worker.ask(f"present/{name}-", rooms=_ASKED_ROOMS, users=users)
        took = asked.ask(f"present/{name}-", rooms=_ASKED_ROOMS, users=users)
        found.figures[f"present_{name}_ms"] = median(took) * 1000
        found.figures[f"present_{name}_max_ms"] = max(took) * 1000


def _wait_for_graces(workers: Sequence[Server]) -> None:
    """Wait until each worker has reported that all users who left during the churn have."""

    def reported() -> bool:
        noted = [worker.ask("noted") for worker in workers]
        churned = sum(each["churned"] for each in noted)
        return all(sum(each["left"].values()) == churned for each in noted)

    wait_until(reported, "the users who left are reported", seconds=_LEFT_SECONDS)


def _measure_death(workers: Sequence[Server], found: Run) -> None:
    """Kill the last worker, and wait until its users have left everywhere, and no others."""
    *others, killed = workers
    name = f"w{len(others)}"
    before = [worker.ask("noted")["left"] for worker in others]
    there = killed.ask("noted")["connections"]

    def left() -> list[int]:
        after = [worker.ask("noted")["left"] for worker in others]
        return [now.get(name, 0) - then.get(name, 0) for now, then in zip(after, before, strict=True)]

    os.kill(killed.process.pid, signal.SIGKILL)
    began = time.monotonic()
    with suppress(TimeoutError):
        wait_until(lambda: min(left()) >= there, "its users have left", seconds=_LEFT_SECONDS)
    found.figures["lost"] = float(sum(max(there - each, 0) for each in left()))
    after = [worker.ask("noted") for worker in others]
    found.figures["left_seconds"] = max(each["left_at"].get(name, 0.0) for each in after) - began
    found.figures["astray"] = float(
        sum(
            count - then.get(worker, 0)
            for now, then in zip(after, before, strict=True)
            for worker, count in now["left"].items()
            if worker != name
        )
    )
