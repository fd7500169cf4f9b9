"""Doubles of the unit tests: a broker that does what a test demands, and a subscriber that keeps what it receives."""

from __future__ import annotations

import asyncio
import secrets
import zlib
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from backplane.broadcaster import Broadcaster, BrokerUrl, Capabilities, Options
from backplane.errors import BrokerUnavailableError, LifecycleError, SubscribeError
from backplane.fanout.backlog import Backlog
from backplane.fanout.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Sequence

    from backplane.broadcaster import Sink
    from backplane.fanout.broker_subscriptions import BrokerSubscriptions
    from backplane.lane import LaneReceiver, LaneWriter
    from backplane.message import Gap, Joined, Message
    from backplane.statistics import Counters

__all__ = [
    "ControlledBroadcaster",
    "FakeHandedOverLane",
    "FakeLane",
    "Gate",
    "RecordingSubscriber",
    "counted",
    "following",
    "messages_in",
    "run_passes",
    "until_idle",
]


class Gate:
    """Holds the tasks that pass through while it is closed. Open at first."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()

    def close(self) -> None:
        """Hold them from now on."""
        self._open.clear()

    def open(self) -> None:
        """Let them through."""
        self._open.set()

    @property
    def is_open(self) -> bool:
        """Whether it holds nothing."""
        return self._open.is_set()

    async def passage(self) -> None:
        """Return once the gate is open."""
        await self._open.wait()


class FakeLane:
    """A `backplane.lane.Lane` whose transport does what a test demands.

    Attributes:
        writes: What was written, call by call; in `written`, the messages of all of it.
        takes: How many more writes the transport takes before it pauses; `None`: all.
        pings: How many were asked for.
        aborted: Whether it was cut.
        closed: Whether it was closed without a close frame.
        last_received_at: As in `Lane`, set by the test.
        reading: As in `Lane`, set by the test.
        deflate_window_bits: As in `Lane`, set by the test.
        on_write: Called after each write.
        close_code: As in `Lane`, set by the test.
        max_message_bytes: What the client's messages were limited to.
        accepted: Whether the handshake is accepted; set by the test.
        strict: Whether a write that a writer must not do fails the test, instead of being dropped as a server drops it.
        is_read_from: Whether the client has sent something, after which it cannot be handed over; set by the test.
        successor: What it was handed over to.
    """

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.takes: int | None = None
        self.pings = 0
        self.aborted = False
        self.closed = False
        self.last_received_at = 0.0
        self.reading = True
        self.buffered_bytes = 0
        self.deflate_window_bits: int | None = None
        self.max_message_bytes: int | None = None
        self.close_code: int | None = None
        self.accepted = True
        self.strict = True
        self.writable = True
        self.ended = False
        self.on_write: Callable[[bytes], object] | None = None
        self.is_read_from = False
        self.successor: FakeHandedOverLane | None = None
        self._user: LaneWriter | None = None

    @property
    def written(self) -> list[str | bytes]:
        """Every message that was written."""
        return messages_in(b"".join(self.writes))

    def write(self, frames: bytes) -> None:
        """Take frames, as many as the test allows."""
        if not self.strict and (self.ended or self._user is None):
            return
        assert self._user is not None, "written before the lane was taken, or after its end"
        assert self.writable, "written while the transport takes no more"
        self.writes.append(frames)
        if self.on_write is not None:
            self.on_write(frames)
        if self.takes is not None:
            self.takes -= 1
            if self.takes <= 0:
                self.buffered_bytes += len(frames)
                self.pause()

    def attach(self, user: LaneWriter, /) -> None:
        """Take the user."""
        if self._user is not None or not self.accepted:
            raise LifecycleError("the lane has a user, or its handshake was not accepted")
        if self.ended:
            return user.lane_closed()
        self._user = user
        user.lane_writable(self.writable)

    def hand_over(self, receiver: LaneReceiver, /) -> FakeHandedOverLane | None:
        """Go on as another lane, whose writer is the same."""
        if self.ended or self._user is None or self.is_read_from:
            return None
        self.successor = FakeHandedOverLane(self, receiver)
        self._user = None
        self.end()
        return self.successor

    def limit_messages(self, max_bytes: int, /) -> None:
        """Keep it."""
        self.max_message_bytes = max_bytes

    def ping(self) -> None:
        """Count it."""
        self.pings += 1

    def close(self) -> None:
        """End, and keep that it was closed without a close frame."""
        self.closed = True
        self.end()

    def abort(self) -> None:
        """Cut the connection."""
        self.aborted = True
        asyncio.get_running_loop().call_soon(self.end)

    def pause(self) -> None:
        """Take no more."""
        self._set_writable(False)

    def resume(self, takes: int | None = None) -> None:
        """Take more."""
        self.takes = takes
        self._set_writable(True)

    def end(self) -> None:
        """Leave the state OPEN."""
        if self.ended:
            return
        self.ended = True
        self.writable = False
        user, self._user = self._user, None
        if user is not None:
            user.lane_closed()

    def _set_writable(self, writable: bool) -> None:
        if self.ended or self.writable is writable:
            return
        self.writable = writable
        if self._user is not None:
            self._user.lane_writable(writable)


_MOST_WAITING: Final = 64


class FakeHandedOverLane(FakeLane):
    """A `backplane.lane.HandedOverLane` that goes on where a `FakeLane` has ended.

    Args:
        lane: What was handed over.
        receiver: What is notified of the client's messages.

    Attributes:
        closed_with: The close frame that the client got.
    """

    def __init__(self, lane: FakeLane, receiver: LaneReceiver | None) -> None:
        vars(self).update(vars(lane))
        self.closed_with: tuple[int, str] | None = None
        self._receiver: LaneReceiver | None = receiver
        self._messages: deque[str | bytes] = deque()
        self._unread: deque[str | bytes] = deque()  # sent by the client while the server does not read
        self._is_gone = False
        self._when_gone: list[Callable[[], None]] = []

    def arrive(self, *messages: str | bytes) -> None:
        """Receive from the client, each message for itself."""
        for message in messages:
            if not self.reading:
                self._unread.append(message)
            elif not self.ended:
                self._messages.append(message)
                self.reading = len(self._messages) < _MOST_WAITING
                assert self._receiver is not None
                self._receiver.message_arrived()

    def leave(self) -> None:
        """Lose the client."""
        self.end()
        self._is_gone = True
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.receiving_ended()
        callbacks, self._when_gone = self._when_gone, []
        for callback in callbacks:
            callback()

    def attach(self, _: LaneWriter, /) -> None:
        """Refuse: it has a user."""
        raise LifecycleError("the lane has a user")

    def hand_over(self, _: LaneReceiver, /) -> FakeHandedOverLane | None:
        """Refuse: it is handed over."""
        return None

    def take(self) -> str | bytes | None:
        """Return the next message, and read again where too many were waiting."""
        if not self._messages:
            return None
        message = self._messages.popleft()
        while self._unread and len(self._messages) < _MOST_WAITING:
            self._messages.append(self._unread.popleft())
        self.reading = len(self._messages) < _MOST_WAITING
        return message

    def limit_messages(self, max_bytes: int, /) -> None:
        """Keep the lowest limit."""
        self.max_message_bytes = min(max_bytes, self.max_message_bytes or max_bytes)

    def close_with(self, code: int, reason: str, /) -> None:
        """Keep the close frame, and end; the client is gone in a later pass."""
        if not self.ended:
            self.closed_with = code, reason
            self.close_code = code
            self.end()
            asyncio.get_running_loop().call_soon(self.leave)

    def when_gone(self, callback: Callable[[], None], /) -> None:
        """Call it once the client is lost."""
        if self._is_gone:
            callback()
        else:
            self._when_gone.append(callback)

    def close(self) -> None:
        """End, and lose the client in a later pass."""
        super().close()
        asyncio.get_running_loop().call_soon(self.leave)

    def abort(self) -> None:
        """Lose the client in a later pass."""
        self.aborted = True
        asyncio.get_running_loop().call_soon(self.leave)


def messages_in(frames: bytes) -> list[str | bytes]:
    """Return the messages of whole frames as a server sends them, compressed ones too."""
    messages: list[str | bytes] = []
    while frames:
        length, start = frames[1], 2
        if length >= 126:
            start = 4 if length == 126 else 10
            length = int.from_bytes(frames[2:start], "big")
        payload = frames[start : start + length]
        assert len(payload) == length, "a frame is cut"
        if frames[0] & 0x40:
            payload = zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff")
        messages.append(payload.decode() if frames[0] & 0x0F == 1 else payload)
        frames = frames[start + length :]
    return messages


_buses: dict[str, WeakSet[ControlledBroadcaster]] = {}


class ControlledBroadcaster(Broadcaster):
    """An adapter without a broker. A call takes effect when its gate lets it through, as a broker's answer would.

    Those of one URL with a host, such as `controlled://bus`, deliver to each other; one without is alone.

    Attributes:
        calls: Every `(verb, channels)` in the order of the calls, recorded before the gate.
        channels: What the broker has subscribed.
        doubled: Channels it was asked to subscribe while they were subscribed already.
        refusals: Channels it refuses, with its words.
        unconfirmed: Channels on which it gives no final answer, with its words.
        subscribe_gate: Holds `subscribe`.
        unsubscribe_gate: Holds `unsubscribe`.
        error: What `subscribe` and `unsubscribe` raise once they are through the gate, if anything.
        sink: What `start` was given.
    """

    def __init__(self, url: BrokerUrl | None = None, options: Options | None = None) -> None:
        super().__init__(url or BrokerUrl(scheme="controlled"), options or Options())
        alone: WeakSet[ControlledBroadcaster] = WeakSet()
        self._bus = _buses.setdefault(self.url.netloc, alone) if self.url.netloc else alone
        self._bus.add(self)
        self._stopped = False
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.channels: set[str] = set()
        self.doubled: list[str] = []
        self.refusals: dict[str, str] = {}
        self.unconfirmed: dict[str, str] = {}
        self.subscribe_gate = Gate()
        self.unsubscribe_gate = Gate()
        self.error: Exception | None = None
        self.sink: Sink | None = None
        self._changed = asyncio.Event()

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return Capabilities(brokered=False, reach="process", publish_returns="delivered", max_payload_bytes=1024)

    async def start(self, sink: Sink) -> None:
        """Take the sink."""
        self.sink = sink
        self._stopped = False

    async def stop(self) -> None:
        """Forget the sink and every channel."""
        self.sink = None
        self._stopped = True
        self.channels.clear()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Deliver at once."""
        self._check_not_stopped()
        for adapter in list(self._bus):
            if adapter.sink is not None and channel in adapter.channels:
                adapter.sink.deliver(channel, payload)

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe to what is not refused, once the gate is open."""
        await self._called("subscribe", channels, self.subscribe_gate)
        self.doubled += [channel for channel in channels if channel in self.channels]
        refused = {channel: self.refusals[channel] for channel in channels if channel in self.refusals}
        unconfirmed = {channel: self.unconfirmed[channel] for channel in channels if channel in self.unconfirmed}
        self.channels.update(channel for channel in channels if channel not in refused and channel not in unconfirmed)
        self._changed.set()
        if refused or unconfirmed:
            raise SubscribeError(refused, unconfirmed=unconfirmed, adapter="controlled")

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Drop `channels`, once the gate is open."""
        await self._called("unsubscribe", channels, self.unsubscribe_gate)
        self.channels.difference_update(channels)
        self._changed.set()

    async def _called(self, verb: str, channels: Collection[str], gate: Gate) -> None:
        self._check_not_stopped()
        self.calls.append((verb, tuple(channels)))
        self._changed.set()
        await gate.passage()
        if self.error is not None:
            raise self.error

    def _check_not_stopped(self) -> None:
        if self._stopped:
            raise BrokerUnavailableError("the adapter is stopped", adapter="controlled")

    async def until(self, condition: Callable[[], bool], *, timeout_seconds: float = 10.0) -> None:
        """Wait until `condition` holds; it is looked at after every call and every effect.

        Raises:
            TimeoutError: It did not hold in time; the message shows the calls.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise TimeoutError(f"calls {self.calls}, subscribed {self.channels}") from None


class FakeClient:
    """A client of a worker that records what is done with it.

    Attributes:
        id: Its name.
        user: Its user.
        channels: Its channels.
        patterns: Its patterns.
        closes: The codes and reasons of its closes, with whether each was at once.
        sent: What the application sent to it.
        is_over: Whether it has ended; set by the test.
        outbox: What waits for it.
        kind: What it is.
        withheld: For how many messages its envelope returned `None`.
    """

    withheld = 0

    def __init__(self, id: str = "00", user: str | None = None, *channels: str) -> None:  # noqa: A002
        self.id = id
        self.user = user
        self.channels: list[str] = list(channels)
        self.patterns: list[str] = []
        self.closes: list[tuple[str, int, str]] = []
        self.sent: list[str | bytes] = []
        self.is_over = False
        self.outbox = Outbox(Backlog())
        self.kind = "connection"

    @property
    def named(self) -> dict[str, Any]:
        """What names it in the log."""
        return {"kind": "connection", "connection": self.id, "client_key": self.user}

    def retire(self, code: int, reason: str, /) -> None:
        """Record a close after what waits."""
        self.closes.append(("after", code, reason))

    async def close(self, code: int, reason: str, /) -> None:
        """Record a close at once."""
        self.closes.append(("at once", code, reason))

    async def join(self, channel: str, /) -> None:
        """Join a channel."""
        self.channels.append(channel)

    async def leave(self, channel: str, /) -> None:
        """Leave a channel."""
        self.channels.remove(channel)

    def send(self, data: str | bytes, /) -> None:
        """Record what is sent."""
        self.sent.append(data)


class RecordingSubscriber:
    """A local subscriber that keeps what it receives.

    Attributes:
        token: What a publisher names to leave it out.
        received: Every message's data and every `Gap`, in order.
        offers: The data of each call of `offer`.
        joins: Every notice of a join.
        missed: The data of each call of `offer_missed`; `received` has it too.
    """

    def __init__(self) -> None:
        self.token = secrets.token_bytes(8)
        self.received: list[str | bytes | Gap] = []
        self.offers: list[list[str | bytes]] = []
        self.joins: list[Joined] = []
        self.missed: list[list[str | bytes]] = []
        self._changed = asyncio.Event()

    def offer(self, messages: Sequence[Message]) -> None:
        """Keep messages."""
        self.offers.append([message.data for message in messages])
        self.received += [message.data for message in messages]
        self._changed.set()

    def joined(self, joined: Joined) -> None:
        """Keep the notice of a join."""
        self.joins.append(joined)

    def offer_missed(self, messages: Sequence[Message]) -> None:
        """Keep messages that a join gives back."""
        self.missed.append([message.data for message in messages])
        self.received += [message.data for message in messages]
        self._changed.set()

    def gap(self, gap: Gap) -> None:
        """Keep a gap."""
        self.received.append(gap)
        self._changed.set()

    async def receives(self, count: int) -> list[str | bytes | Gap]:
        """Return all that was received once it is `count` items."""
        async with asyncio.timeout(30):
            while len(self.received) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.received


@asynccontextmanager
async def following(
    broker_subscriptions: BrokerSubscriptions, broadcaster: Broadcaster
) -> AsyncGenerator[asyncio.Task[None]]:
    """Run `broker_subscriptions.run`, and close `broker_subscriptions` after it, as the supervisor does."""
    task = asyncio.create_task(broker_subscriptions.run(broadcaster))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        broker_subscriptions.close()


_QUIET_PASSES = 10
_MOST_PASSES = 100_000


async def until_idle() -> None:
    """Run the event loop until nothing is ready to run and no task has moved for ten passes; no time goes by.

    Timers, threads and sockets are not waited for: a test that needs them waits for their event.

    Raises:
        RuntimeError: A task never stops moving.
    """
    loop = asyncio.get_running_loop()
    quiet, before = 0, _moves(loop)
    for _ in range(_MOST_PASSES):
        await asyncio.sleep(0)
        now = _moves(loop)
        quiet = quiet + 1 if now == before and not getattr(loop, "_ready", ()) else 0  # uvloop shows no queue
        if quiet == _QUIET_PASSES:
            return
        before = now
    raise RuntimeError("the event loop never becomes idle")


async def run_passes(passes: int) -> None:
    """Run so many passes of the event loop, where what one pass does is what a test is about."""
    for _ in range(passes):
        await asyncio.sleep(0)


def _moves(loop: asyncio.AbstractEventLoop) -> dict[asyncio.Task[object], tuple[object, int]]:
    """Return where each task but this one stands: in which frame, at which instruction."""
    me = asyncio.current_task()
    return {task: _place(task.get_coro()) for task in asyncio.all_tasks(loop) if task is not me}


def _place(awaited: object) -> tuple[object, int]:
    frame = None
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None) or frame
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return frame, -1 if frame is None else frame.f_lasti


def counted(counters: Counters) -> dict[str, int]:
    """Return what was counted at all."""
    return {name: count for name, count in counters.snapshot().as_dict().items() if count}
