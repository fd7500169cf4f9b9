"""NATS for tests: a given one, the machine's `nats-server`, or one in Docker."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from tests.brokers.broker import Broker, BrokerMissingError, ContainerBroker, GivenBroker, ProcessBroker
from tests.brokers.process import install

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import BufferedRWPair
    from pathlib import Path

__all__ = ["NatsProcess", "delete_streams", "pools_routes", "private_nats", "server_info", "shared_nats"]

_IMAGE = "nats:2.12.2-alpine"  # as in docker-compose.yml
_INBOX: Final = b"_INBOX.delete-streams"
_NOT_FOUND: Final = 404


def shared_nats(folder: Path) -> Broker:
    """Return the NATS of the whole run, not started: the one at `BACKPLANE_TEST_NATS_URL`, else a private one.

    Raises:
        BrokerMissingError: This machine has none.
    """
    url = os.environ.get("BACKPLANE_TEST_NATS_URL")
    return GivenBroker(url) if url else private_nats("", folder, jetstream=True)


def private_nats(config: str, folder: Path, *, login: str = "", jetstream: bool = False) -> Broker:
    """Return a private NATS, not started: `nats-server`, installed if permitted, else one in Docker.

    `BACKPLANE_TEST_NATS_SERVER` names another program than the `nats-server` of this machine.

    Args:
        config: Lines of the server's configuration file.
        folder: An empty folder.
        login: User and password of the URL.
        jetstream: Run it with JetStream, which keeps its files in the folder.

    Raises:
        BrokerMissingError: This machine has none.
    """
    program = _program()
    if program is not None:
        return NatsProcess(program, config, folder, login, jetstream=jetstream)
    if config:
        raise BrokerMissingError("no nats-server, and the one in Docker is not configurable here")
    return _NatsContainer()


def pools_routes() -> bool:
    """Whether the server connects to each other one several times, and knows the setting `pool_size`: from 2.10 on."""
    version = subprocess.run([_program() or "nats-server", "--version"], check=True, capture_output=True, text=True)
    major, minor, *_ = version.stdout.rpartition("v")[2].split(".")
    return (int(major), int(minor)) >= (2, 10)


def delete_streams(broker: Broker) -> None:
    """Delete the streams of a NATS, except of one that is given by a URL: there they can belong to others.

    Raises:
        RuntimeError: The server refuses it.
    """
    if not broker.restartable:
        return
    address = urlsplit(broker.url)
    with (
        socket.create_connection((address.hostname, address.port), timeout=10) as link,
        link.makefile("rwb") as lines,
    ):
        lines.write(b'CONNECT {"verbose": false}\r\nSUB %b 1\r\n' % _INBOX)
        while names := _api(lines, "STREAM.NAMES")["streams"] or ():  # of very many it sends a part
            for name in names:
                _api(lines, f"STREAM.DELETE.{name}")


def _program() -> str | None:
    return os.environ.get("BACKPLANE_TEST_NATS_SERVER") or shutil.which("nats-server") or install("nats-server")


def _api(lines: BufferedRWPair, call: str) -> dict[str, Any]:
    """Return the answer of JetStream to a request without a body."""
    lines.write(b"PUB $JS.API.%b %b 0\r\n\r\n" % (call.encode(), _INBOX))
    lines.flush()
    while not (line := lines.readline()).startswith(b"MSG "):
        if not line or line.startswith(b"-ERR"):
            raise RuntimeError(f"{call}: {line!r}")
    answer: dict[str, Any] = json.loads(lines.read(int(line.split()[-1]) + 2))
    if (error := answer.get("error")) and error["code"] != _NOT_FOUND:
        raise RuntimeError(f"{call}: {error}")
    return answer


class NatsProcess(ProcessBroker):
    """A `nats-server` with a configuration file.

    Args:
        program: The server.
        config: Lines of the file.
        folder: An empty folder.
        login: User and password of the URL.
        jetstream: Run it with JetStream.
    """

    def __init__(self, program: str, config: str, folder: Path, login: str, *, jetstream: bool = False) -> None:
        super().__init__(folder)
        self._program = program
        self._jetstream = ["--jetstream", "--store_dir", str(folder / "jetstream")] if jetstream else []
        self._file = folder / "nats.conf"
        self._file.write_text(config)
        self.url = f"nats://{login and login + '@'}127.0.0.1:{self.port}"

    def configure(self, config: str) -> None:
        """Replace its configuration for the next start."""
        self._file.write_text(config)

    def reload(self, config: str) -> None:
        """Replace its configuration and make it reload; returns before it has done so."""
        self.configure(config)
        self._runtime().send_signal(signal.SIGHUP)

    def enter_lame_duck_mode(self) -> None:
        """Make it announce its end: it accepts no connection from now on, and closes its connections after a while."""
        self._runtime().send_signal(signal.SIGUSR2)

    def command(self) -> Sequence[str]:
        """Return the command."""
        address = ["--addr", "127.0.0.1", "--port", str(self.port)]
        return [self._program, *address, "--config", str(self._file), *self._jetstream]

    def answers(self) -> bool:
        """Whether it sends INFO."""
        return bool(server_info(self.port))


class _NatsContainer(ContainerBroker):
    def __init__(self) -> None:
        super().__init__(_IMAGE, 4222)
        self.url = f"nats://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        return ["--jetstream"]

    def answers(self) -> bool:
        return bool(server_info(self.port))


def server_info(port: int) -> dict[str, Any]:
    """Return the INFO that a server sends to each new connection; empty if there is none."""
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
