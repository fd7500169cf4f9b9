"""The way to publish of `outage="buffer"`: what is published during an outage is kept, in order and in bounds."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextvars import copy_context
from itertools import count
from typing import TYPE_CHECKING, Final, NamedTuple

from backplane.broker.publish_attempt import NO_POSITION
from backplane.concurrency.context import task_in
from backplane.errors import BrokerUnavailableError, ClosedError, PublishError
from backplane.journal.events import PUBLISH_KEPT, PUBLISH_LOST
from backplane.journal.journal import Journal
from backplane.journal.writing import write

if TYPE_CHECKING:
    from contextvars import Context

    from backplane.broker.keep import Keep
    from backplane.broker.publish_attempt import PublishAttempts
    from backplane.errors import BrokerError
    from backplane.message import Receipt

__all__ = ["PublishBuffer"]

# An adapter that accepts nothing though its link is live must not be called in a loop without a pause.
_RETRY_SECONDS: Final = 0.05

logger: Final = logging.getLogger("backplane.broker.publish_buffer")


class _Kept(NamedTuple):
    """One publish that is kept for later; `place` is that of its call."""

    place: int
    payload: bytes
    keep: Keep | None


class PublishBuffer:
    """Keeps what was certainly not published, and publishes it when the link is live again.

    Messages of one channel are published in the order of the calls, with one exception: where the broker refuses one
    for the moment, those in flight after it that it accepts come before it. A channel that the broker cannot serve at
    the moment holds up no other. A message whose outcome is unknown is not published again: it may be what ended the
    link, and it could be a second one. One with a key is kept in that case too, and sent again while that cannot
    publish it twice; of those in flight after it the ones that the broker accepted come before it.

    Args:
        attempts: Publishes on one session.
        max_bytes: Most bytes that are kept.
        max_messages: Most messages that are kept.
        journal: How dropped messages are logged: it can be all of them at once.

    Attributes:
        dropped: Messages that were kept and never published: refused, or still kept at the end.
    """

    def __init__(
        self, attempts: PublishAttempts, *, max_bytes: int, max_messages: int, journal: Journal | None = None
    ) -> None:
        self._attempts = attempts
        self._status = attempts.status
        self._journal = journal or Journal()
        self._max_bytes = max_bytes
        self._max_messages = max_messages
        self._places = count()
        self._kept: dict[str, deque[_Kept]] = {}  # in the order of the calls
        self._count = 0
        self._size_bytes = 0
        self._sender: asyncio.Task[None] | None = None
        self._context: Context = copy_context()  # the sender publishes for all callers, so it has the Context of none
        self._stopped = False
        self.dropped: int = 0

    def __len__(self) -> int:
        return self._count

    async def publish(self, channel: str, payload: bytes, keep: Keep | None = None) -> Receipt:
        """Publish, or keep for later; returns at once where it is kept, with a receipt that has no position.

        Raises:
            BrokerUnavailableError: The buffer is full, or stopped; certainly not published, and not kept.
            PublishOutcomeUnknownError: The broker did not answer in time; it may have been published.
            PublishError: The broker refused it.
            ClosedError: The backplane was stopped.
        """
        place = next(self._places)
        session = self._status.live_session
        if channel not in self._kept:  # else it would overtake them
            if session is not None:
                try:
                    return await self._attempts.attempt_in_time(session, channel, payload, keep)
                except (BrokerUnavailableError, PublishError) as error:
                    if self._stopped or not _may_follow(error, keep):
                        raise
                    words = "keeping what is published until the broker is back: %(reason)s"
                    write(logger, PUBLISH_KEPT, words, channel=channel, reason=error)
            elif self._status.state == "closed":
                raise ClosedError("this Backplane has been stopped")
            elif self._stopped:
                raise BrokerUnavailableError(f"{self._attempts.url} is unavailable; not published")
        self._keep(channel, _Kept(place, payload, keep))
        return NO_POSITION

    async def stop(self, timeout_seconds: float) -> None:
        """Publish what is kept where the link is live; what is still kept after that is dropped, and logged."""
        self._stopped = True
        sender = self._sender  # the task clears the attribute at its end
        if sender is not None:
            if self._status.state == "live":
                await asyncio.wait([sender], timeout=timeout_seconds)
            sender.cancel()
            await asyncio.wait([sender])
        if self._kept:
            self.dropped += self._count
            words = "%(count)d messages were never published: the broker was unavailable until the end"
            self._journal.log(logger, PUBLISH_LOST, words, count=self._count)
            self._kept.clear()
            self._count = self._size_bytes = 0

    def _keep(self, channel: str, item: _Kept) -> None:
        if self._count >= self._max_messages or self._size_bytes + len(item.payload) > self._max_bytes:
            error = BrokerUnavailableError(
                f"the broker is unavailable, and the buffer is full: {self._count} messages, "
                f"{self._size_bytes:,} bytes; not published"
            )
            raise error if item.keep is None else item.keep.final_error(error)
        self._insert(self._kept.setdefault(channel, deque()), item)
        self._count += 1
        self._size_bytes += len(item.payload)
        if self._sender is None and not self._stopped:  # kept while `stop` ends the sender: dropped with the rest
            self._sender = task_in(
                self._context, self._send_kept(), asyncio.get_running_loop(), name="backplane-outage-buffer"
            )

    def _insert(self, kept: deque[_Kept], item: _Kept) -> None:
        """Insert by place: a message that a lost session did not take can come after those of later calls."""
        later = 0
        while later < len(kept) and kept[-1 - later].place > item.place:
            later += 1
        kept.insert(len(kept) - later, item)

    async def _send_kept(self) -> None:
        """Publish what is kept, channel by channel. The task exists only while something is kept."""
        try:
            while self._kept:
                while self._status.state != "live":
                    if self._status.state == "closed":
                        return
                    await self._status.changed()
                sent = [await self._send_channel(channel) for channel in list(self._kept)]
                if not all(sent):
                    await asyncio.sleep(_RETRY_SECONDS)
        finally:
            self._sender = None

    async def _send_channel(self, channel: str) -> bool:
        """Publish what is kept for a channel; return whether that was all."""
        kept = self._kept[channel]
        while kept:
            item = kept.popleft()
            is_done = False
            try:
                is_done = await self._send(channel, item)
            finally:
                if not is_done:
                    self._insert(kept, item)
            if not is_done:
                return False
            self._size_bytes -= len(item.payload)
            self._count -= 1
        del self._kept[channel]
        return True

    async def _send(self, channel: str, item: _Kept) -> bool:
        """Publish or drop one message; return `False` where it must be kept on."""
        session = self._status.live_session
        if session is None:
            return False
        try:
            await self._attempts.attempt_in_time(session, channel, item.payload, item.keep)
        except (BrokerUnavailableError, PublishError) as error:
            if _may_follow(error, item.keep):  # the link was lost once more, or the broker accepts nothing at present
                return False
            self._drop(channel, error if item.keep is None else item.keep.final_error(error))
        except Exception as error:  # a fault of an adapter: one message must not hold up those after it
            self._drop(channel, error, exc_info=error)
        return True

    def _drop(self, channel: str, error: Exception, *, exc_info: Exception | None = None) -> None:
        self.dropped += 1
        words = "a message that was kept for channel %(channel)r is lost: %(reason)s"
        self._journal.log(logger, PUBLISH_LOST, words, channel=channel, count=1, reason=error, exc_info=exc_info)


def _may_follow(error: BrokerError, keep: Keep | None) -> bool:
    """Return whether another attempt may follow one that failed with `error`."""
    return error.retriable if keep is None else keep.repeats_after(error)
