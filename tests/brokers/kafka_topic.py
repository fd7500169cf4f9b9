"""One topic of a Kafka broker, as the tests address it: directly, and through a proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backplane.testing import FaultProxy
from tests.brokers.kafka import KafkaProcess
from tests.brokers.kafka_stand_in import KafkaStandIn

if TYPE_CHECKING:
    from tests.brokers.broker import Broker

__all__ = ["topic_proxy", "topic_url"]


def topic_url(broker: Broker, topic: str, options: str = "") -> str:
    """Return the URL of a topic at a real broker, with further options such as `&partitions=1`."""
    if isinstance(broker, KafkaStandIn):
        pytest.skip("these tests need a real Kafka")
    return f"{broker.url}?topic={topic}{options}"


def topic_proxy(broker: Broker, topic: str, options: str = "") -> FaultProxy:
    """Return a proxy for a topic, at the address that one of the broker's listeners advertises."""
    if not isinstance(broker, KafkaProcess):
        pytest.skip("a proxy is bypassed if the broker advertises another address")
    return FaultProxy(f"{broker.proxied_url}?topic={topic}{options}", port=broker.proxy_port)
