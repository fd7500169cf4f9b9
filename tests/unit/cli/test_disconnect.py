"""`backplane disconnect`: which connections it closes, how, and what it confirms."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NoReturn

import pytest
from typer.testing import CliRunner
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from backplane import PublishError, PublishOutcomeUnknownError
from backplane.cli import app
from backplane.cluster.bus import ClusterBus
from tests.cluster_app import WAIT, serving_in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from websockets.sync.client import ClientConnection


class Clients:
    """Three clients of one worker: an attribute for each is its connection, and `ids` has their connections' ids."""

    def __init__(self, ada: ClientConnection, ada_elsewhere: ClientConnection, bob: ClientConnection) -> None:
        self.ada, self.ada_elsewhere, self.bob = self.all = ada, ada_elsewhere, bob
        self.ids = [str(client.recv()) for client in self.all]


@pytest.fixture
def clients(ipc_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clients]:
    """The clients of a worker at the broker of BACKPLANE_URL."""
    monkeypatch.setenv("BACKPLANE_URL", ipc_url)
    with (
        serving_in_thread(ipc_url) as served,
        connect(f"{served}/room:1?user=ada") as ada,
        connect(f"{served}/room:2?user=ada") as ada_elsewhere,
        connect(f"{served}/room:1?user=bob") as bob,
    ):
        yield Clients(ada, ada_elsewhere, bob)


def disconnect(*arguments: str) -> tuple[int, str, str]:
    """Run the command; return status, standard output and standard error."""
    result = CliRunner().invoke(app, ["disconnect", *arguments, *WAIT])
    return result.exit_code, result.stdout, result.stderr


def is_open(client: ClientConnection) -> bool:
    """Return whether a client is still connected: it answers a ping."""
    try:
        return client.ping().wait(10)
    except ConnectionClosed:
        return False


def closed(client: ClientConnection) -> tuple[int, str]:
    """Wait until a client is closed; return with which code and reason."""
    with pytest.raises(ConnectionClosed):
        client.recv(timeout=120)
    assert client.close_code is not None
    return client.close_code, client.close_reason or ""


def test_user(clients: Clients) -> None:
    """All connections of the user are closed with 4503, and no other; what is certain is printed."""
    status, printed, errors = disconnect("--user", "ada")
    assert (status, errors) == (0, "")
    assert printed == "sent: the broker has the command; --confirm S shows what each worker has closed\n"
    assert closed(clients.ada)[0] == closed(clients.ada_elsewhere)[0] == 4503
    assert is_open(clients.bob)


def test_code_and_reason(clients: Clients) -> None:
    """The clients are given the code and the reason."""
    assert disconnect("--user", "bob", "--code", "4000", "--reason", "déjà vu")[0] == 0
    assert closed(clients.bob) == (4000, "déjà vu")


def test_several_options(clients: Clients) -> None:
    """Of several options all must apply."""
    assert disconnect("--user", "ada", "--channel", "room:1")[0] == 0
    closed(clients.ada)
    assert is_open(clients.ada_elsewhere)
    assert is_open(clients.bob)


def test_connection(clients: Clients) -> None:
    """A connection can be given by its id."""
    assert disconnect("--connection", clients.ids[1])[0] == 0
    closed(clients.ada_elsewhere)
    assert is_open(clients.ada)


def test_confirmed(clients: Clients) -> None:
    """With --confirm each worker has a line with how many it closed."""
    status, printed, errors = disconnect("--user", "ada", "--confirm", "20")
    header, line = printed.splitlines()
    assert (status, errors) == (0, "2 closed, 1 of 1 workers confirmed\n")
    assert header.split() == ["host", "pid", "id", "closed"]
    assert line.split()[3] == "2"
    closed(clients.ada)


def test_json(clients: Clients) -> None:
    """With --json the output is one object of the same members, confirmed or not."""
    status, printed, errors = disconnect("--user", "ada", "--confirm", "20", "--json")
    report = json.loads(printed)
    assert (status, errors) == (0, "")
    (answer,) = report.pop("answers")
    assert (answer["answer"], answer["worker"].keys()) == (2, {"id", "host", "pid"})
    assert report.pop("url").startswith("ipc://test")
    assert report == {"ok": True, "problem": None, "confirmed": True, "closed": 2, "errors": [], "missing": []}

    sent = json.loads(disconnect("--user", "bob", "--json")[1])
    assert sent.keys() == {*report, "url", "answers"}
    assert (sent["ok"], sent["confirmed"], sent["closed"]) == (True, False, None)
    closed(clients.bob)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name the connections that are meant"),
        (["--user", ""], "a user is a text of 1 to 128 bytes"),
        (["--channel", "$backplane/x"], "are reserved"),
        (["--user", "ada", "--code", "1005"], "1005"),
        (["--user", "ada", "--confirm", "0"], "--confirm"),
    ],
)
def test_wrong_usage(clients: Clients, arguments: list[str], words: str) -> None:
    """Wrong usage ends it with 2 and the reason; no connection is closed."""
    status, printed, errors = disconnect(*arguments)
    assert (status, printed) == (2, "")
    assert words in errors
    assert all(map(is_open, clients.all))


@pytest.mark.parametrize("confirm", [[], ["--confirm", "1"]])
@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (PublishError("no permission"), 1, "no permission"),
        (
            PublishOutcomeUnknownError("no answer"),
            3,
            "the outcome is unknown: the broker may have the command: no answer",
        ),
    ],
)
def test_failure(
    clients: Clients, monkeypatch: pytest.MonkeyPatch, confirm: list[str], error: Exception, status: int, words: str
) -> None:
    """Certainly not sent ends it with 1, perhaps sent with 3, also in the object."""

    async def fail(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(ClusterBus, "send", fail)
    ended, printed, errors = disconnect("--user", "ada", *confirm)
    assert (ended, printed) == (status, "")
    assert words in errors
    ended, printed, _ = disconnect("--user", "ada", *confirm, "--json")
    report = json.loads(printed)
    assert (ended, report["ok"]) == (status, False)
    assert words in report["problem"]
    assert all(map(is_open, clients.all))
