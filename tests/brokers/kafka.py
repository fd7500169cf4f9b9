"""Kafka for tests: a given one, a real one on this machine's Java, or one in Docker."""

from __future__ import annotations

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
from tests.brokers.kafka_jars import VERSION, java, kafka_jars
from tests.brokers.kafka_stand_in import KafkaStandIn
from tests.brokers.process import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

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
    "log.index.size.max.bytes": "1048576",
    "log.segment.bytes": "16777216",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaConfig:
    """How a Kafka of one's own is set up.

    Attributes:
        users: Names and passwords; with any, clients must log in, by SASL PLAIN.
        takes_tokens: Clients must log in by OAUTHBEARER, with tokens that nobody signs.
        administrators: Users who may do anything; with any, the others may do nothing.
        tls: Speak TLS only, with a certificate signed by itself that the URL names as its authority.
        advertised_host: Where the broker says that its clients find it.
        cluster: Id of the cluster. Defaults to one of its own.
        node: Its number there.
        controllers: Ports of all nodes' controllers, its own too, by their numbers. Defaults to its own alone.
        properties: Anything else for `server.properties`.
    """

    users: Mapping[str, str] = field(default_factory=dict[str, str])
    takes_tokens: bool = False
    administrators: tuple[str, ...] = ()
    tls: bool = False
    advertised_host: str = "127.0.0.1"
    cluster: str = ""
    node: int = 1
    controllers: Mapping[int, int] = field(default_factory=dict[int, int])
    properties: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def protocol(self) -> str:
        """What clients speak, in Kafka's words."""
        return {(0, 0): "PLAINTEXT", (1, 0): "SASL_PLAINTEXT", (0, 1): "SSL", (1, 1): "SASL_SSL"}[
            bool(self.users) or self.takes_tokens, self.tls
        ]

    def login_properties(self) -> dict[str, str]:
        """What SASL and the ACLs need."""
        found: dict[str, str] = {}
        if self.users:
            users = " ".join(f'user_{name}="{password}"' for name, password in self.users.items())
            module = "org.apache.kafka.common.security.plain.PlainLoginModule"
            for listener in ("client", "proxied"):
                found[f"listener.name.{listener}.sasl.enabled.mechanisms"] = "PLAIN"
                found[f"listener.name.{listener}.plain.sasl.jaas.config"] = f"{module} required {users};"
        if self.takes_tokens:
            module = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule"
            for listener in ("client", "proxied"):
                found[f"listener.name.{listener}.sasl.enabled.mechanisms"] = "OAUTHBEARER"
                found[f"listener.name.{listener}.oauthbearer.sasl.jaas.config"] = f"{module} required;"
        if self.administrators:
            found["authorizer.class.name"] = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
            # Anonymous is the broker itself, on its own listener.
            found["super.users"] = ";".join(f"User:{name}" for name in ("ANONYMOUS", *self.administrators))
        return found


def shared_kafka(folder: Path, announce: Callable[[str], None]) -> Broker:
    """Return the Kafka of the whole run, not started.

    The one at `BACKPLANE_TEST_KAFKA_URL`, else a private one, else, but not in CI, a stand-in that says it is one.

    Raises:
        BrokerMissingError: This machine has none.
    """
    url = os.environ.get("BACKPLANE_TEST_KAFKA_URL")
    broker = GivenBroker(url) if url else private_kafka(KafkaConfig(), folder, announce)
    if isinstance(broker, _KafkaContainer) and os.environ.get("CI") != "true" and not has_docker(_IMAGE):
        return KafkaStandIn(announce, broker.tried)
    return broker


def private_kafka(config: KafkaConfig, folder: Path, announce: Callable[[str], None]) -> Broker:
    """Return a Kafka of the test's own, not started: on Java by Maven, installed where they may be, else in Docker.

    Raises:
        BrokerMissingError: This machine has none.
    """
    try:
        return KafkaProcess(java(), kafka_jars(announce), config, folder)
    except BrokerMissingError as error:
        if config != KafkaConfig():
            raise BrokerMissingError(f"{error}, and the one in Docker is not set up like this") from error
        return _KafkaContainer(str(error))


class KafkaProcess(ProcessBroker):
    """A real Kafka in KRaft mode, broker and controller in one JVM; its data outlives `kill9` and `start`.

    Attributes:
        internal_url: A listener without login and TLS, for whoever administers it.
        proxied_url: A listener that sends its clients on to `proxy_port`. A fault proxy in front of it must stand
            there, because a Kafka client goes where the broker says it is.
        proxy_port: That port; nothing listens on it yet.
    """

    start_seconds: ClassVar[float] = 60.0

    def __init__(self, java: str, libs: Path, config: KafkaConfig, folder: Path) -> None:
        super().__init__(folder)
        self._java = [java, *_JVM, "-cp", f"{libs}/*"]
        self._config = config
        self._internal_port, proxied_port = free_port(), free_port()
        self._controllers = config.controllers or {config.node: free_port()}
        self.proxy_port = free_port()
        certificate = self_signed_certificate(folder) if config.tls else None
        tls = f"?tls=true&ssl_ca_certs={certificate}" if certificate else ""
        self.url = f"kafka://127.0.0.1:{self.port}{tls}"
        self.internal_url = f"kafka://127.0.0.1:{self._internal_port}"
        self.proxied_url = f"kafka://127.0.0.1:{proxied_port}{tls}"
        self._write_properties(proxied_port)

    def command(self) -> list[str]:
        """Run the broker."""
        return [*self._java, "kafka.Kafka", "server.properties"]

    def answers(self) -> bool:
        """Whether it serves requests: the sockets listen long before."""
        return _serves(self._internal_port)

    def launch(self) -> None:
        """Format its storage the first time, then run it."""
        if not (self.folder / "data").exists():
            identity = self._config.cluster or cluster_identity()
            # With the equals sign: an identity that starts with a dash would be taken for another option.
            options = [f"--cluster-id={identity}", "--config=server.properties"]
            tool = [*self._java, "kafka.tools.StorageTool", "format", *options]
            subprocess.run(tool, cwd=self.folder, check=True, capture_output=True)
        super().launch()

    def _write_properties(self, proxied_port: int) -> None:
        ports = {
            "CLIENT": self.port,
            "PROXIED": proxied_port,
            "INTERNAL": self._internal_port,
            "CONTROLLER": self._controllers[self._config.node],
        }
        advertised = {"CLIENT": self.port, "PROXIED": self.proxy_port, "INTERNAL": self._internal_port}
        protocol = self._config.protocol
        properties = {
            "process.roles": "broker,controller",
            "node.id": str(self._config.node),
            "controller.quorum.voters": ",".join(f"{n}@127.0.0.1:{port}" for n, port in self._controllers.items()),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "INTERNAL",
            "listeners": _listeners(ports),
            "advertised.listeners": _listeners(advertised),
            "listener.security.protocol.map": f"CLIENT:{protocol},PROXIED:{protocol},"
            "INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            **_SMALL,
            **_SMALL_PROCESS,
            **self._config.login_properties(),
            **(_pem_keystore(self.folder) if self._config.tls else {}),
            **self._config.properties,
        }
        if self._config.advertised_host != "127.0.0.1":
            own = f"CLIENT://127.0.0.1:{self.port}"
            others = properties["advertised.listeners"]
            properties["advertised.listeners"] = others.replace(
                own, f"CLIENT://{self._config.advertised_host}:{self.port}"
            )
        lines = "".join(f"{name}={value}\n" for name, value in properties.items())
        (self.folder / "server.properties").write_text(lines)


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


def _listeners(ports: Mapping[str, int]) -> str:
    return ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())


def _pem_keystore(folder: Path) -> dict[str, str]:
    keystore = folder / "keystore.pem"
    with keystore.open("wb") as both:
        for name in ("key.pem", "certificate.pem"):
            with (folder / name).open("rb") as part:
                shutil.copyfileobj(part, both)
    return {"ssl.keystore.type": "PEM", "ssl.keystore.location": str(keystore)}


def _serves(port: int) -> bool:
    """Whether a Kafka answers ApiVersions here: it does once the controller has let it in."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as link:
        link.sendall(struct.pack(">ihhihs", 11, 18, 0, 7, 1, b"t"))
        answer = link.recv(8)
        return len(answer) == 8 and answer[4:] == struct.pack(">i", 7)
    return False
