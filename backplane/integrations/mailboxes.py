"""What the consumers of Django Channels in one process receive: mailboxes, and the groups that they are in.

`Mailboxes` belongs to the event loop of the layer's thread. A `Mailbox` is filled there, and emptied in any event loop.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

from backplane.errors import LifecycleError
from backplane.integrations.feed import Feed, notify_gap
from backplane.journal.events import CLIENT_SLOW, HOOK_FAILED, PAYLOAD_MALFORMED
from backplane.journal.journal import Journal
from backplane.message import Gap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backplane.core import Backplane
    from backplane.integrations.feed import GapCallback
    from backplane.message import Message, Receipt

    Waiting = tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]

__all__ = ["Mailbox", "Mailboxes"]

logger: Final = logging.getLogger("backplane.integrations.mailboxes")


# Between the channel of a consumer and the message, on the channel of its process: no name of a channel holds it.
_AFTER_CHANNEL: Final = b"\0"


class Serializer(Protocol):
    """How messages are written on the broker."""

    def serialize(self, message: Any) -> bytes:
        """Return a message as bytes."""
        ...

    def deserialize(self, message: bytes) -> Any:
        """Return the message of bytes; raises any error for what is none."""
        ...


class Mailbox:
    """The messages that wait for one channel. Filled in one thread, and emptied in any event loop of any thread.

    There is no lock: each step is one operation of a deque, and a receiver looks once more after it has begun to wait.

    Args:
        channel: The channel.
        capacity: Most messages that wait.
        expiry_seconds: After how long a message that waits is dropped.

    Attributes:
        groups: The broker channels of the groups that it is in.
        is_overrun: Whether a message has been dropped since the last one that was put in.
    """

    __slots__ = ("_capacity", "_expiry_seconds", "_items", "_waiting", "channel", "groups", "is_overrun")

    def __init__(self, channel: str, capacity: int, expiry_seconds: float) -> None:
        self.channel: str = channel
        self.groups: set[str] = set()
        self.is_overrun: bool = False
        self._capacity = capacity
        self._expiry_seconds = expiry_seconds
        self._items: deque[tuple[float, bytes]] = deque()
        self._waiting: deque[Waiting] = deque()

    def put(self, payload: bytes) -> bool:
        """Put a message in, unless the mailbox is full; the caller then wakes the receiver that `to_wake` returns."""
        if len(self._items) >= self._capacity:
            return False
        self._items.append((monotonic() + self._expiry_seconds, payload))
        return True

    def to_wake(self) -> Waiting | None:
        """Return a receiver that waits, and is woken by no other call."""
        with suppress(IndexError):
            return self._waiting.popleft()
        return None

    async def take(self) -> bytes:
        """Wait for the next message that has not expired. If several wait, any one of them gets it."""
        while (payload := self._next()) is None:
            loop = asyncio.get_running_loop()
            waiting = loop, loop.create_future()
            self._waiting.append(waiting)
            try:
                if not self._items:
                    await waiting[1]
            except BaseException:
                self._forget(waiting)
                if self._items:  # it may have been woken for a message that another receiver can take
                    wake([self.to_wake()])
                raise
            self._forget(waiting)
        return payload

    def _next(self) -> bytes | None:
        with suppress(IndexError):
            while True:
                expires_at, payload = self._items.popleft()
                if expires_at >= monotonic():
                    return payload
        return None

    def _forget(self, waiting: Waiting) -> None:
        with suppress(ValueError):
            self._waiting.remove(waiting)


def wake(receivers: Iterable[Waiting | None]) -> None:
    """Wake receivers, each in its event loop: one call for all of a loop."""
    of_loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for receiver in receivers:
        if receiver is not None:
            of_loops.setdefault(receiver[0], []).append(receiver[1])
    for loop, futures in of_loops.items():
        with suppress(RuntimeError):  # it has ended, and its receivers with it
            loop.call_soon_threadsafe(_wake_all, futures)


def _wake_all(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


class Mailboxes:
    """The mailboxes and groups of one process, over a backplane in the event loop of the layer's thread.

    Args:
        backplane: Not started.
        prefix: What the channels of the layer begin with on the broker.
        make_mailbox: Makes the mailbox of a channel.
        serializer: Writes and reads messages.
        gap_type: Of the message that consumers get where messages may be missing. `None`: no such message.
        on_gap: Called with each gap.

    Attributes:
        process: Names this process, in the channels of its consumers.
        boxes: The mailboxes by channel; other threads only read it.
    """

    def __init__(
        self,
        backplane: Backplane,
        prefix: str,
        make_mailbox: Callable[[str], Mailbox],
        serializer: Serializer,
        *,
        gap_type: str | None,
        on_gap: GapCallback | None,
    ) -> None:
        self.process: str = secrets.token_hex(8)
        self.boxes: dict[str, Mailbox] = {}
        self._backplane = backplane
        self._prefix = prefix
        self._make_mailbox = make_mailbox
        self._serializer = serializer
        self._gap_type = gap_type
        self._on_gap = on_gap
        self._groups: dict[str, dict[str, Mailbox]] = {}
        self._feed = Feed()
        self._delivering: asyncio.Task[None] | None = None
        self._journal = Journal()

    async def start(self) -> None:
        """Connect to the broker, and deliver from then on."""
        await self._backplane.start()
        self._feed = Feed()
        await self._feed.open(self._backplane)
        self._delivering = asyncio.create_task(self._deliver_all())

    async def stop(self) -> None:
        """Close the link."""
        if self._delivering is not None:
            self._delivering.cancel()
            await asyncio.wait([self._delivering])
        await self._feed.close()
        await self._backplane.stop()

    async def publish(
        self, channel: str, data: object, *, exclude: Any = None, idempotency_key: str | bytes | None = None
    ) -> Receipt:
        """Publish."""
        return await self._backplane.publish(channel, data, exclude=exclude, idempotency_key=idempotency_key)

    async def send(self, channel: str, message: object) -> None:
        """Publish a message for a channel of this process, of another one, or of any that receives it."""
        payload = self._serializer.serialize(message)
        if _is_of_process(channel):
            process = channel.partition("!")[0][-len(self.process) :]
            await self.publish(self._channel_of(process), channel.encode() + _AFTER_CHANNEL + payload)
        else:
            await self.publish(f"{self._prefix}{channel}", payload)

    async def send_to_group(self, group: str, message: object) -> None:
        """Publish a message for each channel of a group."""
        await self.publish(self._channel_of_group(group), self._serializer.serialize(message))

    async def new_channel(self, prefix: str) -> str:
        """Return the name of a new channel of this process, whose messages are received from now on."""
        channel = f"{prefix}{self.process}!{secrets.token_hex(8)}"
        await self.open(channel)
        return channel

    async def open(self, channel: str) -> Mailbox:
        """Return the mailbox of a channel, which receives from now on."""
        await self._feed.join(self._channel_of(self.process) if _is_of_process(channel) else f"{self._prefix}{channel}")
        return self.boxes.setdefault(channel, self._make_mailbox(channel))

    async def close(self, channel: str) -> None:
        """Remove the mailbox of a channel, also from its groups; nothing happens where there is none."""
        if (box := self.boxes.pop(channel, None)) is None:
            return
        for name in list(box.groups):
            await self._leave(name, box)
        if not _is_of_process(channel):
            await self._feed.leave(f"{self._prefix}{channel}")

    async def close_all(self) -> None:
        """Remove all mailboxes and groups."""
        for channel in list(self.boxes):
            await self.close(channel)

    async def add(self, group: str, channel: str) -> None:
        """Add a channel of this process to a group; once this returns, it misses nothing without a gap.

        Raises:
            LifecycleError: The channel is not one of this process.
            BrokerError: The broker refused the group, or did not confirm in time.
        """
        box = self.boxes.get(channel)
        if box is None:
            raise LifecycleError(
                f"group_add needs a channel of this process that is still received, and {channel!r} is none: "
                "a consumer adds its own `self.channel_name`"
            )
        name = self._channel_of_group(group)
        self._groups.setdefault(name, {})[channel] = box
        box.groups.add(name)
        try:
            await self._feed.join(name)
        except BaseException:
            await self._leave(name, box)
            raise
        if name not in self._groups:  # it was discarded meanwhile
            await self._feed.leave(name)

    async def discard(self, group: str, channel: str) -> None:
        """Remove a channel from a group; nothing happens where it is not in it."""
        if (box := self.boxes.get(channel)) is not None:
            await self._leave(self._channel_of_group(group), box)

    def _channel_of(self, process: str) -> str:
        return f"{self._prefix}__process__{process}"

    def _channel_of_group(self, group: str) -> str:
        return f"{self._prefix}__group__{group}"  # as channels_redis

    async def _leave(self, name: str, box: Mailbox) -> None:
        box.groups.discard(name)
        members = self._groups.get(name)
        if members is None or members.pop(box.channel, None) is None or members:
            return
        del self._groups[name]
        await self._feed.leave(name)

    async def _deliver_all(self) -> None:
        async for item in self._feed:
            try:
                if isinstance(item, Gap):
                    self._deliver_gap(item)
                    await notify_gap(self._on_gap, item)
                else:
                    self._deliver(item)
            except Exception as error:  # the others must go on
                words = "a message of channel %(channel)r could not be delivered"
                self._journal.log(logger, HOOK_FAILED, words, channel=item.channel, exc_info=error)

    def _deliver(self, message: Message) -> None:
        payload = message.data.encode() if isinstance(message.data, str) else message.data
        boxes = self._members(message.channel)
        if message.channel == self._channel_of(self.process):
            channel, _, payload = payload.partition(_AFTER_CHANNEL)
            boxes = [box for box in boxes if box.channel.encode() == channel]
        try:
            self._serializer.deserialize(payload)
        except Exception as error:  # a consumer that received it would end
            words = "dropped a payload of channel %(channel)r that is no message of a channel layer: %(reason)s"
            reason = type(error).__name__
            return self._journal.log(logger, PAYLOAD_MALFORMED, words, channel=message.channel, reason=reason)
        self._put(boxes, payload)

    def _deliver_gap(self, gap: Gap) -> None:
        if self._gap_type is not None:
            group = gap.channel.removeprefix(self._channel_of_group("")) if gap.channel in self._groups else None
            self._put(self._members(gap.channel), self._gap_message(group))

    def _gap_message(self, group: str | None) -> bytes:
        return self._serializer.serialize({"type": self._gap_type, "group": group})

    def _members(self, name: str) -> list[Mailbox]:
        if name == self._channel_of(self.process):
            return [box for box in self.boxes.values() if _is_of_process(box.channel)]
        if name in self._groups:
            return list(self._groups[name].values())
        box = self.boxes.get(name.removeprefix(self._prefix))
        return [] if box is None else [box]

    def _put(self, boxes: list[Mailbox], payload: bytes) -> None:
        for box in boxes:
            if box.is_overrun and self._gap_type is not None:
                box.is_overrun = not box.put(self._gap_message(None))
            if box.put(payload):
                continue
            box.is_overrun = True
            words = "dropped a message: channel %(channel)r of a consumer has reached its capacity"
            self._journal.log(logger, CLIENT_SLOW, words, kind="consumer", channel=box.channel, action="dropped_newest")
        wake([box.to_wake() for box in boxes])


def _is_of_process(channel: str) -> bool:
    """Return whether a channel belongs to one process: it has a `!` in its name."""
    return "!" in channel
