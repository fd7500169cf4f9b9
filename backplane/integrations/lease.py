"""The backplane of an integration: the application's own, or one that belongs to the integration."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TYPE_CHECKING

from backplane.concurrency.context import task_in
from backplane.concurrency.shared_future import outcome_of
from backplane.core import Backplane

if TYPE_CHECKING:
    from backplane.settings import Settings

__all__ = ["Lease"]


class Lease:
    """Starts and stops a backplane that was made for an integration, and leaves one of the application as it is.

    Args:
        backplane: That of the application, which starts and stops it; or the URL for one of the integration's own.
            Defaults to the environment variable `BACKPLANE_URL`.
        settings: Those of a backplane that is made here.

    Attributes:
        backplane: The backplane.

    Raises:
        ConfigurationError: The URL is wrong.
        MissingDependencyError: The adapter's client library is not installed.
    """

    def __init__(self, backplane: Backplane | str | None, *, settings: Settings | None = None) -> None:
        self._is_own = not isinstance(backplane, Backplane)
        self.backplane: Backplane = (
            backplane if isinstance(backplane, Backplane) else Backplane(backplane, settings=settings)
        )
        self._starting: asyncio.Task[None] | None = None
        self._is_over = False

    async def start(self) -> None:
        """Start a backplane of the integration's own, once for all callers that wait.

        Raises:
            BrokerError: As `Backplane.start`.
        """
        self._is_over = False
        if not self._is_own:
            return
        if self._starting is None:
            if self.backplane.state != "closed":
                return
            # In an empty context: the work of the link is not part of the first caller's trace.
            starting = task_in(Context(), self.backplane.start(), asyncio.get_running_loop())
            starting.add_done_callback(self._start_ended)
            self._starting = starting
        await outcome_of(self._starting)

    async def ready(self) -> Backplane:
        """Return the backplane, started unless `stop` has been called.

        Raises:
            BrokerError: As `Backplane.start`.
        """
        if not self._is_over:
            await self.start()
        return self.backplane

    async def stop(self) -> None:
        """Stop a backplane of the integration's own; `ready` does not start it again."""
        self._is_over = True
        if self._is_own:
            await self.backplane.stop()

    def _start_ended(self, _: asyncio.Task[None]) -> None:
        self._starting = None
