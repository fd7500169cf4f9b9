"""The peers by name, and how each is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.harness.candidate import ROOT, Candidate, Serving, asgi_command
from benchmarks.harness.websocket import PLAIN, SOCKET_IO

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness.websocket import Dialect

__all__ = ["ENVIRONMENTS", "PEERS", "Peer", "chosen"]

FOLDER = Path(__file__).parent
ENVIRONMENTS = ROOT / ".cache" / "peers"
"""Where `make peers` installs them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One other product.

    Attributes:
        title: As the report calls it.
        dialect: How its clients talk.
        one_worker: Whether it only knows the sockets of its own process.
        first_alone: As `Candidate.first_alone`.
        node: Whether it runs on Node.
    """

    title: str
    dialect: Dialect = PLAIN
    one_worker: bool = False
    first_alone: bool = False
    node: bool = False


PEERS: Final = {
    "tutorial": Peer(title="FastAPI tutorial's ConnectionManager", one_worker=True),
    "broadcaster": Peer(title="encode/broadcaster", first_alone=True),
    "litestar": Peer(title="Litestar channels"),
    "channels": Peer(title="Django channels_redis"),
    "socketio": Peer(title="python-socketio", dialect=SOCKET_IO),
    "fastapi-websockets": Peer(title="fastapi-websockets"),
    "node": Peer(title="Node Socket.IO", dialect=SOCKET_IO, node=True),
}
"""The folder of each has the same name."""


def chosen(names: Sequence[str], redis_url: str, serving: Serving) -> list[Candidate]:
    """Return the candidates; one that is not installed says so."""
    every = list(PEERS) if "all" in names else list(names)
    return [_candidate(name, redis_url, serving) for name in every]


def _candidate(name: str, redis_url: str, serving: Serving) -> Candidate:
    peer = PEERS.get(name)
    if peer is None:
        unknown = f"no peer is called {name!r}; known are {', '.join(PEERS)}"
        return Candidate(name=name, kind="peer", command=(), missing=unknown)
    environment = ENVIRONMENTS / name
    program = "node" if peer.node else str(environment / "bin" / "python")
    command = [program, str(environment / "app.js")] if peer.node else asgi_command(program, "app:app", serving)
    return Candidate(
        name=peer.title,
        kind="peer",
        command=command,
        folder=FOLDER / name,
        environment={"BENCH_REDIS_URL": redis_url, "BENCH_WORKERS": str(serving.workers)},
        dialect=peer.dialect,
        workers=serving.workers,
        first_alone=peer.first_alone,
        broker_url="" if peer.one_worker else redis_url,
        missing=_missing(name, peer, serving),
    )


def _missing(name: str, peer: Peer, serving: Serving) -> str:
    failed = ENVIRONMENTS / name / "failed.txt"
    if failed.exists():
        return f"its installation failed: {failed.read_text().strip()[-300:]}"
    if not (ENVIRONMENTS / name / "installed").exists():
        return f"not installed: make peers (looked in {(ENVIRONMENTS / name).relative_to(ROOT)})"
    if peer.one_worker and serving.workers > 1:
        return "it reaches one worker only"
    if serving.server == "gunicorn":
        return "it is measured under uvicorn only"
    return ""
