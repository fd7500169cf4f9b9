"""What a published message costs a broker with many workers: measured up to 64 of them, computed beyond."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["COSTS", "WORKERS", "BrokerCosts"]

WORKERS: Final = (10, 100, 1_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerCosts:
    """The lines through what `python -m benchmarks.micro.broker_cost` measured, rounded.

    Attributes:
        title: The broker.
        busy: µs of the broker's CPU for a message, and for each subscribed worker, with 64 messages in flight.
        alone: The same with one message at a time.
        connections: Connections of a worker to one server.
    """

    title: str
    busy: tuple[float, float]
    alone: tuple[float, float]
    connections: int

    def microseconds(self, workers: int, *, is_busy: bool) -> float:
        """Return the broker's CPU for one message to so many workers."""
        message, each = self.busy if is_busy else self.alone
        return message + each * workers

    def messages_per_second(self, workers: int, *, is_busy: bool) -> float:
        """Return how many messages keep one core of the broker busy."""
        return 1e6 / self.microseconds(workers, is_busy=is_busy)


COSTS: Final = (
    BrokerCosts(title="Redis", busy=(0.4, 0.15), alone=(5.5, 1.4), connections=2),
    BrokerCosts(title="NATS", busy=(1.1, 0.6), alone=(40.0, 7.0), connections=1),
    BrokerCosts(title="Kafka", busy=(12.0, 2.4), alone=(680.0, 125.0), connections=2),
)
