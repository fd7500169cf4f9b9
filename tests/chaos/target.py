"""A broker with a fault proxy in front of it, and what differs between brokers in the chaos suite."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from backplane.testing import FaultProxy
from tests.brokers.broker import ProcessBroker
from tests.brokers.kafka import KafkaProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.brokers.broker import Broker

__all__ = ["BROKERS", "FaultTarget"]

BROKERS: Final = (
    "redis",
    "nats",
    "kafka",
    pytest.param("postgres", marks=pytest.mark.full),
    pytest.param("amqp", marks=pytest.mark.full),
)

_PUBLISHES: Final[dict[str, Callable[[bytes], bool]]] = {
    "redis": lambda sent: b"PUBLISH" in sent,
    "nats": lambda sent: b"PUB " in sent,
    "postgres": lambda sent: b"\0\0\0\x09backplane" in sent,  # the first value of a statement: the channel of NOTIFY
    "amqp": lambda sent: b"\0\x3c\0\x28\0\0" in sent,  # the method Basic.Publish
    "kafka": lambda sent: sent[4:6] == b"\0\0",  # after the request's size its API key: 0 is Produce
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultTarget:
    """What a case of the suite breaks: a broker, or the network to it.

    Attributes:
        name: Name of the adapter.
        broker: The broker.
        url: Directly to it.
        proxy: In front of it, not started yet.
        lossless: Whether the adapter loses nothing when a link is lost.
        publishes: Whether these bytes of a client are a publish.
    """

    name: str
    broker: Broker
    url: str
    proxy: FaultProxy
    lossless: bool
    publishes: Callable[[bytes], bool]

    @classmethod
    def of(cls, name: str, broker: Broker) -> FaultTarget:
        """Return the target for a broker; on Kafka and RabbitMQ with a name of its own there."""
        option = {"kafka": "topic", "amqp": "exchange"}.get(name)
        query = f"?{option}=chaos-{uuid.uuid4()}" if option else ""
        if isinstance(broker, KafkaProcess):  # its clients connect to the address it advertises
            proxy = FaultProxy(broker.proxied_url + query, port=broker.proxy_port)
        else:
            proxy = FaultProxy(broker.url + query)
        return cls(
            name=name,
            broker=broker,
            url=broker.url + query,
            proxy=proxy,
            lossless=name == "kafka",
            publishes=_PUBLISHES[name],
        )

    async def restart_broker(self) -> None:
        """Start the broker after `kill9` without blocking the event loop; it answers when this returns."""
        if isinstance(self.broker, ProcessBroker):
            self.broker.launch()
            await asyncio.to_thread(self.broker.wait_until_up)
        else:
            await asyncio.to_thread(self.broker.start)
