"""The contract on `kafka://`, against a real broker."""

import uuid
from collections.abc import Sequence

import pytest

from backplane.testing import BroadcasterConformance, FaultProxy
from backplane.testing.fault_conformance import FailOver, Strip, TakeAway
from backplane.testing.proxy import PassingWay
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

    @pytest.fixture
    def take_away(self) -> TakeAway:
        """Nothing: the broker has no subscriptions."""
        pytest.skip("Kafka takes no subscription away: it has none, its clients fetch the topic and pick the channels")

    @pytest.fixture
    def crowded(self) -> tuple[str, Sequence[str]]:
        """Nothing: the broker is not asked for channels."""
        pytest.skip("Kafka refuses no channel: it is asked for the topic alone")

    @pytest.fixture
    def fail_over(self) -> FailOver:
        """Nothing: a leader that was replaced says so."""
        pytest.skip("no broker of Kafka answers for a partition that it leads no longer: tests/chaos/test_cluster.py")

    @pytest.fixture
    def strip_tls(self, kafka_broker: Broker, topic: str) -> tuple[str, Strip]:
        """A way in with a login over TLS, and somebody who answers the handshake in clear."""
        if not isinstance(kafka_broker, KafkaProcess):
            pytest.skip("this Kafka cannot be set up")
        url = kafka_broker.ways["login_over_tls"]
        return f"{url.replace('//', '//admin:secret@', 1)}&topic={topic}", _answer_in_clear


def _answer_in_clear(way: PassingWay, data: bytes) -> bytes:
    return data if way == "to_broker" else b"\0\0\0\x04\0\0\0\x01"
