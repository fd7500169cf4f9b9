"""One run: one candidate, one scenario, once; and what is common to scenarios that publish at a rate or by receipt."""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from benchmarks.harness import histogram
from benchmarks.harness.publisher import Plan
from benchmarks.harness.remote import AudienceReport, RemoteAudience, RemotePublisher, Shape
from benchmarks.harness.server import cpu_seconds, families, listeners
from benchmarks.harness.sockets import open_seconds
from benchmarks.harness.tally import Window
from benchmarks.harness.text import letters
from benchmarks.servers import stall

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from numpy.typing import NDArray

    from benchmarks.harness.publisher import PublishReport
    from benchmarks.harness.server import Server
    from benchmarks.harness.tally import Counted

__all__ = ["Load", "Options", "Run", "Usage"]

_LEAD_SECONDS: Final = 0.2
_GRACE_SECONDS: Final = 3.0
_BUSY: Final = 0.9
# What a probe may take to each socket before the next one is sent: servers in use take up to 20 us.
_PROBE_SECONDS: Final = 0.5
_PROBE_SECONDS_EACH: Final = 2e-5
_OFF: Final = 0.1
"""How much of the window may be missing from what CPU is measured of."""

_ANY: Final = -1
"""A socket that connects later may receive any message first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line chooses; a scenario takes what it needs.

    Attributes:
        connections: Sockets that receive.
        channels: Over how many channels they are spread.
        rate: Messages per second of all publishers together.
        payload: Bytes of a message.
        seconds: How long is measured.
        warm_up_seconds: How long before that.
        publishers: How many publish to each channel.
        outstanding: Messages on their way, where they are sent as fast as they are received.
        clients: Processes of the audience.
        addresses: Over how many addresses of the loopback its sockets are spread; each has as many ports as the system
            gives out.
        in_memory: How many of the connections have no socket, where a scenario has idle clients (`servers.crowd`): the
            system limits how many a process may have.
        heartbeat: Seconds between two pings of the server, where a scenario has idle clients.
        drain: Seconds over which the server spreads its drain there.
        stalled: Sockets that never read.
        repaired: Kept channels that are repaired after a lost link.
        deflate: Whether clients offer permessage-deflate, as browsers do.
        stalls: Whether to measure the longest stall of the server's event loops, which costs them a little.
        break_broker: Kills the broker at a URL, where a candidate has one that may be killed.
        mend_broker: Brings it back.
    """

    connections: int = 1000
    channels: int = 1
    rate: float = 20.0
    payload: int = 128
    seconds: float = 5.0
    warm_up_seconds: float = 1.0
    publishers: int = 1
    outstanding: int = 16
    clients: int = 1
    addresses: int = 1
    in_memory: int = 0
    heartbeat: float = 30.0
    drain: float = 5.0
    stalled: int = 2
    repaired: int = 10_000
    deflate: bool = False
    stalls: bool = False
    break_broker: Callable[[str], None] | None = None
    mend_broker: Callable[[str], None] | None = None


@dataclass(slots=True, kw_only=True)
class Run:
    """What one run found.

    Attributes:
        figures: Numbers by name; `harness.figures` knows their units.
        invalid: Why the figures do not count; empty where they do.
        notes: What else should be known.
        slices: Deliveries in each tenth of a second, where a scenario shows them over time.
    """

    figures: dict[str, float] = field(default_factory=dict[str, float])
    invalid: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    slices: list[int] = field(default_factory=list[int])


@dataclass(slots=True, kw_only=True)
class Usage:
    """Processor seconds in the window, and the longest time that an event loop of the server was blocked."""

    seconds: float = 0.0
    server: float = 0.0
    broker: float = 0.0
    audience: list[float] = field(default_factory=list[float])
    publisher: float = 0.0
    stall: float | None = None


class Load:
    """Audience and publishers of one run on one server; a context manager.

    Args:
        server: Where to.
        options: How much.
        publishers: How many publish to each channel.
        read_every_seconds: How long the audience sleeps between two reads of its sockets; latencies are longer by that.
        late_milliseconds: A publisher that sends one of a hundred messages later than this makes the run invalid.
            Where figures are times of seconds it may be more.
    """

    def __init__(
        self,
        server: Server,
        options: Options,
        *,
        publishers: int | None = None,
        late_milliseconds: float = 20.0,
        read_every_seconds: float = 0.0,
    ) -> None:
        self.server = server
        self._late_milliseconds = late_milliseconds
        self.options = options
        self.shape = Shape(
            run=letters(int.from_bytes(os.urandom(4), "big")),
            epoch=time.monotonic_ns(),
            port=server.port,
            dialect=server.candidate.dialect,
            channels=options.channels,
            publishers=publishers or options.publishers,
            size=options.payload,
            deflate=options.deflate,
            addresses=options.addresses,
            read_every_seconds=read_every_seconds,
        )
        self.usage = Usage()
        self.audience: list[RemoteAudience] = []
        self._stack = ExitStack()
        self._plan = Plan(start=0, end=0, rate=1, outstanding=1, size=0, channels=1, publishers=1)
        self._published: PublishReport | None = None
        self._broker: list[int] = []
        self._primed = False
        self._never_received_by_all = np.zeros(histogram.SIZE, np.int64)

    def __enter__(self) -> Self:
        # Looked for before there are sockets by the thousand: it takes reading a table of all.
        url = self.server.candidate.broker_url
        self._broker = listeners(url)
        self.publisher = self._stack.enter_context(RemotePublisher(self.shape))
        self.audience = [
            self._stack.enter_context(RemoteAudience(self.shape)) for _ in range(max(self.options.clients, 1))
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def connect(self, *, at_once: int = 64, first: int = 0, connections: int | None = None) -> list[float]:
        """Open the audience's sockets, spread over its processes; returns how long each took, in seconds."""
        total = self.options.connections if connections is None else connections
        if self.server.candidate.first_alone and not self._primed:
            self._primed = True
            total -= self.shape.channels
            self.audience[0].call("connect", list(range(self.shape.channels)), at_once, first)
            self.ready()
        channels = [number % self.shape.channels for number in range(total)]
        for number, audience in enumerate(self.audience):
            audience.send("connect", channels[number :: len(self.audience)], at_once, first)
        patience = 2 * open_seconds(total)
        return [seconds for audience in self.audience for seconds in audience.receive(patience)]

    def reconnect(self) -> list[float]:
        """Open as many sockets as were cut, where the server accepts them; returns how long each took, in seconds."""
        cut = self.options.connections - sum(audience.call("open_count") for audience in self.audience)
        if cut <= 0:
            return []
        channels = [number % self.shape.channels for number in range(cut)]
        seconds: list[float] = self.audience[0].call("connect", channels, 64, _ANY, True)
        return seconds

    def ready(self, *, watchers: int = 0) -> None:
        """Open the publishers, and wait until every socket receives.

        Raises:
            TimeoutError: Some do not within 60 probes, half a minute and more.
        """
        self.publisher.call("open", self.shape.publishers, watchers)
        pause = _PROBE_SECONDS + self.options.connections * _PROBE_SECONDS_EACH
        deadline = time.monotonic() + 60 * pause
        while True:
            self.publisher.call("probe", self.shape.channels)
            until = time.monotonic() + pause
            while time.monotonic() < until:
                if all(audience.call("all_probed") for audience in self.audience):
                    return
                time.sleep(0.01)
            if time.monotonic() > deadline:
                raise TimeoutError("not every socket receives what is published")

    def begin(self, *, rate: float, tail_seconds: float = 0.0) -> None:
        """Start the publishers: warm-up, the window, and `tail_seconds` more."""
        options = self.options
        start = self.now() + round(_LEAD_SECONDS * 1e6)
        window_start = start + round(options.warm_up_seconds * 1e6)
        self.window = Window(window_start, window_start + round(options.seconds * 1e6))
        self._plan = Plan(
            start=start,
            end=self.window.end + round(tail_seconds * 1e6),
            rate=rate,
            outstanding=options.outstanding,
            size=options.payload,
            channels=self.shape.channels,
            publishers=self.shape.publishers,
        )
        for audience in self.audience:
            audience.call("begin", self.window)
        self.publisher.start(self._plan)

    def sleep_until(self, microseconds: int) -> None:
        """Wait for a time of the run."""
        time.sleep(max((microseconds - self.now()) / 1e6, 0))

    @contextmanager
    def measured(self) -> Generator[None]:
        """Measure from the window's start to its end; the block runs between."""
        self.sleep_until(self.window.start)
        stall.reset(self.server.stalls)
        started, before = self.now(), self._cpu()
        yield
        self.sleep_until(self.window.end)
        after = self._cpu()
        used = [now - then for now, then in zip(after, before, strict=True)]
        self.usage = Usage(
            seconds=(self.now() - started) / 1e6,
            server=used[0],
            broker=used[1],
            publisher=used[2],
            audience=used[3:],
            stall=stall.longest(self.server.stalls),
        )

    def publish(self, *, rate: float) -> tuple[Run, Counted]:
        """Publish with nothing else going on, and return what was found."""
        self.begin(rate=rate)
        with self.measured():
            pass
        return self.finish()

    def finish(self) -> tuple[Run, Counted]:
        """Wait for the end and for what is still on its way, and return what was found."""
        published = self._published = self.publisher.report()
        expected = self._expected(published)
        self._wait_for(expected)
        reports = [audience.finish() for audience in self.audience]
        counted = reports[0].counted
        for other in reports[1:]:
            counted = counted + other.counted
        refused = self.publisher.call("refusals")
        run = Run()
        self._fill(run, published, counted, reports, refused)
        self._judge(run, published)
        return run, counted

    def undelivered(self, counted: Counted) -> int:
        """Return how many deliveries are missing where clients come back on other sockets, of one channel."""
        assert self._published is not None
        published: list[int] = self._published.counts[0].tolist()
        receivers = (counted.receivers[publisher, :count] for publisher, count in enumerate(published))
        connections = self.options.connections
        missing: int = sum(int((connections - each).clip(0).sum()) for each in receivers)
        beyond: int = sum(max(count - counted.receivers.shape[1], 0) for count in published)
        return missing + beyond * connections

    def _expected(self, published: PublishReport) -> int:
        per_channel = self.options.connections / self.shape.channels
        return round(int(published.counts.sum()) * per_channel)

    def _wait_for(self, expected: int) -> None:
        """Wait until that many arrived, or nothing more does."""
        most, changed = -1, time.monotonic()
        while most < expected and time.monotonic() - changed < _GRACE_SECONDS:
            now = sum(audience.call("deliveries") for audience in self.audience)
            if now > most:
                most, changed = now, time.monotonic()
            time.sleep(0.02)

    def _fill(
        self, run: Run, published: PublishReport, counted: Counted, reports: Sequence[AudienceReport], refused: int
    ) -> None:
        usage, figures = self.usage, run.figures
        if self._plan.rate and not any(each.closed for each in reports):
            self._add_overdue(counted)
        figures |= histogram.summary(counted.latency, "latency")
        figures |= histogram.summary(self._to_last(counted), "last")
        codes = sum((Counter(each.closed) for each in reports), Counter[int]())
        closed = [f"{count} by {code}" for code, count in codes.items()]
        tail = np.where(counted.next_ones < 0, 0, published.counts[counted.channels] - counted.next_ones).clip(0)
        figures |= {
            "messages": float(published.counts.sum()),
            "deliveries": float(counted.deliveries),
            "lost": float(counted.missing + tail.sum()),
            "duplicates": float(counted.duplicates),
            "reordered": float(counted.reordered),
            "astray": float(counted.astray),
            "closed": float(sum(sum(each.closed.values()) for each in reports)),
            "refused": float(refused),
            "frame_bytes": float(max(each.frame_bytes for each in reports)),
        }
        if usage.seconds:
            figures["deliveries_per_second"] = counted.in_window / usage.seconds
            figures["server_cpu_percent"] = usage.server / usage.seconds * 100
            figures["client_cpu_percent"] = max(usage.audience) / usage.seconds * 100
            figures["publisher_cpu_percent"] = usage.publisher / usage.seconds * 100
            figures["broker_cpu_percent"] = usage.broker / usage.seconds * 100
            if usage.stall is not None:
                figures["stall_ms"] = usage.stall * 1000
            if counted.in_window:
                figures["cpu_us_per_delivery"] = usage.server / counted.in_window * 1e6
        if self._plan.rate and len(published.late):
            figures["publisher_late_p99_ms"] = float(np.percentile(published.late, 99)) / 1000
        if closed:
            run.notes.append(f"sockets closed by the server: {', '.join(closed)}")
        if published.unsent:
            run.notes.append(f"the server did not take {published.unsent:,} of the messages that were to be published")
        if published.reconnects:
            run.notes.append(
                f"publishers were cut {published.reconnects} times; what they were about to publish counts as lost"
            )
        if published.stalls:
            run.notes.append(f"{published.stalls} times nothing was received for 3 s")
        run.notes += counted.examples

    def _add_overdue(self, counted: Counted) -> None:
        """Count what was not received, after the last message that was, as received now: a stall must not look fast."""
        fewest: dict[int, int] = {}
        for index in np.argwhere(counted.next_ones >= 0):
            connection, publisher = index.tolist()
            # Channels take turns, then publishers, as Plan.streams has it.
            stream = publisher * self._plan.channels + int(counted.channels[connection])
            received = int(counted.next_ones[connection, publisher])
            counted.latency += self._overdue(stream, received)
            fewest[stream] = min(fewest.get(stream, received), received)
        for stream, received in fewest.items():
            self._never_received_by_all += self._overdue(stream, received)

    def _overdue(self, stream: int, received: int) -> NDArray[np.int64] | int:
        """Return the histogram of how late the messages of a stream are by now, without the first `received` ones."""
        numbers = np.arange(stream, self._plan.count(), self.shape.channels * self.shape.publishers)[received:]
        if not len(numbers):
            return 0
        intended = self._plan.intended(numbers)
        measured = intended[(intended >= self.window.start) & (intended < self.window.end)]
        return histogram.counts_of(self.now() - measured)

    def _judge(self, run: Run, published: PublishReport) -> None:
        figures = run.figures
        seconds, window = self.usage.seconds, (self.window.end - self.window.start) / 1e6
        if seconds and abs(seconds - window) > _OFF * window:
            run.invalid.append(f"CPU was measured for {seconds:.2f} s, and deliveries for {window:.2f} s")
        for name in ("client", "publisher"):
            if (busy := figures.get(f"{name}_cpu_percent", 0)) > _BUSY * 100:
                run.invalid.append(f"the {name} itself was saturated: {busy:.0f} % of a core")
        if figures.get("publisher_late_p99_ms", 0) > self._late_milliseconds:
            run.invalid.append(
                f"the publisher did not keep its rate: p99 {figures['publisher_late_p99_ms']:.0f} ms late"
            )

    def _to_last(self, counted: Counted) -> Any:
        """Return the histogram of how long each message of the window took to all of its sockets."""
        sockets = np.bincount(counted.channels, minlength=self.shape.channels).repeat(self.shape.publishers)
        chosen = (
            (counted.receivers == sockets[:, None])
            & (counted.receivers > 0)
            & (counted.intended >= self.window.start)
            & (counted.intended < self.window.end)
        )
        return histogram.counts_of((counted.last - counted.intended)[chosen]) + self._never_received_by_all

    def now(self) -> int:
        """Return the time of the run, in microseconds since its epoch."""
        return (time.monotonic_ns() - self.shape.epoch) // 1000

    def _cpu(self) -> list[float]:
        groups = [self.server.pids(), families(self._broker), [self.publisher.pid]]
        return [cpu_seconds(group) for group in [*groups, *([each.pid] for each in self.audience)]]
