"""`backplane bench`: what it measures, what it finds wrong, and what it refuses."""

from __future__ import annotations

import json
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner
from websockets.asyncio.server import ServerConnection, serve

from backplane.cli import app
from backplane.cli.load import Load, LoadError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    Deliver = Callable[[int, ServerConnection, str], Awaitable[None]]

asynchronous = pytest.mark.anyio


def bench(*arguments: str) -> tuple[int, str, str]:
    """Run the command; return status, standard output and standard error."""
    result = CliRunner().invoke(app, ["bench", *arguments])
    return result.exit_code, result.stdout, result.stderr


@asynccontextmanager
async def served(deliver: Deliver) -> AsyncGenerator[int]:
    """A server of the two paths of `bench` that forwards each message by `deliver`; yields its port."""
    receivers: list[ServerConnection] = []

    async def handle(connection: ServerConnection) -> None:
        assert connection.request is not None
        if connection.request.path == "/receive":
            await connection.send("worker 1")
            receivers.append(connection)
            await connection.wait_closed()
            return
        async for text in connection:
            assert isinstance(text, str)
            for number, receiver in enumerate([one for one in receivers if one.close_code is None]):
                await deliver(number, receiver, text)

    async with serve(handle, "127.0.0.1", 0, compression=None) as server:
        yield next(iter(server.sockets)).getsockname()[1]


async def measured(deliver: Deliver) -> dict[str, Any]:
    """Measure ten messages to three sockets; return the figures."""
    load = Load(connections=3, rate=100, seconds=0.1)
    async with served(deliver) as port:
        await load.run(port, 1)
    return load.figures()


def number_of(text: str) -> int:
    """Return the number of a message."""
    return int(text.split()[1])


@pytest.mark.alone("figures of a machine that sends late are worthless")
@pytest.mark.parametrize("workers", [1, 2])
def test_everything_arrives_on_real_workers(workers: int, ipc_url: str) -> None:
    """Real workers connected by ipc:// deliver each message to each socket, and the latencies are reported."""
    options = ["--url", ipc_url, "--workers", str(workers)]
    status, printed, errors = bench(*options, "--connections", "20", "--rate", "20", "--seconds", "0.5", "--json")
    assert status == 0, errors
    found = json.loads(printed)
    assert (found["messages"], found["deliveries"], found["lost"], found["duplicated"]) == (10, 200, 0, 0)
    assert sum(found["sockets_per_worker"]) == 20
    assert 0 < found["latency_seconds"]["p50"] <= found["latency_seconds"]["max"]
    assert found["last_socket_seconds"]["max"] == found["latency_seconds"]["max"]
    assert found["problem"] == ""


@asynchronous
async def test_a_correct_server_loses_nothing() -> None:
    """A server that forwards every message once loses nothing."""
    found = await measured(lambda _, connection, text: connection.send(text))
    assert (found["deliveries"], found["lost"], found["duplicated"]) == (30, 0, 0)
    assert "lost" not in found["problem"]


@asynchronous
async def test_lost_and_duplicated_deliveries_are_counted() -> None:
    """One dropped and one duplicated delivery are counted; the last socket's time covers complete messages only."""

    async def faulty(number: int, connection: ServerConnection, text: str) -> None:
        if (number, number_of(text)) == (0, 3):
            return
        await connection.send(text)
        if (number, number_of(text)) == (1, 4):
            await connection.send(text)

    found = await measured(faulty)
    assert (found["deliveries"], found["lost"], found["duplicated"]) == (30, 1, 1)
    assert found["problem"]


@asynchronous
async def test_a_cut_socket_ends_the_measurement() -> None:
    """A server that closes a socket ends the measurement with an error that names the close code."""

    async def cut(number: int, connection: ServerConnection, text: str) -> None:
        if (number, number_of(text)) == (2, 5):
            await connection.close(4508, "too slow")
        else:
            await connection.send(text)

    with pytest.raises(LoadError, match="4508"):
        await measured(cut)


@asynchronous
async def test_absent_server_is_an_error() -> None:
    """Without a server there are no figures."""
    async with served(lambda _, connection, text: connection.send(text)) as port:
        pass
    with pytest.raises(LoadError, match="Errno 111"):
        await Load(connections=1, rate=1, seconds=1).run(port, 1)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        pytest.param(["--url", "memory://"], 2, "reaches one process only: use --workers 1", id="one process"),
        pytest.param(["--url", "reddis://localhost"], 2, "did you mean 'redis'?", id="misspelt"),
        pytest.param(["--url", "ipc://a?directory=/dev/null"], 1, "cannot use the folder", id="no broker"),
    ],
)
def test_wrong_url_is_reported_before_any_worker_starts(arguments: list[str], status: int, words: str) -> None:
    """A URL that cannot work ends it with one line."""
    ended, printed, errors = bench(*arguments)
    assert (ended, printed) == (status, "")
    assert words in errors
    assert errors.count("\n") == 1


def test_missing_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --url and without BACKPLANE_URL the error names the variable."""
    monkeypatch.delenv("BACKPLANE_URL", raising=False)
    status, _, errors = bench()
    assert status == 2
    assert "BACKPLANE_URL is not set" in errors


def test_missing_server_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Uvicorn the error names the extra to install."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    status, _, errors = bench("--url", "memory://", "--workers", "1")
    assert status == 1
    assert 'bench needs uvicorn; run: pip install "fastapi-backplane[cli]"' in errors
