"""The contract on `kafka://`, against a real broker."""

import uuid

import pytest

from backplane.testing import BroadcasterConformance, FaultProxy
from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaProcess
from tests.brokers.kafka_stand_in import KafkaStandIn


class TestKafka(BroadcasterConformance):
    """Every promise, on a topic of the test's own that the adapter creates."""

    @pytest.fixture
    def topic(self) -> str:
        """A fresh one."""
        return f"conformance-{uuid.uuid4()}"

    @pytest.fixture
    def url(self, kafka_broker: Broker, topic: str) -> str:
        """The topic on the broker that the whole run shares."""
        if isinstance(kafka_broker, KafkaStandIn):
            kafka_broker.create_topic(topic)
        return f"{kafka_broker.url}?topic={topic}"

    @pytest.fixture
    def proxy(self, kafka_broker: Broker, topic: str) -> FaultProxy:
        """In front of the listener whose clients are told to come here."""
        if not isinstance(kafka_broker, KafkaProcess):
            pytest.skip("a proxy is of no use where the broker tells its clients another address")
        return FaultProxy(f"{kafka_broker.proxied_url}?topic={topic}", port=kafka_broker.proxy_port)
