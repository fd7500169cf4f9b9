"""Who is present: the verbs of a `Backplane` that concern presence."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from backplane.channels import validate_channel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.presence.watch import PresenceWatch
    from backplane.presence_types import PresenceView
    from backplane.worker.lifecycle import Lifecycle

__all__ = ["PresenceVerbs"]


class PresenceVerbs:
    """Users of a channel, on all workers."""

    _lifecycle: Lifecycle

    async def present(self, channel: str) -> PresenceView:
        """Return the users of `channel`, on all workers.

        A channel that this worker does not watch yet takes one way over the broker and back where another worker that
        has a client in it watches it; otherwise 1.3 seconds, the time in which every worker can answer; and 2 seconds
        at most, after which the view is `stale`. It is kept for 30 seconds for the next call. What the clients of
        this worker did before the call is in it. While the link to the broker is lost it returns at once what was known
        last, as `stale`.

        Args:
            channel: The channel, which must have a `Presence` rule.

        Raises:
            InvalidChannelError: The name is not legal.
            ConfigurationError: The channel has no rule.
            NotStartedError, ClosedError: The backplane is not running.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        return await self._lifecycle.running().members().present(validate_channel(channel))

    @asynccontextmanager
    async def watch(self, channel: str) -> AsyncGenerator[PresenceWatch]:
        """Watch the users of `channel`: `async with backplane.watch("room:1") as presence: async for item in presence`.

        The first item is a `PresenceSnapshot`, as soon as the other workers have answered; then each change is a
        `PresenceChange` with the next version. Every worker that watches counts versions of its own: a change can be
        one item at one worker and two at another, and a user who was there for less than 0.1 s may be in none.

        Args:
            channel: The channel, which must have a `Presence` rule.

        Raises:
            InvalidChannelError: The name is not legal.
            ConfigurationError: The channel has no rule.
            NotStartedError, ClosedError: The backplane is not running.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        cluster = self._lifecycle.running().members()
        watch = cluster.watch(validate_channel(channel))
        try:
            yield watch
        finally:
            cluster.end_watch(watch)
