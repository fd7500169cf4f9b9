"""The promises of `Lane.hand_over` and of the `HandedOverLane`, for servers that offer it.

No test waits for time: what must arrive is waited for, with a bound.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import pytest

from backplane.errors import LifecycleError
from backplane.testing.lane_conformance import LaneConformance, LaneSite, QueueingWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.lane import HandedOverLane

__all__ = ["HandOverConformance", "HandOverSite", "QueueingReceiver"]

_WAIT_SECONDS = 10.0
_LIMIT_BYTES = 100
_MOST_WAITING = 64
# More than the buffers of two kernels hold: 16 MiB.
_LONG, _MANY = 64 * 1024, 256


class HandOverSite(LaneSite, Protocol):
    """A `LaneSite` whose WebSocket can be handed over. From then on `send` returns when the client has sent."""

    async def application_receives(self) -> str:
        """Return the type of the next event that the application receives by ASGI."""
        ...

    async def application_sends(self, text: str) -> None:
        """Send a message from the application by ASGI.

        Raises:
            OSError: The client is gone; other servers drop the message.
        """

    async def end_application(self) -> None:
        """Let the application's task end, and return when it has."""

    async def closed(self) -> tuple[int, str]:
        """Return the code and reason of the close frame that the client has received, once its connection is closed."""
        ...


class QueueingReceiver:
    """A `LaneReceiver` that takes each message at once, unless it holds.

    Attributes:
        messages: What was taken.
        ended: How often `receiving_ended` was called.
        holds: Whether it leaves messages on the lane until `take_all`.
    """

    def __init__(self) -> None:
        self.messages: list[str | bytes] = []
        self.ended: int = 0
        self.holds: bool = False
        self.lane: HandedOverLane | None = None
        self._changed = asyncio.Event()

    def message_arrived(self) -> None:
        """Take it."""
        assert self.ended == 0, "message_arrived after receiving_ended"
        self._changed.set()
        if not self.holds:
            self.take_all()

    def receiving_ended(self) -> None:
        """Count it."""
        self.ended += 1
        self._changed.set()

    def take_all(self) -> None:
        """Take what waits."""
        assert self.lane is not None
        while (message := self.lane.take()) is not None:
            self.messages.append(message)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait, bounded, until `condition` holds; it is checked at every call of the lane."""
        async with asyncio.timeout(_WAIT_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class HandOverConformance(LaneConformance):
    """`LaneConformance` for a server whose lanes can be handed over.

    Subclass it, and give it the fixture `site`, with a `HandOverSite`. A server that gives a client time to answer its
    close frame lets that time be short here: one test waits for its end.
    """

    @pytest.fixture
    def receiver(self) -> QueueingReceiver:
        """What receives from the lane once it is handed over."""
        return QueueingReceiver()

    @pytest.fixture
    async def handed_over(
        self, site: HandOverSite, writer: QueueingWriter, receiver: QueueingReceiver
    ) -> HandedOverLane:
        """The lane of a WebSocket that was handed over, with `writer` and `receiver`."""
        return hand_over(site, writer, receiver)

    async def test_hand_over(self, site: HandOverSite, writer: QueueingWriter, receiver: QueueingReceiver) -> None:
        """Messages before and after the hand-over, and after the application's end, arrive once and in order."""
        writer.offer("one")
        handed_over = hand_over(site, writer, receiver)
        assert (writer.reports, writer.closed, handed_over.writable, handed_over.reading) == ([True], 0, True, True)
        writer.offer("two")
        await site.send("first")
        await receiver.until(lambda: receiver.messages == ["first"])
        await site.end_application()
        writer.offer("three")
        await site.send("second")
        assert await site.received(3) == ["one", "two", "three"]
        await receiver.until(lambda: receiver.messages == ["first", "second"])
        assert (writer.closed, receiver.ended, handed_over.close_code) == (0, 0, None)

    async def test_hand_over_needs_a_writer(self, site: HandOverSite, receiver: QueueingReceiver) -> None:
        """Before the handshake is accepted, and without a writer, nothing is handed over, and nothing changes."""
        assert site.lane.hand_over(receiver) is None
        await site.accept()
        assert site.lane.hand_over(receiver) is None
        writer = QueueingWriter(site.lane)
        site.lane.attach(writer)
        writer.offer("one")
        assert await site.received(1) == ["one"]

    async def test_client_that_has_sent(
        self, site: HandOverSite, writer: QueueingWriter, receiver: QueueingReceiver
    ) -> None:
        """A client that has sent something is not handed over, and nothing changes: half of it may be parsed."""
        await site.send("early")
        assert site.lane.hand_over(receiver) is None
        writer.offer("one")
        assert await site.received(1) == ["one"]
        assert (writer.closed, receiver.messages, receiver.ended) == (0, [], 0)

    async def test_hand_over_after_the_end(
        self, site: HandOverSite, writer: QueueingWriter, receiver: QueueingReceiver
    ) -> None:
        """A connection that has ended is not handed over."""
        site.lane.close()
        assert site.lane.hand_over(receiver) is None
        assert (writer.closed, receiver.ended) == (1, 0)

    async def test_hand_over_once(
        self, site: HandOverSite, writer: QueueingWriter, handed_over: HandedOverLane
    ) -> None:
        """It is handed over once: the former lane writes nothing, and the new one takes no other writer."""
        assert (site.lane.hand_over(QueueingReceiver()), handed_over.hand_over(QueueingReceiver())) == (None, None)
        with pytest.raises(LifecycleError):
            handed_over.attach(QueueingWriter(handed_over))
        site.lane.ping()
        assert (site.lane.writable, writer.closed) == (False, 0)

    async def test_application_after_a_hand_over(
        self, site: HandOverSite, writer: QueueingWriter, receiver: QueueingReceiver, handed_over: HandedOverLane
    ) -> None:
        """The application finds a client that is gone; neither what it sends nor its end changes the connection."""
        assert await site.application_receives() == "websocket.disconnect"
        with suppress(OSError):
            await site.application_sends("never")
        await site.end_application()
        writer.offer("one")
        assert await site.received(1) == ["one"]
        assert (writer.closed, receiver.ended, handed_over.writable) == (0, 0, True)

    async def test_handed_over_client_that_does_not_read(
        self, site: HandOverSite, writer: QueueingWriter, receiver: QueueingReceiver
    ) -> None:
        """A writer that is stopped at the hand-over is notified by the new lane when it may go on."""
        site.stop_reading()
        texts = [f"{number} ".ljust(_LONG, ".") for number in range(_MANY)]
        writer.offer(*texts)
        assert writer.reports == [True, False]
        handed_over = hand_over(site, writer, receiver)
        assert (handed_over.writable, handed_over.buffered_bytes > 0) == (False, True)
        site.resume_reading()
        assert await site.received(len(texts)) == texts
        assert writer.reports[:3] == [True, False, True]

    async def test_messages_that_wait_are_bounded(
        self, site: HandOverSite, receiver: QueueingReceiver, handed_over: HandedOverLane
    ) -> None:
        """Where messages are not taken the server stops reading, and goes on when they are; none is lost."""
        receiver.holds = True
        texts = [str(number) for number in range(10 * _MOST_WAITING)]
        for text in texts:
            await site.send(text)
        await receiver.until(lambda: not handed_over.reading)
        assert receiver.messages == []
        receiver.holds = False
        receiver.take_all()
        await receiver.until(lambda: receiver.messages == texts)
        await site.send("last")
        await receiver.until(lambda: receiver.messages[-1] == "last")
        assert handed_over.take() is None

    async def test_handed_over_client_that_leaves(
        self, site: HandOverSite, writer: QueueingWriter, receiver: QueueingReceiver, handed_over: HandedOverLane
    ) -> None:
        """The writer learns once that the client has left, the receiver too; what it sent before can be taken."""
        receiver.holds = True
        await site.send("last")
        await receiver.until(lambda: True)
        await site.close()
        await writer.until(lambda: writer.closed == 1)
        await receiver.until(lambda: receiver.ended == 1)
        await gone(handed_over)
        receiver.take_all()
        assert (receiver.messages, receiver.ended, writer.closed) == (["last"], 1, 1)
        assert (handed_over.close_code, handed_over.writable) == (None, False)
        handed_over.write(b"too late")
        handed_over.ping()
        handed_over.close_with(1000, "too late")

    async def test_close_with(
        self, site: HandOverSite, writer: QueueingWriter, receiver: QueueingReceiver, handed_over: HandedOverLane
    ) -> None:
        """The client receives what was written, then the close frame, once; with its answer the connection ends."""
        writer.offer("one")
        handed_over.close_with(4000, "bye")
        assert (writer.closed, handed_over.writable, handed_over.close_code) == (1, False, 4000)
        handed_over.close_with(4001, "again")
        assert await site.received(1) == ["one"]
        assert await site.closed() == (4000, "bye")
        await gone(handed_over)
        assert (writer.closed, receiver.ended, handed_over.close_code) == (1, 1, 4000)

    async def test_close_with_and_no_answer(
        self, site: HandOverSite, writer: QueueingWriter, receiver: QueueingReceiver, handed_over: HandedOverLane
    ) -> None:
        """A client that does not answer the close frame is closed after some time."""
        site.stop_reading()
        writer.offer("one", "two", "three")
        handed_over.close_with(4000, "bye")
        await gone(handed_over)
        assert (writer.closed, receiver.ended) == (1, 1)

    async def test_handed_over_message_over_the_limit(
        self, site: HandOverSite, writer: QueueingWriter, receiver: QueueingReceiver
    ) -> None:
        """A limit from before the hand-over holds after it, and a lower one can be set."""
        site.lane.limit_messages(2 * _LIMIT_BYTES)
        handed_over = hand_over(site, writer, receiver)
        handed_over.limit_messages(_LIMIT_BYTES)
        handed_over.limit_messages(2 * _LIMIT_BYTES)
        await site.send("x" * _LIMIT_BYTES)
        await receiver.until(lambda: len(receiver.messages) == 1)
        await site.send("x" * (_LIMIT_BYTES + 1))
        await receiver.until(lambda: receiver.ended == 1)
        assert (writer.closed, handed_over.close_code, len(receiver.messages)) == (1, 1009, 1)

    async def test_handed_over_close(
        self, writer: QueueingWriter, receiver: QueueingReceiver, handed_over: HandedOverLane
    ) -> None:
        """Closing without a close frame ends the lane at once, and receiving when the connection is lost."""
        handed_over.close()
        assert (writer.closed, handed_over.writable) == (1, False)
        await gone(handed_over)
        assert (writer.closed, receiver.ended) == (1, 1)

    async def test_handed_over_abort(
        self, writer: QueueingWriter, receiver: QueueingReceiver, handed_over: HandedOverLane
    ) -> None:
        """An abort reports the end of both sides in a later pass of the event loop, not out of the call."""
        handed_over.abort()
        assert (writer.closed, receiver.ended) == (0, 0)
        await gone(handed_over)
        assert (writer.closed, receiver.ended, handed_over.writable) == (1, 1, False)

    async def test_when_gone(self, handed_over: HandedOverLane) -> None:
        """Each callback is called once when the connection is lost, and at once after that."""
        calls: list[int] = []
        handed_over.when_gone(lambda: calls.append(1))
        handed_over.when_gone(lambda: calls.append(2))
        assert calls == []
        handed_over.abort()
        await gone(handed_over)
        handed_over.when_gone(lambda: calls.append(3))
        assert calls == [1, 2, 3]

    async def test_when_the_handed_over_client_was_last_received_from(
        self, site: HandOverSite, receiver: QueueingReceiver, handed_over: HandedOverLane
    ) -> None:
        """What the client sends moves `last_received_at`, on the clock of the event loop."""
        before = handed_over.last_received_at
        await site.send("hello")
        await receiver.until(lambda: receiver.messages == ["hello"])
        assert before <= handed_over.last_received_at <= asyncio.get_running_loop().time()


def hand_over(site: HandOverSite, writer: QueueingWriter, receiver: QueueingReceiver) -> HandedOverLane:
    """Hand a WebSocket over, and let both go on with the new lane."""
    handed_over = site.lane.hand_over(receiver)
    assert handed_over is not None
    writer.continue_on(handed_over)
    receiver.lane = handed_over
    return handed_over


async def gone(lane: HandedOverLane) -> None:
    """Wait, bounded, until the connection is lost."""
    lost = asyncio.Event()
    lane.when_gone(lost.set)
    await asyncio.wait_for(lost.wait(), _WAIT_SECONDS)
