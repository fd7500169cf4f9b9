"""One attempt to publish on one session of the link: what both ways to publish through an outage have in common."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from backplane.broadcaster import SupportsHistory
from backplane.broker.probe import SilentLinkError
from backplane.concurrency.timeouts import SharedTimeout
from backplane.errors import PublishOutcomeUnknownError
from backplane.message import Receipt

if TYPE_CHECKING:
    from backplane.broadcaster import Broadcaster
    from backplane.broker.keep import Keep
    from backplane.broker.link_state import LinkStatus
    from backplane.broker.session import LinkSession

__all__ = ["NO_POSITION", "PublishAttempts"]

NO_POSITION: Final = Receipt()
"""The receipt of every publish that is in no history, or not yet."""

# Publishes in a row without an answer of the broker after which the link is taken for silent.
_MAX_UNANSWERED: Final = 2


class PublishAttempts:
    """Publishes on a given session, and watches whether the broker answers.

    Args:
        broadcaster: The adapter.
        status: The state of the link.
        timeout_seconds: How long an attempt waits for the broker's answer.

    Attributes:
        status: The state of the link.
        timeout_seconds: As above.
        time_limits: Limits of that length; see `SharedTimeout` for what they measure.
    """

    def __init__(self, broadcaster: Broadcaster, status: LinkStatus, *, timeout_seconds: float) -> None:
        self._broadcaster = broadcaster
        self._history = broadcaster if isinstance(broadcaster, SupportsHistory) else None
        self._in_flight = 0
        self._settled = asyncio.Event()
        self.status: LinkStatus = status
        self.timeout_seconds: float = timeout_seconds
        self.time_limits: SharedTimeout = SharedTimeout(timeout_seconds)

    @property
    def url(self) -> str:
        """Where the adapter connects, without its password."""
        return str(self._broadcaster.url)

    async def attempt(self, session: LinkSession, channel: str, payload: bytes, keep: Keep | None) -> Receipt:
        """Publish on `session`, without a time limit, by `SupportsHistory.keep` where `keep` is given.

        Raises as `Broadcaster.publish`.
        """
        self._in_flight += 1
        try:
            if keep is None:
                receipt = NO_POSITION
                await self._broadcaster.publish(channel, payload)
            else:
                assert self._history is not None, "a Backplane with rules is refused where the adapter keeps nothing"
                if keep.key is not None:
                    keep.begin_attempt()
                receipt = await self._history.keep(channel, payload, keep.rule, key=keep.key)
            session.publish_answered()
            return receipt
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._settled.set()

    async def attempt_in_time(self, session: LinkSession, channel: str, payload: bytes, keep: Keep | None) -> Receipt:
        """Publish on `session`; raises as `Broadcaster.publish`, and `PublishOutcomeUnknownError` when time is up."""
        try:
            with self.time_limits.limit():
                return await self.attempt(session, channel, payload, keep)
        except TimeoutError:
            raise self.no_answer(session) from None

    def no_answer(self, session: LinkSession) -> PublishOutcomeUnknownError:
        """Return the error for an attempt whose time is up, and end a session on which they accumulate.

        Such a session can still deliver messages: only its publish path is dead, and no probe is sent while it is used.
        Without a broker no answer is awaited, so it was this process that was slow. On a link of several parts only one
        of them may be silent, and the adapter ends that one by itself.
        """
        capabilities = self._broadcaster.capabilities
        if capabilities.brokered and not capabilities.parts:
            session.unanswered_publishes += 1
            if session.unanswered_publishes >= _MAX_UNANSWERED:
                session.lost(SilentLinkError(f"the link is silent: {_MAX_UNANSWERED} publishes got no answer"))
        return PublishOutcomeUnknownError(f"no answer within {self.timeout_seconds:g} s; it may have been published")

    async def settled(self) -> None:
        """Wait for the answers to all attempts, while the link is live. Each is limited in time, and so is this."""
        while self._in_flight and self.status.state == "live":
            self._settled.clear()
            await self._settled.wait()

    def close(self) -> None:
        """Cancel the timer: attempts in progress are no longer limited."""
        self.time_limits.close()
