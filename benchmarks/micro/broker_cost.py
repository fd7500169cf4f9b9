"""The broker's CPU for a published message, by the number of workers that are subscribed to its channel.

`python -m benchmarks.micro.broker_cost redis nats kafka`; docs/operations/scale.md has what it found.

All workers are adapters in this one process, with connections of their own. Channels with 1, 2, 4 ... subscribed
workers take turns, so that a drift of the machine affects all. On Kafka, where every worker that is there reads every
message, there are runs with 1, 2, 4 ... workers in place of that.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from statistics import linear_regression, median
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import psutil
import uvloop

from backplane.broker.registry import broadcaster_from_url
from backplane.testing.recording import RecordingSink
from benchmarks.harness.brokers import Brokers
from benchmarks.harness.server import cpu_seconds, families, listeners

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backplane.broadcaster import Broadcaster

__all__ = ["BrokerCost", "main", "measure"]

_WORKERS: Final = (1, 2, 4, 8, 16, 32, 64)
_KAFKA_WORKERS: Final = (1, 2, 4, 8, 16)
_ROUNDS: Final = 9
_MESSAGES: Final = 1024
_TOGETHER: Final = 64
_ALONE: Final = 200
_PAYLOAD: Final = b"x" * 128
_WAIT_SECONDS: Final = 30.0


class _CountingSink(RecordingSink):
    """Counts what is delivered, and keeps nothing of it."""

    expected: int = 0
    is_complete: asyncio.Event

    def expect(self, count: int) -> None:
        """Set `is_complete` after so many messages from now on."""
        self.expected, self.is_complete = count, asyncio.Event()

    def deliver(self, channel: str, payload: bytes, place: object = None) -> None:
        """Count a delivery."""
        self.expected -= 1
        if not self.expected:
            self.is_complete.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerCost:
    """What was found at one broker.

    Attributes:
        together: The broker's CPU for a message in µs, by the number of subscribed workers, with 64 in flight.
        alone: The same, one message at a time.
        connections: Connections of a worker that is subscribed and does not publish.
        kib: Memory that the broker holds for such a worker.
    """

    together: Mapping[int, float]
    alone: Mapping[int, float]
    connections: float
    kib: float


async def measure(url: str, broker: list[int], numbers: Sequence[int]) -> BrokerCost:
    """Return what the broker at `url`, which is the processes `broker`, takes for messages and for workers.

    Args:
        url: The broker.
        broker: Its processes.
        numbers: How many workers are subscribed to the channels; the largest is how many there are.
    """
    async with AsyncExitStack() as stack:
        sinks = [_CountingSink() for _ in range(max(numbers))]
        workers = [broadcaster_from_url(url) for _ in sinks]
        publisher = broadcaster_from_url(url)
        await publisher.start(_CountingSink())
        stack.push_async_callback(publisher.stop)
        connections, resident = _connections(url), _resident(broker)
        for worker, sink in zip(workers, sinks, strict=True):
            await worker.start(sink)
            stack.push_async_callback(worker.stop)
        for number, worker in enumerate(workers):
            await worker.subscribe([f"cost-{count}" for count in numbers if number < count])
        connections = _connections(url) - connections
        resident = _resident(broker) - resident
        found: dict[int, dict[int, list[float]]] = {_TOGETHER: {}, 1: {}}
        for round_number in range(_ROUNDS + 1):
            for count in numbers:
                for together, messages in ((_TOGETHER, _MESSAGES), (1, _ALONE)):
                    before = cpu_seconds(families(broker))
                    await _burst(publisher, f"cost-{count}", sinks[:count], messages, together)
                    used = (cpu_seconds(families(broker)) - before) / messages * 1e6
                    if round_number:  # the first one is the warm-up
                        found[together].setdefault(count, []).append(used)
        medians = {kind: {count: median(each) for count, each in found[kind].items()} for kind in found}
        return BrokerCost(
            together=medians[_TOGETHER],
            alone=medians[1],
            connections=connections / len(workers),
            kib=resident / len(workers) / 1024,
        )


def _resident(broker: list[int]) -> int:
    return sum(psutil.Process(pid).memory_info().rss for pid in families(broker))


def _connections(url: str) -> int:
    """Return how many connections this process has to the broker."""
    port = urlsplit(url).port
    return sum(bool(each.raddr) and each.raddr.port == port for each in psutil.Process().net_connections("tcp"))


async def _burst(
    publisher: Broadcaster, channel: str, sinks: list[_CountingSink], messages: int, together: int
) -> None:
    """Publish messages, so many at a time, and wait until every worker has received them."""
    for _ in range(messages // together):
        for sink in sinks:
            sink.expect(together)
        async with asyncio.timeout(_WAIT_SECONDS):
            await asyncio.gather(*(publisher.publish(channel, _PAYLOAD) for _ in range(together)))
            for sink in sinks:
                await sink.is_complete.wait()


def _measured(url: str, broker: list[int]) -> BrokerCost:
    if not url.startswith("kafka"):
        return uvloop.run(measure(url, broker, _WORKERS))
    runs = [uvloop.run(measure(url, broker, (count,))) for count in _KAFKA_WORKERS]
    return BrokerCost(
        together={count: value for run in runs for count, value in run.together.items()},
        alone={count: value for run in runs for count, value in run.alone.items()},
        connections=runs[-1].connections,
        kib=runs[-1].kib,
    )


def _show(name: str, kind: str, found: Mapping[int, float]) -> None:
    each, first = linear_regression(list(found), list(found.values()))
    figures = "  ".join(f"{count}: {value:.2f}" for count, value in found.items())
    print(f"{name:6} {kind:14} {figures}   = {first:.2f} + {each:.2f} W µs")


def main(names: list[str]) -> None:
    """Measure the brokers of these names, or URLs, and print what was found."""
    with Brokers() as brokers:
        for name in names:
            url = brokers.url(name)
            pids = listeners(url)
            if not pids:
                raise SystemExit(f"{name}: no process of this machine listens at its URL")
            found = _measured(url, pids)
            _show(name, f"{_TOGETHER} in flight", found.together)
            _show(name, "one at a time", found.alone)
            print(f"{name:6} each worker    {found.connections:.2f} connections, {found.kib:,.0f} KiB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
