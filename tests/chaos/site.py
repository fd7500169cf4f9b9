"""A broker with a fault proxy in front of it, and what the chaos suite has to know of each kind."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from backplane.testing import FaultProxy
from tests.brokers.broker import ProcessBroker
from tests.brokers.kafka import KafkaProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.brokers.broker import Broker

__all__ = ["BROKERS", "Site"]

BROKERS: Final = ("redis", "nats", "kafka")

_PUBLISHES: Final[dict[str, Callable[[bytes], bool]]] = {
    "redis": lambda sent: b"PUBLISH" in sent,
    "nats": lambda sent: b"PUB " in sent,
    "kafka": lambda sent: sent[4:6] == b"\0\0",  # behind the size of a request its kind: 0 is Produce
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a case of the suite takes place.

    Attributes:
        name: Name of the adapter.
        broker: The broker.
        url: Straight to it.
        proxy: In front of it, not entered yet.
        lossless: Whether the adapter loses nothing with a link.
        publishes: Whether a client publishes with these bytes.
    """

    name: str
    broker: Broker
    url: str
    proxy: FaultProxy
    lossless: bool
    publishes: Callable[[bytes], bool]

    @classmethod
    def at(cls, name: str, broker: Broker) -> Site:
        """Return the site of a broker; on Kafka with a topic of its own."""
        topic = f"?topic=chaos-{uuid.uuid4()}" if name == "kafka" else ""
        if isinstance(broker, KafkaProcess):  # its clients go where it says it is
            proxy = FaultProxy(broker.proxied_url + topic, port=broker.proxy_port)
        else:
            proxy = FaultProxy(broker.url + topic)
        return cls(
            name=name,
            broker=broker,
            url=broker.url + topic,
            proxy=proxy,
            lossless=name == "kafka",
            publishes=_PUBLISHES[name],
        )

    async def start_broker_again(self) -> None:
        """Start it after `kill9`, while the event loop goes on; it answers when this returns."""
        if isinstance(self.broker, ProcessBroker):
            self.broker.launch()
            await asyncio.to_thread(self.broker.wait_until_up)
        else:
            await asyncio.to_thread(self.broker.start)
