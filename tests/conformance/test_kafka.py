"""The contract on `kafka://`, against a real broker."""

import uuid
from collections.abc import Sequence

import pytest

from backplane.testing import BroadcasterConformance, FaultProxy, HistoryConformance, PresenceConformance
from backplane.testing.fault_conformance import FailOver, Strip, TakeAway
from backplane.testing.proxy import PassingWay
from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaProcess
from tests.brokers.kafka_stand_in import KafkaStandIn
from tests.brokers.kafka_topic import topic_proxy


class TestKafka(BroadcasterConformance):
    """The whole contract, on a topic of the test that the adapter creates."""

    @pytest.fixture
    def topic(self) -> str:
        """The name of a new topic."""
        return f"conformance-{uuid.uuid4()}"

    @pytest.fixture
    def url(self, kafka_broker: Broker, topic: str) -> str:
        """The topic on the broker that the whole run shares."""
        if isinstance(kafka_broker, KafkaStandIn):
            kafka_broker.create_topic(topic)
        return f"{kafka_broker.url}?topic={topic}"

    @pytest.fixture
    def proxy(self, kafka_broker: Broker, topic: str) -> FaultProxy:
        """A proxy at the address that one of the listeners advertises."""
        return topic_proxy(kafka_broker, topic)

    @pytest.fixture
    def take_away(self) -> TakeAway:
        """None: the broker has no subscriptions."""
        pytest.skip("Kafka revokes no subscription: it has none, its clients fetch the topic and select the channels")

    @pytest.fixture
    def crowded(self) -> tuple[str, Sequence[str]]:
        """None: the broker receives no channels."""
        pytest.skip("Kafka refuses no channel: requests name the topic alone")

    @pytest.fixture
    def fail_over(self) -> FailOver:
        """None: a leader that was replaced answers with an error."""
        pytest.skip("Kafka refuses requests for a partition that a broker no longer leads: tests/chaos/test_cluster.py")

    @pytest.fixture
    def strip_tls(self, kafka_broker: Broker, topic: str) -> tuple[str, Strip]:
        """A listener with a login over TLS, and an answer to its handshake without encryption."""
        if not isinstance(kafka_broker, KafkaProcess):
            pytest.skip("this Kafka cannot be configured")
        url = kafka_broker.listener_urls["login_over_tls"]
        return f"{url.replace('//', '//admin:secret@', 1)}&topic={topic}", _answer_in_clear


class TestKafkaHistory(HistoryConformance):
    """The history: the topic itself."""

    topic, url, proxy = TestKafka.topic, TestKafka.url, TestKafka.proxy

    @pytest.fixture
    def keeps_everything(self) -> bool:
        """The topic is a log: whatever is published is kept."""
        return True


class TestKafkaPresence(PresenceConformance):
    """Presence, on a topic of the test."""

    one_loop = True

    topic, url, proxy = TestKafka.topic, TestKafka.url, TestKafka.proxy


def _answer_in_clear(way: PassingWay, data: bytes) -> bytes:
    return data if way == "to_broker" else b"\0\0\0\x04\0\0\0\x01"
