"""`backplane.server.transport_lane`: the part of a lane that its transport decides, whatever its server is."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest

from backplane.server.transport_lane import TransportLane
from tests.unit.server.session import Transport

if TYPE_CHECKING:
    from collections.abc import Callable


class Writer:
    """A `LaneWriter` that keeps its notifications, and may write when it is notified.

    Attributes:
        notified: What it was notified of, in order; `None` is the end.
        on_writable: Called with each notification but the end.
    """

    def __init__(self) -> None:
        self.notified: list[bool | None] = []
        self.on_writable: Callable[[bool], object] = lambda _: None

    def lane_writable(self, writable: bool, /) -> None:
        """Keep it."""
        self.notified.append(writable)
        self.on_writable(writable)

    def lane_closed(self) -> None:
        """Keep it."""
        self.notified.append(None)


class OpenLane(TransportLane):
    """A lane as its server opens it."""

    def __init__(self, transport: Transport, writer: Writer | None = None) -> None:
        super().__init__(transport, 7.0)
        self._writer = writer
        self.write = transport.write


def test_before_there_is_a_writer() -> None:
    """It writes nothing, and ends without a notification."""
    transport = Transport()
    lane = TransportLane(transport, 7.0)
    lane.write(b"never")
    lane.ping()
    assert (lane.writable, lane.reading, lane.buffered_bytes, lane.last_received_at) == (True, True, 0, 7.0)
    assert not lane.set_writable(False)
    assert lane.set_writable(True)
    lane.end()
    assert (transport.written, lane.writable) == ([], False)


def test_writer_is_notified_of_what_the_transport_takes() -> None:
    """Of each change, and the server learns whether an awaited send may go on: not where the writer filled it again."""
    writer = Writer()
    lane = OpenLane(Transport(), writer)
    assert not lane.set_writable(False)
    assert lane.set_writable(True)
    writer.on_writable = lambda writable: lane.set_writable(False) if writable else None
    assert not lane.set_writable(True)
    assert writer.notified == [False, True, True, False]


def test_ping_is_not_queued() -> None:
    """A ping is sent at once or not at all."""
    transport = Transport()
    lane = OpenLane(transport)
    lane.ping()
    lane.set_writable(False)
    lane.ping()
    assert transport.written == [b"\x89\x00"]


@pytest.mark.parametrize("ends", [TransportLane.end, TransportLane.close])
def test_end(ends: Callable[[TransportLane], None]) -> None:
    """The writer is notified once, nothing is written after it, and a send that waits for the transport goes on."""
    writer, transport = Writer(), Transport()
    lane = OpenLane(transport, writer)
    for _ in range(2):
        ends(lane)
    lane.write(b"never")
    lane.ping()
    assert lane.set_writable(False)
    assert (writer.notified, transport.written, lane.writable) == ([None], [], False)
    assert transport.closing is (ends is TransportLane.close)


def test_abort_ends_nothing_by_itself() -> None:
    """The transport reports the loss of the connection later."""
    writer, transport = Writer(), Transport()
    transport.abort = Mock()  # type: ignore[method-assign]
    OpenLane(transport, writer).abort()
    assert (writer.notified, transport.abort.call_count) == ([], 1)
