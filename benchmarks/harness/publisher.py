"""Those who talk: at a fixed rate whatever happens, or as fast as a few watchers hear it.

Each publisher is a WebSocket that only talks; the application publishes what it says. So every product is driven alike,
on the path its users take.
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

__all__ = ["Plan", "Publisher", "Said"]

_PR_SET_TIMERSLACK: Final = 29
_POLL_SECONDS: Final = 0.0015
"""Waits of epoll are whole milliseconds; what remains is slept."""

_STALL_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is said; times in microseconds since the run's epoch.

    Attributes:
        start: When the first message goes.
        end: No message is meant to go from here on.
        rate: Messages per second of all together; 0 for as fast as they are heard.
        outstanding: With rate 0: how many may be on their way.
        size: Bytes of each.
        channels: To which they go, in turn.
        publishers: How many talk in each channel.
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
class Said:
    """What was said.

    Attributes:
        counts: How many messages, per channel and publisher.
        late: How far behind its time each was sent, in microseconds, but for what the server held it up.
        unsent: How many of the planned the server did not take.
        refused: Texts the application sent back because the broker was away.
        stalls: How often nothing was heard for three seconds, so that what was on its way was given up.
        reconnects: How often a publisher had to connect again.
    """

    counts: NDArray[np.int64]
    late: NDArray[np.int64]
    unsent: int
    refused: int
    stalls: int
    reconnects: int


class Publisher:
    """Talks to one server.

    Args:
        run: What marks this run's texts.
        epoch: The run's zero, on the monotonic clock, in nanoseconds.
        port: Where the server is.
        dialect: How its clients talk.
    """

    def __init__(self, run: str, epoch: int, port: int, dialect: Dialect) -> None:
        self._run, self._epoch, self._port, self._dialect = run, epoch, port, dialect
        self._mark = run.encode()
        self._talkers: list[Client] = []
        self._watchers: list[Client] = []
        self._by_descriptor: dict[int, Client] = {}
        self._poll = select.epoll()
        self._heard: Counter[int] = Counter()  # per descriptor of a watcher
        self._free = 0  # when the server had taken the last message
        self._refused = self._stalls = self._reconnects = 0
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)

    def open(self, talkers: int, watchers: int) -> None:
        """Connect; those that are connected already stay."""
        listen = self._dialect.listen_path.format(channel=channel_name(0))
        self._talkers += self._open([self._dialect.publish_path] * (talkers - len(self._talkers)))
        self._watchers += self._open([listen] * (watchers - len(self._watchers)))

    def probe(self, channels: int) -> None:
        """Say to each channel what only finds out who hears by now."""
        for channel in range(channels):
            words = text(self._run, channel, PROBE, 0, self._now(), self._size)
            self._talkers[channel % len(self._talkers)].sock.send(self._dialect.frame(words))
        self._read(0)

    def set_size(self, size: int) -> None:
        """Probes are as long as what follows: their frames teach the listeners."""
        self._size = size

    def talk(self, plan: Plan) -> Said:
        """Say what is planned; returns when its end has come."""
        self._heard = Counter({watcher.sock.fileno(): 0 for watcher in self._watchers})
        counts = np.zeros((plan.channels, plan.publishers), np.int64)
        late: list[int] = []
        paced = self._at_rate(plan) if plan.rate else self._as_heard(plan)
        for intended, (channel, publisher) in zip(paced, plan.streams(), strict=False):
            words = text(self._run, channel, publisher, int(counts[channel, publisher]), intended, plan.size)
            late.append(self._now() - max(intended, self._free))
            if not self._say(publisher, self._dialect.frame(words), plan.end):
                break
            counts[channel, publisher] += 1
        return Said(
            counts=counts,
            late=np.array(late, np.int64),
            unsent=plan.count() - int(counts.sum()) if plan.rate else 0,
            refused=self._refused,
            stalls=self._stalls,
            reconnects=self._reconnects,
        )

    def settle(self, seconds: float) -> None:
        """Go on answering the server."""
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

    def _as_heard(self, plan: Plan) -> Iterator[int]:
        self.settle((plan.start - self._now()) / 1e6)
        said, given_up, heard_at = 0, 0, self._now()
        while (now := self._now()) < plan.end:
            heard = max(min(self._heard.values()), given_up)
            if said - heard < plan.outstanding:
                said += 1
                yield now
            elif self._read(0.05):
                heard_at = self._now()
            elif now - heard_at > _STALL_SECONDS * 1e6:
                self._stalls += 1
                given_up, heard_at = said, now

    def _say(self, publisher: int, frame: bytes, end: int) -> bool:
        """Send; returns whether the server took it, which it may do for as long as the plan lasts and a little more."""
        talker = self._talkers[publisher % len(self._talkers)]
        try:
            talker.sock.settimeout(max((end - self._now()) / 1e6, 0) + _STALL_SECONDS)
            talker.sock.sendall(frame)
        except TimeoutError:
            return False
        except OSError:
            self._reconnect(talker)
        self._free = self._now()
        return True

    def _reconnect(self, talker: Client) -> None:
        """Put a new one in the place of `talker`; what it was to say is lost, and counts as said."""
        self._by_descriptor.pop(talker.sock.fileno(), None)
        talker.sock.close()
        self._reconnects += 1
        try:
            self._talkers[self._talkers.index(talker)] = self._open([self._dialect.publish_path])[0]
        except (HandshakeError, OSError):
            time.sleep(0.05)  # a server that restarts refuses at once

    def _open(self, paths: list[str]) -> list[Client]:
        opened = connect(self._port, paths, self._dialect)
        for client in opened:
            client.sock.setblocking(True)
            self._by_descriptor[client.sock.fileno()] = client
            self._poll.register(client.sock, select.EPOLLIN)
        return opened

    def _read(self, timeout_seconds: float) -> bool:
        """Read what arrives; returns whether a watcher heard something."""
        heard = False
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
            for said in client.texts(data):
                if said.startswith(b"!"):
                    self._refused += 1
                elif self._mark in said and descriptor in self._heard:
                    heard = True
                    self._heard[descriptor] += _is_counted(said, self._mark)
        return heard

    def _now(self) -> int:
        return (time.monotonic_ns() - self._epoch) // 1000

    _size = 128


def _is_counted(said: bytes, mark: bytes) -> bool:
    at = said.find(mark) + 12
    return said[at : at + 4] != channel_name(PROBE).encode()
