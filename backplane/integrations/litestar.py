"""A backend of Litestar's channels: `ChannelsPlugin` on any broker of `Backplane`.

    from backplane.integrations.litestar import BackplaneChannelsBackend

    channels = ChannelsPlugin(BackplaneChannelsBackend("nats://localhost:4222"), arbitrary_channels_allowed=True)

Needs the extra `litestar`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from backplane.errors import BackplaneError, BrokerError, MissingDependencyError
from backplane.integrations.feed import Feed, notify_gap
from backplane.integrations.lease import Lease
from backplane.journal.events import PUBLISH_LOST
from backplane.journal.journal import Journal
from backplane.message import Gap

try:
    from litestar.channels import ChannelsBackend
except ModuleNotFoundError as _error:
    raise MissingDependencyError(
        "backplane.integrations.litestar needs Litestar: pip install 'fastapi-backplane[litestar]'"
    ) from _error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from backplane.core import Backplane
    from backplane.integrations.feed import GapCallback

__all__ = ["BackplaneChannelsBackend"]

logger: Final = logging.getLogger("backplane.integrations.litestar")

# More than any rule keeps: a read returns at most `max_recall_messages`.
_ALL: Final = 2**31


class BackplaneChannelsBackend(ChannelsBackend):
    """Publishes for a `ChannelsPlugin`, and receives for all subscribers of this process.

    As Litestar's own backends, with these differences:

    - A lost link is rebuilt, a silent one too, and subscribed again. Where messages may be missing, `on_gap` is called,
      and each subscriber of the channel gets `gap_message`.
    - `wait_published` raises where the broker did not get the message. What `publish` has queued, and the broker did
      not get, is logged: an error would end Litestar's task that publishes, and the stop of the application would wait
      without end (litestar #5008).
    - A subscription that the broker does not confirm goes on in the background, and then begins with a gap: Litestar
      keeps a subscriber whose subscription has failed.
    - The same object can be started again after a stop.

    Args:
        backplane: The application's `Backplane`, started before the plugin: `Litestar(lifespan=[backplane.lifespan],
            ...)`. With its `history` rules there is `get_history`. Or the URL of a broker. Then the backend starts a
            backplane of its own with the application, and the start fails where the broker cannot be reached. Defaults
            to the environment variable `BACKPLANE_URL`.
        gap_message: What each subscriber of a channel gets in the place of messages that may be missing. Defaults to
            nothing.
        on_gap: Called with a `Gap` for each channel in which messages may be missing, in its place between them; a
            function or a coroutine function. What it raises is logged. Defaults to nothing: the gap is logged.

    Raises:
        ConfigurationError: The URL is wrong.
        MissingDependencyError: The adapter's client library is not installed.
    """

    def __init__(
        self,
        backplane: Backplane | str | None = None,
        *,
        gap_message: bytes | None = None,
        on_gap: GapCallback | None = None,
    ) -> None:
        self._lease = Lease(backplane)
        self._gap_message = gap_message
        self._on_gap = on_gap
        self._feed = Feed()
        self._journal = Journal()

    @property
    def backplane(self) -> Backplane:
        """The backplane: its `state`, `health` and `statistics`."""
        return self._lease.backplane

    async def on_startup(self) -> None:
        """Start a backplane of the backend's own; called by the plugin.

        Raises:
            BrokerError: The broker could not be reached.
            NotStartedError: The application's backplane is not started.
        """
        await self._lease.start()
        self._feed = Feed()
        await self._feed.open(self.backplane)

    async def on_shutdown(self) -> None:
        """Receive nothing more, and stop a backplane of the backend's own; called by the plugin."""
        await self._feed.close()
        await self._lease.stop()

    async def publish(self, data: bytes, channels: Iterable[str]) -> None:
        """Publish `data` to each of `channels`: as text where it is UTF-8, else as binary.

        Raises:
            BackplaneError: As `Backplane.publish`, for the first of the channels on which it failed. Not in Litestar's
                task for what was queued: there it is logged.
        """
        payload = _text_or_bytes(data)
        calls = (self.backplane.publish(channel, payload) for channel in dict.fromkeys(channels))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        for error in outcomes:
            if not isinstance(error, BaseException):
                continue
            if not isinstance(error, BackplaneError) or not _is_for_queue():
                raise error
            self._journal.log(
                logger, PUBLISH_LOST, "a message that was queued was not published: %(reason)s", reason=str(error)
            )

    async def subscribe(self, channels: Iterable[str]) -> None:
        """Receive `channels`; where the broker does not confirm in time, this returns, and it is tried again.

        Raises:
            InvalidChannelError: A name is not valid.
        """
        joins = (self._feed.join(channel, insist=True) for channel in channels)
        for error in await asyncio.gather(*joins, return_exceptions=True):
            if isinstance(error, BaseException) and not isinstance(error, BrokerError):
                raise error

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        """Receive `channels` no more, what waits included."""
        for channel in channels:
            await self._feed.leave(channel)

    async def stream_events(self) -> AsyncGenerator[tuple[str, bytes], None]:
        """Return a generator of each message with its channel; it ends with the backplane.

        Raises:
            ClosedError: The backend has not been started.
        """
        async for item in self._feed:
            if not isinstance(item, Gap):
                yield item.channel, item.data.encode() if isinstance(item.data, str) else item.data
                continue
            await notify_gap(self._on_gap, item)
            if self._gap_message is not None:
                yield item.channel, self._gap_message

    async def get_history(self, channel: str, limit: int | None = None) -> list[bytes]:
        """Return the newest messages of `channel`, at most `limit` and the setting `max_recall_messages`.

        Raises:
            ConfigurationError: The channel has no `History` rule.
            BrokerError: As `Backplane.history`.
        """
        page = await self.backplane.history(channel, limit=limit or _ALL)
        return [message.data.encode() if isinstance(message.data, str) else message.data for message in page.messages]


def _text_or_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _is_for_queue() -> bool:
    """Return whether this is Litestar's task that publishes what was queued."""
    task = asyncio.current_task()
    return task is not None and getattr(task.get_coro(), "__qualname__", "") == "ChannelsPlugin._pub_worker"
