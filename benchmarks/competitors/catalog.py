"""The competitors by name, and how each is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from benchmarks.harness.candidate import ROOT, Candidate, Serving, asgi_command
from benchmarks.harness.websocket import CENTRIFUGE, PLAIN, SOCKET_IO

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness.websocket import Dialect

__all__ = ["COMPETITORS", "ENVIRONMENTS", "Competitor", "chosen"]

FOLDER = Path(__file__).parent
ENVIRONMENTS = ROOT / ".cache" / "competitors"
"""Where `make competitors` installs them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Competitor:
    """One compared product.

    Attributes:
        title: Its name in the report.
        dialect: What its clients send.
        one_worker: Whether it only reaches the sockets of its own process.
        first_alone: As `Candidate.first_alone`.
        runs_on: What it is written for.
    """

    title: str
    dialect: Dialect = PLAIN
    one_worker: bool = False
    first_alone: bool = False
    runs_on: Literal["Python", "Node", "Go"] = "Python"

    @property
    def pinned(self) -> str:
        """The file that pins its versions."""
        return {"Python": "requirements.txt", "Node": "package-lock.json", "Go": "go.sum"}[self.runs_on]


COMPETITORS: Final = {
    "tutorial": Competitor(title="FastAPI tutorial's ConnectionManager", one_worker=True),
    "broadcaster": Competitor(title="encode/broadcaster", first_alone=True),
    "litestar": Competitor(title="Litestar channels"),
    "channels": Competitor(title="Django channels_redis"),
    "socketio": Competitor(title="python-socketio", dialect=SOCKET_IO),
    "fastapi-websockets": Competitor(title="fastapi-websockets"),
    "node": Competitor(title="Node Socket.IO", dialect=SOCKET_IO, runs_on="Node"),
    "ws": Competitor(title="Node ws", runs_on="Node"),
    "centrifuge": Competitor(title="centrifuge (Go)", dialect=CENTRIFUGE, runs_on="Go"),
}
"""The folder of each has the same name."""


def chosen(names: Sequence[str], redis_url: str, serving: Serving) -> list[Candidate]:
    """Return the candidates; one that is not installed holds the reason."""
    every = list(COMPETITORS) if "all" in names else list(names)
    return [_candidate(name, redis_url, serving) for name in every]


def _candidate(name: str, redis_url: str, serving: Serving) -> Candidate:
    competitor = COMPETITORS.get(name)
    if competitor is None:
        unknown = f"no competitor is named {name!r}; known are {', '.join(COMPETITORS)}"
        return Candidate(name=name, kind="competitor", command=(), missing=unknown)
    environment = ENVIRONMENTS / name
    commands = {
        "Python": asgi_command(str(environment / "bin" / "python"), "app:app", serving),
        "Node": ["node", str(environment / "app.js")],
        "Go": [str(environment / "app")],
    }
    return Candidate(
        name=competitor.title,
        kind="competitor",
        command=commands[competitor.runs_on],
        folder=FOLDER / name,
        environment={"BENCH_REDIS_URL": redis_url, "BENCH_WORKERS": str(serving.workers)},
        dialect=competitor.dialect,
        workers=serving.workers,
        first_alone=competitor.first_alone,
        broker_url="" if competitor.one_worker else redis_url,
        missing=_missing(name, competitor, serving),
    )


def _missing(name: str, competitor: Competitor, serving: Serving) -> str:
    failed = ENVIRONMENTS / name / "failed.txt"
    if failed.exists():
        return f"its installation failed: {failed.read_text().strip()[-300:]}"
    if not (ENVIRONMENTS / name / "installed").exists():
        return f"not installed: make competitors (looked in {(ENVIRONMENTS / name).relative_to(ROOT)})"
    if competitor.one_worker and serving.workers > 1:
        return "it reaches one worker only"
    if competitor.runs_on == "Go" and serving.workers > 1:
        return "it is one process on all cores"
    if serving.server == "gunicorn":
        return "it is measured under uvicorn only"
    return ""
