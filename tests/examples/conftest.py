"""What the tests of the examples share: a server that runs one."""

from __future__ import annotations

from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.examples.site import EXAMPLES, Site, documented_command, running

if TYPE_CHECKING:
    from collections.abc import Iterator


class Serve(Protocol):
    """Runs examples for the tests of one module, which share them: each test takes rooms of its own."""

    def __call__(self, name: str, **environment: str) -> Site:
        """Start it as its docstring says, with these environment variables, unless it runs already."""
        ...


@pytest.fixture(autouse=True)
def sources() -> None:
    """Skip where an installed wheel is tested, with the sources away."""
    if not EXAMPLES.is_dir():
        pytest.skip("the examples are away")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's web proxy away from servers on the loopback."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start examples, on one `ipc://` all of them; in the end each must stop without a complaint in its log."""
    sites: dict[object, Site] = {}
    # Pytest's own folders are too deep for the path of a Unix socket.
    with TemporaryDirectory(prefix="bp-") as sockets, ExitStack() as stack:
        broker_url = f"ipc://test?directory={sockets}"

        def start(name: str, **environment: str) -> Site:
            key = (name, *sorted(environment.items()))
            if key not in sites:
                command = [*documented_command(name), "--port", "{port}"]
                folder = tmp_path_factory.mktemp(name)
                site = running(command, folder, broker_url=broker_url, environment=environment)
                sites[key] = stack.enter_context(site)
            return sites[key]

        yield start
