"""Clusters of several NATS servers, or of several Kafka brokers."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Self

from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from backplane.adapters.kafka.connection import Connection
from backplane.adapters.kafka.login import Security
from backplane.adapters.kafka.protocol import FindTopic
from backplane.errors import BrokerError
from tests.brokers.broker import BrokerMissingError, ProcessBroker
from tests.brokers.kafka import KafkaConfig, new_cluster_id, private_kafka
from tests.brokers.nats import private_nats, server_info
from tests.brokers.process import free_port, made, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.brokers.broker import Broker

__all__ = ["Cluster", "kafka_cluster", "kafka_partitions", "nats_cluster"]

_SIZE = 3


class Cluster:
    """Brokers of one cluster, started on entry and stopped on exit.

    Args:
        nodes: Its brokers. All are launched before one is waited for, because they wait for each other.
        knows_all: Whether a broker knows all the others.

    Attributes:
        url: The URL of all of them, for `Backplane`.
    """

    def __init__(self, nodes: Sequence[ProcessBroker], knows_all: Callable[[ProcessBroker], bool]) -> None:
        self.nodes = nodes
        self._knows_all = knows_all
        self._stack = ExitStack()
        scheme = nodes[0].url.partition("://")[0]
        self.url = f"{scheme}://{','.join(node.url.partition('://')[2] for node in nodes)}"

    def wait_until_whole(self) -> None:
        """Wait until every node answers and knows all others."""
        for node in self.nodes:
            node.wait_until_up()
        wait_until(lambda: all(map(self._knows_all, self.nodes)), f"{self.url} is one cluster", seconds=60)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for node in self.nodes:
                node.launch()
                stack.callback(_end, node)
            self.wait_until_whole()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def nats_cluster(folder: Path, *, jetstream: bool = False) -> Cluster:
    """Return three NATS servers with routes between them, not started.

    Args:
        folder: An empty folder.
        jetstream: Run them with JetStream.

    Raises:
        BrokerMissingError: This machine has no `nats-server`.
    """
    ports = [free_port() for _ in range(_SIZE)]
    routes = ", ".join(f"nats://127.0.0.1:{port}" for port in ports)
    configs = {
        port: f"server_name: server-{port}\ncluster {{ name: rooms, listen: 127.0.0.1:{port}, routes: [{routes}] }}"
        for port in ports
    }
    return Cluster(
        [
            _as_process(private_nats(config, made(folder / str(port)), jetstream=jetstream))
            for port, config in configs.items()
        ],
        lambda node: len(server_info(node.port).get("connect_urls", ())) == _SIZE,
    )


def kafka_cluster(folder: Path, announce: Callable[[str], None]) -> Cluster:
    """Return three Kafka brokers, which are controllers too, not started.

    Raises:
        BrokerMissingError: This machine cannot run Kafka as a program.
    """
    controllers = {number: free_port() for number in range(1, _SIZE + 1)}
    cluster_id = new_cluster_id()
    configs = [KafkaConfig(cluster=cluster_id, node=number, controllers=controllers) for number in controllers]
    return Cluster(
        [_as_process(private_kafka(config, made(folder / str(config.node)), announce)) for config in configs],
        lambda node: _kafka_brokers(node.port) == _SIZE,
    )


async def kafka_partitions(node: ProcessBroker, topic: str) -> list[tuple[int, list[int]]]:
    """Return of each partition of `topic` its leader, -1 for none, and its replicas in sync, as `node` knows them.

    Empty if `node` does not answer, for example while it has no controller.
    """
    security = Security(ssl_context=None, mechanism="PLAIN", username=None, password=None)
    connection = Connection(("127.0.0.1", node.port), security, 5, lambda _: None)
    try:
        await connection.open()
        answer = await connection._request(FindTopic(topic))
        return [(partition[2], sorted(partition[5])) for partition in answer.topics[0][4]]
    except (BrokerError, KafkaError, OSError):
        return []
    finally:
        connection.abort()
        await connection.wait_closed()


def _end(node: ProcessBroker) -> None:
    """Kill `node` unless the test has: in an orderly stop the nodes wait for each other."""
    if node.is_running:
        node.kill9()


def _as_process(broker: Broker) -> ProcessBroker:
    if not isinstance(broker, ProcessBroker):
        raise BrokerMissingError(f"{broker.url} is not a program of this machine")
    return broker


def _kafka_brokers(port: int) -> int:
    """Return the number of brokers that the one at `port` knows: https://kafka.apache.org/protocol#The_Messages_Metadata."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as link:
        link.sendall(struct.pack(">ihhihsi", 15, 3, 1, 7, 1, b"t", 0))
        answer = link.recv(12)  # its size, the number of the request, the number of brokers
        return int.from_bytes(answer[8:], "big")
    return 0
