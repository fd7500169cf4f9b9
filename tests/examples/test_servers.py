"""The examples under every server that the README names, each with two workers on `ipc://`."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.examples.example_server import SECONDS
from tests.examples.labelled_clients import clients_of_both_workers, running_labelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.examples.example_server import ExampleServer

    Start = Callable[[str], ExampleServer]

# Starting two workers, and ending them with open connections, takes some servers ten seconds on two cores.
pytestmark = pytest.mark.timeout(120)

SERVERS = {
    "uvicorn": ("uvicorn", "labelled:app", "--workers", "2", "--port", "{port}"),
    "uvicorn with the lane": (
        *("uvicorn", "labelled:app", "--workers", "2", "--port", "{port}"),
        *("--ws", "backplane.server.uvicorn:DirectLaneProtocol"),
    ),
    "gunicorn with the lane": (
        *("gunicorn", "labelled:app", "--workers", "2", "--bind", "127.0.0.1:{port}"),
        *("--worker-class", "backplane.server.gunicorn.Worker"),
    ),
    "hypercorn": ("hypercorn", "labelled:app", "--workers", "2", "--bind", "127.0.0.1:{port}"),
    "granian": ("granian", "labelled:app", "--interface", "asgi", "--workers", "2", "--port", "{port}"),
}

# Before Python 3.12 asyncio's streams log an error for each connection that Hypercorn cancels at its end.
TOLERATED = {"hypercorn": r"Exception in callback StreamReaderProtocol\.connection_made.*?CancelledError\n"}


@pytest.fixture(params=SERVERS)
def server_name(request: pytest.FixtureRequest) -> str:
    """Each server in turn."""
    return str(request.param)


@pytest.fixture
def start(server_name: str, tmp_path: Path, ipc_url: str) -> Iterator[Start]:
    """Start an example under the server; SIGTERM must end it within 15 s, without an error in its log."""
    with ExitStack() as stack:

        def start_example(name: str) -> ExampleServer:
            command = [sys.executable, "-m", *SERVERS[server_name]]
            return stack.enter_context(
                running_labelled(name, command, tmp_path, ipc_url, tolerated=TOLERATED.get(server_name))
            )

        yield start_example


def test_echo_answers_and_closes_in_order(start: Start) -> None:
    """Text and binary come back from both workers, and the client's close is answered with its code."""
    server = start("echo")
    with ExitStack() as stack:
        for client in clients_of_both_workers(stack, server, "/"):
            for message in ("hello", b"\x00\xff", "x" * 65_000):
                client.send(message)
                assert client.recv(timeout=SECONDS) == message
            client.close(4321, "bye")
            assert client.close_code == 4321
            assert client.protocol.close_rcvd is not None


def test_chat_reaches_the_clients_of_both_workers(start: Start) -> None:
    """What a client of one worker sends, a client of the other one receives."""
    server = start("chat")
    with ExitStack() as stack:
        one, other = clients_of_both_workers(stack, server, "/rooms/a?name=ada")
        one.send(json.dumps({"text": "from one"}))
        other.send(json.dumps({"text": "from other"}))
        for client in (one, other):
            received: set[str] = set()
            while not received >= {"from one", "from other"}:
                received.add(json.loads(client.recv(timeout=SECONDS)).get("data", {}).get("text"))
