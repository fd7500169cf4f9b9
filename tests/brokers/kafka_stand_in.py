"""librdkafka's mock cluster, for machines without Java and Docker: it speaks Kafka's protocol, but is not Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.brokers.broker import Broker, BrokerMissingError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["KafkaStandIn"]


class KafkaStandIn(Broker):
    """A mock broker in this process, from the wheel `confluent-kafka`. It creates no topic for its clients.

    Args:
        announce: Called once with the message that this is a stand-in.
        tried: Why there is no real Kafka.
    """

    restartable = False

    def __init__(self, announce: Callable[[str], None], tried: str) -> None:
        self._announce = announce
        self._tried = tried
        self._client: Any = None

    def start(self) -> None:
        """Run it, with the default topic."""
        try:
            from confluent_kafka import Producer
        except ImportError as error:
            raise BrokerMissingError(f"{self._tried}, no stand-in ({error})") from error
        client: Any = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "stand-in"})
        self._client = client
        (broker,) = client.list_topics(timeout=10).brokers.values()
        self.url = f"kafka://127.0.0.1:{broker.port}"
        self.create_topic("backplane")
        self._announce(f"Kafka is a stand-in here, librdkafka's mock cluster, not a real one: {self._tried}")

    @property
    def own_url(self) -> str:
        """The default topic, because clients can create none; no other process uses this broker."""
        return self.url

    def create_topic(self, name: str) -> None:
        """Create a topic; a metadata request is enough."""
        self._client.list_topics(name, timeout=10)

    def stop(self) -> None:
        """End it."""
        self._client = None

    def kill9(self) -> None:
        """Refuse."""
        raise NotImplementedError("the stand-in cannot be killed: check `restartable` first")

    freeze = thaw = kill9
