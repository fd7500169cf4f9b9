"""A server that runs an example, shared by the tests of a module."""

from __future__ import annotations

from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.examples.example_server import EXAMPLES, ExampleServer, documented_command, running

if TYPE_CHECKING:
    from collections.abc import Iterator


class Serve(Protocol):
    """Runs examples for the tests of one module, which share them: each test uses rooms of its own."""

    def __call__(self, name: str, **environment: str) -> ExampleServer:
        """Start it by the command in its docstring, with these environment variables, unless it runs already."""
        ...


@pytest.fixture(autouse=True)
def sources() -> None:
    """Skip where an installed wheel is tested, with the sources away."""
    if not EXAMPLES.is_dir():
        pytest.skip("the examples are not there")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's web proxy away from servers on the loopback."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start examples, all with the same `ipc://` URL; each must end without an error in its log."""
    servers: dict[object, ExampleServer] = {}
    # Pytest's own folders are too deep for the path of a Unix socket.
    with TemporaryDirectory(prefix="bp-") as sockets, ExitStack() as stack:
        broker_url = f"ipc://test?peer_timeout_seconds=5&directory={sockets}"

        def start(name: str, **environment: str) -> ExampleServer:
            key = (name, *sorted(environment.items()))
            if key not in servers:
                command = [*documented_command(name), "--port", "{port}"]
                folder = tmp_path_factory.mktemp(name)
                server = running(command, folder, broker_url=broker_url, environment=environment)
                servers[key] = stack.enter_context(server)
            return servers[key]

        yield start
