"""The numbers of messages, by which every worker notices what did not reach its queue.

A worker numbers what it publishes over all its links. The numbers of a link begin after the highest that was confirmed
before, so those of what may or may not have been published are used again: each message names its link.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from backplane.adapters.amqp.wire import Content

__all__ = ["Numbering", "SeenNumbers"]

_MAX_WORKERS: Final = 10_000
_CLOCK_SECONDS: Final = 2.0  # by how much the clocks of two hosts may differ


@dataclass(slots=True)
class Numbering:
    """What the links of one worker share.

    Attributes:
        worker: The worker, by random letters.
        links: How many links there were.
        confirmed: The highest number that the server has confirmed.
    """

    worker: bytes = field(default_factory=lambda: secrets.token_hex(6).encode())
    links: int = 0
    confirmed: int = 0


class _Seen(NamedTuple):
    link: int
    number: int


class SeenNumbers:
    """Which numbers have arrived in a queue.

    Args:
        bound: When it was bound, by the clock of the event loop.
        bound_at: When it was bound, in seconds since 1970.
    """

    def __init__(self, bound: float, bound_at: float) -> None:
        self._bound = bound
        self._bound_at = bound_at
        self._last: dict[bytes, _Seen] = {}  # by the worker, the one that was seen last at the end

    def missed(self, content: Content, now: float) -> int:
        """Return how many messages of its worker are missing before this one: every queue gets all of them."""
        last = self._last.pop(content.app_id, None)
        if last is not None and last.link > content.link:  # still under way when the next link began
            self._last[content.app_id] = last
            return 0
        if last is None and len(self._last) >= _MAX_WORKERS:
            del self._last[next(iter(self._last))]
        self._last[content.app_id] = _Seen(content.link, content.number)
        of_link = content.number - content.base - 1
        if last is None:
            return of_link if self._began_later(content, now) else 0
        if last.link == content.link:
            return content.number - last.number - 1
        return max(0, content.base - last.number) + of_link

    def _began_later(self, content: Content, now: float) -> bool:
        """Whether the link of an unknown worker began after the queue: all of its messages should have arrived.

        Its age and the clock of its host must both show it: a message that waited long looks too young, and clocks
        differ.
        """
        is_younger = content.age_seconds < now - self._bound
        return is_younger and content.began_at > self._bound_at + _CLOCK_SECONDS
