"""The state of the broker link, and how the rest of the process learns of its changes."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from backplane.broker.link_tally import LinkTally
from backplane.journal.events import LINK_CLOSED, LINK_LIVE, LINK_LOST, LINK_RECOVERED
from backplane.journal.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.broker.session import LinkSession
    from backplane.journal.events import Event

__all__ = ["LinkState", "LinkStatus", "StateChange"]

logger: Final = logging.getLogger("backplane.broker.link_state")

LinkState = Literal["starting", "live", "degraded", "closed"]
"""State of the link between this worker and its broker.

- `starting`: the first link is being opened.
- `live`: the broker answers, and has confirmed every wanted channel but those that it refused, or on which it has given
  no final answer; these are subscribed to again.
- `degraded`: the link is lost and is being rebuilt.
- `closed`: the backplane was stopped.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """The link to the broker changed its state.

    Attributes:
        old: The state before.
        new: The state now.
        generation: Number of the link that this is about: how many this worker has tried to open so far.
        reason: Why, in words, for a log. Holds no password.
    """

    old: LinkState
    new: LinkState
    generation: int
    reason: str


def _event_of(change: StateChange) -> Event:
    """Return what is logged of a change.

    The end of an outage is a warning, as its beginning is: where INFO is off, a log would show it without its end.
    """
    if change.new == "degraded":
        return LINK_LOST
    if change.new == "live":
        return LINK_RECOVERED if change.old == "degraded" else LINK_LIVE
    return LINK_CLOSED


class LinkStatus:
    """The present state of the link, and its session.

    The supervisor writes it. Publishers, health checks and the application read it, and can wait for a change.

    Args:
        session: The first session, which is not opened yet.
        on_change: Called at once with every change of the state; must not raise.
        journal: How changes are logged. Defaults to one of its own.

    Attributes:
        state: State of the link.
        tally: What is counted of the link.
        session: The present session of the link.
        generation: How many sessions the worker has tried to open so far, the present one included.
    """

    def __init__(
        self,
        session: LinkSession,
        on_change: Callable[[StateChange], None] | None = None,
        journal: Journal | None = None,
    ) -> None:
        self._on_change = on_change
        self._journal = journal or Journal()
        self._changed = asyncio.Event()
        self.tally: LinkTally = LinkTally()
        self.state: LinkState = "starting"
        self.session: LinkSession = session
        self.generation: int = 0

    @property
    def live_session(self) -> LinkSession | None:
        """The session to publish on now; `None` while there is none.

        The adapter can have reported the loss of a session a moment before the supervisor changes the state.
        """
        session = self.session
        return None if self.state != "live" or session.retired or session.failure.done() else session

    def begin(self, session: LinkSession) -> None:
        """Make `session`, which is about to be opened, the present one."""
        self.session = session
        self.generation += 1

    def change(self, state: LinkState, reason: str) -> None:
        """Change the state, log the change, and notify everything that waits for one."""
        if state == self.state:
            return
        change = StateChange(old=self.state, new=state, generation=self.generation, reason=reason)
        self._log(change)
        self.state = state
        if state == "degraded":
            self.tally.began()
        else:
            self.tally.ended()
        self.wake()
        if self._on_change is not None:
            self._on_change(change)

    def _log(self, change: StateChange) -> None:
        self._journal.log(
            logger,
            _event_of(change),
            "%(old)s -> %(state)s (generation %(generation)d): %(reason)s",
            old=change.old,
            state=change.new,
            generation=change.generation,
            reason=change.reason,
        )

    async def changed(self) -> None:
        """Wait for the next change of the state, or for `wake`."""
        await self._changed.wait()

    def wake(self) -> None:
        """Make every `changed` that waits return, though the state is the same."""
        self._changed.set()
        self._changed = asyncio.Event()
