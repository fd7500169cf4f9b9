"""`backplane.worker.deployment`: how many workers there are, and when to warn."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import pytest

from backplane.broadcaster import Capabilities
from backplane.connection.limits import Limits
from backplane.worker import deployment
from backplane.worker.deployment import (
    server_pid,
    warn_if_isolated,
    warn_if_no_pings,
    warn_of_default_url,
    worker_count,
)

if TYPE_CHECKING:
    from pathlib import Path

GUNICORN = ("python3", "/srv/venv/bin/gunicorn")
UVICORN = ("python3", "/srv/venv/bin/uvicorn", "main:app")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide what surrounds the tests themselves."""
    for name in ("GUNICORN_CMD_ARGS", "KUBERNETES_SERVICE_HOST", "UVICORN_WORKERS", "WEB_CONCURRENCY"):
        monkeypatch.delenv(name, raising=False)


def proc_with_parent(folder: Path, *command: str) -> Path:
    """Return a `/proc` in which the parent of this process was started by `command`."""
    parent = folder / str(os.getppid())
    parent.mkdir()
    (parent / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in command))
    return folder


def capabilities(reach: Literal["process", "host", "network"]) -> Capabilities:
    """Return the capabilities of an adapter that reaches this far."""
    return Capabilities(brokered=False, reach=reach, publish_returns="delivered", max_payload_bytes=1)


@pytest.mark.parametrize(
    ("command", "count"),
    [
        ((*GUNICORN, "-w", "4", "main:app"), 4),
        ((*GUNICORN, "-w4", "main:app"), 4),
        ((*GUNICORN, "--workers", "4", "main:app"), 4),
        ((*GUNICORN, "--workers=4", "main:app"), 4),
        ((*GUNICORN, "main:app", "-k", "uvicorn_worker.UvicornWorker", "-w", "12"), 12),
        ((*GUNICORN, "-w", "1", "main:app"), 1),
        ((*GUNICORN, "main:app"), 1),
        ((*UVICORN, "--workers", "4"), 4),
        ((*UVICORN, "--workers=4", "--port", "8000"), 4),
        ((*UVICORN, "--port", "8000"), 1),
        (("python3", "-m", "uvicorn", "main:app", "--workers", "3"), 3),
        (("hypercorn", "-w", "2", "main:app"), 2),
        (("granian", "--interface", "asgi", "--workers", "2", "main:app"), 2),
        (("backplane", "demo", "--workers", "2"), 2),
        ((*GUNICORN, "--workers-per-core", "2"), 1),
        ((*GUNICORN, "--worker-connections", "1000"), 1),
        ((*GUNICORN, "-w", "many"), 1),
    ],
)
def test_command_line(tmp_path: Path, command: tuple[str, ...], count: int) -> None:
    """The number of workers is the one on the command line of the server that started this process."""
    assert worker_count(proc_with_parent(tmp_path, *command)) == count


def test_fastapi_command(tmp_path: Path) -> None:
    """The `fastapi` command, which FastAPI's own documentation deploys with, is a server like the others."""
    proc = proc_with_parent(tmp_path, "python3", "/srv/venv/bin/fastapi", "run", "--workers", "4", "main.py")
    assert worker_count(proc) == 4


@pytest.mark.parametrize("between", [(), ("--bind", ":80")], ids=["adjacent", "apart"])
def test_option_given_twice(tmp_path: Path, between: tuple[str, ...]) -> None:
    """Of an option given twice the last counts, as it does for the server."""
    assert worker_count(proc_with_parent(tmp_path, *GUNICORN, "-w", "2", *between, "--workers", "4")) == 4


@pytest.mark.parametrize(
    ("command", "workers"),
    [
        (("bash",), "4"),
        (("python3", "manage.py", "-w", "4"), ""),
        (("celery", "-A", "tasks", "worker", "--workers", "4"), "4"),
        ((), "4"),
    ],
    ids=["shell", "script", "celery", "kernel"],
)
def test_parent_is_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], workers: str
) -> None:
    """A process that no server started is one worker, whatever its environment holds for web workers."""
    monkeypatch.setenv("WEB_CONCURRENCY", workers)
    assert worker_count(proc_with_parent(tmp_path, *command)) == 1


def test_name_of_a_server_in_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that only lives in a folder named like a server is none."""
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    assert worker_count(proc_with_parent(tmp_path, "/srv/backplane/venv/bin/python3", "/srv/backplane/tasks.py")) == 1


def test_no_proc(tmp_path: Path) -> None:
    """Where the parent's command line cannot be read, nothing is plain."""
    assert worker_count(tmp_path / "missing") == 1


def test_command_line_is_not_utf8(tmp_path: Path) -> None:
    """Bytes that are no text in a command line hide nothing of the rest."""
    proc = proc_with_parent(tmp_path, *GUNICORN, "-w", "4")
    command = proc / str(os.getppid()) / "cmdline"
    command.write_bytes(b"\xff\0" + command.read_bytes())
    assert worker_count(proc) == 4


@pytest.mark.parametrize(
    "arguments",
    ["-w 4", "--workers 4", "--workers=4", "--bind :80 -w 4 --reuse-port", "-w  4", "--workers '4'"],
)
def test_gunicorn_arguments_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str) -> None:
    """`GUNICORN_CMD_ARGS` counts like the command line, split as a shell splits it."""
    monkeypatch.setenv("GUNICORN_CMD_ARGS", arguments)
    assert worker_count(proc_with_parent(tmp_path, *GUNICORN, "main:app")) == 4


@pytest.mark.parametrize("parent", [GUNICORN, UVICORN], ids=["gunicorn", "uvicorn"])
@pytest.mark.parametrize(("value", "count"), [("4", 4), ("", 1), ("auto", 1), ("-1", 1)])
def test_web_concurrency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parent: tuple[str, ...], value: str, count: int
) -> None:
    """`WEB_CONCURRENCY` counts where it is a number."""
    monkeypatch.setenv("WEB_CONCURRENCY", value)
    assert worker_count(proc_with_parent(tmp_path, *parent)) == count


def test_uvicorn_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`UVICORN_WORKERS` counts for Uvicorn, which takes every option from the environment under this prefix."""
    monkeypatch.setenv("UVICORN_WORKERS", "4")
    assert worker_count(proc_with_parent(tmp_path, *UVICORN)) == 4


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line goes before `GUNICORN_CMD_ARGS`, and that before `WEB_CONCURRENCY`, as in Gunicorn."""
    monkeypatch.setenv("WEB_CONCURRENCY", "2")
    proc = proc_with_parent(tmp_path, *GUNICORN)
    assert worker_count(proc) == 2
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "-w 3")
    assert worker_count(proc) == 3
    (proc / str(os.getppid()) / "cmdline").write_bytes(b"gunicorn\0-w\x004\0")
    assert worker_count(proc) == 4


def warnings(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    reach: Literal["process", "host", "network"],
    workers: int,
    kubernetes: bool,
) -> list[str]:
    """Return what is logged for an adapter of this reach in these surroundings."""

    def count() -> int:
        return workers

    monkeypatch.setattr(deployment, "worker_count", count)
    if kubernetes:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with caplog.at_level(logging.DEBUG, "backplane.worker.deployment"):
        warn_if_isolated(capabilities(reach), "scheme://name")
    assert {record.levelno for record in caplog.records} <= {logging.WARNING}
    return caplog.messages


@pytest.mark.parametrize("kubernetes", [False, True])
def test_memory_with_several_workers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kubernetes: bool
) -> None:
    """An adapter of one process under several workers is warned of once, with the cure."""
    assert warnings(monkeypatch, caplog, reach="process", workers=4, kubernetes=kubernetes) == [
        "scheme://name reaches this process only, and it is one of 4 workers: a broadcast will reach a part of the "
        "clients. Set BACKPLANE_URL=ipc://myapp to join the workers of one host, or redis://... to join hosts."
    ]


@pytest.mark.parametrize(("reach", "workers"), [("process", 1), ("host", 1), ("host", 4)])
def test_one_pod(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reach: Literal["process", "host"],
    workers: int,
) -> None:
    """An adapter of one host in Kubernetes is warned of, with the cure."""
    assert warnings(monkeypatch, caplog, reach=reach, workers=workers, kubernetes=True) == [
        "scheme://name reaches this pod only, and this process runs in Kubernetes: with more than one replica a "
        "broadcast will reach a part of the clients. Set BACKPLANE_URL=redis://... to join pods."
    ]


@pytest.mark.parametrize(
    ("reach", "workers", "kubernetes"),
    [
        ("process", 1, False),
        ("host", 1, False),
        ("host", 4, False),
        ("network", 4, False),
        ("network", 1, True),
        ("network", 4, True),
    ],
)
def test_silence(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reach: Literal["process", "host", "network"],
    workers: int,
    kubernetes: bool,
) -> None:
    """An adapter that reaches as far as the surroundings go is not warned of."""
    assert warnings(monkeypatch, caplog, reach=reach, workers=workers, kubernetes=kubernetes) == []


def test_warning_of_the_default_url(caplog: pytest.LogCaptureFixture) -> None:
    """The default URL is named in a warning, with the variable that sets it."""
    warn_of_default_url("memory://")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "BACKPLANE_URL is not set, so memory:// is used" in caplog.text


@pytest.mark.parametrize(
    ("module", "limits", "warned"),
    [
        ("granian._granian", Limits(), ["Granian sends no WebSocket pings"]),
        ("hypercorn.asyncio.run", Limits(), ["Hypercorn sends no WebSocket pings unless"]),
        ("gunicorn.workers.gasgi", Limits(), ["Gunicorn's asgi worker sends no WebSocket pings"]),
        ("granian._granian", Limits(heartbeat_message="ping"), []),
        ("granian._granian", Limits(heartbeat_seconds=None), []),
        ("uvicorn", Limits(), []),
    ],
)
def test_heartbeats_without_effect(
    module: str, limits: Limits, warned: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the server sends no pings and nothing is sent in their place, that is logged, once, with the cure."""
    for name in ("granian._granian", "hypercorn.asyncio.run", "gunicorn.workers.gasgi"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, module, ModuleType(module))
    deployment._warn_if_no_pings.cache_clear()  # pyright: ignore[reportPrivateUsage]
    for _ in range(2):
        warn_if_no_pings(limits)
    deployment._warn_if_no_pings.cache_clear()  # pyright: ignore[reportPrivateUsage]
    assert [words in message for words, message in zip(warned, caplog.messages, strict=True)] == [True] * len(warned)


def test_server_of_a_process_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that a shell, systemd or a supervisor has started has no siblings, whatever else they start."""
    monkeypatch.delitem(sys.modules, "gunicorn.arbiter", raising=False)
    for command in ((), ("bash",), ("/lib/systemd/systemd", "--system"), ("python3", "/usr/bin/supervisord")):
        proc = tmp_path / str(len(command)) / "-".join(command).replace("/", "_")
        proc.mkdir(parents=True)
        assert server_pid(proc_with_parent(proc, *command)) is None


@pytest.mark.parametrize(
    "command",
    [(*GUNICORN, "main:app"), UVICORN, ("gunicorn: master [main:app]",), ("python3", "-m", "hypercorn", "main:app")],
)
def test_server_by_its_command(tmp_path: Path, command: tuple[str, ...]) -> None:
    """The parent process is a server by its command line."""
    assert server_pid(proc_with_parent(tmp_path, *command)) == os.getppid()


def test_server_that_forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parent process that runs what this one runs has forked it."""
    monkeypatch.delitem(sys.modules, "gunicorn.arbiter", raising=False)  # of another test
    proc = proc_with_parent(tmp_path, "python3", "serve.py")
    (proc / "self").mkdir()
    (proc / "self" / "cmdline").write_bytes(b"python3\0serve.py\0")
    assert server_pid(proc) == os.getppid()
    (proc / "self" / "cmdline").write_bytes(b"python3\0worker.py\0")
    assert server_pid(proc) is None


def test_server_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no `/proc`, Gunicorn's workers are known by its module."""
    monkeypatch.setitem(sys.modules, "gunicorn.arbiter", ModuleType("gunicorn.arbiter"))
    assert server_pid(tmp_path / "none") == os.getppid()
    monkeypatch.delitem(sys.modules, "gunicorn.arbiter")
    assert server_pid(tmp_path / "none") is None


def test_server_of_multiprocessing() -> None:
    """A process that `multiprocessing` has started knows which process that was, and not its helper."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(server_pid) == os.getpid()
