"""RabbitMQ for tests: a node of its own, with its own names and files, beside whatever runs on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import psutil

from tests.brokers.broker import Broker, ContainerBroker, GivenBroker, ProcessBroker
from tests.brokers.certificate import self_signed_certificate
from tests.brokers.process import end, free_port, install, start

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["RabbitProcess", "private_rabbitmq", "shared_rabbitmq"]

_IMAGE: Final = "rabbitmq:4.2-alpine"  # as in docker-compose.yml
_HEADER: Final = b"AMQP\0\0\x09\x01"


def shared_rabbitmq(folder: Path) -> Broker:
    """Return the RabbitMQ of the run, not started: the one at `BACKPLANE_TEST_AMQP_URL`, else a private one.

    Raises:
        BrokerMissingError: This machine has none.
    """
    url = os.environ.get("BACKPLANE_TEST_AMQP_URL")
    return GivenBroker(url) if url else private_rabbitmq(folder)


def private_rabbitmq(folder: Path) -> Broker:
    """Return a private RabbitMQ, not started: the machine's, installed if permitted, else one in Docker.

    Raises:
        BrokerMissingError: This machine has none.
    """
    found = _programs() or (_programs() if install("rabbitmq-server") else None)
    return RabbitProcess(found, folder) if found is not None else _RabbitContainer()


def _programs() -> Path | None:
    """Return the folder of its scripts: Debian's own, in PATH, change the user and the folder."""
    return max(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin"), default=None)


class RabbitProcess(ProcessBroker):
    """`rabbitmq-server` as a program of this machine. It takes some five seconds to start.

    Args:
        programs: The folder of its scripts.
        folder: An empty folder for its log.

    Attributes:
        tls_url: The same by TLS, with a self-signed certificate that the URL names as its authority.
    """

    start_seconds = 90.0

    def __init__(self, programs: Path, folder: Path) -> None:
        super().__init__(folder)
        self._programs = programs
        self._home = Path()
        self._ports = {name: free_port() for name in ("tls", "names", "nodes")}
        self._names: subprocess.Popen[bytes] | None = None
        certificate = self_signed_certificate(folder)
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}"
        self.tls_url: str = f"amqps://guest:guest@127.0.0.1:{self._ports['tls']}?tls_ca_certs={certificate}"
        self._settings = (
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            f"listeners.ssl.1 = 127.0.0.1:{self._ports['tls']}",
            f"ssl_options.certfile = {certificate}",
            f"ssl_options.keyfile = {certificate.parent / 'key.pem'}",
            "ssl_options.verify = verify_none",
            "max_message_size = 33554432",
            "disk_free_limit.absolute = 1MB",
            "vm_memory_high_watermark.absolute = 4GB",
            "collect_statistics_interval = 60000",
        )

    def __getstate__(self) -> dict[str, object]:
        """Return the state for another process: with the address, without the handles that end it."""
        return {**super().__getstate__(), "_names": None}

    def __enter__(self) -> Self:
        self._home = Path(tempfile.mkdtemp(prefix="bp-mq-"))
        (self._home / "rabbitmq.conf").write_text("\n".join(self._settings) + "\n")
        (self._home / "plugins").write_text("[].\n")
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._names is not None:
            end(self._names)
        shutil.rmtree(self._home, ignore_errors=True)

    def command(self) -> Sequence[str]:
        """The command that runs it; the settings are in its environment."""
        settings = [f"{name}={value}" for name, value in self._environment().items()]
        return ["env", *settings, str(self._programs / "rabbitmq-server")]

    def launch(self) -> None:
        """Run it, and first the service that finds nodes by their names, which it would leave running."""
        if self._names is None:
            names = ["epmd", "-address", "127.0.0.1", "-port", str(self._ports["names"])]
            self._names = start(names, cwd=self.folder, log=self.folder / "epmd.log")
        super().launch()

    def answers(self) -> bool:
        """Whether it greets clients."""
        return _greets(self.port)

    def stop(self) -> None:
        """End it at once: nothing it has is needed again, and an orderly end takes seconds."""
        if self._process is not None:
            self.kill9()

    def kill9(self) -> None:
        """Kill it, and the processes that watch its host for it."""
        children = psutil.Process(self._runtime().pid).children(recursive=True)
        super().kill9()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGKILL)
        psutil.wait_procs(children)

    def control(self, *arguments: str) -> str:
        """Run `rabbitmqctl` and return its output; it takes a second or two."""
        command = [str(self._programs / "rabbitmqctl"), "--quiet", *arguments]
        done = subprocess.run(
            command, env={**os.environ, **self._environment()}, check=True, capture_output=True, text=True
        )
        return done.stdout

    def _environment(self) -> dict[str, str]:
        home = str(self._home)
        return {
            "HOME": home,
            "ERL_EPMD_PORT": str(self._ports["names"]),
            "RABBITMQ_NODENAME": f"backplane-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._ports["nodes"]),
            "RABBITMQ_MNESIA_BASE": f"{home}/data",
            "RABBITMQ_LOG_BASE": f"{home}/log",
            "RABBITMQ_CONFIG_FILE": f"{home}/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{home}/plugins",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
            "RUNNING_UNDER_SYSTEMD": "1",  # the script becomes the server, and does not watch over it
        }


class _RabbitContainer(ContainerBroker):
    def __init__(self) -> None:
        super().__init__(_IMAGE, 5672)
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        return []

    def answers(self) -> bool:
        return _greets(self.port)


def _greets(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as link:
        link.sendall(_HEADER)
        return link.recv(1) == b"\x01"
    return False
