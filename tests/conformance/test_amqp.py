"""The contract on `amqp://`, against real servers."""

import pytest

from backplane.testing import BroadcasterConformance, PresenceConformance
from backplane.testing.fault_conformance import Strip
from backplane.testing.proxy import PassingWay
from tests.brokers.broker import Broker
from tests.brokers.rabbitmq import RabbitProcess


class TestAmqp(BroadcasterConformance):
    """The whole contract."""

    @pytest.fixture
    def url(self, amqp_broker: Broker) -> str:
        """An exchange of its own on a server that other tests use too."""
        return amqp_broker.own_url

    @pytest.fixture
    def strip_tls(self, amqp_broker: Broker) -> tuple[str, Strip]:
        """The port with TLS, and an answer to its handshake without encryption."""
        if not isinstance(amqp_broker, RabbitProcess):
            pytest.skip("this server has no TLS")
        return amqp_broker.tls_url, _answer_in_clear


@pytest.mark.full
class TestAmqpDurable(BroadcasterConformance):
    """The whole contract, with messages in a stream."""

    one_loop = True

    @pytest.fixture
    def url(self, amqp_broker: Broker) -> str:
        """A stream of its own on a server that other tests use too."""
        return f"{amqp_broker.own_url}&durable=true"


@pytest.mark.full
class TestAmqpPresence(PresenceConformance):
    """Presence."""

    one_loop = True

    @pytest.fixture
    def url(self, amqp_broker: Broker) -> str:
        """An exchange of its own on a server that other tests use too."""
        return amqp_broker.own_url


def _answer_in_clear(way: PassingWay, data: bytes) -> bytes:
    return data if way == "to_broker" else b"\1\0\0\0\0\0\0\xce"
