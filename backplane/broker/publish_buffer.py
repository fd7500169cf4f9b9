"""What is published while the broker is away, kept in order and in bounds until it is back: `outage="buffer"`."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextvars import copy_context
from itertools import count
from typing import TYPE_CHECKING, Final

from backplane.concurrency.context import task_in
from backplane.errors import BrokerUnavailableError, ClosedError, PublishError
from backplane.log_bursts import LogBursts

if TYPE_CHECKING:
    from backplane.broker.supervisor import Supervisor

__all__ = ["PublishBuffer"]

# An adapter that refuses while its link stands must not be asked in a loop without a pause.
_AGAIN_SECONDS: Final = 0.05

logger = logging.getLogger("backplane.broker.publish_buffer")


class PublishBuffer:
    """Publishes through `supervisor`; keeps what certainly did not go out, and sends it when the link is live again.

    Messages of one channel are sent in the order of the calls. A channel that the broker cannot serve for
    the moment holds up no other. A message whose outcome is unknown is never sent again: it may be what ended the link.

    Args:
        supervisor: Who publishes.
        max_bytes: Most bytes that wait.
        max_messages: Most messages that wait.
        bursts: How lost messages are logged: all that wait can be.

    Attributes:
        dropped: Messages that were kept and never published: refused, or still waiting at the end.
    """

    def __init__(
        self, supervisor: Supervisor, *, max_bytes: int, max_messages: int, bursts: LogBursts | None = None
    ) -> None:
        self._supervisor = supervisor
        self._bursts = bursts or LogBursts()
        self._max_bytes = max_bytes
        self._max_messages = max_messages
        self._places = count()
        self._waiting: dict[str, deque[tuple[int, bytes]]] = {}  # each with the place of its call, in their order
        self._count = 0
        self._size_bytes = 0
        self._sender: asyncio.Task[None] | None = None
        self._context = copy_context()  # not that of the first publisher, for it sends what all have published
        self._stopped = False
        self.dropped = 0

    def __len__(self) -> int:
        return self._count

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish, or keep for later; returns at once where it is kept.

        Raises:
            BrokerUnavailableError: The buffer is full; the message is not kept.
            PublishError: The broker refused it, or its outcome is unknown.
        """
        place = next(self._places)
        if channel not in self._waiting:
            try:
                return await self._supervisor.publish(channel, payload, wait=False)
            except (BrokerUnavailableError, PublishError) as error:
                if self._stopped or not error.retriable:
                    raise
                logger.debug("keeping what is published until the broker is back: %s", error)
        self._keep(channel, place, payload)

    async def stop(self, timeout_seconds: float) -> None:
        """Give what waits a last chance, where the link is live; what still waits then is dropped, and logged."""
        self._stopped = True
        sender = self._sender  # which it takes from us at its end
        if sender is not None:
            if self._supervisor.state == "live":
                await asyncio.wait([sender], timeout=timeout_seconds)
            sender.cancel()
            await asyncio.wait([sender])
        if self._waiting:
            self.dropped += self._count
            logger.error("%d messages were never published: the broker was away until the end", self._count)
            self._waiting.clear()
            self._count = self._size_bytes = 0

    def _keep(self, channel: str, place: int, payload: bytes) -> None:
        if self._count >= self._max_messages or self._size_bytes + len(payload) > self._max_bytes:
            raise BrokerUnavailableError(
                f"the broker is away, and the buffer holds all it may: {self._count} messages, "
                f"{self._size_bytes:,} bytes; not published"
            )
        self._put(self._waiting.setdefault(channel, deque()), place, payload)
        self._count += 1
        self._size_bytes += len(payload)
        if self._sender is None:
            self._sender = task_in(
                self._context, self._send_waiting(), asyncio.get_running_loop(), name="backplane-outage-buffer"
            )

    def _put(self, waiting: deque[tuple[int, bytes]], place: int, payload: bytes) -> None:
        """Add it at its place: it can come back from a link that did not take it after later ones were kept."""
        later = 0
        while later < len(waiting) and waiting[-1 - later][0] > place:
            later += 1
        waiting.insert(len(waiting) - later, (place, payload))

    async def _send_waiting(self) -> None:
        """Send in order, channel by channel. The task exists only while something waits."""
        try:
            while self._waiting:
                while self._supervisor.state != "live":
                    await self._supervisor.state_changed()
                sent = [await self._send_channel(channel) for channel in list(self._waiting)]
                if not all(sent):
                    await asyncio.sleep(_AGAIN_SECONDS)
        except ClosedError:
            pass
        finally:
            self._sender = None

    async def _send_channel(self, channel: str) -> bool:
        """Send what waits on a channel; return whether that was all."""
        waiting = self._waiting[channel]
        while waiting:
            place, payload = waiting.popleft()
            is_done = False
            try:
                is_done = await self._send(channel, payload)
            finally:
                if not is_done:
                    self._put(waiting, place, payload)
            if not is_done:
                return False
            self._size_bytes -= len(payload)
            self._count -= 1
        del self._waiting[channel]
        return True

    async def _send(self, channel: str, payload: bytes) -> bool:
        """Return whether it is done with; else it keeps its place."""
        try:
            await self._supervisor.publish(channel, payload, wait=False)
        except (BrokerUnavailableError, PublishError) as error:
            if error.retriable:  # the link was lost once more, or the broker accepts nothing at present
                return False
            self._lost(channel, error)
        except ClosedError:
            raise
        except Exception as error:  # a fault of an adapter: one message must not hold up all that wait after it
            self._lost(channel, error, exc_info=error)
        return True

    def _lost(self, channel: str, error: Exception, *, exc_info: Exception | None = None) -> None:
        self.dropped += 1
        words = "a message that was kept for channel %r is lost: %s"
        self._bursts.log(logger, logging.ERROR, words, channel, error, exc_info=exc_info)
