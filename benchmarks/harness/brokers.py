"""The brokers of a session: given by URL, or by name and then started for it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, Protocol, Self

from tests.brokers.broker import BrokerMissingError
from tests.brokers.kafka import KafkaConfig, private_kafka
from tests.brokers.nats import private_nats
from tests.brokers.postgres import DURABLE, private_postgres
from tests.brokers.rabbitmq import private_rabbitmq
from tests.brokers.redis import RedisConfig, private_redis
from tests.brokers.redis_cluster import RedisCluster

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["NAMES", "Brokers"]

NAMES: Final = (
    "memory",
    "ipc",
    "redis",
    "redis+cluster",
    "nats",
    "kafka",
    "postgres",
    "postgres-durable",
    "amqp",
)
"""The names that stand for a broker without a URL."""

_OPTIONS: Final = {"postgres-durable": "?durable=true"}
"""What the URL of a name has besides that of its broker."""
_ON_DISK: Final = ("fsync=on", "full_page_writes=on")
"""Settings of PostgreSQL: a commit waits for the disk, as in use. Those of the tests do not."""


class _Breakable(Protocol):
    """A broker that is killed and brought back."""

    url: str

    def kill9(self) -> None: ...

    def start(self) -> None: ...


class _WholeCluster(RedisCluster):
    """Three primaries and their replicas, which are killed together."""

    def kill9(self) -> None:
        """Kill all nodes."""
        for node in self.nodes:
            node.kill9()

    def start(self) -> None:
        """Start all nodes again, and wait until they are a whole cluster."""
        for node in self.nodes:
            node.launch()
        self.wait_until_whole()


class Brokers:
    """A context manager; what it started ends with it.

    Attributes:
        missing: Why a broker that was asked for by name is not there, by name.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._started: dict[str, _Breakable] = {}
        self._by_url: dict[str, _Breakable] = {}
        self.missing: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="backplane-bench-")))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def url(self, name_or_url: str) -> str:
        """Return the URL; a broker that is asked for by name is started the first time.

        One that is not installed on this machine is noted in `missing`, and its URL is the bare scheme.
        """
        if "://" in name_or_url:
            return name_or_url
        if name_or_url == "memory":
            return "memory://"
        if name_or_url == "ipc":
            return f"ipc://bench?directory={self._folder}"
        try:
            return self._start(name_or_url)
        except BrokerMissingError as error:
            self.missing[name_or_url] = str(error)
            return f"{name_or_url}://"

    def may_break(self, url: str) -> bool:
        """Whether the broker at `url` was started here and may be killed."""
        return url in self._by_url

    def kill(self, url: str) -> None:
        """Kill it, as a crash does."""
        self._by_url[url].kill9()

    def start_again(self, url: str) -> None:
        """Bring it back after `kill`."""
        self._by_url[url].start()

    def _start(self, name: str) -> str:
        if name not in self._started:
            folder = self._folder / name
            folder.mkdir()
            self._started[name] = self._stack.enter_context(_make(name, folder))
        broker = self._started[name]
        url = f"{broker.url}{_OPTIONS.get(name, '')}"
        self._by_url[url] = broker
        return url


def _make(name: str, folder: Path) -> AbstractContextManager[_Breakable]:
    if name == "redis":
        return private_redis(RedisConfig(), folder)
    if name == "nats":
        return private_nats("", folder, jetstream=True)
    if name == "kafka":
        return private_kafka(KafkaConfig(), folder, print)
    if name == "redis+cluster":
        return _WholeCluster(folder)
    if name in ("postgres", "postgres-durable"):
        return private_postgres(replace(DURABLE, settings=_ON_DISK), folder)
    if name == "amqp":
        return private_rabbitmq(folder)
    raise BrokerMissingError(f"no broker is called {name!r}; known are {', '.join(NAMES)}, or give a URL")
