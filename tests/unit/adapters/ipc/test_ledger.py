"""What a peer has confirmed, without I/O."""

from __future__ import annotations

from backplane.adapters.ipc.ledger import Ledger


def test_a_ledger_confirms_only_what_was_sent() -> None:
    """A ticket is confirmed with its last chunk, whatever was requested before and after."""
    ledger = Ledger()
    many = [b"%060d" % number for number in range(3000)]
    first, second = ledger.request(many, wanted=True), 0
    sent: list[bytes] = []
    while chunk := ledger.next_chunk():
        assert ledger.next_chunk() == []  # one chunk at a time
        second = second or ledger.request([b"x", many[0]], wanted=True)
        sent += [key for key, _ in chunk]
        assert not ledger.has_confirmed(first)
        ledger.confirm(with_gap=False)
    assert ledger.has_confirmed(first)
    assert ledger.has_confirmed(second)
    assert ledger.all_confirmed
    assert set(sent) == {*many, b"x"}


def test_a_ledger_that_starts_again_confirms_open_tickets_with_the_last_chunk() -> None:
    """On a new connection a part of the channels confirms no ticket of the old one."""
    ledger = Ledger()
    many = [b"%060d" % number for number in range(3000)]
    ticket = ledger.request(many, wanted=True)
    ledger.next_chunk()
    ledger.restart(many)
    chunks = 0
    while not ledger.has_confirmed(ticket):
        assert ledger.next_chunk()
        ledger.confirm(with_gap=False)
        chunks += 1
    assert chunks == 3
    assert ledger.all_confirmed


def test_a_ledger_returns_a_missed_channel_once_and_only_while_it_is_wanted() -> None:
    """Missed channels are returned with their confirmation, without those unsubscribed meanwhile."""
    ledger = Ledger()
    ledger.request([b"a", b"b"], wanted=True)
    ledger.missed.update([b"a", b"b"])
    ledger.request([b"b"], wanted=False)
    ledger.next_chunk()
    assert ledger.confirm(with_gap=False) == {b"a"}
    assert ledger.missed == set()
