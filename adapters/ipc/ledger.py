"""Which of our channel changes one peer has been sent, and which it has confirmed. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backplane.adapters.ipc import wire

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["Ledger"]


class Ledger:
    """Record of the channels that a peer has to know, in the order in which they were requested.

    A change (a channel is wanted, or no longer wanted) is *pending* until it is sent, and *in flight* until the peer
    confirms it. Only the last change of each channel is kept, and only one chunk is in flight at a time: a peer that
    does not read costs no more memory than the number of channels.

    A *ticket* is the number of a request. Tickets are confirmed in order: when a ticket is confirmed, so are all lower
    ones.

    Attributes:
        missed: Channels of which messages may be missing. Each is reported once, when the peer confirms the channel.
    """

    __slots__ = ("_confirmed_ticket", "_in_flight", "_last_ticket", "_pending", "missed")

    def __init__(self) -> None:
        self.missed: set[bytes] = set()
        self._last_ticket = 0
        self._confirmed_ticket = 0
        self._pending: dict[bytes, tuple[bool, int]] = {}
        self._in_flight: list[tuple[bytes, bool]] = []

    @property
    def all_sent(self) -> bool:
        """Whether no change is pending."""
        return not self._pending

    @property
    def all_confirmed(self) -> bool:
        """Whether the peer has confirmed every request."""
        return self._confirmed_ticket == self._last_ticket

    def request(self, keys: Iterable[bytes], *, wanted: bool) -> int:
        """Record that channels are wanted, or no longer wanted; return the ticket for `has_confirmed`."""
        self._last_ticket += 1
        for key in keys:
            # `has_confirmed` relies on the pending changes being in the order of their tickets, and a dictionary keeps
            # the place of a key that is set again: remove it first.
            self._pending.pop(key, None)
            self._pending[key] = (wanted, self._last_ticket)
            if not wanted:
                self.missed.discard(key)
        return self._last_ticket

    def restart(self, keys: Collection[bytes]) -> None:
        """Start again on a new connection, where the peer knows none of our channels: all `keys` become pending.

        Tickets that were not confirmed on the old connection stay open, and the chunk that was in flight there may or
        may not have been read. All channels are therefore sent again, in as many chunks as they need, and the open
        tickets are confirmed with the last of these chunks and not before: any chunk may hold the channel that an open
        ticket stands for. For that, every pending change gets the number of the lowest open ticket. `confirm` sets the
        confirmed ticket to one less than that of the first pending change, so it does not rise until no change is
        pending.
        """
        self._in_flight = []
        self._last_ticket += 1
        self._pending = dict.fromkeys(keys, (True, self._confirmed_ticket + 1))
        if not keys:  # no chunk will be sent, so no confirmation will come either
            self._confirmed_ticket = self._last_ticket

    def next_chunk(self) -> list[tuple[bytes, bool]]:
        """Take the changes to be sent now; none while a chunk is in flight."""
        if self._in_flight:
            return []
        size = 0
        for key, (wanted, _) in self._pending.items():
            size += wire.subscription_size(key)
            if size > wire.MAX_SUBSCRIPTIONS_BYTES:
                break
            self._in_flight.append((key, wanted))
        for key, _ in self._in_flight:
            del self._pending[key]
        return self._in_flight

    def mark_possible_loss(self) -> None:
        """Note that messages of every unconfirmed channel may be missing, because no call waits for the peer now."""
        self.missed.update(key for key, wanted in self._in_flight if wanted)
        self.missed.update(key for key, (wanted, _) in self._pending.items() if wanted)

    def confirm(self, *, with_gap: bool) -> set[bytes]:
        """Note that the peer has confirmed the chunk in flight.

        Args:
            with_gap: The peer has published messages that this process did not receive.

        Returns:
            Those channels of the chunk of which messages may be missing.
        """
        wanted = {key for key, wanted in self._in_flight if wanted}
        incomplete = wanted if with_gap else wanted & self.missed
        self.missed -= incomplete
        self._in_flight = []
        self._confirmed_ticket = next(iter(self._pending.values()))[1] - 1 if self._pending else self._last_ticket
        return incomplete

    def has_confirmed(self, ticket: int) -> bool:
        """Whether the peer has confirmed everything up to `ticket`."""
        return self._confirmed_ticket >= ticket
