"""What became of each message: latency, time to the last socket, and what was lost, doubled, swapped or astray."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.harness import histogram

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from benchmarks.harness.text import Records

__all__ = ["SLICES_PER_SECOND", "Counted", "Stream", "Tally", "Window"]

SLICES_PER_SECOND: Final = 10
"""How finely deliveries over time are kept."""

_NEW: Final = -1
_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Window:
    """What is measured, in microseconds since the run's epoch; before it is the warm-up."""

    start: int
    end: int


@dataclass(slots=True)
class Stream:
    """What one connection receives of one publisher where something went wrong."""

    missing: set[int] = field(default_factory=set[int])
    duplicates: int = 0
    reordered: int = 0

    def receive(self, next_one: int, sequences: Sequence[int]) -> int:
        """Take what came when `next_one` was expected; return what is expected now."""
        for sequence in sequences:
            if sequence >= next_one:
                self.missing.update(range(next_one, sequence))
                next_one = sequence + 1
            elif sequence in self.missing:
                self.missing.remove(sequence)
                self.reordered += 1
            else:
                self.duplicates += 1
        return next_one


@dataclass(slots=True, kw_only=True)
class Counted:
    """What one process counted; `+` merges.

    Attributes:
        deliveries: All that arrived.
        in_window: Those that arrived in the window.
        latency: Counts of `harness.histogram`, of what was meant to be sent in the window.
        slices: Deliveries per tenth of a second since the epoch.
        receivers: Per stream and sequence: how many sockets received it.
        last: The same: when the last one did.
        intended: The same: when it should have been sent.
        missing: Sequences that a socket did not receive although it received a later one.
        next_ones: Per connection and publisher: the sequence after the last one received; negative where none was.
        duplicates: Received again.
        reordered: Received after a later one.
        astray: Received by a socket of another channel.
        examples: Descriptions of the first faults.
    """

    deliveries: int
    in_window: int
    latency: NDArray[np.int64]
    slices: NDArray[np.int64]
    receivers: NDArray[np.int64]
    last: NDArray[np.int64]
    intended: NDArray[np.int64]
    missing: int
    next_ones: NDArray[np.int64]
    channels: NDArray[np.int64]
    duplicates: int
    reordered: int
    astray: int
    examples: list[str]

    def __add__(self, other: Counted) -> Counted:
        return Counted(
            deliveries=self.deliveries + other.deliveries,
            in_window=self.in_window + other.in_window,
            latency=self.latency + other.latency,
            slices=_padded(self.slices, other.slices) + _padded(other.slices, self.slices),
            receivers=_padded(self.receivers, other.receivers) + _padded(other.receivers, self.receivers),
            last=np.maximum(_padded(self.last, other.last), _padded(other.last, self.last)),
            intended=np.maximum(_padded(self.intended, other.intended), _padded(other.intended, self.intended)),
            missing=self.missing + other.missing,
            next_ones=np.concatenate((self.next_ones, other.next_ones)),
            channels=np.concatenate((self.channels, other.channels)),
            duplicates=self.duplicates + other.duplicates,
            reordered=self.reordered + other.reordered,
            astray=self.astray + other.astray,
            examples=(self.examples + other.examples)[:_EXAMPLES],
        )


class Tally:
    """Counts what the connections of one process receive.

    Args:
        window: What is measured.
        channels: How many there are.
        publishers: How many publish to each.
    """

    def __init__(self, window: Window, channels: int, publishers: int) -> None:
        self.probed = np.zeros(0, np.bool_)
        self.window = window
        self._publishers = publishers
        self._channel = np.zeros(0, np.int64)
        self._next = np.zeros((0, publishers), np.int64)
        self._streams: dict[int, Stream] = {}
        self._deliveries = self._in_window = self._astray = 0
        self._latency = np.zeros(histogram.SIZE, np.int64)
        self._slices = np.zeros(1, np.int64)
        shape = (channels * publishers, 64)
        self._receivers, self._last, self._intended = (np.zeros(shape, np.int64) for _ in range(3))
        self._examples: list[str] = []

    @property
    def deliveries(self) -> int:
        """How many deliveries arrived."""
        return self._deliveries

    def add_connections(self, channels: Sequence[int], *, first: int = 0) -> None:
        """Add connections, one per element; `first` is the sequence each must receive first, negative for any."""
        added = len(channels)
        self._channel = np.concatenate((self._channel, np.array(channels, np.int64)))
        self._next = np.concatenate((self._next, np.full((added, self._publishers), first, np.int64)))
        self.probed = np.concatenate((self.probed, np.zeros(added, np.bool_)))

    def add(self, records: Records) -> None:
        """Count what arrived; per connection in the order of arrival."""
        probes = records.publisher >= self._publishers
        if probes.any():
            self.probed[records.connection[probes]] = True
            records = records.where(~probes)
        at_home = self._channel[records.connection] == records.channel
        if not at_home.all():
            self._astray += int((~at_home).sum())
            self._note("a message of another channel", records.where(~at_home))
            records = records.where(at_home)
        if len(records.sequence) == 0:
            return
        self._deliveries += len(records.sequence)
        self._measure(records)
        self._check(records)

    def result(self) -> Counted:
        """Return what was counted."""
        streams = self._streams.values()
        return Counted(
            deliveries=self._deliveries,
            in_window=self._in_window,
            latency=self._latency,
            slices=self._slices,
            receivers=self._receivers,
            last=self._last,
            intended=self._intended,
            missing=sum(len(stream.missing) for stream in streams),
            next_ones=self._next,
            channels=self._channel,
            duplicates=sum(stream.duplicates for stream in streams),
            reordered=sum(stream.reordered for stream in streams),
            astray=self._astray,
            examples=self._examples,
        )

    def _measure(self, records: Records) -> None:
        window, received, intended = self.window, records.received, records.intended
        self._in_window += int(((received >= window.start) & (received < window.end)).sum())
        slices = np.bincount(received * SLICES_PER_SECOND // 1_000_000)
        self._slices = _padded(self._slices, slices) + _padded(slices, self._slices)
        measured = (intended >= window.start) & (intended < window.end)
        if measured.any():
            self._latency += histogram.counts_of((received - intended)[measured])
        self._make_room(int(records.sequence.max()))
        where = (records.channel * self._publishers + records.publisher, records.sequence)
        width = self._receivers.shape[1]
        np.add.at(self._receivers.reshape(-1), where[0] * width + where[1], 1)
        # Where a place occurs twice numpy keeps the last value, and records are in the order of arrival.
        self._last[where] = np.maximum(self._last[where], received)
        self._intended[where] = intended

    def _make_room(self, sequence: int) -> None:
        while sequence >= self._receivers.shape[1]:
            self._receivers, self._last, self._intended = (
                np.concatenate((each, np.zeros_like(each)), axis=1)
                for each in (self._receivers, self._last, self._intended)
            )

    def _check(self, records: Records) -> None:
        keys = records.connection * self._publishers + records.publisher
        order = np.argsort(keys, kind="stable")
        keys, sequences = keys[order], records.sequence[order]
        starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
        ends = np.concatenate((starts[1:], [len(keys)]))
        expected_next = self._next.reshape(-1)
        expected = np.empty_like(sequences)
        expected[1:] = sequences[:-1] + 1
        at_starts = expected_next[keys[starts]]
        expected[starts] = np.where(at_starts == _NEW, sequences[starts], at_starts)
        wrong = np.logical_or.reduceat(expected != sequences, starts)
        right = ~wrong
        expected_next[keys[starts[right]]] = sequences[ends[right] - 1] + 1
        for start, end in zip(starts[wrong].tolist(), ends[wrong].tolist(), strict=True):
            self._check_stream(int(keys[start]), sequences[start:end].tolist())

    def _check_stream(self, key: int, sequences: list[int]) -> None:
        connection, publisher = divmod(key, self._publishers)
        next_one = int(self._next[connection, publisher])
        if len(self._examples) < _EXAMPLES:
            received = f"{sequences[:12]}{' ...' if len(sequences) > 12 else ''}"
            self._examples.append(
                f"connection {connection}, publisher {publisher}: {next_one} was expected, received {received}"
            )
        stream = self._streams.setdefault(key, Stream())
        self._next[connection, publisher] = stream.receive(sequences[0] if next_one == _NEW else next_one, sequences)

    def _note(self, what: str, records: Records) -> None:
        if len(self._examples) < _EXAMPLES:
            self._examples.append(f"connection {records.connection[0]}: {what}, {records.channel[0]}")


def _padded(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return `one` with zeros up to the length of `other` along the last axis."""
    short = max(other.shape[-1] - one.shape[-1], 0)
    return np.pad(one, [(0, 0)] * (one.ndim - 1) + [(0, short)]) if short else one
