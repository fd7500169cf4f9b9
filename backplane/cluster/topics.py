"""The names of the reserved channels on which workers exchange messages of their own."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final

from backplane.channels import MAX_CHANNEL_BYTES, RESERVED_PREFIX

__all__ = ["CONTROL", "STATS", "WORKERS", "inbox_of", "is_inbox", "is_worker", "presence_of"]

WORKERS: Final = f"{RESERVED_PREFIX}workers"
"""Heartbeats of all workers."""

CONTROL: Final = f"{RESERVED_PREFIX}control"
"""Commands to all workers."""

STATS: Final = f"{RESERVED_PREFIX}stats"
"""Figures of all workers, which only those that watch receive."""

_INBOX: Final = f"{RESERVED_PREFIX}worker/"
_PRESENCE: Final = f"{RESERVED_PREFIX}presence/"
_LONG_PRESENCE: Final = f"{RESERVED_PREFIX}presence-sha256/"
_WORKER: Final = re.compile("[0-9a-f]{16}")


def inbox_of(worker: str) -> str:
    """Return the channel of what only one worker receives."""
    return _INBOX + worker


def is_inbox(topic: str) -> bool:
    """Return whether `topic` is the inbox of a worker: answers go nowhere else, whatever a command states."""
    return topic.startswith(_INBOX) and is_worker(topic.removeprefix(_INBOX))


def is_worker(name: str) -> bool:
    """Return whether `name` has the form of a worker's: 8 random bytes, as lower-case hexadecimal digits."""
    return _WORKER.fullmatch(name) is not None


def presence_of(channel: str) -> str:
    """Return the channel of the presence in `channel`. Where the name would be too long it has a hash in its place."""
    topic = _PRESENCE + channel
    if len(topic.encode()) <= MAX_CHANNEL_BYTES:
        return topic
    return _LONG_PRESENCE + sha256(channel.encode()).hexdigest()
