"""The promises of a `Lane`, each as a test that runs on any server, and on a double of one.

No test waits for time: what must arrive is waited for, with a bound.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Protocol

import pytest

from backplane.errors import LifecycleError
from backplane.fanout.frames import encode_frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from backplane.lane import Lane

__all__ = ["LaneConformance", "LaneSite", "QueueingWriter"]

_WAIT_SECONDS = 30.0
_LIMIT_BYTES = 100
# More than the buffers of two kernels hold: 16 MiB.
_LONG, _MANY = 64 * 1024, 256


class LaneSite(Protocol):
    """One WebSocket on the server under test: its lane, the application's side of it, and its client."""

    @property
    def lane(self) -> Lane:
        """The lane, as it stands in the scope."""
        ...

    async def accept(self) -> None:
        """Accept the handshake, as the application does, and return when the client knows."""

    def stop_reading(self) -> None:
        """Let the client read nothing more, so that what is written fills the transport."""

    def resume_reading(self) -> None:
        """Let the client read again."""

    async def send(self, text: str) -> None:
        """Send a message from the client; return when the server has received it, or has refused it."""

    async def close(self) -> None:
        """Close from the client's side, with a close frame."""

    async def received(self, count: int) -> list[str | bytes]:
        """Return the first `count` messages that the client has received, once there are so many."""
        ...


class QueueingWriter:
    """A `LaneWriter` that writes while it may and queues the rest.

    Attributes:
        reports: What `lane_writable` was called with, in order.
        closed: How often `lane_closed` was called.
        queue: Messages that wait.
    """

    def __init__(self, lane: Lane) -> None:
        self.reports: list[bool] = []
        self.closed: int = 0
        self.queue: deque[str] = deque()
        self._lane = lane
        self._writable = False
        self._changed = asyncio.Event()

    def offer(self, *texts: str) -> None:
        """Write messages, or queue them."""
        self.queue.extend(texts)
        self._drain()

    def lane_writable(self, writable: bool, /) -> None:
        """Go on, or stop."""
        assert self.closed == 0, "lane_writable after lane_closed"
        self.reports.append(writable)
        self._writable = writable
        self._changed.set()
        self._drain()

    def lane_closed(self) -> None:
        """Stop for good."""
        self.closed += 1
        self._writable = False
        self._changed.set()

    def continue_on(self, lane: Lane) -> None:
        """Write to the lane that replaces the present one, which was handed over."""
        self._lane = lane

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait, bounded, until `condition` holds; it is checked at every report of the lane."""
        async with asyncio.timeout(_WAIT_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def _drain(self) -> None:
        while self._writable and self.queue:
            self._lane.write(encode_frame(self.queue.popleft()))


class LaneConformance:
    """Subclass it, give it the fixture `site`, and pytest runs every promise of `backplane.lane.Lane`.

    Permessage-deflate is not covered: a server that offers it proves on its own that shared frames can be read.
    """

    pytestmark: pytest.MarkDecorator = pytest.mark.anyio

    @pytest.fixture
    def site(self) -> LaneSite:
        """A WebSocket whose handshake has arrived at the application and is not accepted yet."""
        raise NotImplementedError("a subclass gives a WebSocket on its server")

    @pytest.fixture(autouse=True)
    def needs_asyncio(self, anyio_backend_name: str) -> None:
        """Skip on Trio, on which the plugin of anyio runs every test too where it is installed."""
        if anyio_backend_name != "asyncio":
            pytest.skip("the package runs on asyncio")

    @pytest.fixture
    async def writer(self, site: LaneSite) -> AsyncIterator[QueueingWriter]:
        """The writer of an accepted WebSocket."""
        await site.accept()
        writer = QueueingWriter(site.lane)
        site.lane.attach(writer)
        yield writer
        assert writer.closed <= 1

    async def test_a_lane_is_taken_after_the_handshake(self, site: LaneSite) -> None:
        """Before the handshake is accepted the lane cannot be taken."""
        with pytest.raises(LifecycleError):
            site.lane.attach(QueueingWriter(site.lane))
        await site.accept()
        site.lane.attach(QueueingWriter(site.lane))

    async def test_a_lane_has_one_writer(self, site: LaneSite, writer: QueueingWriter) -> None:
        """The first writer is notified at once that it may write; a second one is refused."""
        assert (writer.reports, site.lane.writable) == ([True], True)
        with pytest.raises(LifecycleError):
            site.lane.attach(QueueingWriter(site.lane))

    async def test_messages_arrive_in_order(self, site: LaneSite, writer: QueueingWriter) -> None:
        """Each message arrives once, in the order of the writes, several in one write too."""
        writer.offer("one", "two")
        site.lane.write(encode_frame("three") + encode_frame(b"four"))
        assert await site.received(4) == ["one", "two", "three", b"four"]

    async def test_a_client_that_does_not_read(self, site: LaneSite, writer: QueueingWriter) -> None:
        """The writer is stopped before the server's buffer grows without bound, goes on later, and nothing is lost."""
        site.stop_reading()
        texts = [f"{number} ".ljust(_LONG, ".") for number in range(_MANY)]
        writer.offer(*texts)
        assert (writer.reports, site.lane.writable) == ([True, False], False)
        assert site.lane.buffered_bytes > 0
        site.resume_reading()
        assert await site.received(len(texts)) == texts
        assert writer.reports[:3] == [True, False, True]

    async def test_a_client_that_leaves(self, site: LaneSite, writer: QueueingWriter) -> None:
        """The writer learns once that the client has left; what is written after that is dropped."""
        await site.close()
        await writer.until(lambda: writer.closed == 1)
        assert not site.lane.writable
        site.lane.write(encode_frame("too late"))
        site.lane.ping()

    async def test_attach_after_the_end(self, site: LaneSite) -> None:
        """A writer that comes after the client's end learns of that alone."""
        await site.accept()
        first = QueueingWriter(site.lane)
        site.lane.attach(first)
        await site.close()
        await first.until(lambda: first.closed == 1)
        late = QueueingWriter(site.lane)
        site.lane.attach(late)
        assert (late.reports, late.closed) == ([], 1)

    async def test_close(self, site: LaneSite, writer: QueueingWriter) -> None:
        """Closing ends the lane at once; closing again changes nothing."""
        site.lane.close()
        assert (writer.closed, site.lane.writable) == (1, False)
        site.lane.close()

    async def test_abort(self, site: LaneSite, writer: QueueingWriter) -> None:
        """An abort reports the end in a later pass of the event loop, not out of the call."""
        site.lane.abort()
        assert writer.closed == 0
        await writer.until(lambda: writer.closed == 1)
        assert not site.lane.writable

    async def test_a_message_over_the_limit(self, site: LaneSite, writer: QueueingWriter) -> None:
        """A message of the client above the limit closes the connection with 1009; one at the limit does not."""
        site.lane.limit_messages(_LIMIT_BYTES)
        await site.send("x" * _LIMIT_BYTES)
        assert (writer.closed, site.lane.close_code) == (0, None)
        await site.send("x" * (_LIMIT_BYTES + 1))
        await writer.until(lambda: writer.closed == 1)
        assert site.lane.close_code == 1009

    async def test_when_the_client_was_last_received_from(self, site: LaneSite, writer: QueueingWriter) -> None:
        """What the client sends moves `last_received_at`, on the clock of the event loop."""
        before = site.lane.last_received_at
        await site.send("hello")
        assert before <= site.lane.last_received_at <= asyncio.get_running_loop().time()
        assert writer.closed == 0
