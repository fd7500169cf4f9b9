"""`backplane.connection.receiver`: the messages of one client, one after the other, within its limits."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from backplane.close_codes import CloseCode
from backplane.connection.limits import Limits
from backplane.connection.receiver import Receiver
from backplane.errors import LifecycleError
from tests.unit.doubles import until_idle

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0


class Client:
    """A client that sends, and the callbacks of its receiver, which close as `ConnectionDriver` does.

    Attributes:
        sent: What it sends; `None` is its end.
        receives: How often the next message was requested.
        notified: The calls of the callbacks but `message_received`.
        times: When a message came.
    """

    def __init__(self, *sent: str | bytes | Exception | None, limits: Limits | None = None) -> None:
        self.sent: asyncio.Queue[str | bytes | Exception | None] = asyncio.Queue()
        for message in sent:
            self.sent.put_nowait(message)
        self.receives = 0
        self.notified: list[object] = []
        self.times: list[float] = []
        self.receiver = Receiver(self.receive, limits or Limits(), self)

    async def receive(self) -> str | bytes | None:
        """Return the next message."""
        self.receives += 1
        sent = await self.sent.get()
        if isinstance(sent, Exception):
            raise sent
        return sent

    def message_received(self, now: float, data: str | bytes, /) -> None:
        """Keep it."""
        self.times.append(now)

    def disconnected(self) -> None:
        """Keep it, and end."""
        self.notified.append("disconnected")
        self.receiver.close()

    def limit_exceeded(self, code: CloseCode, reason: str, /) -> None:
        """Keep it, and end."""
        self.notified.append((code, reason))
        self.receiver.close()

    async def all_it_sends(self) -> list[str | bytes]:
        """Return every message until the end."""
        messages: list[str | bytes] = []
        async with asyncio.timeout(WAIT_SECONDS):
            while (message := await self.receiver.next()) is not None:
                messages.append(message)
        return messages


async def test_messages_then_the_end() -> None:
    """Text and binary, empty too, come in order, each with its time; then the end is notified, and stays the end."""
    client, before = Client("text", b"\xff", "", b"", None, "never"), asyncio.get_running_loop().time()
    assert await client.all_it_sends() == ["text", b"\xff", "", b""]
    assert (client.notified, len(client.times)) == (["disconnected"], 4)
    assert [before, *client.times] == sorted([before, *client.times])
    assert await client.receiver.next() is None
    with pytest.raises(StopAsyncIteration):
        await client.receiver.iterate()
    assert (len(client.times), client.receives) == (4, 5)


async def test_error_of_the_socket() -> None:
    """What the socket raises goes to the handler, a `TimeoutError` too: it is no end, and the next message comes."""
    client = Client(TimeoutError("of the socket"), "still here")
    with pytest.raises(TimeoutError, match=r"^of the socket$"):
        await client.receiver.next()
    assert (client.notified, client.receiver.is_waiting) == ([], False)
    assert await client.receiver.next() == "still here"


async def test_is_waiting() -> None:
    """A handler waits while it receives, and not while it works on a message or after it has ended."""
    client = Client()
    assert not client.receiver.is_waiting
    waiting = asyncio.create_task(client.receiver.next())
    await until_idle()
    assert client.receiver.is_waiting
    client.sent.put_nowait("1")
    assert await asyncio.wait_for(waiting, WAIT_SECONDS) == "1"
    assert not client.receiver.is_waiting


async def test_two_receivers() -> None:
    """A second task that receives raises at once; the first goes on, and after its cancellation another one may."""
    client = Client()
    first = asyncio.create_task(client.receiver.next(), name="first")
    await until_idle()
    with pytest.raises(LifecycleError, match="'first' receives from this connection already"):
        await client.receiver.next()
    client.sent.put_nowait("1")
    assert await asyncio.wait_for(first, WAIT_SECONDS) == "1"
    cancelled = asyncio.create_task(client.receiver.next())
    await until_idle()
    cancelled.cancel()
    successor = asyncio.create_task(client.receiver.next())
    await until_idle()
    assert (cancelled.cancelled(), client.receiver.is_waiting) == (True, True)
    client.receiver.close()
    assert await asyncio.wait_for(successor, WAIT_SECONDS) is None


async def test_receiver_that_went_on_after_a_cancellation() -> None:
    """A task that was cancelled before, and went on, is a receiver as any other: a second one raises."""
    client = Client()

    async def receive_after_all() -> str | bytes | None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return await client.receiver.next()

    first = asyncio.create_task(receive_after_all(), name="first")
    await until_idle()
    first.cancel()
    await until_idle()
    with pytest.raises(LifecycleError, match="'first' receives"):
        await asyncio.wait_for(client.receiver.next(), WAIT_SECONDS)
    client.sent.put_nowait("1")
    assert await asyncio.wait_for(first, WAIT_SECONDS) == "1"


# --- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "sent", "passing", "notified"),
    [
        (Limits(max_message_bytes=4), ["1234", b"1234", "12345"], 2, (CloseCode.MESSAGE_TOO_BIG, "at most 4 bytes")),
        (Limits(max_message_bytes=4), ["éé", "ééé"], 1, (CloseCode.MESSAGE_TOO_BIG, "at most 4 bytes")),
        (Limits(max_message_bytes=4), ["\U0001f600", "1\U0001f600"], 1, (CloseCode.MESSAGE_TOO_BIG, "at most 4 bytes")),
        (Limits(max_message_bytes=4), [b"1234", b"12345"], 1, (CloseCode.MESSAGE_TOO_BIG, "at most 4 bytes")),
        (Limits(max_messages_per_second=0.001), ["1"] * 9, 1, (CloseCode.TOO_MANY_MESSAGES, "too many messages")),
        (Limits(max_messages_per_second=0.9), ["1"] * 9, 2, (CloseCode.TOO_MANY_MESSAGES, "too many messages")),
        (
            Limits(max_messages_per_second=0.001, max_burst=5),
            ["1"] * 9,
            5,
            (CloseCode.TOO_MANY_MESSAGES, "too many messages"),
        ),
        (
            Limits(max_messages_per_second=0.001, max_message_bytes=1),
            ["1", "12"],
            1,
            (CloseCode.MESSAGE_TOO_BIG, "at most 1 bytes"),
        ),
    ],
    ids=[
        "text",
        "text counts in UTF-8",
        "four bytes",
        "binary",
        "rate",
        "two seconds' worth",
        "burst",
        "too big before too many",
    ],
)
async def test_limit(limits: Limits, sent: list[str | bytes], passing: int, notified: tuple[CloseCode, str]) -> None:
    """What is at a limit is handed on; the first message over it is not, notifies of its code, and ends it."""
    client = Client(*sent, "never", None, limits=limits)
    assert await client.all_it_sends() == sent[:passing]
    assert client.notified[0] == notified
    assert len(client.times) == passing + 1


async def test_no_limits() -> None:
    """Without limits everything passes."""
    sent = ["x" * 2_000_000, *["1"] * 1_000]
    client = Client(*sent, None, limits=Limits(max_message_bytes=None))
    assert await client.all_it_sends() == sent


# --- closing: wakes the handler that waits, and nothing else ------------------------------------------------------


async def test_close_wakes_the_handler() -> None:
    """A handler that waits comes to the end by a close, as often as it is called, and its task is not cancelled."""
    client = Client()
    cancelling: list[int] = []

    async def handle() -> list[str | bytes]:
        received = await client.all_it_sends()
        task = asyncio.current_task()
        assert task is not None
        cancelling.append(task.cancelling())
        await asyncio.sleep(0)  # a cancellation that was left would arrive here
        return received

    handling = asyncio.create_task(handle())
    await until_idle()
    client.receiver.close()
    client.receiver.close()
    assert await asyncio.wait_for(handling, WAIT_SECONDS) == []
    assert (client.notified, cancelling) == (["disconnected"], [0])


async def test_close_in_the_moment_of_a_message() -> None:
    """A message that comes in the very pass of the close is not handed on."""
    client = Client()
    handling = asyncio.create_task(client.all_it_sends())
    await until_idle()
    client.sent.put_nowait("too late")
    client.receiver.close()
    assert (await asyncio.wait_for(handling, WAIT_SECONDS), client.times) == ([], [])


async def test_ignored_end_gives_others_a_turn() -> None:
    """A loop that goes on to receive after the end lets other tasks run, and can be cancelled."""
    client, turns = Client(), list[int]()
    client.receiver.close()
    asyncio.get_running_loop().call_soon(turns.append, 1)
    assert await client.receiver.next() is None
    assert turns == [1]


async def test_close_between_messages() -> None:
    """A handler that closes while it works on a message has its loop end, without another receive from the socket."""
    client, received = Client("1", "2", "3"), list[str | bytes]()
    while (message := await client.receiver.next()) is not None:
        received.append(message)
        if message == "2":
            client.receiver.close()
    assert (received, client.receives, client.notified) == (["1", "2"], 2, ["disconnected"])


async def test_cancelled_from_outside() -> None:
    """A cancelled handler sees its own cancellation, not an end; the next one goes on."""
    client = Client()
    handling = asyncio.create_task(client.receiver.next())
    await until_idle()
    handling.cancel()
    await asyncio.wait([handling])
    assert (handling.cancelled(), client.notified, client.receiver.is_waiting) == (True, [], False)
    client.sent.put_nowait("still here")
    assert await client.receiver.next() == "still here"


@pytest.mark.parametrize("first", ["close", "cancel"])
async def test_cancelled_in_the_moment_of_a_close(first: str) -> None:
    """A handler that is cancelled and closed in one pass of the event loop, in either order, is cancelled."""
    client = Client()
    handling = asyncio.create_task(client.receiver.next())
    await until_idle()
    steps: list[Callable[[], object]] = [client.receiver.close, handling.cancel]
    for step in steps if first == "close" else reversed(steps):
        step()
    await asyncio.wait([handling])
    assert (handling.cancelled(), handling.cancelling(), client.notified) == (True, 1, [])


async def test_timeout_of_the_handler() -> None:
    """A handler may wait with a timeout, which is raised as such, and the next message comes."""
    client = Client()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await client.receiver.next()
    client.sent.put_nowait("still here")
    assert await client.receiver.next() == "still here"


async def test_close_within_a_timeout() -> None:
    """A close is no timeout: a handler that waits with one comes to the end, and on."""
    client = Client()
    asyncio.get_running_loop().call_soon(client.receiver.close)
    async with asyncio.timeout(WAIT_SECONDS) as timeout:
        assert await client.receiver.next() is None
        await asyncio.sleep(0)
    assert not timeout.expired()


async def test_receive_that_swallows_the_cancellation() -> None:
    """A socket that swallows the cancellation of a close, and returns, leaves none in the task of the handler."""
    client = Client()

    async def receive() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    client.receiver = Receiver(receive, Limits(), client)

    async def handle() -> int:
        await client.receiver.next()
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    handling = asyncio.create_task(handle())
    await until_idle()
    client.receiver.close()
    assert await handling == 0
