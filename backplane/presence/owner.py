"""What this worker states of one channel: its entries, as published, and what is to be published next."""

from __future__ import annotations

from typing import NamedTuple

from backplane.presence.wire import Delta, Entry, Request, Snapshot

__all__ = ["Flushed", "Owner"]


class Flushed(NamedTuple):
    """What a flush has made.

    Attributes:
        message: To publish.
        added: Entries that are new.
        removed: Entries that are gone or replaced.
    """

    message: Delta | Snapshot
    added: list[Entry]
    removed: list[Entry]


class Owner:
    """The entries of this worker in one channel.

    `entries` belong to `version`, always: what changes is pending until it is flushed. So an answer can be given at any
    time, and one version has one content.

    Args:
        worker: This worker.
        version: Where versions begin: above all that this worker has published of this channel before.

    Attributes:
        version: Grows with each flush.
        entries: The entries at this version, by connection.
        counts: The channel has only counts: numbers are published, not entries.
        whole: The next message must hold everything: what was published may not have arrived.
    """

    def __init__(self, worker: str, version: int) -> None:
        self.version: int = version
        self.entries: dict[str, Entry] = {}
        self.counts: bool = False
        self.whole: bool = False
        self._worker = worker
        self._first = version
        self._pending: dict[str, Entry | None] = {}
        self._turned = False

    @property
    def published(self) -> bool:
        """Whether anything was published: a version is known elsewhere."""
        return self.version > self._first

    @property
    def pending(self) -> bool:
        """Whether a flush makes another version."""
        return self._turned or bool(self._pending)

    @property
    def size(self) -> int:
        """How many entries there are with what is pending."""
        return len(self.entries) + sum(
            (entry is not None) - (connection in self.entries) for connection, entry in self._pending.items()
        )

    @property
    def empty(self) -> bool:
        """Whether there is no entry, published or pending."""
        return not self.entries and not self._pending

    def get(self, connection: str) -> Entry | None:
        """Return what was entered last for a connection."""
        if connection in self._pending:
            return self._pending[connection]
        return self.entries.get(connection)

    def enter(self, entry: Entry) -> None:
        """Enter a connection, or replace its entry."""
        if self.entries.get(entry.connection) == entry:
            self._pending.pop(entry.connection, None)
        else:
            self._pending[entry.connection] = entry

    def exit(self, connection: str) -> None:
        """Take a connection out."""
        if connection in self.entries:
            self._pending[connection] = None
        else:
            self._pending.pop(connection, None)

    def turn(self, *, counts: bool) -> None:
        """Publish numbers from the next flush on, or entries again: under another version."""
        if counts != self.counts:
            self.counts, self.whole = counts, True
            self._turned = self.published

    def flush(self, request: Request | None = None) -> Flushed:
        """Make what is pending the next version.

        Args:
            request: What to ask in the same message, if it is a `Delta`.
        """
        added: list[Entry] = []
        removed: list[Entry] = []
        changed: dict[str, Entry] = {}
        gone: list[str] = []
        for connection, entry in self._pending.items():
            old = self.entries.get(connection)
            if old is not None:
                removed.append(old)
            if entry is None:
                gone.append(connection)
                del self.entries[connection]
            else:
                added.append(entry)
                changed[connection] = self.entries[connection] = entry
        self._pending, self._turned = {}, False
        base = self.version if self.published else 0
        self.version += 1
        return Flushed(self._message(base, changed, gone, request), added, removed)

    def snapshot(self) -> Snapshot:
        """Return what holds everything of this version."""
        return Snapshot(self._worker, self.version, self.stated())

    def stated(self) -> dict[str, Entry] | int:
        """Return what this worker states at this version."""
        return len(self.entries) if self.counts else self.entries

    def _message(
        self, base: int, changed: dict[str, Entry], gone: list[str], request: Request | None
    ) -> Delta | Snapshot:
        whole, self.whole = self.whole, False
        if self.counts or whole or len(changed) + len(gone) > max(1, len(self.entries)):
            return self.snapshot()
        if request is not None:
            request = request._replace(version=self.version)
        return Delta(self._worker, base, self.version, changed, gone, request, len(self.entries))
