"""Which slot a channel belongs to, and which node serves a slot.

A channel of sharded pub/sub belongs to one of 16,384 slots, as a key does, and each slot to one node
(https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).
"""

from __future__ import annotations

import re
from binascii import crc_hqx
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import hiredis

__all__ = ["DEFAULT_PORT", "SLOTS", "Host", "SlotMap", "hashed_part", "moved_to", "slot_map", "slot_of", "tag_of"]

DEFAULT_PORT: Final = 6379
"""The port of a node of the URL without one."""

SLOTS: Final = 16_384
"""How many there are."""

Host = tuple[str, int]
"""Host, a name or an address, and port of a node."""

_MOVED: Final = re.compile(r"MOVED (\d{1,5}) (.*):(\d{1,5})")


def slot_of(name: bytes) -> int:
    """Return the slot of a name."""
    return crc_hqx(hashed_part(name), 0) % SLOTS


def hashed_part(name: bytes) -> bytes:
    """Return the part of a name that decides on its slot: its hash tag, or all of it.

    The tag is what stands between the first `{` and the next `}`, where that is not empty.
    """
    if (begin := name.find(b"{") + 1) and (end := name.find(b"}", begin)) > begin:
        return name[begin:end]
    return name


@lru_cache(maxsize=SLOTS)
def tag_of(slot: int) -> str:
    """Return a hash tag of a slot; the first call for a slot takes some milliseconds."""
    return next(tag for number in count() if slot_of((tag := str(number)).encode()) == slot)


@dataclass(frozen=True, slots=True)
class SlotMap:
    """Which node serves each slot.

    Attributes:
        owners: The node of each slot, by its number; `None` where no node serves it.
        ids: The id of each node, where the server states it.
    """

    owners: tuple[Host | None, ...]
    ids: Mapping[Host, str]

    @property
    def nodes(self) -> set[Host]:
        """The nodes that serve a slot."""
        return {owner for owner in self.owners if owner is not None}

    def changes(self, newer: SlotMap) -> Iterator[tuple[int, Host | None]]:
        """Return the slots that have another node in `newer`, each with the node it has here."""
        for slot, (old, new) in enumerate(zip(self.owners, newer.owners, strict=True)):
            if old != new:
                yield slot, old


def slot_map(reply: Any, asked: Host) -> SlotMap:
    """Return what a reply to `CLUSTER SLOTS` contains.

    Args:
        reply: The reply.
        asked: The node that replied. Where the host of a node is empty, it is this one's, and so is a port of 0, as
            nodes state it that speak TLS alone, with `tls-cluster no`.

    Raises:
        ValueError: The reply is something else.
    """
    owners: list[Host | None] = [None] * SLOTS
    ids: dict[Host, str] = {}
    try:
        for first, last, primary, *_ in reply:
            host, port, *more = primary
            name = "" if host is None else host.decode()
            node = (asked[0] if name in ("", "?") else name, int(port) or asked[1])
            owners[first : last + 1] = [node] * (last - first + 1)
            ids[node] = more[0].decode() if more and isinstance(more[0], bytes) else ""
    except (AttributeError, TypeError, ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"not a reply to CLUSTER SLOTS: {error}") from None
    if len(owners) != SLOTS:
        raise ValueError("not a reply to CLUSTER SLOTS: a slot out of range")
    return SlotMap(tuple(owners), ids)


def moved_to(reply: hiredis.ReplyError) -> tuple[int, str, int] | None:
    """Return slot, host and port of a reply that names another node; the host can be empty. `None` for others."""
    found = _MOVED.fullmatch(str(reply))
    return None if found is None else (int(found[1]), found[2], int(found[3]))
