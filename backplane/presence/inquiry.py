"""When a view asks what it misses, whom, and whether it knows everything."""

from __future__ import annotations

from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from random import Random

    from backplane.presence.times import PresenceTimes

__all__ = ["Inquiry", "Step"]

_ASK_SECONDS: Final = 1.0
_MAX_BACKOFF_SECONDS: Final = 30.0
_MAX_ROUNDS: Final = 10
_MISSING_SECONDS: Final = (0.2, 0.4)
_MAX_NUMBER: Final = 1 << 32


class Step(Enum):
    """What is due."""

    ASK = "ask"
    SURE = "sure"


class Inquiry:
    """The requests of one view, at most one per second.

    A request goes to one responder first. Without an answer that is whole it is repeated to everyone; after that, what
    has not answered has nothing to state.

    Args:
        times: The times.
        random: Source of what is drawn.

    Attributes:
        sure: The last request was answered, and nothing has happened since that makes it worthless.
        everyone: The next request goes to every owner.
        ask_at: When a request may be due, or infinity.
        until: When the last request counts as unanswered, or infinity.
    """

    def __init__(self, times: PresenceTimes, random: Random) -> None:
        self.sure: bool = False
        self.everyone: bool = False
        self._times = times
        self._random = random
        # A text that was never asked for has another number.
        self._first = self._number = random.randrange(_MAX_NUMBER)
        self._asked = -inf
        self.ask_at: float = inf
        self.until: float = inf
        # The request that is due is needed whether or not a version is known to be missing.
        self._forced = False
        self._rounds = 0

    def doubt(self, at: float) -> None:
        """Ask at `at`, since anything may be missing: unsure from now on."""
        self.sure = False
        self._forced = True
        # What no worker had may be answered now.
        self._rounds = 0
        self._plan(at, _ASK_SECONDS)

    def missing(self, now: float) -> None:
        """Ask soon, unless what is missing arrives meanwhile."""
        # Ever rarer, where a version is named that no worker has.
        pause = min(_ASK_SECONDS * 2 ** max(0, self._rounds - 1), _MAX_BACKOFF_SECONDS)
        self._plan(now + self._random.uniform(*_MISSING_SECONDS), pause)

    def next_due(self) -> float:
        """Return when `step` has something to do, or infinity."""
        return min(self.ask_at, self.until)

    def step(self, now: float, *, missing: bool) -> Step | None:
        """Return what is due.

        Args:
            now: The time.
            missing: Whether a version is known that is not held.

        Returns:
            `ASK`: call `asked` and publish the request. `SURE`: the view is sure from here on.
        """
        if self.until <= now:
            self.until = inf
            if not self.everyone:
                self.everyone = True
                return Step.ASK
            if not self._forced:
                self._settle(now, missing=missing)
                return Step.SURE
        if self.ask_at <= now:
            if self._forced or missing:
                return Step.ASK
            self.ask_at = inf
        return None

    def asked(self, now: float) -> int:
        """Return the number of a request that is published now."""
        self.ask_at, self._forced, self.sure = inf, False, False
        self._asked = now
        self.until = now + (self._times.everyone if self.everyone else self._times.responder)
        self._number += 1
        return self._number

    def expects(self, number: int) -> bool:
        """Return whether an answer with this number was asked for."""
        return self._first < number <= self._number

    def answered(self, number: int, now: float, *, missing: bool) -> bool:
        """Take an answer that is whole; return whether the view is sure by it, and was not before."""
        if number != self._number or self.until == inf:
            return False
        if self._forced:
            # Something may have been missed after this answer was made: the next request is due anyway.
            self.until = inf
            return False
        self._settle(now, missing=missing)
        return True

    def settle(self, now: float) -> None:
        """Be sure: there is no other worker."""
        self._settle(now, missing=False)

    def suspend(self) -> None:
        """Publish nothing: the link is away. `doubt` begins anew."""
        self.ask_at = self.until = inf
        self._forced = self.everyone = False
        self.sure = False

    def _settle(self, now: float, *, missing: bool) -> None:
        self.sure, self.until = True, inf
        self._rounds = min(self._rounds + 1, _MAX_ROUNDS) if missing else 0
        self.everyone = missing
        if missing:
            self.missing(now)

    def _plan(self, at: float, pause: float) -> None:
        self.ask_at = min(self.ask_at, max(at, self._asked + pause))
