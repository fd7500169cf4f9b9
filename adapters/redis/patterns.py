"""The patterns of one connection that receives: which ones the server has, and which copy of a message is delivered.

A server sends a message once for the name and once for each pattern that a connection has subscribed to. The replies
to (P)SUBSCRIBE and (P)UNSUBSCRIBE are in one order with the messages, so it is known of every message which copies of
it there are, also while a subscription is added or removed. Delivered is the copy of the name, or else that of the
shortest pattern: all patterns are a prefix and `*`, so of two that match one channel, one begins with the other.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from backplane.patterns import Prefixes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["Patterns", "escape_glob", "outermost"]

# The characters that have a meaning in a pattern, of PSUBSCRIBE as of an ACL.
_ESCAPES: Final = str.maketrans({character: f"\\{character}" for character in "*?[]\\"})
_ESCAPED: Final = re.compile(r"\\(.)")


class Patterns:
    """The prefixes that are wanted, and the patterns that the server has confirmed. No I/O.

    Args:
        prefix: What every name at the server begins with: the option `prefix`.

    Attributes:
        wanted: The prefixes that are wanted.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._prefix_bytes = prefix.encode()
        self._confirmed: dict[bytes, str] = {}  # the prefix of each pattern
        self._shortest: set[bytes] | None = None  # those of which messages are delivered; `None`: to be computed
        self.wanted: Prefixes[str] = Prefixes()

    def pattern_of(self, prefix: str) -> bytes:
        """Return the pattern of every name that begins with a prefix of channels."""
        return escape_glob(self._prefix + prefix).encode() + b"*"

    def prefix_of(self, pattern: bytes) -> str:
        """Return the prefix of channels that `pattern_of` made a pattern of."""
        return _ESCAPED.sub(r"\1", pattern[:-1].decode())[len(self._prefix) :]

    def confirmed(self, pattern: bytes, *, subscribed: bool) -> bool:
        """Take the server's confirmation of PSUBSCRIBE or PUNSUBSCRIBE; return whether it changed something."""
        is_known = pattern in self._confirmed
        if subscribed:
            self._confirmed[pattern] = self.prefix_of(pattern)
        else:
            self._confirmed.pop(pattern, None)
        self._shortest = None
        return is_known is not subscribed

    def channel_of(self, name: bytes) -> str | None:
        """Return the channel of a name, if a prefix is wanted that it begins with.

        Of a name that is not UTF-8, or that lacks the prefix of the options, there is no channel.
        """
        if not self.wanted or not name.startswith(self._prefix_bytes):
            return None
        try:
            channel = name[len(self._prefix_bytes) :].decode()
        except UnicodeDecodeError:
            return None
        return channel if channel and self.wanted.covers(channel) else None

    def delivers(self, pattern: bytes) -> bool:
        """Return whether a message is delivered because of this pattern, if it is not because of its name."""
        if self._shortest is None:
            self._shortest = {self.pattern_of(prefix) for prefix in outermost(self._confirmed.values())}
        return pattern in self._shortest

    def missing(self, *, exact: bool = False) -> list[bytes]:
        """Return the patterns to subscribe to.

        Args:
            exact: Also those of prefixes that a shorter pattern covers which the server has, and which no one wants.
        """
        confirmed = set(self._confirmed.values())
        return [
            self.pattern_of(prefix)
            for prefix in outermost(self.wanted)
            if prefix not in confirmed and (exact or not _covering(prefix, confirmed))
        ]

    def surplus(self) -> list[bytes]:
        """Return the patterns to unsubscribe from: the server has all that is needed without them."""
        confirmed = set(self._confirmed.values())
        wanted = outermost(self.wanted)
        needed = confirmed.intersection(wanted)
        for prefix in wanted:
            if prefix not in confirmed:
                # The server has not confirmed it, or refused it. Shorter ones serve as well, and longer ones in part.
                longer = (other for other in confirmed if other.startswith(prefix))
                needed.update(_covering(prefix, confirmed)[-1:] or longer)
        return [pattern for pattern, prefix in self._confirmed.items() if prefix not in needed]


def outermost(prefixes: Iterable[str]) -> list[str]:
    """Return those that begin with no other one: whatever begins with any of all begins with one of these."""
    found: list[str] = []
    for prefix in sorted(prefixes):  # each directly follows the one that it begins with, or others that do
        if not found or not prefix.startswith(found[-1]):
            found.append(prefix)
    return found


def escape_glob(text: str) -> str:
    """Return the pattern that matches `text` alone."""
    return text.translate(_ESCAPES)


def _covering(prefix: str, among: Collection[str]) -> list[str]:
    """Return those that `prefix` begins with, shortest first."""
    return [prefix[:size] for size in range(len(prefix)) if prefix[:size] in among]
