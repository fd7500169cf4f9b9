"""Which workers are alive, by the numbers of their heartbeats."""

from __future__ import annotations

from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Final

from backplane.presence.contract import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from random import Random

    from backplane.presence.times import PresenceTimes

__all__ = ["HEARTBEATS_PER_SECOND", "MAX_WORKERS", "Member", "News", "Roster"]

MAX_WORKERS: Final = 10_000
"""How many workers are known at most, alive and dead: whatever can publish could name more."""

_REMEMBER_SECONDS: Final = 3_600.0
HEARTBEATS_PER_SECOND: Final = 50
"""How many heartbeats a worker receives per second at most: above that each worker sends fewer."""
_INTERVALS: Final = 3.3
_NO_INFO: Final[dict[str, object]] = {}


class News(Enum):
    """What a message means for the worker that published it."""

    NOTHING = "nothing"
    NEW = "new"
    BACK = "back"
    DEAD = "dead"
    CROWD = "crowd"


class Member:
    """A worker that is known.

    Attributes:
        number: The largest number of a heartbeat or goodbye; 0 before the first.
        grew: When the number grew, or when its time began anew.
        died: When it was taken for dead.
        alive: Whether it is taken for alive.
        info: What its last heartbeat states of it.
    """

    __slots__ = ("alive", "died", "grew", "info", "number")

    def __init__(self, number: int, now: float) -> None:
        self.number: int = number
        self.grew: float = now
        self.died: float = now
        self.alive: bool = True
        self.info: Mapping[str, object] = _NO_INFO


class Roster:
    """The workers that are known, without this one.

    A number only grows, so repeated and late messages change nothing. While the link of this worker is away the silence
    of others means nothing: `restart` after it.

    Args:
        times: The times.
        random: Source of what is drawn.

    Attributes:
        alive: Returns whether a worker is alive.
        interval: How far heartbeats of one worker are apart at most, in seconds.
        down_after: A worker without a heartbeat for so many seconds is dead.
    """

    interval: float
    down_after: float

    def __init__(self, times: PresenceTimes, random: Random) -> None:
        self._times = times
        self._random = random
        # In the order of `grew` and of `died`: the first one is due first.
        self._alive: Final[dict[str, Member]] = {}
        # No method: it is called for each message.
        self.alive: Final[Callable[[str], bool]] = self._alive.__contains__
        self._dead: dict[str, Member] = {}
        # When workers of which no heartbeat was received are dead, that were silent for another worker already.
        self._silent: dict[str, float] = {}
        self._stretch()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the workers that are alive."""
        return iter(self._alive)

    def __len__(self) -> int:
        """Return how many workers are alive."""
        return len(self._alive)

    def _stretch(self) -> None:
        """Stretch the times with the number of workers."""
        self.interval = max(self._times.heartbeat, (len(self._alive) + 1) / HEARTBEATS_PER_SECOND)
        self.down_after = max(self._times.down_after, _INTERVALS * self.interval)

    def draw_interval(self) -> float:
        """Return when to publish the next heartbeat, in seconds from now."""
        return self.interval * self._random.uniform(0.9, 1.0)

    def heartbeat(self, worker: str, number: int, info: Mapping[str, object], now: float) -> News:
        """Take a heartbeat.

        Returns:
            `BACK` if the worker was taken for dead, `NEW` if no heartbeat of it was known, `CROWD` if it cannot be
            added.
        """
        self._silent.pop(worker, None)
        member = self._alive.get(worker) or self._dead.get(worker)
        if member is None:
            return self._add(worker, number, info, now)
        if number <= member.number:
            return News.NOTHING
        was_alive, was_mentioned, member.alive = member.alive, member.number == 0, True
        member.number, member.grew, member.info = number, now, info
        (self._alive if was_alive else self._dead).pop(worker)
        self._alive[worker] = member
        self._stretch()
        if was_alive:
            return News.NEW if was_mentioned else News.NOTHING
        return News.BACK

    def goodbye(self, worker: str, number: int, now: float) -> News:
        """Take a goodbye: the worker is dead from here on. `DEAD` if it was alive."""
        member = self._alive.get(worker)
        if member is None:
            if worker not in self._dead:
                if self._add(worker, number, _NO_INFO, now) is News.CROWD:
                    return News.CROWD
                self._bury(worker, now)
            elif number > self._dead[worker].number:
                self._dead[worker].number = number
            return News.NOTHING
        if number <= member.number:
            return News.NOTHING
        member.number = number
        self._bury(worker, now)
        return News.DEAD

    def dead_elsewhere(self, worker: str, number: int, now: float) -> News:
        """Take note that another worker takes one for dead, having received no heartbeat of it after `number`.

        Returns:
            `DEAD` if it was alive, and no later heartbeat of it is known here either.
        """
        member = self._alive.get(worker)
        if member is None or member.number > number:
            return News.NOTHING
        self._bury(worker, now)
        return News.DEAD

    def dead_at(self, worker: str) -> int | None:
        """Return the largest number of a worker that is taken for dead, or `None` for any other."""
        member = self._dead.get(worker)
        return None if member is None else member.number

    def mentioned(self, worker: str, now: float, silent: float = 0.0) -> News:
        """Take any other sign of a worker: it is alive if it was not known. What is taken for dead stays dead.

        Args:
            worker: The worker.
            now: The time.
            silent: For how long the worker that mentions it has not received a heartbeat of it, in seconds.
        """
        if worker in self._alive or worker in self._dead:
            return News.NOTHING
        news = self._add(worker, 0, _NO_INFO, now)
        if news is News.NEW and silent > 0:
            self._silent[worker] = now + max(0.0, self.down_after - silent)
        return news

    def known(self, worker: str) -> bool:
        """Return whether a worker is known, dead or alive."""
        return worker in self._alive or worker in self._dead

    def silence(self, worker: str, now: float) -> float:
        """Return for how long no heartbeat of a worker was received, in seconds; 0 for one that is not alive."""
        member = self._alive.get(worker)
        return 0.0 if member is None else max(0.0, now - member.grew)

    def next_due(self) -> float:
        """Return when `sweep` has something to do, or infinity."""
        due = min(self._silent.values()) if self._silent else inf
        for member in self._alive.values():
            down = member.grew + self.down_after
            return down if down < due else due
        return due

    def sweep(self, now: float) -> list[str]:
        """Return the workers that are dead from here on."""
        down_after = self.down_after
        down: list[str] = []
        for worker, member in self._alive.items():
            if member.grew + down_after > now:
                break
            down.append(worker)
        for worker in [worker for worker, due in self._silent.items() if due <= now]:
            del self._silent[worker]
            mentioned = self._alive.get(worker)
            if mentioned is not None and not mentioned.number and worker not in down:
                down.append(worker)
        for worker in down:
            self._bury(worker, now)
        return down

    def forget(self, now: float) -> list[str]:
        """Return the dead workers that are not remembered any longer."""
        limit = now - _REMEMBER_SECONDS
        old: list[str] = []
        for worker, member in self._dead.items():
            if member.died > limit:
                break
            old.append(worker)
        for worker in old:
            del self._dead[worker]
        return old

    def restart(self, now: float) -> None:
        """Let the time of every worker begin anew."""
        self._silent.clear()
        for member in self._alive.values():
            member.grew = now

    def workers(self, now: float) -> list[Worker]:
        """Return what is known of every worker, by id."""
        down_after = self.down_after
        known = sorted((self._alive | self._dead).items())
        return [Worker(worker, m.alive, max(0.0, now - m.grew), down_after, m.info) for worker, m in known]

    def _add(self, worker: str, number: int, info: Mapping[str, object], now: float) -> News:
        if len(self._alive) + len(self._dead) >= MAX_WORKERS:
            if not self._dead:
                return News.CROWD
            del self._dead[next(iter(self._dead))]
        member = self._alive[worker] = Member(number, now)
        member.info = info
        self._stretch()
        return News.NEW

    def _bury(self, worker: str, now: float) -> None:
        member = self._dead[worker] = self._alive.pop(worker)
        member.alive, member.died = False, now
        self._stretch()
