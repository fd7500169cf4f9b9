"""`backplane.connection.sender`: from the outbox to the socket, by ASGI and by a lane, in order."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextvars import copy_context
from typing import TYPE_CHECKING

import pytest

from backplane.connection.sender import AsgiSender, LaneSender, SocketGoneError
from backplane.fanout.backlog import Backlog, FullPolicy
from backplane.fanout.batch import Batch
from backplane.fanout.frames import encode_frame
from backplane.fanout.outbox import Outbox
from backplane.message import Gap, Message
from tests.unit.doubles import FakeLane, until_idle

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0


class Callbacks:
    """Keeps the calls of a sender.

    Attributes:
        calls: Every call, with what it was about.
        at_outbox_full: Called at `outbox_full`.
        read: How many times the client went on reading.
        lost: How many messages were lost, by the reason.
    """

    def __init__(self) -> None:
        self.lost: Counter[str] = Counter()
        self.calls: list[object] = []
        self.read = 0
        self.at_outbox_full: Callable[[], object] = lambda: None

    def outbox_full(self, item: Message | Gap) -> None:
        """Keep it."""
        self.calls.append(("outbox full", item.data if isinstance(item, Message) else item))
        self.at_outbox_full()

    def send_failed(self, error: Exception) -> None:
        """Keep it."""
        self.calls.append(error)

    def transport_closed(self) -> None:
        """Keep it."""
        self.calls.append("transport closed")

    def client_has_read(self) -> None:
        """Count it."""
        self.read += 1

    def messages_lost(self, reason: str, count: int) -> None:
        """Count them."""
        self.lost[reason] += count


class Client:
    """What ASGI sends to: takes a message at once, or when its gate opens.

    Attributes:
        got: What it has taken.
        begun: How many sends were begun.
        error: What a send raises, at once with the gate open, else when it opens.
        ends: How the sends ended that did not return.
    """

    def __init__(self) -> None:
        self.got: list[str | bytes] = []
        self.begun = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: BaseException | None = None
        self.ends: list[type[BaseException]] = []

    async def send(self, data: str | bytes) -> None:
        """Take a message."""
        self.begun += 1
        try:
            await self.gate.wait()
            if self.error is not None:
                raise self.error  # noqa: TRY301  # as a server's own would
        except BaseException as error:
            self.ends.append(type(error))
            raise
        self.got.append(data)


def batch(*texts: str) -> Batch:
    """Return a batch of texts."""
    return Batch(*(Message(channel="a", data=data) for data in texts))


def outbox_of(when_full: FullPolicy = "close", *, max_messages: int = 100) -> Outbox:
    """Return an outbox."""
    return Outbox(Backlog(max_bytes=1_000_000, max_messages=max_messages, when_full=when_full))


def tasks() -> set[asyncio.Task[object]]:
    """Return the tasks there are."""
    return asyncio.all_tasks()


async def soon(condition: Callable[[], bool]) -> None:
    """Let tasks run until `condition` holds."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0)


class Plain:
    """A `AsgiSender` with its three sides."""

    def __init__(self, when_full: FullPolicy = "close", *, max_messages: int = 100, opened: bool = True) -> None:
        self.client = Client()
        self.callbacks = Callbacks()
        self.outbox = outbox_of(when_full, max_messages=max_messages)
        self.sender = AsgiSender(self.outbox, self.callbacks, self.client.send, copy_context())
        if opened:
            self.sender.open()


class OnLane:
    """A `LaneSender` with its three sides."""

    def __init__(self, when_full: FullPolicy = "close", *, max_messages: int = 100, opened: bool = True) -> None:
        self.lane = FakeLane()
        self.callbacks = Callbacks()
        self.outbox = outbox_of(when_full, max_messages=max_messages)
        self.sender = LaneSender(self.outbox, self.callbacks, self.lane, copy_context())
        if opened:
            self.sender.open()


# --- by ASGI -------------------------------------------------------------------------------------------------------


async def test_send_that_completes_at_once() -> None:
    """Messages the server takes at once are sent in the same pass of the event loop, in order, and leave no task."""
    plain, before = Plain(), tasks()
    plain.sender.offer(batch("1", "2"))
    plain.sender.offer(batch("3"))
    assert (plain.client.got, plain.sender.is_waiting) == (["1", "2", "3"], False)
    await until_idle()
    assert tasks() == before
    await plain.sender.drained()


async def test_send_that_waits() -> None:
    """A send that waits costs one task; everything after it queues, however it is offered, and keeps its order."""
    plain, before = Plain(), tasks()
    plain.client.gate.clear()
    plain.sender.offer(batch("1", "2"))
    plain.sender.offer(batch("3"))
    await until_idle()
    plain.sender.offer(batch("4", "5"))
    assert (plain.client.begun, len(plain.outbox), len(tasks() - before)) == (1, 4, 1)
    assert plain.sender.is_waiting
    plain.client.gate.set()
    plain.sender.offer(batch("6"))
    await plain.sender.drained()
    assert plain.client.got == ["1", "2", "3", "4", "5", "6"]
    assert (plain.sender.is_waiting, tasks(), len(plain.outbox)) == (False, before, 0)
    plain.sender.offer(batch("7"))
    assert plain.client.got[-1] == "7"


async def test_send_that_waits_in_the_middle_of_a_batch() -> None:
    """Whichever message of a batch waits, nothing overtakes it."""
    plain = Plain()
    send = plain.client.send

    async def stall_at_two(data: str | bytes) -> None:
        if data == "2":
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await send(data)

    plain.sender._send = stall_at_two  # pyright: ignore[reportPrivateUsage]
    plain.sender.offer(batch("1", "2", "3"))
    assert plain.client.got == ["1"]
    await plain.sender.drained()
    assert plain.client.got == ["1", "2", "3"]


async def test_order_over_many_stalls() -> None:
    """A server that stalls at every message gets all of them, in order."""
    plain = Plain(max_messages=1_000)
    got: list[str | bytes] = []

    async def stall(data: str | bytes) -> None:
        await asyncio.sleep(0)
        got.append(data)
        await asyncio.sleep(0)

    plain.sender._send = stall  # pyright: ignore[reportPrivateUsage]
    for number in range(300):
        plain.sender.offer(batch(str(number)))
        if number % 7 == 0:
            await asyncio.sleep(0)
    await plain.sender.drained()
    assert got == [str(number) for number in range(300)]


async def test_before_it_is_open() -> None:
    """Before the handshake is done all waits, and goes out in order at it."""
    plain = Plain(opened=False)
    plain.sender.offer(batch("1", "2"))
    await until_idle()
    assert plain.client.begun == 0
    plain.sender.open()
    plain.sender.offer(batch("3"))
    assert plain.client.got == ["1", "2", "3"]


async def test_first_that_waited_waits_again() -> None:
    """What waited for the handshake may have to wait for the client as well."""
    plain = Plain(opened=False)
    plain.client.gate.clear()
    plain.sender.offer(batch("1", "2"))
    plain.sender.open()
    plain.sender.offer(batch("3"))
    assert plain.client.begun == 1
    plain.client.gate.set()
    await plain.sender.drained()
    assert plain.client.got == ["1", "2", "3"]


async def test_gaps_in_the_outbox_are_not_sent() -> None:
    """A gap that waits is no message; what waits after it is sent."""
    plain = Plain(opened=False)
    for item in (Gap(channel="a", reason=""), Message(channel="a", data="1"), Gap(channel="a", reason="")):
        assert plain.outbox.offer(item)
    plain.sender.open()
    assert (plain.client.got, len(plain.outbox)) == (["1"], 0)


@pytest.mark.parametrize("error", [SocketGoneError(), KeyError("a fault")], ids=["transport closed", "fault"])
async def test_error_at_once(error: Exception) -> None:
    """A send that fails at once is notified once; nothing more is sent."""
    plain = Plain()
    plain.client.error = error
    plain.sender.offer(batch("1", "2"))
    plain.sender.offer(batch("3"))
    await until_idle()
    assert (plain.callbacks.calls, plain.client.begun, plain.sender.is_waiting) == ([error], 1, False)
    await plain.sender.drained()


@pytest.mark.parametrize("error", [SocketGoneError(), KeyError("a fault")], ids=["transport closed", "fault"])
async def test_error_at_the_opening(error: Exception) -> None:
    """The same for what waited for the handshake."""
    plain = Plain(opened=False)
    plain.sender.offer(batch("1", "2"))
    plain.client.error = error
    plain.sender.open()
    assert (plain.callbacks.calls, plain.client.begun, len(plain.outbox)) == ([error], 1, 0)


@pytest.mark.parametrize("error", [SocketGoneError(), KeyError("a fault")], ids=["transport closed", "fault"])
@pytest.mark.parametrize("at", [1, 2], ids=["first", "second"])
async def test_error_while_waiting(error: Exception, at: int) -> None:
    """A send that fails after it had to wait is notified once, and what waits after it is dropped."""
    plain = Plain()
    plain.client.gate.clear()
    plain.sender.offer(batch("1", "2", "3"))
    await until_idle()
    if at == 2:
        send, begun = plain.client.send, 0

        async def fail(data: str | bytes) -> None:
            nonlocal begun
            begun += 1
            plain.client.error = error
            await send(data)

        plain.sender._send = fail  # pyright: ignore[reportPrivateUsage]
    else:
        plain.client.error = error
    plain.client.gate.set()
    await plain.sender.drained()
    plain.sender.offer(batch("4"))
    assert (plain.callbacks.calls, plain.client.begun, len(plain.outbox)) == ([error], at, 0)
    assert plain.client.got == ["1"][: at - 1]
    assert not plain.sender.is_waiting


async def test_close_while_waiting() -> None:
    """The close cancels the send that waits, drops what waits after it, and sends nothing more."""
    plain, before = Plain(), tasks()
    plain.client.gate.clear()
    plain.sender.offer(batch("1", "2"))
    await until_idle()
    plain.sender.close()
    await plain.sender.drained()
    plain.client.gate.set()
    plain.sender.offer(batch("3"))
    await until_idle()
    assert (plain.client.ends, plain.client.begun, plain.client.got) == ([asyncio.CancelledError], 1, [])
    assert (plain.callbacks.calls, len(plain.outbox), tasks()) == ([], 0, before)


async def test_close_in_the_same_pass() -> None:
    """A send that was begun in the very pass of the close is ended too, and leaves nothing."""
    plain, before = Plain(), tasks()
    plain.client.gate.clear()
    plain.sender.offer(batch("1", "2"))
    plain.sender.close()
    await plain.sender.drained()
    plain.client.gate.set()
    await until_idle()
    assert (len(plain.client.ends), plain.client.got, tasks()) == (1, [], before)


async def test_close_twice_and_before_the_opening() -> None:
    """Closed before the handshake, nothing is sent at it; closing again changes nothing."""
    plain = Plain(opened=False)
    plain.sender.offer(batch("1"))
    plain.sender.close()
    plain.sender.close()
    plain.sender.open()
    plain.sender.offer(batch("2"))
    await plain.sender.drained()
    assert (plain.client.begun, len(plain.outbox)) == (0, 0)


async def test_waiting_task_may_be_cancelled() -> None:
    """Cancelling a wait for what is being sent changes nothing of it."""
    plain = Plain()
    plain.client.gate.clear()
    plain.sender.offer(batch("1", "2"))
    waiting = asyncio.create_task(plain.sender.drained())
    await until_idle()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert (waiting.cancelled(), plain.sender.is_waiting, plain.client.ends) == (True, True, [])
    plain.client.gate.set()
    await plain.sender.drained()
    assert plain.client.got == ["1", "2"]


async def test_too_slow_while_a_send_waits() -> None:
    """`outbox_full` is called once, and where it closes the sender nothing is left."""
    plain, before = Plain(max_messages=1), tasks()
    plain.callbacks.at_outbox_full = plain.sender.close
    plain.client.gate.clear()
    plain.sender.offer(batch("1", "2", "3", "4"))
    assert plain.callbacks.calls == [("outbox full", "3")]
    plain.client.gate.set()
    await until_idle()
    assert (plain.client.got, len(plain.outbox), tasks()) == ([], 0, before)


async def test_send_that_ignores_its_cancellation() -> None:
    """A server that goes on in spite of the close is waited for by `sent`, and gets nothing more."""
    plain, may_end = Plain(), asyncio.Event()

    async def stubborn(data: str | bytes) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await may_end.wait()
        plain.client.got.append(data)

    plain.sender._send = stubborn  # pyright: ignore[reportPrivateUsage]
    plain.sender.offer(batch("1", "2"))
    await until_idle()
    plain.sender.close()
    waiting = asyncio.create_task(plain.sender.drained())
    await until_idle()
    assert not waiting.done()
    may_end.set()
    await asyncio.wait_for(waiting, WAIT_SECONDS)
    assert plain.client.got == ["1"]


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "later"])
async def test_send_that_waits_for_what_another_has_cancelled(*, waits: bool) -> None:
    """A send of a middleware that ends by a cancellation which was not its own is a fault, and ends no other client."""
    plain = Plain()
    future = asyncio.get_running_loop().create_future()
    if not waits:
        future.cancel()

    async def send(_: str | bytes) -> None:
        await future

    plain.sender._send = send  # pyright: ignore[reportPrivateUsage]
    plain.sender.offer(batch("1", "2"))
    future.cancel()
    await plain.sender.drained()
    await until_idle()
    assert [type(call) for call in plain.callbacks.calls] == [RuntimeError]


async def test_send_that_another_cancels() -> None:
    """A send whose task another cancels than its owner, a middleware of its own, is a fault, and the end."""
    plain, before = Plain(), tasks()
    plain.client.gate.clear()
    plain.sender.offer(batch("1", "2"))
    (task,) = tasks() - before
    task.cancel()
    await plain.sender.drained()
    plain.sender.offer(batch("3"))
    await soon(lambda: bool(plain.callbacks.calls))
    plain.sender.offer(batch("4"))
    assert [type(call) for call in plain.callbacks.calls] == [RuntimeError]
    assert (plain.client.begun, len(plain.outbox), plain.sender.is_waiting) == (1, 0, False)


def test_send_that_the_end_of_the_event_loop_cancels() -> None:
    """At the end of the event loop, which cancels every task, a send that waits is no fault."""

    async def main() -> Plain:
        plain = Plain()
        plain.client.gate.clear()
        plain.sender.offer(batch("1"))
        await until_idle()
        return plain

    plain = asyncio.run(main())
    assert (plain.client.ends, plain.callbacks.calls) == ([asyncio.CancelledError], [])


async def test_send_that_sends() -> None:
    """What a send of a middleware sends to its own client goes out after it, and it may wait for it without a lock."""
    plain = Plain()
    send = plain.client.send

    async def send_twice(data: str | bytes) -> None:
        if data == "1":
            plain.sender.offer(batch("3"))
            await plain.sender.drained()
            await asyncio.sleep(0)
            plain.sender.offer(batch("4"))
            await plain.sender.drained()
        await send(data)

    plain.sender._send = send_twice  # pyright: ignore[reportPrivateUsage]
    plain.sender.offer(batch("1", "2"))
    await asyncio.wait_for(plain.sender.drained(), WAIT_SECONDS)
    assert plain.client.got == ["1", "2", "3", "4"]


@pytest.mark.parametrize("then", ["returns", "raises", "waits"])
async def test_send_in_which_the_connection_is_closed(then: str) -> None:
    """A send in which a middleware closes the connection is the last one; it is cancelled if it waits."""
    sent: list[str | bytes] = []
    ends: list[type[BaseException]] = []

    async def send(data: str | bytes) -> None:
        sent.append(data)
        sender.close()
        try:
            if then == "raises":
                raise RuntimeError("closed")  # noqa: TRY301  # as a server's own would
            if then == "waits":
                await asyncio.Event().wait()
        except BaseException as error:
            ends.append(type(error))
            raise

    callbacks, before = Callbacks(), tasks()
    sender = AsgiSender(outbox_of(), callbacks, send, copy_context())
    sender.open()
    sender.offer(batch("1", "2"))
    await until_idle()
    assert (sent, callbacks.calls, tasks()) == (["1"], [], before)
    assert ends == {"returns": [], "raises": [RuntimeError], "waits": [asyncio.CancelledError]}[then]


# --- by a lane -----------------------------------------------------------------------------------------------------


async def test_lane_writes_at_once() -> None:
    """A batch is one write of its joined frames, in the same pass, without a task and without the outbox."""
    lane, before = OnLane(), tasks()
    one = batch("1", "2")
    lane.sender.offer(one)
    lane.sender.offer(batch("3"))
    assert lane.lane.writes == [encode_frame("1") + encode_frame("2"), encode_frame("3")]
    assert lane.lane.writes[0] is one.frames
    assert (tasks(), len(lane.outbox), lane.sender.is_waiting) == (before, 0, False)
    await lane.sender.drained()


async def test_lane_shares_the_bytes() -> None:
    """All clients get the same object of bytes."""
    lanes, one = [OnLane() for _ in range(3)], batch("1", "2")
    for lane in lanes:
        lane.sender.offer(one)
    assert len({id(lane.lane.writes[0]) for lane in lanes}) == 1


async def test_lane_before_it_is_open() -> None:
    """Before the handshake is done the lane is not touched; then what waited is written before anything else."""
    lane = OnLane(opened=False)
    lane.sender.offer(batch("1", "2"))
    assert lane.sender.is_waiting
    lane.sender.open()
    lane.sender.offer(batch("3"))
    assert lane.lane.written == ["1", "2", "3"]
    assert not lane.sender.is_waiting


async def test_lane_that_is_paused_at_the_opening() -> None:
    """A transport that takes nothing yet gets what waits when it does."""
    lane = OnLane(opened=False)
    lane.lane.pause()
    lane.sender.offer(batch("1"))
    lane.sender.open()
    lane.sender.offer(batch("2"))
    assert lane.lane.writes == []
    lane.lane.resume()
    assert lane.lane.written == ["1", "2"]


async def test_lane_queues_while_paused() -> None:
    """While the transport takes no more, messages wait in order; at the resume they go out joined, in one write."""
    lane = OnLane()
    lane.lane.takes = 1
    lane.sender.offer(batch("1"))
    lane.sender.offer(batch("2", "3"))
    lane.sender.offer(batch("4"))
    assert (lane.lane.written, len(lane.outbox), lane.sender.is_waiting) == (["1"], 3, True)
    lane.lane.resume()
    assert lane.lane.writes[1:] == [encode_frame("2") + encode_frame("3") + encode_frame("4")]
    lane.sender.offer(batch("5"))
    assert lane.lane.written == ["1", "2", "3", "4", "5"]


async def test_lane_that_pauses_while_it_drains() -> None:
    """A drain stops at the write at which the transport pauses, and goes on at the next resume, in order."""
    lane = OnLane()
    lane.lane.pause()
    texts = [str(number) * 40_000 for number in range(9)]
    lane.sender.offer(batch(*texts))
    for _ in range(5):
        lane.lane.resume(takes=1)
    assert [len(write) > 64 * 1024 for write in lane.lane.writes] == [True, True, True, True, False]
    assert lane.lane.written == texts
    assert not lane.sender.is_waiting


async def test_lane_that_pauses_with_its_last_write() -> None:
    """What is offered after the write that emptied the outbox and paused the transport queues again."""
    lane = OnLane()
    lane.lane.pause()
    lane.sender.offer(batch("1"))
    lane.lane.resume(takes=1)
    lane.sender.offer(batch("2"))
    assert (lane.lane.written, len(lane.outbox)) == (["1"], 1)
    lane.lane.resume()
    assert lane.lane.written == ["1", "2"]


async def test_lane_drains_gaps_as_nothing() -> None:
    """A gap that waits is not written."""
    lane = OnLane(opened=False)
    for item in (Gap(channel="a", reason=""), Message(channel="a", data="1"), Gap(channel="a", reason="")):
        assert lane.outbox.offer(item)
    lane.sender.open()
    assert (lane.lane.written, len(lane.outbox)) == (["1"], 0)


async def test_lane_too_slow() -> None:
    """`outbox_full` is called with the message without room, once for a batch; what was taken before it stays."""
    lane = OnLane(max_messages=2)
    lane.lane.pause()
    lane.sender.offer(batch("1", "2", "3", "4"))
    assert (lane.callbacks.calls, len(lane.outbox)) == ([("outbox full", "3")], 2)


async def test_lane_compresses_for_its_window() -> None:
    """Where the lane names a window, what is written at once is compressed, and what waited is not; both are legal."""
    lane = OnLane(opened=False)
    lane.lane.deflate_window_bits = 12
    one = batch("x" * 1_000)
    lane.sender.offer(batch("w" * 1_000))
    lane.sender.open()
    lane.sender.offer(one)
    assert lane.lane.writes == [encode_frame("w" * 1_000), one.compressed(12)]
    assert lane.lane.writes[1] is one.compressed(12)
    assert lane.lane.written == ["w" * 1_000, "x" * 1_000]


async def test_lane_sent() -> None:
    """Every task that waits goes on when the transport has taken the last message, and not before."""
    lane = OnLane()
    lane.lane.pause()
    lane.sender.offer(batch("x" * 70_000, "2"))
    waiting = [asyncio.create_task(lane.sender.drained()) for _ in range(3)]
    await until_idle()
    waiting.pop().cancel()
    lane.lane.resume(takes=1)
    await until_idle()
    assert [task.done() for task in waiting] == [False, False]
    lane.lane.resume()
    await asyncio.wait_for(asyncio.gather(*waiting), WAIT_SECONDS)
    await asyncio.wait_for(lane.sender.drained(), WAIT_SECONDS)


async def test_lane_sent_waits_again() -> None:
    """A task that finds more waiting when it goes on waits for that too, and goes on in the end."""
    lane = OnLane()
    lane.lane.pause()
    lane.sender.offer(batch("1"))
    waiting = asyncio.create_task(lane.sender.drained())
    await until_idle()
    lane.lane.resume()
    lane.lane.pause()
    lane.sender.offer(batch("2"))
    await until_idle()
    assert not waiting.done()
    lane.lane.resume()
    await asyncio.wait_for(waiting, WAIT_SECONDS)


@pytest.mark.parametrize("ending", ["close", "lane"])
async def test_lane_end_wakes_every_waiting_task(ending: str) -> None:
    """At the end, from either side, every task that waits goes on, and the messages that wait are dropped."""
    lane = OnLane()
    lane.lane.pause()
    lane.sender.offer(batch("1"))
    waiting = asyncio.create_task(lane.sender.drained())
    await until_idle()
    if ending == "close":
        lane.sender.close()
    else:
        lane.lane.end()
    await asyncio.wait_for(waiting, WAIT_SECONDS)
    assert (len(lane.outbox), lane.sender.is_waiting) == (0, False)
    assert lane.callbacks.calls == ([] if ending == "close" else ["transport closed"])


async def test_lane_nothing_after_the_close() -> None:
    """After the close nothing is written, whatever is offered and whatever the transport reports."""
    lane = OnLane()
    lane.sender.close()
    lane.sender.offer(batch("1"))
    lane.lane.pause()
    lane.sender.offer(batch("2"))
    lane.lane.resume()
    lane.sender.offer(batch("3"))
    assert (lane.lane.writes, len(lane.outbox), lane.sender.is_waiting) == ([], 0, False)
    lane.lane.end()
    assert lane.callbacks.calls == []  # the caller of `close` knows
    lane.sender.close()


async def test_lane_nothing_after_its_own_end() -> None:
    """After `lane_closed` nothing is written, and the callbacks are notified once."""
    lane = OnLane()
    lane.lane.end()
    lane.sender.offer(batch("1"))
    await asyncio.wait_for(lane.sender.drained(), WAIT_SECONDS)
    assert (lane.lane.writes, len(lane.outbox), lane.callbacks.calls) == ([], 0, ["transport closed"])


async def test_lane_closed_before_the_opening() -> None:
    """Closed before the handshake, the lane is not attached; where it ended before, the callbacks are notified."""
    closed, ended = OnLane(opened=False), OnLane(opened=False)
    closed.sender.close()
    closed.sender.open()
    assert closed.lane._user is None  # pyright: ignore[reportPrivateUsage]
    ended.sender.offer(batch("1"))
    ended.lane.end()
    ended.sender.open()
    assert (ended.callbacks.calls, ended.lane.writes, len(ended.outbox)) == (["transport closed"], [], 0)


async def test_lane_close_from_a_write() -> None:
    """A client that is closed from within a write gets nothing more of what is being drained."""
    lane = OnLane()
    lane.lane.pause()
    lane.sender.offer(batch("x" * 70_000, "2"))
    lane.lane.on_write = lambda _: lane.sender.close()
    lane.lane.resume()
    assert (len(lane.lane.writes), len(lane.outbox)) == (1, 0)


@pytest.mark.parametrize("data", [("1", "2", "3", "4"), ("1", "2")], ids=["before others", "for the last"])
async def test_owner_that_closes_at_a_drop(data: tuple[str, ...]) -> None:
    """A client that is closed because messages are dropped keeps nothing of the batch that brought it down."""
    lane = OnLane("drop_oldest", max_messages=1)
    lane.outbox.on_drop = lambda _, __: lane.sender.close()
    lane.lane.pause()
    lane.sender.offer(batch(*data))
    assert (len(lane.outbox), lane.outbox.dropped) == (0, 1)


@pytest.mark.parametrize("made", [Plain, OnLane])
async def test_empty_batch(made: type[Plain | OnLane]) -> None:
    """An empty batch, as the publisher of all of its messages gets, sends nothing."""
    one = made()
    one.sender.offer(Batch())
    await one.sender.drained()
    assert (one.client.begun if isinstance(one, Plain) else one.lane.written) in (0, [])


# --- what a join gives back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [Plain, OnLane])
async def test_excluded_while_something_waits(made: type[Plain | OnLane]) -> None:
    """What does not exclude a client waits for it in order, also where others have shared the bytes of all."""
    shared = Batch(*(Message(channel="a", data=str(n), excluded=b"%08d" % (n % 3)) for n in range(9)))
    assert len(shared.for_token(b"00000001").compressed(12)) < len(shared.compressed(12))
    subject = made(opened=False)
    subject.sender.offer(shared.for_token(b"00000000"))
    subject.sender.offer(shared.for_token(b"00000002").for_token(b"00000001"))
    subject.sender.open()
    expected = ["1", "2", "4", "5", "7", "8", "0", "3", "6"]
    assert (subject.client.got if isinstance(subject, Plain) else subject.lane.written) == expected


async def test_lane_writes_much_that_is_given_back_piece_by_piece() -> None:
    """Above 64 KiB only what the transport takes is written, whatever the bounds; the rest waits, in order."""
    on_lane = OnLane(max_messages=1)
    texts = [str(number) * 10_000 for number in range(10)] * 2
    on_lane.lane.takes = 1
    on_lane.sender.offer_missed(batch(*texts))
    assert 0 < len(on_lane.lane.written) < len(texts)
    on_lane.sender.offer(batch("live"))
    on_lane.lane.resume()
    assert (on_lane.lane.written, on_lane.callbacks.calls) == ([*texts, "live"], [])
    assert max(map(len, on_lane.lane.writes)) < 80 * 1024
    on_lane.sender.offer(batch("directly"))
    assert on_lane.lane.written[-1] == "directly"


async def test_lane_that_ends_while_much_is_given_back() -> None:
    """The end of the client in the first write ends it."""
    on_lane = OnLane(max_messages=1)
    on_lane.lane.on_write = lambda _: on_lane.lane.end()
    on_lane.sender.offer_missed(batch("x" * 70_000, "y" * 70_000))
    assert (len(on_lane.lane.writes), on_lane.callbacks.calls) == (1, ["transport closed"])


@pytest.mark.parametrize("made", [Plain, OnLane])
async def test_what_is_given_back_before_the_opening(made: type[Plain | OnLane]) -> None:
    """It waits, however much it is, and is sent at the opening."""
    side = made(max_messages=2, opened=False)
    texts = [str(number) for number in range(10)]
    side.sender.offer_missed(batch(*texts))
    side.sender.offer(batch("live"))
    side.sender.open()
    got = side.client.got if isinstance(side, Plain) else side.lane.written
    assert (got, side.callbacks.calls) == ([*texts, "live"], [])


async def test_send_of_what_is_given_back_that_suspends() -> None:
    """What is left of it after the first send waits, however much it is."""
    plain = Plain(max_messages=2)
    plain.client.gate.clear()
    texts = [str(number) for number in range(10)]
    plain.sender.offer_missed(batch(*texts))
    plain.sender.offer(batch("live"))
    plain.client.gate.set()
    await plain.sender.drained()
    assert (plain.client.got, plain.callbacks.calls, plain.callbacks.read) == ([*texts, "live"], [], 1)


# --- what is lost is counted -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Plain, OnLane])
async def test_what_does_not_fit_is_counted(kind: type[Plain | OnLane]) -> None:
    """With the policy `close`, the message that does not fit counts, and what follows it in its batch."""
    made = kind(max_messages=2, opened=False)
    made.sender.offer(batch("1", "2", "3", "4", "5"))
    assert made.callbacks.lost == {"overrun": 3}


@pytest.mark.parametrize("kind", [Plain, OnLane])
async def test_what_waits_at_the_end_is_counted(kind: type[Plain | OnLane]) -> None:
    """What waited for a client that ends counts once, and what is offered to it after that too; gaps do not."""
    made = kind(opened=False)
    made.sender.offer(batch("1", "2"))
    made.outbox.offer(Gap(channel="a", reason="lost"))
    made.sender.close()
    assert made.callbacks.lost == {"discarded": 2}
    made.sender.offer(batch("3"))
    made.sender.close()
    assert made.callbacks.lost == {"discarded": 3}


@pytest.mark.parametrize("kind", [Plain, OnLane])
async def test_what_is_sent_is_not_lost(kind: type[Plain | OnLane]) -> None:
    """What the socket has taken does not count."""
    made = kind()
    made.sender.offer(batch("1", "2"))
    await until_idle()
    made.sender.close()
    assert made.callbacks.lost == {}


async def test_the_rest_of_a_batch_whose_send_fails_is_counted() -> None:
    """The message that the server failed to send was handed to it; those after it were not."""
    plain = Plain()
    plain.client.error = OSError("gone")
    plain.sender.offer(batch("1", "2", "3"))
    assert plain.callbacks.lost == {"discarded": 2}


async def test_the_rest_of_a_batch_that_closes_its_client_is_counted() -> None:
    """A middleware can close the client in a send, which then waits, or does not."""
    for waits in (False, True):
        plain = Plain()

        async def close_in_send(_: str | bytes, plain: Plain = plain, waits: bool = waits) -> None:
            plain.sender.close()
            if waits:
                await asyncio.Event().wait()

        plain.sender._send = close_in_send  # pyright: ignore[reportPrivateUsage]
        plain.sender.offer(batch("1", "2", "3"))
        await until_idle()
        assert plain.callbacks.lost == {"discarded": 2}
