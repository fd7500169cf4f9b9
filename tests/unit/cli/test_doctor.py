"""`backplane doctor`: a line for each check, planted faults, and the exit status."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from backplane import Backplane, History, Settings
from backplane.cli import app
from tests.brokers.process import free_port
from tests.cluster_app import WAIT

if TYPE_CHECKING:
    from collections.abc import Generator

BRISK = Settings(worker_heartbeat_seconds=0.3)


@contextmanager
def workers(*backplanes: Backplane, subscribed: tuple[str, ...] = ()) -> Generator[None]:
    """Run workers in a thread of this process, each with a subscription to some channels."""
    started, ended = threading.Event(), threading.Event()

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            for backplane in backplanes:
                await stack.enter_async_context(backplane)
                if subscribed:
                    await stack.enter_async_context(backplane.subscribe(*subscribed))
            started.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    try:
        assert started.wait(20)
        yield
    finally:
        ended.set()
        thread.join()


def worker(url: str, **options: Any) -> Backplane:
    """Return a worker of a cluster."""
    chosen: dict[str, Any] = {"settings": BRISK} | options
    return Backplane(url, cluster=True, **chosen)


def doctor(*arguments: str) -> tuple[int, str, str]:
    """Run the command; return status, standard output and standard error."""
    result = CliRunner().invoke(app, ["doctor", *arguments, *WAIT])
    return result.exit_code, result.stdout, result.stderr


def found(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Run the command with --json; return the status, and the findings by their check."""
    status, printed, _ = doctor(*arguments, "--json")
    report = json.loads(printed)
    assert report["ok"] == (status == 0)
    return status, {finding["check"]: finding for finding in report["findings"]}


def test_all_is_well(ipc_url: str) -> None:
    """Each check is a line with a mark, and the status is 0."""
    with workers(worker(ipc_url), worker(ipc_url), subscribed=("orders",)):
        status, printed, errors = doctor(ipc_url, "--workers", "2", "--channel", "orders")
    lines = printed.splitlines()
    assert (status, errors) == (0, "")
    assert all(line[:2] in ("✓ ", "! ", "- ") for line in lines), printed
    for words in (
        "✓ Python 3.",
        "✓ ipc://test reaches the processes of this host",
        "✓ a message returns within",
        "✓ channels that start with $backplane/ may be subscribed to",
        "✓ 2 workers seen, 2 of them with figures",
        "✓ every worker answers",
        "✓ the link of every worker is live",
        "✓ all clocks are within 0.1 s",
        "✓ alike in all workers: history, presence, wire_format, worker_down_seconds, worker_heartbeat_seconds",
        "✓ a test on 'orders' reached 2 workers with subscribers",
    ):
        assert any(line.startswith(words) for line in lines), words


def test_json(ipc_url: str) -> None:
    """It is one object; each finding has four members."""
    with workers(worker(ipc_url)):
        status, printed, _ = doctor(ipc_url, "--json")
    report = json.loads(printed)
    assert (status, report["ok"], report["url"]) == (0, True, "ipc://test")
    assert all(finding.keys() == {"check", "level", "text", "cure"} for finding in report["findings"])


def test_too_few_workers(ipc_url: str) -> None:
    """A worker that is not there is an error where one knows how many there should be."""
    with workers(worker(ipc_url)):
        status, printed, errors = doctor(ipc_url, "--workers", "2")
    assert status == 1
    assert "✗ 1 worker of 2 is seen  → the others have another broker, database, prefix or secret" in printed
    assert errors == "backplane: 1 check failed\n"


def test_no_worker(ipc_url: str) -> None:
    """Without a worker that is what is wrong."""
    status, findings = found(ipc_url)
    assert (status, findings["no_worker"]["level"]) == (1, "error")


def test_settings_that_differ(ipc_url: str) -> None:
    """The setting is named, with the worker and both values."""
    rules = {"orders:*": History()}
    with workers(worker(ipc_url), worker(ipc_url), worker(ipc_url, history=rules)):
        status, findings = found(ipc_url)
    assert (status, findings["settings"]["level"]) == (1, "error")
    assert findings["settings"]["text"].startswith("history differs: [('orders:*', History(")
    assert findings["settings"]["text"].endswith(", [] in the others")


def test_another_secret(ipc_url: str) -> None:
    """Workers whose messages are signed are not seen without the secret, which is what is named."""
    with workers(worker(ipc_url, control_secret="0123456789abcdef-right")):
        status, findings = found(ipc_url)
        assert status == 1
        assert "pass the control_secret" in findings["no_worker"]["cure"]
        status, findings = found(ipc_url, "--control-secret", "0123456789abcdef-right")
        assert (status, findings["workers"]["level"]) == (0, "ok")


def test_a_channel_that_does_not_reach_a_worker(ipc_url: str) -> None:
    """A worker that subscribed to it and gets nothing is named; one that gets it is not."""
    silent = worker(ipc_url)
    with workers(worker(ipc_url), silent, subscribed=("orders", "news")):
        runtime: Any = silent._runtime  # pyright: ignore[reportPrivateUsage]
        deliver = runtime.hub.deliver

        def drop(channel: str, payload: bytes, *place: Any) -> None:
            if channel != "orders":
                deliver(channel, payload, *place)

        runtime.hub.deliver = drop
        status, printed, _ = doctor(ipc_url, "--channel", "orders", "--channel", "news")
    assert status == 1
    (line,) = [line for line in printed.splitlines() if line.startswith("✗")]
    assert f"/{os.getpid()} is subscribed to 'orders', and does not receive what is published" in line
    assert "✓ a test on 'news' reached 2 workers with subscribers" in printed


def test_a_worker_of_an_older_version(ipc_url: str) -> None:
    """One that does not know what it is asked is named, and what it has is not taken for nothing."""
    older = worker(ipc_url)
    with workers(older, subscribed=("orders",)):
        runtime: Any = older._runtime  # pyright: ignore[reportPrivateUsage]
        for kind in ("describe", "explain"):
            del runtime.cluster._commands._slow_kinds[kind]
        status, findings = found(ipc_url, "--channel", "orders")
    assert status == 0
    assert findings["described"]["text"].endswith("this worker does not know the command 'describe'")
    assert (findings["path"]["level"], "settings" in findings) == ("skipped", False)
    assert findings["path"]["text"].endswith("this worker does not know the command 'explain'")


def test_a_channel_without_subscribers(ipc_url: str) -> None:
    """Nothing can be tested; a name may be wrong."""
    with workers(worker(ipc_url), subscribed=("orders",)):
        status, findings = found(ipc_url, "--channel", "order")
    assert (status, findings["path"]["level"]) == (0, "warning")
    assert findings["path"]["text"] == "no client has joined 'order'; there are subscribers of 'orders'"


def test_memory() -> None:
    """Nothing can be seen of it from outside."""
    status, findings = found("memory://")
    assert (status, findings["reach"]["level"]) == (1, "error")
    assert findings["reach"]["cure"].startswith("ipc://myapp joins the workers of one host")
    assert "workers" not in findings


def test_absent_broker() -> None:
    """The checks of this host are there; the broker is what is wrong."""
    url = f"redis://127.0.0.1:{free_port()}"
    status, findings = found(url)
    assert (status, findings["versions"]["level"], findings["broker"]["level"]) == (1, "ok", "error")
    assert f"cannot reach {url}" in findings["broker"]["text"]
    assert findings["broker"]["cure"] == "is the broker running, does this host reach it, and is this its port?"
    assert "workers" not in findings


@pytest.mark.parametrize("arguments", [["nonsense"], ["redis://h?x=1"], ["ipc://test", "--channel", ""]])
def test_wrong_input(arguments: list[str]) -> None:
    """It ends with 2."""
    assert doctor(*arguments)[0] == 2
