"""A Redis Cluster for tests: three primaries, each with a replica, or a single node."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from backplane.adapters.redis_cluster.slots import slot_of
from tests.brokers.broker import BrokerMissingError
from tests.brokers.process import free_port, install, made, wait_until
from tests.brokers.redis import RedisConfig, RedisProcess

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

__all__ = ["SLOTS", "ClusterNode", "RedisCluster", "SingleNode", "single_node"]

SLOTS = 16_384
_PRIMARIES = 3
_NODE_TIMEOUT_MILLISECONDS = 1_000


def _arguments(folder: Path) -> tuple[str, ...]:
    return (
        *("--cluster-enabled", "yes", "--cluster-config-file", str(folder / "nodes.conf")),
        *("--cluster-node-timeout", str(_NODE_TIMEOUT_MILLISECONDS)),
        *("--cluster-port", str(free_port())),
        *("--cluster-allow-replica-migration", "no", "--repl-diskless-sync-delay", "0"),
        *("--repl-ping-replica-period", "1"),  # a replica is listed once it has received something
    )


def _program() -> str:
    program = shutil.which("redis-server") or install("redis-server")
    if program is None or shutil.which("redis-cli") is None:
        raise BrokerMissingError("no redis-server with redis-cli")
    return program


class ClusterNode(RedisProcess):
    """One node; it keeps what it knows of the cluster over a restart."""

    def __init__(self, program: str, folder: Path, config: RedisConfig) -> None:
        super().__init__(program, replace(config, arguments=(*config.arguments, *_arguments(folder))), folder)

    def ask(self, *command: str) -> Any:
        """Return the reply of the node; `None` if it does not answer, or refuses."""
        from redis import Redis, RedisError

        client: Any = Redis
        settings: dict[str, Any] = {"port": self.port, "socket_timeout": 1, "protocol": 2, "decode_responses": True}
        if self.certificate is not None:
            settings |= {"ssl": True, "ssl_ca_certs": str(self.certificate)}
        password = self._config.password or None
        with suppress(RedisError), client(host="127.0.0.1", password=password, **settings) as link:
            return link.execute_command(*command)
        return None


class RedisCluster:
    """Three primaries, each with a replica, as programs of this machine: started on entry and stopped on exit.

    Attributes:
        nodes: The nodes; whichever is a primary at the time.
        url: The URL of three of them, for `Backplane`.
    """

    def __init__(self, folder: Path, config: RedisConfig = RedisConfig()) -> None:  # noqa: B008  # frozen
        program = _program()
        self._password = config.password
        self._stack = ExitStack()
        self.nodes = [ClusterNode(program, made(folder / str(n)), config) for n in range(2 * _PRIMARIES)]
        login = config.login or (config.password and f":{config.password}")
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:_PRIMARIES])
        self.url = f"redis+cluster://{login}{login and '@'}{hosts}"

    @property
    def own_url(self) -> str:
        """The URL: messages of other tests are on other channels."""
        return self.url

    def ask(self, node: RedisProcess, *command: str) -> Any:
        """Return the reply of a node; `None` if it does not answer, or refuses."""
        assert isinstance(node, ClusterNode)
        return node.ask(*command)

    def owner(self, channel: str) -> RedisProcess:
        """Return the node that serves a channel now."""
        slot = int(self.ask(self._alive(), "CLUSTER", "KEYSLOT", channel))
        for first, last, primary, *_ in self.ask(self._alive(), "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return self._at(primary[1])
        raise AssertionError(f"no node serves {channel}")

    def replica_of(self, node: RedisProcess) -> RedisProcess:
        """Return a replica of a primary."""
        for first in self.ask(self._alive(), "CLUSTER", "SLOTS"):
            if first[2][1] == node.port:
                return self._at(first[3][1])
        raise AssertionError(f"{node.url} has no replica")

    def primaries(self) -> list[RedisProcess]:
        """Return the nodes that serve slots."""
        return [
            self._at(port) for port in sorted({entry[2][1] for entry in self.ask(self._alive(), "CLUSTER", "SLOTS")})
        ]

    def channels_of(self, node: RedisProcess, count: int, *, start: str = "room-") -> list[str]:
        """Return names of channels that a node serves now."""
        own = set(self.slots_of(node, SLOTS))
        found: list[str] = []
        number = 0
        while len(found) < count:
            number += 1
            if slot_of(f"{start}{number}".encode()) in own:
                found.append(f"{start}{number}")
        return found

    def slots_of(self, node: RedisProcess, most: int, *, without: Collection[int] = ()) -> list[int]:
        """Return slots that a node serves now."""
        ranges = [(e[0], e[1]) for e in self.ask(self._alive(), "CLUSTER", "SLOTS") if e[2][1] == node.port]
        served = [slot for first, last in ranges for slot in range(first, last + 1)]
        return [slot for slot in served if slot not in without][:most]

    def failover(self, primary: RedisProcess) -> RedisProcess:
        """Promote the replica of a primary in agreement with it; return the new primary."""
        replica = self.replica_of(primary)
        assert self.ask(replica, "CLUSTER", "FAILOVER") == "OK"
        self.wait_until_promoted(replica)
        return replica

    def wait_until_promoted(self, replica: RedisProcess) -> None:
        """Wait until a former replica serves slots, as every node that answers knows."""
        wait_until(lambda: self._knows(replica), f"{replica.url} is a primary", seconds=60)

    def move_slots(self, slots: Sequence[int], source: RedisProcess, target: RedisProcess) -> None:
        """Move slots from one primary to another, as `redis-cli --cluster reshard` does."""
        from redis import Redis

        client: Any = Redis
        source_id, target_id = (self.ask(node, "CLUSTER", "MYID") for node in (source, target))
        with (
            client(port=source.port, password=self._password or None) as at_source,
            client(port=target.port, password=self._password or None) as at_target,
        ):
            for node, *state in (
                (at_target, "IMPORTING", source_id),
                (at_source, "MIGRATING", target_id),
                (at_target, "NODE", target_id),
                (at_source, "NODE", target_id),
            ):
                if state[0] == "NODE":
                    self._move_keys(slots, at_source, target)
                commands = node.pipeline(transaction=False)
                for slot in slots:
                    commands.execute_command("CLUSTER SETSLOT", slot, *state)
                commands.execute()

    def _move_keys(self, slots: Sequence[int], source: Any, target: RedisProcess) -> None:
        login = ("AUTH", self._password) if self._password else ()
        for slot in slots:
            while keys := source.execute_command("CLUSTER GETKEYSINSLOT", slot, 1):
                source.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, *login, "KEYS", *keys)

    def wait_until_whole(self) -> None:
        """Wait until every node that runs sees a whole cluster, and every primary has its replica."""
        for node in self.nodes:
            if node.is_running:
                node.wait_until_up()
        wait_until(self._is_whole, f"{self.url} is whole", seconds=60)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for node in self.nodes:
                node.launch()
                stack.callback(_end, node)
            for node in self.nodes:
                node.wait_until_up()
            addresses = [f"127.0.0.1:{node.port}" for node in self.nodes]
            login = ["--no-auth-warning", "-a", self._password] if self._password else []
            create = ["--cluster", "create", *addresses, "--cluster-replicas", "1", "--cluster-yes"]
            subprocess.run(["redis-cli", *login, *create], check=True, capture_output=True, timeout=60)
            self.wait_until_whole()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _alive(self) -> RedisProcess:
        """Return a node that answers and is in contact with the others."""
        for node in self.nodes:
            if "cluster_state:ok" in str(self.ask(node, "CLUSTER", "INFO")):
                return node
        return next(node for node in self.nodes if self.ask(node, "PING"))

    def _at(self, port: int) -> RedisProcess:
        return next(node for node in self.nodes if node.port == port)

    def _knows(self, primary: RedisProcess) -> bool:
        """Whether every node that answers knows `primary` as one that serves slots."""
        maps = [slots for node in self.nodes if (slots := self.ask(node, "CLUSTER", "SLOTS"))]
        return bool(maps) and all(any(entry[2][1] == primary.port for entry in slots) for slots in maps)

    def _is_whole(self) -> bool:
        for node in self.nodes:
            if "cluster_state:ok" not in str(self.ask(node, "CLUSTER", "INFO")):
                return False
            slots: list[list[Any]] = self.ask(node, "CLUSTER", "SLOTS") or []
            served = sum(entry[1] - entry[0] + 1 for entry in slots)
            if served != SLOTS or any(len(entry) < 4 for entry in slots):
                return False
        return True


class SingleNode(ClusterNode):
    """A cluster of one node."""

    def start(self) -> None:
        """Start it, and give it all slots."""
        super().start()
        if "cluster_slots_assigned:16384" not in str(self.ask("CLUSTER", "INFO")):
            self.ask("CLUSTER", "ADDSLOTSRANGE", "0", str(SLOTS - 1))
        wait_until(lambda: "cluster_state:ok" in str(self.ask("CLUSTER", "INFO")), f"{self.url} is whole", seconds=30)


def single_node(folder: Path, config: RedisConfig = RedisConfig()) -> SingleNode:  # noqa: B008  # frozen
    """Return a cluster of one node, not started.

    Raises:
        BrokerMissingError: This machine has no `redis-server`.
    """
    node = SingleNode(_program(), folder, config)
    scheme, _, rest = node.url.partition("://")
    node.url = f"{scheme}+cluster://{rest}"
    return node


def _end(node: RedisProcess) -> None:
    """Kill `node` unless the test has: an orderly stop of a whole cluster takes its time."""
    if node.is_running:
        node.kill9()
