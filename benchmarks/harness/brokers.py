"""The brokers of a session: given by URL, or by name and then started for it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Self

from tests.brokers.broker import BrokerMissingError
from tests.brokers.kafka import KafkaConfig, private_kafka
from tests.brokers.nats import private_nats
from tests.brokers.postgres import PostgresConfig, private_postgres
from tests.brokers.rabbitmq import private_rabbitmq
from tests.brokers.redis import RedisConfig, private_redis

if TYPE_CHECKING:
    from tests.brokers.broker import Broker

__all__ = ["NAMES", "Brokers"]

NAMES = ("memory", "ipc", "redis", "nats", "kafka", "postgres", "amqp")
"""The names that stand for a broker without a URL."""


class Brokers:
    """A context manager; what it started ends with it.

    Attributes:
        missing: Why a broker that was asked for by name is not there, by name.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._started: dict[str, Broker] = {}
        self._by_url: dict[str, Broker] = {}
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
            return self._start(name_or_url).url
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

    def _start(self, name: str) -> Broker:
        if name not in self._started:
            folder = self._folder / name
            folder.mkdir()
            broker = self._stack.enter_context(_make(name, folder))
            self._started[name] = self._by_url[broker.url] = broker
        return self._started[name]


def _make(name: str, folder: Path) -> Broker:
    if name == "redis":
        return private_redis(RedisConfig(), folder)
    if name == "nats":
        return private_nats("", folder, jetstream=True)
    if name == "kafka":
        return private_kafka(KafkaConfig(), folder, print)
    if name == "postgres":
        return private_postgres(PostgresConfig(), folder)
    if name == "amqp":
        return private_rabbitmq(folder)
    raise BrokerMissingError(f"no broker is called {name!r}; known are {', '.join(NAMES)}, or give a URL")
