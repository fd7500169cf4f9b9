"""The examples under every server that the README names, each with two workers on `ipc://`."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.examples.site import SECONDS
from tests.examples.workers import clients_of_both_workers, running_labelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.examples.site import Site

    Start = Callable[[str], Site]

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

# Before Python 3.12 asyncio's streams complain of each connection that Hypercorn cancels in the end.
TOLERATED = {"hypercorn": r"Exception in callback StreamReaderProtocol\.connection_made.*?CancelledError\n"}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    """One server after the other."""
    return str(request.param)


@pytest.fixture
def start(server: str, tmp_path: Path, ipc_url: str) -> Iterator[Start]:
    """Start an example under the server; in the end SIGTERM must end it within 15 s, without a complaint."""
    with ExitStack() as stack:

        def start_example(name: str) -> Site:
            command = [sys.executable, "-m", *SERVERS[server]]
            return stack.enter_context(
                running_labelled(name, command, tmp_path, ipc_url, tolerated=TOLERATED.get(server))
            )

        yield start_example


def test_echo_answers_and_closes_in_order(start: Start) -> None:
    """Text and binary come back from both workers, and the client's close is answered with its code."""
    site = start("echo")
    with ExitStack() as stack:
        for client in clients_of_both_workers(stack, site, "/"):
            for message in ("hello", b"\x00\xff", "x" * 65_000):
                client.send(message)
                assert client.recv(timeout=SECONDS) == message
            client.close(4321, "bye")
            assert client.close_code == 4321
            assert client.protocol.close_rcvd is not None


def test_chat_reaches_the_clients_of_both_workers(start: Start) -> None:
    """What a client of one worker says, a client of the other one hears."""
    site = start("chat")
    with ExitStack() as stack:
        one, other = clients_of_both_workers(stack, site, "/rooms/a?name=ada")
        one.send(json.dumps({"text": "from one"}))
        other.send(json.dumps({"text": "from other"}))
        for client in (one, other):
            heard: set[str] = set()
            while not heard >= {"from one", "from other"}:
                heard.add(json.loads(client.recv(timeout=SECONDS))["text"])
