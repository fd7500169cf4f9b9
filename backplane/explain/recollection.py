"""What a worker still knows of clients that are gone and of joins that were refused: what its journal keeps of them."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Final

from backplane.explain.evidence import EndedClient, RefusedJoin
from backplane.journal.events import CLIENT_REFUSED

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from backplane.journal.fields import Value
    from backplane.journal.journal import Journal
    from backplane.journal.ring import Entry, Kept

__all__ = ["ended_clients", "recent_events", "refused_joins"]

_MOST_ENDED: Final = 3
_MOST_REFUSED: Final = 10
_MOST_EVENTS: Final = 3
_OF_CHANNELS: Final[tuple[Kept, ...]] = ("gaps", "refusals", "faults", "broker")
_OF_BROKER: Final[tuple[Kept, ...]] = ("broker",)
# By `what` of the event `client.refused`.
_REFUSED_BY: Final = {"join": "authorize", "channel": "limit", "broker": "broker"}


def ended_clients(journal: Journal, is_meant: Callable[[str, str | None], bool]) -> tuple[EndedClient, ...]:
    """Return the clients that are meant, by their id and user, and have ended lately; the last one first."""
    ended = (
        EndedClient(
            id=_text(fields, "connection"),
            user=_user(fields),
            kind=_text(fields, "kind"),
            code=code if isinstance(code := fields.get("code"), int) else None,
            by=_text(fields, "by"),
            reason=_text(fields, "reason"),
            seconds_ago=seconds_ago,
        )
        for seconds_ago, fields in _entries(journal, "ended", is_meant)
    )
    return tuple(islice(ended, _MOST_ENDED))


def refused_joins(
    journal: Journal, channel: str, is_meant: Callable[[str, str | None], bool]
) -> tuple[RefusedJoin, ...]:
    """Return the joins of a channel by clients that are meant, that were refused lately; the last one first."""
    refused = (
        RefusedJoin(client=_text(fields, "connection"), by=by, reason=_text(fields, "reason"), seconds_ago=seconds_ago)
        for seconds_ago, fields in _entries(journal, "refusals", is_meant)
        if fields.get("channel") == channel and (by := _REFUSED_BY.get(_text(fields, "what"))) is not None
    )
    return tuple(islice(refused, _MOST_REFUSED))


def recent_events(journal: Journal, channel: str, clients: Collection[str]) -> tuple[tuple[float, str], ...]:
    """Return what was logged lately of a channel, or of clients by their ids: faults, refused publishes, slow clients.

    After that what the adapter has logged of the broker as a whole. Each is how many seconds ago it was, and its
    sentence; the last one first.
    """

    def is_meant(entry: Entry) -> bool:
        fields = entry["fields"]
        is_named = fields.get("channel") == channel or fields.get("connection") in clients
        return is_named and entry["event"] != CLIENT_REFUSED.name  # of joins: see `refused_joins`

    def is_of_broker(entry: Entry) -> bool:
        return not {"channel", "channels", "connection"} & entry["fields"].keys()

    now = time.time()
    found: list[tuple[float, str]] = []
    for kinds, is_wanted in ((_OF_CHANNELS, is_meant), (_OF_BROKER, is_of_broker)):
        entries = filter(is_wanted, reversed(journal.recent(*kinds)))
        found += ((max(0.0, round(now - each["at"], 1)), each["text"]) for each in islice(entries, _MOST_EVENTS))
    return tuple(found)


def _entries(
    journal: Journal, kept: Kept, is_meant: Callable[[str, str | None], bool]
) -> Iterator[tuple[float, dict[str, Value]]]:
    """Yield the fields of what is kept of the clients that are meant, after how many seconds ago that was."""
    now = time.time()
    for entry in reversed(journal.recent(kept)):
        fields = entry["fields"]
        if is_meant(_text(fields, "connection"), _user(fields)):
            yield max(0.0, round(now - entry["at"], 1)), fields  # the clock of the host can have been set back


def _text(fields: dict[str, Value], name: str) -> str:
    return str(fields.get(name, ""))


def _user(fields: dict[str, Value]) -> str | None:
    return _text(fields, "client_key") or None
