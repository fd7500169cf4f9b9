"""Kafka for tests: a given one, a real one on this machine's Java, or one in Docker."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import struct
import subprocess
from base64 import urlsafe_b64encode
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from tests.brokers.broker import Broker, BrokerMissingError, ContainerBroker, GivenBroker, ProcessBroker, has_docker
from tests.brokers.certificate import self_signed_certificate
from tests.brokers.kafka_jars import ARCHIVE, FORMATTED, VERSION, java, kafka_jars, prepared
from tests.brokers.kafka_stand_in import KafkaStandIn
from tests.brokers.process import end, free_port, made

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import IO

__all__ = ["KafkaConfig", "KafkaProcess", "cluster_identity", "private_kafka", "shared_kafka"]

_IMAGE = f"apache/kafka:{VERSION}"  # as in docker-compose.yml

# A small heap and a quick start: the broker of a test holds a few megabytes and lives for seconds.
_JVM = (
    "-Xms128m",
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Djava.awt.headless=true",
    "-Djava.net.preferIPv4Stack=true",
)
# Short sessions: a broker killed by SIGKILL is let in again only when its last session is over.
_SMALL = {
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    "auto.create.topics.enable": "false",
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "300",
}
_SMALL_PROCESS = {
    "num.network.threads": "2",
    "num.io.threads": "2",
    "log.cleaner.dedupe.buffer.size": "4194304",
    "log.cleaner.backoff.ms": "500",
    "log.index.size.max.bytes": "1048576",
    "log.segment.bytes": "16777216",
}


# What a broker does while nobody asks it for anything: one that lives for the whole run, and is never killed.
_UNHURRIED = {
    "broker.session.timeout.ms": "9000",
    "broker.heartbeat.interval.ms": "2000",
    "metadata.max.idle.interval.ms": "10000",
    "num.network.threads": "1",  # of each listener
}
# Further ways in, each a listener, and what clients speak there. Of those who log in only `admin` and the bearer of a
# token have rights.
_WAYS = {
    "login": "SASL_PLAINTEXT",
    "token": "SASL_PLAINTEXT",
    "brief_token": "SASL_PLAINTEXT",
    "tls": "SSL",
    "login_over_tls": "SASL_SSL",
    "astray": "PLAINTEXT",
}
_LOGINS = {"login": "PLAIN", "token": "OAUTHBEARER", "brief_token": "OAUTHBEARER", "login_over_tls": "PLAIN"}
_MODULES = {
    "PLAIN": 'plain.PlainLoginModule required user_alice="secret" user_admin="secret"',
    "OAUTHBEARER": "oauthbearer.OAuthBearerLoginModule required",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaConfig:
    """How a Kafka of one's own is set up.

    Attributes:
        ways: Have all ways in of `KafkaProcess.ways`, and do little while nobody asks: for a whole run to share.
        proxies: For how many proxies at a time it has listeners.
        cluster: Id of the cluster. Defaults to one of its own.
        node: Its number there.
        controllers: Ports of all nodes' controllers, its own too, by their numbers. Defaults to its own alone.
        properties: Anything else for `server.properties`.
    """

    ways: bool = False
    proxies: int = 1
    cluster: str = ""
    node: int = 1
    controllers: Mapping[int, int] = field(default_factory=dict[int, int])
    properties: Mapping[str, str] = field(default_factory=dict[str, str])


def shared_kafka(folder: Path, announce: Callable[[str], None], *, proxies: int = 1) -> Broker:
    """Return the Kafka of the whole run, not started.

    The one at `BACKPLANE_TEST_KAFKA_URL`, else a private one, else, but not in CI, a stand-in that says it is one.

    Raises:
        BrokerMissingError: This machine has none.
    """
    url = os.environ.get("BACKPLANE_TEST_KAFKA_URL")
    if url:
        return GivenBroker(url)
    try:
        return private_kafka(KafkaConfig(ways=True, proxies=proxies), folder, announce)
    except BrokerMissingError:
        broker = private_kafka(KafkaConfig(), folder, announce)
    if isinstance(broker, _KafkaContainer) and os.environ.get("CI") != "true" and not has_docker(_IMAGE):
        return KafkaStandIn(announce, broker.tried)
    return broker


def private_kafka(config: KafkaConfig, folder: Path, announce: Callable[[str], None]) -> Broker:
    """Return a Kafka of the test's own, not started: on Java by Maven, installed where they may be, else in Docker.

    Raises:
        BrokerMissingError: This machine has none.
    """
    try:
        program, libs = java(), kafka_jars(announce)
        return KafkaProcess(program, libs, config, folder, prepared(program, libs, _prepare))
    except BrokerMissingError as error:
        if config != KafkaConfig():
            raise BrokerMissingError(f"{error}, and the one in Docker is not set up like this") from error
        return _KafkaContainer(str(error))


class KafkaProcess(ProcessBroker):
    """A real Kafka in KRaft mode, broker and controller in one JVM; its data outlives `kill9` and `start`.

    Args:
        java: The program.
        libs: Folder of its jars.
        config: How it is set up.
        folder: An empty folder.
        prepared: Folder of what makes it start sooner, of `prepare`.

    Attributes:
        internal_url: A listener without login and TLS, for whoever administers it.
        ways: URLs of the other ways in, where it has them: `login` by a password, `token`, `brief_token`, whose login
            lasts two seconds, `tls`, `login_over_tls`, and `astray`, which sends its clients to a host that is none.
        proxied_url: A listener that sends its clients on to `proxy_port`. A fault proxy in front of it must stand
            there, because a Kafka client goes where the broker says it is.
        proxy_port: That port; nothing listens on it yet.
    """

    start_seconds: ClassVar[float] = 60.0

    def __init__(self, java: str, libs: Path, config: KafkaConfig, folder: Path, prepared: Path | None = None) -> None:
        super().__init__(folder)
        self._java = [java, *_JVM, "-cp", f"{libs}/*"]
        self._config = config
        self._prepared = prepared
        self._internal_port = free_port()
        self._controllers = config.controllers or {config.node: free_port()}
        self._proxies = [(free_port(), free_port()) for _ in range(config.proxies)]
        ways = {name: free_port() for name in _WAYS} if config.ways else {}
        certificate = self_signed_certificate(folder) if ways else None
        self.url = f"kafka://127.0.0.1:{self.port}"
        self.internal_url = f"kafka://127.0.0.1:{self._internal_port}"
        self.ways = {
            name: f"kafka://127.0.0.1:{port}" + (f"?tls=true&ssl_ca_certs={certificate}" * _WAYS[name].endswith("SSL"))
            for name, port in ways.items()
        }
        self._claim: IO[str] | None = None
        self._use_proxy(0)
        self._write_properties(ways)

    def command(self) -> list[str]:
        """Run the broker."""
        archive = self._prepared / ARCHIVE if self._prepared else None
        shared = [f"-XX:SharedArchiveFile={archive}"] if archive and archive.exists() else []
        return [*self._java, *shared, "kafka.Kafka", "server.properties"]

    def answers(self) -> bool:
        """Whether it serves requests: the sockets listen long before."""
        return _serves(self._internal_port)

    def launch(self) -> None:
        """Format its storage the first time, then run it."""
        data = self.folder / "data"
        if not data.exists():
            identity = self._config.cluster or cluster_identity()
            if self._prepared is None:
                self.format_storage(identity)
            else:  # what the tool does, without a JVM
                shutil.copytree(self._prepared / FORMATTED, data)
                lines = ["version=1", f"cluster.id={identity}", f"node.id={self._config.node}"]
                (data / "meta.properties").write_text("\n".join([*lines, f"directory.id={cluster_identity()}", ""]))
        super().launch()

    def claim_proxy(self) -> None:
        """Take one of its proxied listeners for this process, until it ends."""
        for place in range(len(self._proxies)):
            claim = (self.folder / f"proxy-{place}.lock").open("w")
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                claim.close()
            else:
                self._claim = claim
                return self._use_proxy(place)
        raise RuntimeError("more processes want a proxy than there are listeners")

    def _use_proxy(self, place: int) -> None:
        proxied_port, self.proxy_port = self._proxies[place]
        self.proxied_url = f"kafka://127.0.0.1:{proxied_port}"

    def format_storage(self, identity: str) -> None:
        """Write the first of its data, for a cluster with this id."""
        # With the equals sign: an identity that starts with a dash would be taken for another option.
        options = [f"--cluster-id={identity}", "--config=server.properties"]
        tool = [*self._java, "kafka.tools.StorageTool", "format", *options]
        subprocess.run(tool, cwd=self.folder, check=True, capture_output=True)

    def _write_properties(self, ways: Mapping[str, int]) -> None:
        own = {"CLIENT": self.port, "INTERNAL": self._internal_port}
        own |= {f"PROXIED{place}": port for place, (port, _) in enumerate(self._proxies)}
        own |= {name.upper(): port for name, port in ways.items()}
        advertised = own | {f"PROXIED{place}": port for place, (_, port) in enumerate(self._proxies)}
        protocols = {name: _WAYS.get(name.lower(), "PLAINTEXT") for name in (*own, "CONTROLLER")}
        properties = {
            "process.roles": "broker,controller",
            "node.id": str(self._config.node),
            "controller.quorum.voters": ",".join(f"{n}@127.0.0.1:{port}" for n, port in self._controllers.items()),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "INTERNAL",
            "listeners": _listeners(own | {"CONTROLLER": self._controllers[self._config.node]}),
            "advertised.listeners": _listeners(advertised, ASTRAY="kafka.invalid"),
            "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
            "log.dirs": str(self.folder / "data"),
            **_SMALL,
            **_SMALL_PROCESS,
            **(_UNHURRIED | _properties_of_ways(self.folder) if ways else {}),
            **self._config.properties,
        }
        lines = "".join(f"{name}={value}\n" for name, value in properties.items())
        (self.folder / "server.properties").write_text(lines)


def _prepare(java: str, libs: Path, folder: Path) -> None:
    """Write into `folder` what makes the next ones start sooner: formatted storage, and an archive of their classes."""
    broker = _Recorder(java, libs, KafkaConfig(), made(folder.with_name("broker")))
    broker.format_storage(cluster_identity())
    made(folder / FORMATTED)
    shutil.copy(broker.folder / "data" / "bootstrap.checkpoint", folder / FORMATTED)
    broker.start()
    broker.end_and_write(folder / ARCHIVE)


class _Recorder(KafkaProcess):
    """Writes the archive of its classes when it ends."""

    def command(self) -> list[str]:
        return [*self._java, f"-XX:ArchiveClassesAtExit={self.folder / ARCHIVE}", "kafka.Kafka", "server.properties"]

    def end_and_write(self, archive: Path) -> None:
        """End it, which takes some seconds, and move the archive; a Java that writes none starts slower later."""
        process, self._process = self._runtime(), None
        end(process, seconds=self.start_seconds)
        with suppress(FileNotFoundError):
            (self.folder / ARCHIVE).rename(archive)


class _KafkaContainer(ContainerBroker):
    def __init__(self, tried: str) -> None:
        super().__init__(_IMAGE, 9092)
        self.tried = tried
        self.url = f"kafka://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return []

    def environment(self) -> dict[str, str]:
        properties = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": "1@127.0.0.1:9093",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listeners": "PLAINTEXT://:9092,CONTROLLER://127.0.0.1:9093",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            **_SMALL,
        }
        return {"KAFKA_" + name.upper().replace(".", "_"): value for name, value in properties.items()}

    def start(self) -> None:
        try:
            super().start()
        except BrokerMissingError as error:
            raise BrokerMissingError(f"no BACKPLANE_TEST_KAFKA_URL, {self.tried}, {error}") from error

    def answers(self) -> bool:
        return _serves(self.port)


def cluster_identity() -> str:
    """Return a new id of a cluster: 16 bytes in Base64, as Kafka has them."""
    return urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")


def _listeners(ports: Mapping[str, int], **hosts: str) -> str:
    return ",".join(f"{name}://{hosts.get(name, '127.0.0.1')}:{port}" for name, port in ports.items())


def _properties_of_ways(folder: Path) -> dict[str, str]:
    """Return what the logins, TLS and rights need."""
    keystore = folder / "keystore.pem"
    keystore.write_bytes(b"".join((folder / name).read_bytes() for name in ("key.pem", "certificate.pem")))
    found = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(keystore),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        # Anonymous is whoever comes by a listener without a login, the broker itself too.
        "super.users": "User:ANONYMOUS;User:admin;User:bearer",
        "listener.name.brief_token.connections.max.reauth.ms": "2000",
    }
    for name, mechanism in _LOGINS.items():
        found[f"listener.name.{name}.sasl.enabled.mechanisms"] = mechanism
        found[f"listener.name.{name}.{mechanism.lower()}.sasl.jaas.config"] = (
            f"org.apache.kafka.common.security.{_MODULES[mechanism]};"
        )
    return found


def _serves(port: int) -> bool:
    """Whether a Kafka answers ApiVersions here: it does once the controller has let it in."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as link:
        link.sendall(struct.pack(">ihhihs", 11, 18, 0, 7, 1, b"t"))
        answer = link.recv(8)
        return len(answer) == 8 and answer[4:] == struct.pack(">i", 7)
    return False
