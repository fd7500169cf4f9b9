"""`backplane present`: which users it lists."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner
from websockets.sync.client import connect

from backplane.cli import app
from tests.cluster_app import WAIT, serving_in_thread

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


def present(*arguments: str) -> tuple[int, str, str]:
    """Run the command; return status, standard output and standard error."""
    result = CliRunner().invoke(app, ["present", *arguments, *WAIT])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def server(ipc_url: str) -> Iterator[str]:
    """The URL of a worker's WebSockets."""
    with serving_in_thread(ipc_url) as served:
        yield served


@contextmanager
def join(served: str, room: str, user: str, info: str = "") -> Generator[None]:
    """Be in a room, entered once the worker has entered the client."""
    with connect(f"{served}/{room}?user={user}&info={info}") as client:
        client.recv()
        yield


def test_table(ipc_url: str, server: str) -> None:
    """Each user has a line, with the number of connections and the info, without control characters."""
    with join(server, "room:1", "ada", "%1b"), join(server, "room:1", "ada", "new"), join(server, "room:1", "b%0ab"):
        status, printed, errors = present("room:1", ipc_url)
    assert status == 0
    assert [line.split() for line in printed.splitlines()] == [
        ["user", "connections", "info"],
        ["ada", "2", '"new"'],
        ["b\\nb", "1"],
    ]
    assert errors == "2 users with 3 connections in 'room:1'\n"


def test_json(ipc_url: str, server: str) -> None:
    """With --json the output is one object, exact whatever a name holds."""
    with join(server, "room:1", "ada%1b%22%0a", "x"):
        status, printed, errors = present("room:1", ipc_url, "--json")
    assert (status, errors, printed.count("\n")) == (0, "", 1)
    report = json.loads(printed)
    assert report.pop("url").startswith("ipc://test")
    assert report == {
        "ok": True,
        "problem": None,
        "channel": "room:1",
        "connections": 1,
        "stale": False,
        "counts_only": False,
        "users": [{"user": 'ada\x1b"\n', "info": "x", "connections": 1}],
    }


@pytest.mark.usefixtures("server")
def test_empty_channel(ipc_url: str) -> None:
    """An empty list is a result, once a worker was seen."""
    assert present("room:1", ipc_url) == (0, "", "0 users with 0 connections in 'room:1'\n")
    status, printed, _ = present("room:1", ipc_url, "--json")
    report = json.loads(printed)
    assert (status, report["ok"], report["users"]) == (0, True, [])


def test_channel_of_numbers_alone(ipc_url: str, server: str) -> None:
    """Where the workers exchange numbers alone, the number is printed."""
    with ExitStack() as stack:
        for number in range(3):
            stack.enter_context(join(server, "counted:1", f"user{number}"))
        status, printed, _ = present("counted:1", ipc_url)
        assert (status, printed) == (
            0,
            "3 connections; the workers exchange numbers alone in this channel\n",
        )
        report = json.loads(present("counted:1", ipc_url, "--json")[1])
        assert (report["connections"], report["counts_only"], report["users"]) == (3, True, None)


@pytest.mark.parametrize(("channel", "words"), [("", "cannot be empty"), ("$backplane/x", "are reserved")])
def test_wrong_channel(ipc_url: str, channel: str, words: str) -> None:
    """A name that is not legal ends it with 2."""
    status, printed, errors = present(channel, ipc_url)
    assert (status, printed) == (2, "")
    assert words in errors
