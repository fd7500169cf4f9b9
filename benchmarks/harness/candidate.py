"""What is measured: a product with its settings, as a command that serves on a port."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from benchmarks.harness import raw_client
from benchmarks.harness.websocket import PLAIN, SDK, SDK_PROTOBUF

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.harness.websocket import Dialect

__all__ = [
    "APP",
    "CACHE",
    "HANDED_OVER",
    "ROOT",
    "Candidate",
    "Kind",
    "Loop",
    "ServerName",
    "Serving",
    "asgi_command",
    "backplane",
    "faulty",
    "floors",
    "raw_clients",
    "sdk",
]

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "benchmarks"
APP = "benchmarks.servers.backplane_app:app"

HANDED_OVER = " handed over"
"""How the name of a candidate ends whose clients are handed over."""

_LANE = "backplane.server.uvicorn:DirectLaneProtocol"

Loop = Literal["uvloop", "asyncio"]
ServerName = Literal["uvicorn", "gunicorn"]
Kind = Literal["backplane", "floor", "competitor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How an application is served.

    Attributes:
        server: By which server.
        workers: On how many processes.
        loop: On which event loop.
    """

    server: ServerName = "uvicorn"
    workers: int = 1
    loop: Loop = "uvloop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One thing that is measured.

    Attributes:
        name: Its name in the report.
        kind: Whether it is backplane, a floor or a competitor.
        command: What runs it; `{port}` is filled in.
        folder: Where it runs.
        environment: What is added to the environment.
        dialect: What its clients send.
        workers: How many of its processes hold sockets.
        first_alone: Whether the first client of each channel must have joined before others connect. Of clients that
            connect first at the same time the product loses all but one.
        broker_url: The broker it uses, for its CPU and to break it; empty for none.
        raw: Whether it is no server but the raw client of the broker (`harness.raw_client`).
        missing: Why it cannot run; empty where it can.
    """

    name: str
    kind: Kind
    command: Sequence[str]
    folder: Path = ROOT
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    dialect: Dialect = PLAIN
    workers: int = 1
    first_alone: bool = False
    broker_url: str = ""
    raw: bool = False
    missing: str = ""

    @property
    def scheme(self) -> str:
        """The scheme of backplane's URL; empty for what is no backplane."""
        return urlsplit(self.environment.get("BACKPLANE_URL", "")).scheme


def asgi_command(python: str, app: str, serving: Serving, *, lane: bool = False) -> list[str]:
    """Return the command that serves `app` with the Python at `python`."""
    if serving.server == "gunicorn":
        worker = f"{serving.loop.capitalize()}{'Lane' if lane else ''}Worker"
        return [
            *(python, "-m", "gunicorn", app, "--worker-class", f"benchmarks.servers.workers.{worker}"),
            *("--workers", str(serving.workers), "--log-level", "warning", "--bind", "127.0.0.1:{port}"),
        ]
    return [
        *(python, "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", "{port}", "--loop", serving.loop),
        *("--workers", str(serving.workers), "--log-level", "warning", "--no-access-log"),
        # A worker that is busy for longer than its default of 5 s would be killed.
        *("--timeout-worker-healthcheck", "60"),
        *(("--ws", _LANE) if lane else ()),
    ]


def backplane(
    url: str, serving: Serving, *, lane: bool = False, handed_over: bool = False, app: str = APP
) -> Candidate:
    """Return backplane on the broker at `url`, as `app` uses it; clients that are handed over need the lane."""
    scheme, durable = urlsplit(url).scheme, " durable" if "durable=true" in urlsplit(url).query else ""
    return Candidate(
        name=f"backplane {scheme}{durable}{HANDED_OVER if handed_over else ' lane' if lane else ''}",
        kind="backplane",
        command=asgi_command(sys.executable, app, serving, lane=lane or handed_over),
        environment={"BACKPLANE_URL": url, **({"BENCH_HANDS_OVER": "1"} if handed_over else {})},
        workers=serving.workers,
        broker_url=url if scheme not in ("memory", "ipc") else "",
        missing="memory:// reaches one worker only" if scheme == "memory" and serving.workers > 1 else "",
    )


def sdk(url: str, serving: Serving) -> list[Candidate]:
    """Return backplane on the broker at `url` with clients of the Centrifugal client protocol, in JSON and Protobuf."""
    ours = backplane(url, serving, handed_over=True)
    return [
        replace(ours, name=ours.name.replace(HANDED_OVER, f" SDK {encoding}"), dialect=dialect)
        for encoding, dialect in (("JSON", SDK), ("Protobuf", SDK_PROTOBUF))
    ]


def faulty(fault: str) -> Candidate:
    """Return the application with a fault planted: `drop`, `double`, `swap` or `delay`."""
    return Candidate(
        name=f"faulty: {fault}",
        kind="floor",
        command=asgi_command(sys.executable, "benchmarks.servers.faulty:app", Serving()),
        environment={"BENCH_FAULT": fault},
    )


def floors(redis_url: str = "") -> list[Candidate]:
    """Return the least that a write for each message and socket costs: in the kernel, the event loop, and ASGI.

    Where there is a URL there is also the event loop fed by Redis.
    """
    python = sys.executable
    bare = (python, "-m", "benchmarks.servers.bare_uvloop", "{port}")
    return [
        _kernel(),
        Candidate(name="floor: transport.write", kind="floor", command=bare, environment={"BACKPLANE_URL": ""}),
        *(
            [
                Candidate(
                    name="floor: transport.write, Redis",
                    kind="floor",
                    command=bare,
                    environment={"BACKPLANE_URL": redis_url},
                    broker_url=redis_url,
                )
            ]
            if redis_url
            else []
        ),
        Candidate(
            name="floor: await send()",
            kind="floor",
            command=asgi_command(python, "benchmarks.servers.bare_asgi:app", Serving()),
        ),
    ]


def raw_clients(urls: Sequence[str]) -> list[Candidate]:
    """Return the raw client of each broker that has one."""
    return [
        Candidate(name=f"floor: raw client, {scheme}", kind="floor", command=(), broker_url=url, raw=True)
        for url in urls
        if (scheme := urlsplit(url).scheme) in raw_client.SCHEMES and urlsplit(url).port
    ]


def _kernel() -> Candidate:
    """Return the C program; where it cannot be compiled, Python that writes to the descriptors, under another name."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        command = (sys.executable, "-m", "benchmarks.servers.floor_write", "{port}")
        return Candidate(name="floor: os.write (no C compiler)", kind="floor", command=command)
    source, program = ROOT / "benchmarks" / "servers" / "floor_send.c", CACHE / "floor_send"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True)
    return Candidate(name="floor: send() in C", kind="floor", command=(str(program), "{port}"))
