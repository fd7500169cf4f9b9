"""NATS for tests: a given one, the machine's `nats-server`, or one in Docker."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tests.brokers.broker import Broker, BrokerMissingError, ContainerBroker, GivenBroker, ProcessBroker
from tests.brokers.process import install

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["NatsProcess", "private_nats", "server_info", "shared_nats"]

_IMAGE = "nats:2.12.2-alpine"  # as in docker-compose.yml


def shared_nats(folder: Path) -> Broker:
    """Return the NATS of the whole run, not started: the one at `BACKPLANE_TEST_NATS_URL`, else a private one.

    Raises:
        BrokerMissingError: This machine has none.
    """
    url = os.environ.get("BACKPLANE_TEST_NATS_URL")
    return GivenBroker(url) if url else private_nats("", folder)


def private_nats(config: str, folder: Path, *, login: str = "") -> Broker:
    """Return a NATS of the test's own, not started: `nats-server`, installed where it may be, else one in Docker.

    Args:
        config: Lines of the server's configuration file.
        folder: An empty folder.
        login: What stands before the `@` of the URL.

    Raises:
        BrokerMissingError: This machine has none.
    """
    program = shutil.which("nats-server") or install("nats-server")
    if program is not None:
        return NatsProcess(program, config, folder, login)
    if config:
        raise BrokerMissingError("no nats-server, and the one in Docker takes no configuration here")
    return _NatsContainer()


class NatsProcess(ProcessBroker):
    """A `nats-server` with a configuration file.

    Args:
        program: The server.
        config: Lines of the file.
        folder: An empty folder.
        login: What stands before the `@` of the URL.
    """

    def __init__(self, program: str, config: str, folder: Path, login: str) -> None:
        super().__init__(folder)
        self._program = program
        self._file = folder / "nats.conf"
        self._file.write_text(config)
        self.url = f"nats://{login and login + '@'}127.0.0.1:{self.port}"

    def configure(self, config: str) -> None:
        """Put `config` in place of the lines it starts with the next time."""
        self._file.write_text(config)

    def reload(self, config: str) -> None:
        """Let it read `config` in place of the lines it has; returns before it has done so."""
        self.configure(config)
        self._runtime().send_signal(signal.SIGHUP)

    def enter_lame_duck_mode(self) -> None:
        """Let it announce its end: it accepts nobody from now on, and closes its connections after a while."""
        self._runtime().send_signal(signal.SIGUSR2)

    def command(self) -> Sequence[str]:
        """Return the command."""
        return [self._program, "--addr", "127.0.0.1", "--port", str(self.port), "--config", str(self._file)]

    def answers(self) -> bool:
        """Whether it greets."""
        return bool(server_info(self.port))


class _NatsContainer(ContainerBroker):
    def __init__(self) -> None:
        super().__init__(_IMAGE, 4222)
        self.url = f"nats://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        return []

    def answers(self) -> bool:
        return bool(server_info(self.port))


def server_info(port: int) -> dict[str, Any]:
    """Return what a server says of itself to whoever connects; nothing where none answers."""
    with (
        suppress(OSError),
        socket.create_connection(("127.0.0.1", port), timeout=1) as link,
        link.makefile("rb") as lines,
    ):
        command, _, info = lines.readline().partition(b" ")
        if command == b"INFO":
            found: dict[str, Any] = json.loads(info)
            return found
    return {}
