"""RabbitMQ for tests: nodes of its own, with their own names and files, beside whatever runs on this machine."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import psutil

from tests.brokers.broker import Broker, BrokerMissingError, ContainerBroker, GivenBroker, ProcessBroker
from tests.brokers.certificate import self_signed_certificate
from tests.brokers.cluster import Cluster
from tests.brokers.process import end, free_port, install, made, start

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["RabbitCluster", "RabbitProcess", "private_rabbitmq", "rabbitmq_cluster", "shared_rabbitmq"]

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


def rabbitmq_cluster(folder: Path) -> RabbitCluster:
    """Return a cluster of two nodes, not started.

    Raises:
        BrokerMissingError: This machine cannot run RabbitMQ as a program.
    """
    programs = _programs() or (_programs() if install("rabbitmq-server") else None)
    if programs is None:
        raise BrokerMissingError("no rabbitmq-server")
    names = _NameService()
    return RabbitCluster([RabbitProcess(programs, made(folder / name), names) for name in ("one", "two")])


def _programs() -> Path | None:
    """Return the folder of its scripts: Debian's own, in PATH, change the user and the folder."""
    return max(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin"), default=None)


class _NameService:
    """The service by which nodes find each other; they would start it themselves, and leave it running.

    Attributes:
        port: Its port.
        cookie: The secret of its nodes.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.cookie = secrets.token_hex(10)
        self._process: subprocess.Popen[bytes] | None = None

    def __getstate__(self) -> dict[str, object]:
        """Return the state for another process, without the handle that ends it."""
        return {**self.__dict__, "_process": None}

    def start(self, folder: Path) -> None:
        """Run it, unless it runs."""
        if self._process is None:
            command = ["epmd", "-address", "127.0.0.1", "-port", str(self.port)]
            self._process = start(command, cwd=folder, log=folder / "epmd.log")

    def end(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is not None:
            end(process)


class RabbitProcess(ProcessBroker):
    """`rabbitmq-server` as a program of this machine. It takes some five seconds to start.

    Args:
        programs: The folder of its scripts.
        folder: An empty folder for its log.
        names: The service of all nodes of its cluster.

    Attributes:
        tls_url: The same by TLS, with a self-signed certificate that the URL names as its authority.
        node_name: Its name in its cluster.
    """

    start_seconds = 90.0

    def __init__(self, programs: Path, folder: Path, names: _NameService | None = None) -> None:
        super().__init__(folder)
        self._programs = programs
        self._home = Path()
        self._tls_port, self._nodes_port = free_port(), free_port()
        self._names = names or _NameService()
        certificate = self_signed_certificate(folder)
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}"
        self.tls_url: str = f"amqps://guest:guest@127.0.0.1:{self._tls_port}?tls_ca_certs={certificate}"
        self.node_name: str = f"backplane-{self.port}@localhost"
        self._settings = (
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            f"listeners.ssl.1 = 127.0.0.1:{self._tls_port}",
            f"ssl_options.certfile = {certificate}",
            f"ssl_options.keyfile = {certificate.parent / 'key.pem'}",
            "ssl_options.verify = verify_none",
            "max_message_size = 33554432",
            "disk_free_limit.absolute = 1MB",
            "vm_memory_high_watermark.absolute = 4GB",
            "collect_statistics_interval = 60000",
        )

    def __enter__(self) -> Self:
        self.prepare()
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.clear()

    def prepare(self, *settings: str) -> None:
        """Create its files, with more `settings`."""
        self._home = Path(tempfile.mkdtemp(prefix="bp-mq-"))
        (self._home / "rabbitmq.conf").write_text("\n".join((*self._settings, *settings)) + "\n")
        (self._home / "plugins").write_text("[].\n")
        cookie = self._home / ".erlang.cookie"
        cookie.write_text(self._names.cookie)
        cookie.chmod(0o400)

    def clear(self) -> None:
        """Delete its files."""
        self._names.end()
        shutil.rmtree(self._home, ignore_errors=True)

    def command(self) -> Sequence[str]:
        """The command that runs it; the settings are in its environment."""
        settings = [f"{name}={value}" for name, value in self._environment().items()]
        return ["env", *settings, str(self._programs / "rabbitmq-server")]

    def launch(self) -> None:
        """Run it."""
        self._names.start(self.folder)
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

    def part_from(self, other: RabbitProcess) -> None:
        """Cut the link to another node of the cluster: each refuses the other for its wrong secret."""
        name = f"'{other.node_name}'"
        self.control("eval", f"erlang:set_cookie({name}, wrong), erlang:disconnect_node({name}).")

    def rejoin(self, other: RabbitProcess) -> None:
        """Let another node link again."""
        self.control("eval", f"erlang:set_cookie('{other.node_name}', '{self._names.cookie}').")

    def _environment(self) -> dict[str, str]:
        home = str(self._home)
        return {
            "HOME": home,
            "ERL_EPMD_PORT": str(self._names.port),
            "RABBITMQ_NODENAME": self.node_name,
            "RABBITMQ_DIST_PORT": str(self._nodes_port),
            "RABBITMQ_MNESIA_BASE": f"{home}/data",
            "RABBITMQ_LOG_BASE": f"{home}/log",
            "RABBITMQ_CONFIG_FILE": f"{home}/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{home}/plugins",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
            "RUNNING_UNDER_SYSTEMD": "1",  # the script becomes the server, and does not watch over it
        }


class RabbitCluster(Cluster):
    """Nodes that form a cluster when they start.

    Attributes:
        nodes: The nodes.
    """

    nodes: Sequence[RabbitProcess]

    def __init__(self, nodes: Sequence[RabbitProcess]) -> None:
        for node in nodes:
            node.url = f"amqp://127.0.0.1:{node.port}"
        super().__init__(nodes, lambda node: node is not nodes[0] or self._are_one())

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            formation = [
                "cluster_formation.peer_discovery_backend = classic_config",
                "cluster_partition_handling = autoheal",
            ]
            for number, node in enumerate(self.nodes, 1):
                formation.append(f"cluster_formation.classic_config.nodes.{number} = {node.node_name}")
            for node in self.nodes:
                node.prepare(*formation)
                stack.callback(node.clear)
            super().__enter__()
            stack.callback(super().__exit__)
            self._files = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def _are_one(self) -> bool:
        """Ask one node, which takes seconds: it waits for all of them."""
        self.nodes[0].control("await_online_nodes", str(len(self.nodes)))
        return True


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
