"""A channel layer of Django Channels: groups and consumers joined by any broker of `Backplane`.

    CHANNEL_LAYERS = {"default": {
        "BACKEND": "backplane.integrations.django_channels.BackplaneChannelLayer",
        "CONFIG": {"url": "nats://localhost:4222"},
    }}

Needs the extra `channels`.
"""

# Channels has no types:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from backplane.concurrency.affinity import current_process
from backplane.core import Backplane
from backplane.errors import ConfigurationError, MissingDependencyError
from backplane.settings import Settings
from backplane.synchronous.publisher_thread import PublisherThreads

try:
    import msgpack  # type: ignore[import-untyped]
    from channels.layers import BaseChannelLayer  # type: ignore[import-untyped]

    from backplane.integrations.mailboxes import Mailbox, Mailboxes
except ModuleNotFoundError as _error:
    raise MissingDependencyError(
        "backplane.integrations.django_channels needs Channels and msgpack: pip install 'fastapi-backplane[channels]'"
    ) from _error

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from backplane.integrations.feed import GapCallback

__all__ = ["BackplaneChannelLayer"]

_T = TypeVar("_T")


class BackplaneChannelLayer(BaseChannelLayer):  # type: ignore[misc]
    """A channel layer for any event loop, any thread and any process, with one link to the broker for each process.

    The link belongs to a thread of its own, which the first call starts. So `async_to_sync(layer.group_send)(...)` in a
    view, a task queue or a management command uses it too, though each call makes and ends an event loop; and what such
    a call has added to a group stays in it. A forked process gets a thread and a link of its own.

    As the pub/sub layer of channels_redis it delivers at most once, to each process that receives a channel: a channel
    without a `!`, on which several processes wait, reaches all of them. With these differences:

    - A lost link is rebuilt, a silent one too, and subscribed again. Where messages may be missing, each consumer
      concerned gets a message of `gap_type`, and `on_gap` is called.
    - `group_add` and `new_channel` return when the broker has confirmed; `send` and `group_send` raise a `BrokerError`
      where the broker did not get the message.
    - `capacity` and `expiry` apply to each channel where it is received: what is over the capacity is dropped, logged,
      and followed by a message of `gap_type`. `send` never raises `ChannelFull`.
    - The consumers of a process share one channel on the broker. `group_add` is for channels of this process.

    Args:
        url: The URL of the broker, the same in each process. Defaults to the environment variable `BACKPLANE_URL`.
        prefix: What the layer's channels begin with on the broker. Defaults to `asgi`, as in channels_redis: with
            `wire_format=plain` in the URL of a Redis, workers with its pub/sub layer take part in the same groups.
        expiry: After how many seconds a message that a consumer does not receive is dropped. Defaults to 60.
        capacity: Most messages that wait on a channel. Defaults to 100.
        channel_capacity: Other capacities, by a glob or a compiled pattern of names of channels.
        gap_type: The type of a message that a consumer gets where messages may be missing, in its place between them:
            with `"backplane.gap"` its method `backplane_gap` is called, and its key `group` names the group, or is
            `None` for the consumer's own channel. Each consumer needs the method then. Defaults to no message.
        on_gap: Called with a `Gap` in the layer's thread, and must not block. What it raises is logged. Defaults to
            nothing: the gap is logged.
        settings: Times and bounds, such as `publish_timeout_seconds`; see `Settings`.

    Raises:
        ConfigurationError: The URL or a setting is wrong.
        MissingDependencyError: The adapter's client library is not installed.
    """

    extensions: ClassVar[list[str]] = ["groups", "flush"]

    def __init__(
        self,
        url: str | None = None,
        *,
        prefix: str = "asgi",
        expiry: int = 60,
        capacity: int = 100,
        channel_capacity: Mapping[Any, int] | None = None,
        gap_type: str | None = None,
        on_gap: GapCallback | None = None,
        settings: Settings | None = None,
    ) -> None:
        super().__init__(expiry=expiry, capacity=capacity)
        patterns: Any = dict(channel_capacity or {})
        self.channel_capacity: Any = self.compile_capacities(patterns)
        if url is not None and not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"a channel layer takes a URL, as each process opens a link, not {url!r:.100}")
        self._url = url
        self._prefix = prefix
        self._gap_type = gap_type
        self._on_gap = on_gap
        self._settings = settings or Settings()
        self._seconds = self._settings.subscribe_timeout_seconds + self._settings.publish_timeout_seconds
        self._of_processes: dict[object, Mailboxes] = {}
        self._threads = PublisherThreads(self._make_mailboxes, self._settings)
        Backplane(url, settings=self._settings)  # a wrong URL is no error of the first message

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Send a message to a channel of any process.

        Raises:
            TypeError: The name is not valid, or the message is not one that msgpack can write.
            BrokerError: As `Backplane.publish`.
        """
        self.require_valid_channel_name(channel)
        await self._call(lambda mailboxes: mailboxes.send(channel, message))

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send a message to each channel of a group, in all processes; raises as `send`."""
        self.require_valid_group_name(group)
        await self._call(lambda mailboxes: mailboxes.send_to_group(group, message))

    async def new_channel(self, prefix: str = "specific.") -> str:
        """Return the name of a new channel of this process.

        It receives from now on, until a `receive` on it is cancelled, which is how Channels ends a consumer.

        Raises:
            BrokerError: The broker is not available, or did not confirm in time.
        """
        return await self._call(lambda mailboxes: mailboxes.new_channel(prefix))

    async def receive(self, channel: str) -> Any:
        """Wait for the next message of a channel. If several wait on it in this process, any one of them gets it.

        Cancelling it ends the channel: what waits is dropped, and the channel leaves its groups.

        Raises:
            TypeError: The name is not valid.
            BrokerError: The channel was not received before, and the broker did not confirm it in time.
        """
        self.require_valid_channel_name(channel)
        mailboxes = self._of_processes.get(current_process())
        box = None if mailboxes is None else mailboxes.boxes.get(channel)
        if box is None:
            box = await self._call(lambda made: made.open(channel))
        try:
            payload = await box.take()
        except BaseException:
            self._threads.post(lambda made: made.close(channel))
            raise
        return self.deserialize(payload)

    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel of this process to a group: once this returns, it misses nothing without a gap.

        Raises:
            TypeError: A name is not valid.
            LifecycleError: The channel is not one that this process receives.
            BrokerError: The broker refused the group, or did not confirm it in time.
        """
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        await self._call(lambda mailboxes: mailboxes.add(group, channel))

    async def group_discard(self, group: str, channel: str) -> None:
        """Remove a channel from a group; nothing happens where it is not in it."""
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        await self._call(lambda mailboxes: mailboxes.discard(group, channel))

    async def flush(self) -> None:
        """End all channels and groups of this process."""
        if current_process() in self._of_processes:
            await self._call(lambda mailboxes: mailboxes.close_all())

    async def close(self) -> None:
        """Close the link and end the thread of this process, as the end of the interpreter does."""
        await asyncio.to_thread(self._threads.close)

    def serialize(self, message: Any) -> bytes:
        """Return a message as it is on the broker: msgpack. A subclass may change it with `deserialize`."""
        return bytes(msgpack.packb(message) or b"")

    def deserialize(self, message: bytes) -> Any:
        """Return the message of what `serialize` returned; what raises an error here is dropped, and logged."""
        return msgpack.unpackb(message)

    def _make_mailboxes(self) -> Mailboxes:
        """Return those of this process; of two threads that call it at the same time, both get the same."""
        made = Mailboxes(
            Backplane(self._url, settings=self._settings),
            self._prefix,
            lambda channel: Mailbox(channel, self.get_capacity(channel), self.expiry),
            self,
            gap_type=self._gap_type,
            on_gap=self._on_gap,
        )
        return self._of_processes.setdefault(current_process(), made)

    async def _call(self, action: Callable[[Mailboxes], Coroutine[Any, Any, _T]]) -> _T:
        return await self._threads.call(action, seconds=self._seconds)
