"""How this worker publishes through an outage: the interface, and the way of `outage="raise"`, which waits."""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Final, Protocol

from backplane.broker.backoff import Backoff
from backplane.errors import BrokerError, BrokerUnavailableError, ClosedError

if TYPE_CHECKING:
    from backplane.broker.keep import Keep
    from backplane.broker.publish_attempt import PublishAttempts
    from backplane.broker.session import LinkSession
    from backplane.message import Receipt

__all__ = ["Publisher", "WaitingPublisher"]

# Largest pause before a message with a key is sent again on a session that goes on.
_MAX_PAUSE_SECONDS: Final = 0.5


class Publisher(Protocol):
    """Publishes on a link that can be lost at any time. The setting `outage` decides which one a worker has.

    Attributes:
        dropped: Messages that were kept for later and never published.
    """

    dropped: int

    def __len__(self) -> int:
        """How many messages are kept for later."""
        ...

    async def publish(self, channel: str, payload: bytes, keep: Keep | None = None, /) -> Receipt:
        """Publish, in the order of the calls of one channel. What happens during an outage depends on the class.

        Args:
            channel: Where to.
            payload: What.
            keep: How it is kept in the history of the channel, where that has one. With a key in it the message is sent
                again, until it is certain that it was published, as long as the broker drops the second one.

        Raises:
            BrokerUnavailableError: Certainly not published: the broker is unavailable, or in a passing state.
            PublishOutcomeUnknownError: The broker did not answer in time; it may have been published.
            PublishError: The broker refused it.
            ClosedError: The backplane was stopped.
        """
        ...

    async def stop(self, timeout_seconds: float, /) -> None:
        """Keep nothing from now on, and publish what is kept, as far as that is possible in time."""
        ...


class WaitingPublisher:
    """Waits for a live link for up to the publish timeout, then raises: `outage="raise"`.

    Args:
        attempts: Publishes on one session.

    Attributes:
        dropped: Always 0: nothing is kept.
    """

    def __init__(self, attempts: PublishAttempts) -> None:
        self._attempts = attempts
        self._status = attempts.status
        self._places = count()
        self._queue: list[_WaitingPublish] = []  # a heap, by the order of the calls
        self.dropped: int = 0

    def __len__(self) -> int:
        return 0

    async def publish(self, channel: str, payload: bytes, keep: Keep | None = None) -> Receipt:
        """Publish on the present session, or on the next one where that session is lost before it took the message.

        With a key it is also sent again where its outcome is unknown, and where the broker is in a passing state. Then
        later messages of its channel may come before it: those that were in flight, and in a passing state those that
        are called until it is accepted. After a lost link messages with a key keep the order of their calls.

        Raises:
            BrokerUnavailableError: The link did not come back in time, or the broker cannot take the message at the
                moment; certainly not published.
            PublishOutcomeUnknownError: The broker did not answer in time.
            PublishError: The broker refused it.
            ClosedError: The backplane was stopped.
        """
        attempted: LinkSession | None = None
        failure: BrokerError | None = None
        place = next(self._places)
        backoff: Backoff | None = None
        try:
            with self._attempts.time_limits.limit():
                while True:
                    session = self._status.live_session
                    if session is None or self._queue:
                        session = await self._wait_for_session(place)
                    try:
                        attempted = session
                        return await self._attempts.attempt(session, channel, payload, keep)
                    except BrokerError as error:
                        attempted, failure = None, error
                        if not _repeats(keep, session, error):
                            raise
                    if not session.is_over:
                        backoff = backoff or Backoff(_MAX_PAUSE_SECONDS)
                        await asyncio.sleep(backoff.next())
        except TimeoutError:
            if attempted is not None:
                raise self._attempts.no_answer(attempted) from None
            raise _final(keep, self._unavailable()) from failure
        except (BrokerError, ClosedError) as error:
            if (final := _final(keep, error)) is error:
                raise
            raise final from error

    async def stop(self, _timeout_seconds: float) -> None:
        """Return at once: nothing is kept."""

    def _unavailable(self) -> BrokerUnavailableError:
        return BrokerUnavailableError(
            f"{self._attempts.url} has been unavailable for {self._attempts.timeout_seconds:g} s; not published"
        )

    async def _wait_for_session(self, place: int) -> LinkSession:
        """Wait for a live session, and for the publishes of earlier calls that wait too.

        A publish that a lost session did not take can come here after later calls have begun to wait. It takes its
        place in front of them, so a channel's messages keep the order of the calls.
        """
        queue, waiting = self._queue, _WaitingPublish(place)
        heappush(queue, waiting)
        try:
            while True:
                if self._status.state == "closed":
                    raise ClosedError("this Backplane has been stopped")
                if queue[0] is not waiting:
                    await waiting.turn()
                elif (session := self._status.live_session) is not None:
                    return session
                else:
                    await self._status.changed()
        finally:
            waiting.has_left = True
            while queue and queue[0].has_left:
                heappop(queue)
            if queue:
                queue[0].wake()


def _repeats(keep: Keep | None, session: LinkSession, error: BrokerError) -> bool:
    """Whether another attempt follows one that failed.

    Without a key only one on the next session does. On a session that goes on, the broker is in a passing state: later
    publishes on the same channel may be in progress already, and would overtake this one.
    """
    if keep is not None and keep.key is not None:
        return keep.repeats_after(error)
    return session.is_over and isinstance(error, BrokerUnavailableError)


def _final(keep: Keep | None, error: Exception) -> Exception:
    """Return the error for the caller, where `error` ends the attempts."""
    return error if keep is None else keep.final_error(error)


class _WaitingPublish:
    """A publish that waits for a session.

    Attributes:
        has_left: It waits no longer. It is removed from the heap once it is the first.
    """

    __slots__ = ("_place", "_turn", "has_left")

    def __init__(self, place: int) -> None:
        self._place = place
        self._turn: asyncio.Future[None] | None = None
        self.has_left = False

    def __lt__(self, other: _WaitingPublish) -> bool:
        return self._place < other._place

    async def turn(self) -> None:
        """Wait for `wake`."""
        self._turn = asyncio.get_running_loop().create_future()
        await self._turn

    def wake(self) -> None:
        """Make it check whether it is the first of the queue; a second call changes nothing."""
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)
