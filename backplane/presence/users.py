"""The users of one channel: connections counted by user, changes numbered, and a grace for those that come back."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from backplane.presence.contract import Present, ViewEvent

if TYPE_CHECKING:
    from random import Random

    from backplane.presence.wire import Entry

__all__ = ["Users"]

# A view that asks again and again must not put off for ever what it reports.
_MAX_LONGER_SECONDS: Final = 5.0


class _Grace:
    """A user without a connection, for whom no `left` is reported yet."""

    __slots__ = ("began", "deadline", "info", "since", "user")

    def __init__(self, last: Present) -> None:
        self.user: str = last.user
        self.info: str = last.info
        self.since: float = last.since
        self.began: float = 0.0
        self.deadline: float = 0.0


class Users:
    """The users of a channel.

    Apply any number of `add` and `remove`, then `commit`: only the difference between two commits is reported.

    Args:
        grace_seconds: How long a user without a connection stays.
        random: Source of the id.

    Attributes:
        id: Random.
        version: How many changes were reported.
    """

    def __init__(self, grace_seconds: float, random: Random) -> None:
        self.id: str = random.randbytes(8).hex()
        self.version: int = 0
        self._grace_seconds = grace_seconds
        self._users: dict[str, Entry | list[Entry] | _Grace] = {}
        # What a user was at the last commit, of those that may be something else now.
        self._touched: dict[str, Present | None] = {}
        self._graces: deque[_Grace] = deque()

    def __len__(self) -> int:
        """Return how many users there are, with those in their grace."""
        return len(self._users)

    def add(self, entry: Entry) -> None:
        """Add a connection."""
        user = entry.user
        state = self._users.get(user)
        if user not in self._touched:
            self._touched[user] = None if state is None else _present(user, state)
        if state is None or isinstance(state, _Grace):
            self._users[user] = entry
        elif isinstance(state, list):
            state.append(entry)
        else:
            self._users[user] = [state, entry]

    def remove(self, entry: Entry) -> None:
        """Remove a connection that was added."""
        user = entry.user
        state = self._users[user]
        before = None
        if user not in self._touched:
            before = self._touched[user] = _present(user, state)
        if isinstance(state, list):
            state.remove(entry)
            if len(state) == 1:
                self._users[user] = state[0]
        else:
            self._users[user] = _Grace(before or _present(user, state))

    def commit(self, now: float) -> ViewEvent | None:
        """Return what has changed since the last commit, if anything that is reported has.

        Users that have left are in their grace, be it of 0 seconds: `expire` reports them.
        """
        if not self._touched:
            return None
        joined: list[Present] = []
        updated: list[Present] = []
        for user, before in self._touched.items():
            state = self._users[user]
            if isinstance(state, _Grace):
                if before is None:
                    del self._users[user]
                else:
                    # It has left with the info that was reported.
                    state.info, state.began, state.deadline = before.info, now, now + self._grace_seconds
                    self._graces.append(state)
                continue
            present = _present(user, state)
            if before is None:
                joined.append(present)
            elif before.info != present.info:
                updated.append(present)
        self._touched.clear()
        return self._event(joined, [], updated)

    def restart(self) -> None:
        """Take what was added for the state that changes lead on from."""
        self._touched.clear()

    def next_due(self) -> float:
        """Return when the first grace ends, or infinity."""
        return self._graces[0].deadline if self._graces else float("inf")

    def restart_graces(self, now: float, *, blind: bool) -> None:
        """Let every grace begin anew.

        Args:
            now: The time.
            blind: Whether nothing was received for a while. Otherwise a grace becomes longer by a few seconds in all,
                however often this is called.
        """
        for grace in self._graces:
            if blind:
                grace.began = now
            grace.deadline = min(now, grace.began + _MAX_LONGER_SECONDS) + self._grace_seconds

    def expire(self, now: float) -> ViewEvent | None:
        """End the graces that are over, and return what has changed."""
        left: list[str] = []
        while self._graces and self._graces[0].deadline <= now:
            grace = self._graces.popleft()
            # Another one, if the user has come back meanwhile and left again.
            if self._users.get(grace.user) is grace:
                del self._users[grace.user]
                left.append(grace.user)
        return self._event([], left, [])

    def present(self) -> dict[str, Present]:
        """Return the users, with those in their grace."""
        return {user: _present(user, state) for user, state in self._users.items()}

    def _event(self, joined: list[Present], left: list[str], updated: list[Present]) -> ViewEvent | None:
        if not (joined or left or updated):
            return None
        self.version += 1
        return ViewEvent("change", self.version, tuple(joined), tuple(left), tuple(updated), self.id)


def _present(user: str, state: Entry | list[Entry] | _Grace) -> Present:
    """Return a user as every worker that holds the same connections returns it."""
    if isinstance(state, _Grace):
        return Present(user, state.info, state.since, 0)
    if isinstance(state, list):
        newest = max(state, key=_age)
        return Present(user, newest.info, newest.since, len(state))
    return Present(user, state.info, state.since, 1)


def _age(entry: Entry) -> tuple[float, str]:
    return entry.since, entry.connection
