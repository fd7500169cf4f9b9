"""The publishers: at a fixed rate whatever happens, or as fast as a few watchers receive.

Each publisher is a WebSocket that only sends; the application publishes what arrives on it. So every product is driven
alike, on the path its users take.
"""

from __future__ import annotations

import ctypes
import select
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.harness.sockets import Client, HandshakeError, connect
from benchmarks.harness.text import PROBE, channel_name, text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from benchmarks.harness.websocket import Dialect

__all__ = ["Plan", "PublishReport", "Publisher"]

_PR_SET_TIMERSLACK: Final = 29
_POLL_SECONDS: Final = 0.0015
"""Waits of epoll are whole milliseconds; the remainder is slept."""

_STALL_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is published; times in microseconds since the run's epoch.

    Attributes:
        start: When the first message goes.
        end: No message is meant to go from here on.
        rate: Messages per second of all together; 0 for as fast as they are received.
        outstanding: With rate 0: how many may be on their way.
        size: Bytes of each.
        channels: To which they go, in turn.
        publishers: How many publish to each channel.
    """

    start: int
    end: int
    rate: float
    outstanding: int
    size: int
    channels: int
    publishers: int

    def intended(self, number: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return when messages should be sent, by their numbers over all channels and publishers."""
        times: NDArray[np.int64] = self.start + np.rint(number * 1e6 / self.rate).astype(np.int64)
        return times

    def count(self) -> int:
        """Return how many messages there are at `rate`."""
        return int(np.ceil((self.end - self.start) * self.rate / 1e6))

    def streams(self) -> Iterator[tuple[int, int]]:
        """Yield channel and publisher of each message, without end."""
        while True:
            for publisher in range(self.publishers):
                for channel in range(self.channels):
                    yield channel, publisher


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport:
    """What was published.

    Attributes:
        counts: How many messages, per channel and publisher.
        late: How much later than its time each was sent, in microseconds, without what the server held it up.
        unsent: How many of the planned the server did not take.
        refused: Texts the application sent back because the broker was not available.
        stalls: How often nothing was received for three seconds, so that what was on its way was given up.
        reconnects: How often a publisher had to connect again.
    """

    counts: NDArray[np.int64]
    late: NDArray[np.int64]
    unsent: int
    refused: int
    stalls: int
    reconnects: int


class Publisher:
    """Publishes to one server.

    Args:
        run: What marks this run's texts.
        epoch: The run's zero, on the monotonic clock, in nanoseconds.
        port: Where the server is.
        dialect: What its clients send.
    """

    def __init__(self, run: str, epoch: int, port: int, dialect: Dialect) -> None:
        self._run, self._epoch, self._port, self._dialect = run, epoch, port, dialect
        self._publishing = dialect.of_publishers
        self._mark = run.encode()
        self._publishers: list[Client] = []
        self._watchers: list[Client] = []
        self._by_descriptor: dict[int, Client] = {}
        self._poll = select.epoll()
        self._received: Counter[int] = Counter()  # per descriptor of a watcher
        self._free = 0  # when the server had taken the last message
        self._refused = self._stalls = self._reconnects = 0
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)

    def open(self, publishers: int, watchers: int) -> None:
        """Connect; those that are connected already stay."""
        listen = self._dialect.listen_path.format(channel=channel_name(0))
        self._publishers += self._open(
            self._publishing, [self._publishing.publish_path] * (publishers - len(self._publishers))
        )
        self._watchers += self._open(self._dialect, [listen] * (watchers - len(self._watchers)))

    def probe(self, channels: int) -> None:
        """Publish to each channel a message that only shows which sockets receive by now."""
        for channel in range(channels):
            message = text(self._run, channel, PROBE, 0, self._now(), self._size)
            self._publishers[channel % len(self._publishers)].sock.send(self._publishing.frame(message))
        self._read(0)

    def set_size(self, size: int) -> None:
        """Make probes as long as messages, because listeners learn the size of a frame from the first one."""
        self._size = size

    def publish(self, plan: Plan) -> PublishReport:
        """Publish what is planned; returns at the end of the plan."""
        self._received = Counter({watcher.sock.fileno(): 0 for watcher in self._watchers})
        counts = np.zeros((plan.channels, plan.publishers), np.int64)
        late: list[int] = []
        paced = self._at_rate(plan) if plan.rate else self._as_received(plan)
        for intended, (channel, publisher) in zip(paced, plan.streams(), strict=False):
            message = text(self._run, channel, publisher, int(counts[channel, publisher]), intended, plan.size)
            late.append(self._now() - max(intended, self._free))
            if not self._send(publisher, self._publishing.frame(message), plan.end):
                break
            counts[channel, publisher] += 1
        return PublishReport(
            counts=counts,
            late=np.array(late, np.int64),
            unsent=plan.count() - int(counts.sum()) if plan.rate else 0,
            refused=self._refused,
            stalls=self._stalls,
            reconnects=self._reconnects,
        )

    def settle(self, seconds: float) -> None:
        """Go on answering pings."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._read(left)

    def refusals(self) -> int:
        """Return how many texts were sent back by now."""
        self._read(0)
        return self._refused

    def _at_rate(self, plan: Plan) -> Iterator[int]:
        number = 0
        while number < plan.count():
            intended = plan.start + round(number * 1e6 / plan.rate)
            while (left := (intended - self._now()) / 1e6) > 0:
                if left > 2 * _POLL_SECONDS:
                    self._read(left - _POLL_SECONDS)
                else:
                    time.sleep(left)
            yield intended
            number += 1

    def _as_received(self, plan: Plan) -> Iterator[int]:
        self.settle((plan.start - self._now()) / 1e6)
        sent, given_up, received_at = 0, 0, self._now()
        while (now := self._now()) < plan.end:
            received = max(min(self._received.values()), given_up)
            if sent - received < plan.outstanding:
                sent += 1
                yield now
            elif self._read(0.05):
                received_at = self._now()
            elif now - received_at > _STALL_SECONDS * 1e6:
                self._stalls += 1
                given_up, received_at = sent, now

    def _send(self, publisher: int, frame: bytes, end: int) -> bool:
        """Send; returns whether the server took it before the end of the plan and a grace of some seconds."""
        client = self._publishers[publisher % len(self._publishers)]
        try:
            client.sock.settimeout(max((end - self._now()) / 1e6, 0) + _STALL_SECONDS)
            client.sock.sendall(frame)
        except TimeoutError:
            return False
        except OSError:
            self._reconnect(client)
        self._free = self._now()
        return True

    def _reconnect(self, client: Client) -> None:
        """Replace `client` by a new one; what it was to send is lost, and counts as published."""
        self._by_descriptor.pop(client.sock.fileno(), None)
        client.sock.close()
        self._reconnects += 1
        try:
            opened = self._open(self._publishing, [self._publishing.publish_path])
            self._publishers[self._publishers.index(client)] = opened[0]
        except (HandshakeError, OSError):
            time.sleep(0.05)  # a server that restarts refuses at once

    def _open(self, dialect: Dialect, paths: list[str]) -> list[Client]:
        opened = connect(self._port, paths, dialect)
        for client in opened:
            client.sock.setblocking(True)
            self._by_descriptor[client.sock.fileno()] = client
            self._poll.register(client.sock, select.EPOLLIN)
        return opened

    def _read(self, timeout_seconds: float) -> bool:
        """Read what arrives; returns whether a watcher received something."""
        received = False
        for descriptor, _ in self._poll.poll(max(timeout_seconds, 0)):
            client = self._by_descriptor.get(descriptor)
            if client is None:
                continue
            try:
                data = client.sock.recv(262_144)
            except OSError:
                data = b""
            if not data:
                self._poll.unregister(descriptor)
                client.closed = client.closed or 0
                continue
            for found in client.texts(data):
                if found.startswith(b"!"):
                    self._refused += 1
                elif self._mark in found and descriptor in self._received:
                    received = True
                    self._received[descriptor] += _is_counted(found, self._mark)
        return received

    def _now(self) -> int:
        return (time.monotonic_ns() - self._epoch) // 1000

    _size = 128


def _is_counted(found: bytes, mark: bytes) -> bool:
    at = found.find(mark) + 12
    return found[at : at + 4] != channel_name(PROBE).encode()
