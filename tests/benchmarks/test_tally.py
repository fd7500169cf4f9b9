"""What the benchmarks count: loss, duplicates, order, latency and time to the last socket."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

from benchmarks.harness import histogram
from benchmarks.harness.tally import Tally, Window
from benchmarks.harness.text import PROBE, Records, channel_name, read, record_type, text
from benchmarks.harness.websocket import Frame, client_frame, frames

WINDOW = Window(0, 1_000_000)


def records(*rows: tuple[int, int, int, int, int]) -> Records:
    """Return records of connection, publisher, sequence, intended and received, all of channel 0."""
    connection, publisher, sequence, intended, received = (
        np.array(column, np.int64) for column in zip(*rows, strict=True)
    )
    return Records(connection, np.zeros_like(connection), publisher, sequence, intended, received)


def tally(connections: int = 2, *, publishers: int = 1, first: int = 0) -> Tally:
    """Return a tally of connections to channel 0."""
    found = Tally(WINDOW, 1, publishers)
    found.add_connections([0] * connections, first=first)
    return found


def received(*sequences: int, first: int = 0) -> tuple[int, int, int]:
    """Return what one connection misses, has twice and has out of order, where each of `sequences` is a batch."""
    one = tally(1, first=first)
    for sequence in sequences:
        one.add(records((0, 0, sequence, 0, 10)))
    counted = one.result()
    return counted.missing, counted.duplicates, counted.reordered


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [
        ((0, 1, 2, 3), (0, 0, 0)),
        ((0, 2, 3), (1, 0, 0)),
        ((2, 3), (2, 0, 0)),
        ((0, 1, 1, 2), (0, 1, 0)),
        ((0, 2, 1, 3), (0, 0, 1)),
        ((0, 2, 1, 1, 5), (2, 1, 1)),
    ],
)
def test_each_fault_is_counted_as_what_it_is(sequences: tuple[int, ...], expected: tuple[int, int, int]) -> None:
    """Missing, doubled and late sequences count as what they are, in one batch each and all in one."""
    assert received(*sequences) == expected
    one = tally(1)
    one.add(records(*((0, 0, sequence, 0, 10) for sequence in sequences)))
    counted = one.result()
    assert (counted.missing, counted.duplicates, counted.reordered) == expected


def test_a_later_connection_may_begin_anywhere() -> None:
    """A connection that joined later misses nothing of what was before it, but everything in between counts."""
    assert received(7, 8, 10, first=-1) == (1, 0, 0)


def test_publishers_are_counted_apart() -> None:
    """Two publishers in one channel have a sequence each."""
    one = tally(1, publishers=2)
    one.add(records((0, 0, 0, 0, 1), (0, 1, 0, 0, 2), (0, 0, 1, 0, 3), (0, 1, 2, 0, 4)))
    assert one.result().missing == 1


def test_probes_are_not_counted_but_show_which_connections_receive() -> None:
    """A probe marks its connection as one that receives, and is no delivery."""
    two = tally(2)
    two.add(records((1, PROBE, 0, 0, 1)))
    assert two.probed.tolist() == [False, True]
    assert two.deliveries == 0


def test_a_message_of_another_channel_is_astray() -> None:
    """What a socket of another channel receives is no delivery."""
    one = Tally(WINDOW, 2, 1)
    one.add_connections([1])
    one.add(records((0, 0, 0, 0, 1)))
    assert (one.result().astray, one.deliveries) == (1, 0)


def test_merged_processes_know_the_last_socket() -> None:
    """The time to the last socket is over the sockets of all processes, latencies over all deliveries."""
    near, far = tally(1), tally(1)
    near.add(records((0, 0, 0, 100, 150), (0, 0, 1, 200, 230)))
    far.add(records((0, 0, 0, 100, 900)))
    both = near.result() + far.result()
    assert both.receivers[0, :2].tolist() == [2, 1]
    assert (both.last - both.intended)[0, :2].tolist() == [800, 30]
    assert histogram.summary(both.latency, "latency")["latency_max_ms"] == 0.8


def test_histogram_buckets_are_those_of_hdr() -> None:
    """Counts filled by numpy are those of the HDR library, and what is read of them is right to three digits."""
    values = np.array([0, 1, 999, 2047, 2048, 5000, 123_456, 50_000_000, 10**12])
    counts = histogram.counts_of(values)
    assert counts.sum() == len(values)
    library: Any = HdrHistogram(1, histogram.HIGHEST, 3)
    for value in values.tolist():
        library.record_value(min(value, histogram.HIGHEST))
    again = np.zeros(histogram.SIZE, np.int64)
    for item in library.get_recorded_iterator():
        again += histogram.counts_of(np.array([item.value_iterated_to])) * item.count_added_in_this_iter_step
    assert again[2:].tolist() == counts[2:].tolist()  # the library counts 0 as 1
    highest = [histogram.summary(histogram.counts_of(values[: end + 1]), "x")["x_max_ms"] for end in range(len(values))]
    expected = [0, 0.001, 0.999, 2.047, 2.048, 5.0, 123.456, 50_000, 120_000]
    assert np.allclose(highest, expected, rtol=0.001)


@pytest.mark.parametrize("size", [32, 125, 126, 4096, 70_000])
def test_texts_are_read_as_they_were_written(size: int) -> None:
    """Run, channel, publisher, sequence and time of a text stand in the table that is laid over its frames."""
    message = text("abcdefgh", 3, 65_535, 4_000_000_000, 123_456_789, size).encode()
    assert len(message) == size
    assert message[8:12] == channel_name(3).encode()
    head = 2 if size < 126 else 4 if size < 65536 else 10
    rows = np.frombuffer((bytes(head) + message) * 2, record_type(head + size, head))
    found = read(rows, np.array([7, 8]), np.array([1, 2]))
    assert found.channel.tolist() == [3, 3]
    assert found.publisher.tolist() == [65_535, 65_535]
    assert found.sequence.tolist() == [4_000_000_000, 4_000_000_000]
    assert found.intended.tolist() == [123_456_789, 123_456_789]
    assert (rows["run"] == np.frombuffer(b"abcdefgh", np.uint64)[0]).all()


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_frames_are_parsed(size: int) -> None:
    """Frames of every length come out whole, and what is not whole yet stays."""
    payload = b"y" * size
    masked = client_frame(payload)
    assert masked.endswith(bytes(4) + payload)
    wide = 0 if size < 126 else 2 if size < 65_536 else 8
    frame = masked[:1] + bytes([masked[1] & 127]) + masked[2 : 2 + wide] + payload  # as a server sends it
    found, rest = frames(frame * 2 + frame[:1])
    assert found == [Frame(1, False, payload)] * 2
    assert rest == frame[:1]
