"""`backplane workers`: which workers it lists."""

from __future__ import annotations

import json
import os

from typer.testing import CliRunner

from backplane.cli import app
from tests.cluster_app import WAIT, serving_in_thread


def workers(*arguments: str) -> tuple[int, str, str]:
    """Run the command; return status, standard output and standard error."""
    result = CliRunner().invoke(app, ["workers", *arguments, *WAIT])
    return result.exit_code, result.stdout, result.stderr


def test_table(ipc_url: str) -> None:
    """Each worker has a line; how many there are is a note."""
    with serving_in_thread(ipc_url), serving_in_thread(ipc_url):
        status, printed, errors = workers(ipc_url)
    header, *lines = printed.splitlines()
    assert (status, errors) == (0, "2 alive, with 0 connections\n")
    assert header.split() == ["host", "pid", "id", "version", "connections", "up", "seen"]
    assert [line.split()[1] for line in lines] == [str(os.getpid())] * 2


def test_json(ipc_url: str) -> None:
    """With --json the output is one object that holds all that is known of each worker."""
    with serving_in_thread(ipc_url):
        status, printed, errors = workers(ipc_url, "--json")
    report = json.loads(printed)
    assert (status, errors) == (0, "")
    assert report.keys() == {"ok", "problem", "remark", "url", "workers"}
    assert (report["ok"], report["problem"], report["remark"]) == (True, None, None)
    (worker,) = report["workers"]
    assert worker.keys() == {
        *("id", "host", "pid", "started_at", "connections", "version", "last_seen_seconds_ago", "is_alive")
    }
    assert (worker["pid"], worker["is_alive"]) == (os.getpid(), True)
