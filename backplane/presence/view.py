"""What this worker knows of one channel that it watches: for each owner a version and its entries."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from backplane.presence.contract import ViewEvent
from backplane.presence.users import Users

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

    from backplane.presence.contract import Present, Rule
    from backplane.presence.wire import Delta, Entry

__all__ = ["RETURN_SHARE", "Held", "OwnerView"]

RETURN_SHARE: Final = 0.75
"""Below this share of `max_entries` entries are exchanged again: a channel at its limit must not turn each time."""


class Held:
    """What is known of one owner.

    Attributes:
        version: The version that is held; 0 for nothing.
        newest: The largest version that any worker has named.
        entries: The entries at `version`, or `None` if only their number is known.
        count: How many entries there are.
        received: When the owner was received from last, or a worker that did.
    """

    __slots__ = ("count", "entries", "newest", "received", "version")

    def __init__(self, now: float) -> None:
        self.version: int = 0
        self.newest: int = 0
        self.entries: dict[str, Entry] | None = {}
        self.count: int = 0
        self.received: float = now


class OwnerView:
    """The view of one channel.

    Each method returns nothing; what it has changed for users is in the next `commit`.

    Args:
        rule: The rule of the channel.
        random: Source of ids.

    Attributes:
        held: What is known, by owner.
        total: How many entries there are, of all owners.
        users: The users, or `None` while there are only counts.
    """

    def __init__(self, rule: Rule, random: Random) -> None:
        self.held: dict[str, Held] = {}
        self.total: int = 0
        self.users: Users | None = Users(rule.grace_seconds, random) if rule.max_entries else None
        self._rule = rule
        self._random = random
        # Owners of which a larger version is known than is held.
        self._lagging: set[str] = set()
        # Owners of which only a number is known.
        self._numbers: int = 0
        self._counts_id = random.randbytes(8).hex()
        self._counts_version: int = 0
        # How many connections there were at the last commit, while there are only counts.
        self._counted: int = 0
        self._reset = False

    @property
    def id(self) -> str:
        """The id of the state that changes lead on from."""
        return self._counts_id if self.users is None else self.users.id

    @property
    def version(self) -> int:
        """How many changes were reported since `id` began."""
        return self._counts_version if self.users is None else self.users.version

    def missing(self, alive: Callable[[str], bool]) -> bool:
        """Return whether something is known to be missing that a worker could answer."""
        return any(alive(owner) for owner in self._lagging) or self.wants_entries()

    def known(self) -> dict[str, int]:
        """Return what a request lists: the version that is held, by owner."""
        wants = self.wants_entries()
        return {
            owner: held.version
            for owner, held in self.held.items()
            if held.version and not (wants and held.entries is None)
        }

    def owners(self) -> Iterator[str]:
        """Iterate over those that have entries."""
        return (owner for owner, held in self.held.items() if held.count)

    def lags(self, owner: str) -> bool:
        """Return whether a larger version of an owner is known than is held."""
        return owner in self._lagging

    def name(self, owner: str, version: int, now: float) -> None:
        """Take note that an owner has a version."""
        held = self._of(owner, now)
        if version > held.newest:
            held.newest = version
            self._lagging.add(owner)

    def touch(self, owner: str, now: float) -> None:
        """Take note that an owner was received from."""
        held = self.held.get(owner)
        if held is not None:
            held.received = now

    def apply(self, delta: Delta, now: float) -> bool:
        """Apply a difference if it is one to what is held; otherwise take note of its version.

        Returns:
            Whether a larger version of the owner is known than is held.
        """
        owner, base, version, changed, gone, _, size = delta
        held = self.held.get(owner) or self._of(owner, now)
        held.received = now
        if version > held.version:
            if not base:
                self.replace(owner, version, changed, now)
            elif base == held.version:
                self._difference(held, changed, gone, size)
                self._holds(owner, held, version, now)
            else:
                self.name(owner, version, now)
        return owner in self._lagging

    def replace(self, owner: str, version: int, entries: dict[str, Entry] | int, received: float) -> bool:
        """Take everything that an owner states, if it is newer than what is held; return whether it was."""
        held = self._of(owner, received)
        completes = version == held.version and held.entries is None and isinstance(entries, dict)
        if version <= held.version and not completes:
            return False
        if isinstance(entries, dict):
            if held.entries is None:
                held.entries = {}
                self._numbers -= 1
            gone = [connection for connection in held.entries if connection not in entries]
            self._difference(held, entries, gone, len(entries))
        else:
            self._number(held, entries)
        self._holds(owner, held, version, received)
        return True

    def drop(self, owner: str) -> None:
        """Drop the entries of an owner that is dead, and remember the largest version."""
        held = self.held.get(owner)
        if held is not None:
            self._empty(held)
            held.version = 0
            if held.newest:
                self._lagging.add(owner)

    def forget(self, owner: str) -> None:
        """Forget an owner."""
        held = self.held.pop(owner, None)
        if held is not None:
            self._empty(held)
            self._lagging.discard(owner)

    def expire(self, limit: float, *, keep: str) -> None:
        """Forget the owners that were received from last before `limit`, without `keep`."""
        for owner in [owner for owner, held in self.held.items() if held.received < limit and owner != keep]:
            self.forget(owner)

    def restart(self, now: float) -> None:
        """Let the time of every owner begin anew."""
        for held in self.held.values():
            held.received = now

    def commit(self, now: float) -> ViewEvent | None:
        """Return what has changed since the last commit."""
        if self.users is None and not self._numbers and self._rule.max_entries:
            self.users = Users(self._rule.grace_seconds, self._random)
            for held in self.held.values():
                for entry in (held.entries or {}).values():
                    self.users.add(entry)
            self.users.restart()
            self._reset = True
        if self._reset:
            self._reset = False
            self._counted = self.total
            return ViewEvent("reset", 0, id=self.id)
        if self.users is not None:
            return self.users.commit(now)
        if self.total == self._counted:
            return None
        self._counted = self.total
        self._counts_version += 1
        return ViewEvent("count", self._counts_version, id=self.id)

    def next_grace(self) -> float:
        """Return when the first grace ends, or infinity."""
        return inf if self.users is None else self.users.next_due()

    def restart_graces(self, now: float, *, blind: bool) -> None:
        """Let every grace begin anew: its user may have been back, and have gone again, while this was not known.

        Args:
            now: The time.
            blind: As of `Users.restart_graces`.
        """
        if self.users is not None:
            self.users.restart_graces(now, blind=blind)

    def end_graces(self, now: float) -> ViewEvent | None:
        """End the graces that are over, and return what has changed."""
        return None if self.users is None else self.users.expire(now)

    def present(self) -> dict[str, Present] | None:
        """Return the users, or `None` while there are only counts."""
        return None if self.users is None else self.users.present()

    def _of(self, owner: str, now: float) -> Held:
        held = self.held.get(owner)
        if held is None:
            held = self.held[owner] = Held(now)
        return held

    def _holds(self, owner: str, held: Held, version: int, received: float) -> None:
        held.version = version
        held.received = max(held.received, received)
        if held.newest <= version:
            held.newest = version
            self._lagging.discard(owner)

    def _difference(self, held: Held, changed: dict[str, Entry], gone: list[str], count: int) -> None:
        entries, users = held.entries, self.users
        if entries is None:
            self._number(held, count)
            return
        for connection in gone:
            old = entries.pop(connection, None)
            if old is not None and users is not None:
                users.remove(old)
        for connection, entry in changed.items():
            old = entries.get(connection)
            if old == entry:
                continue
            entries[connection] = entry
            if users is not None:
                users.add(entry)
                if old is not None:
                    users.remove(old)
        self.total += len(entries) - held.count
        held.count = len(entries)
        if self.total > self._rule.max_entries:
            self._number(held, held.count)

    def _number(self, held: Held, count: int) -> None:
        """Hold only the number of an owner's entries: the users are not known any more."""
        if not count:
            self._empty(held)
            return
        self.total += count - held.count
        held.count = count
        if held.entries is not None:
            held.entries = None
            self._numbers += 1
        if self.users is not None:
            self.users, self._reset = None, True
            self._counts_id, self._counts_version = self._random.randbytes(8).hex(), 0

    def _empty(self, held: Held) -> None:
        if held.entries is None:
            self._numbers -= 1
        elif self.users is not None:
            for entry in held.entries.values():
                self.users.remove(entry)
        self.total -= held.count
        held.entries, held.count = {}, 0

    def wants_entries(self) -> bool:
        """Return whether numbers are held where there is room for entries."""
        return self._numbers > 0 and self.total <= self._rule.max_entries * RETURN_SHARE
