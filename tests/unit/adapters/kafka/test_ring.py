"""The rings of the newest messages, and the identity of their log."""

from __future__ import annotations

from backplane import History
from backplane.adapters.kafka.ring import HistoryRings, LogIdentity, Query, Ring, channel_epoch
from backplane.fanout.codec import encode_path_test
from backplane.history_rules import HistoryRules

IDENTITY = LogIdentity("cluster", b"i" * 16, "topic", 4)
RULE = History(max_messages=2)


def opened(max_bytes: int = 1_000_000) -> HistoryRings:
    """Return rings that begin at offset 10 of each partition."""
    rings = HistoryRings(max_bytes, HistoryRules({"room*": RULE}))
    rings.follow(IDENTITY, dict.fromkeys(range(4), 10))
    return rings


def adopt(rings: HistoryRings, partition: int, others: dict[bytes, Ring], since: int, until: int) -> None:
    """Add what was read beside others, in all steps."""
    for _ in rings.adopt(partition, others, since, until, rings.forgotten):
        pass


def test_an_epoch_is_that_of_one_channel_in_one_partition_of_one_topic() -> None:
    """Another cluster, topic, id, partition or channel is another epoch, and the parts do not run together."""
    parts = [
        ("cluster", b"i" * 16, "topic", 0, b"room"),
        ("cluster2", b"i" * 16, "topic", 0, b"room"),
        ("cluster", b"j" * 16, "topic", 0, b"room"),
        ("cluster", b"i" * 16, "topic2", 0, b"room"),
        ("cluster", b"i" * 16, "topic", 1, b"room"),
        ("cluster", b"i" * 16, "topic", 0, b"room2"),
        ("cluster", b"i" * 16, "topic", 0, b"\0room"),
        ("cluster", b"i" * 16, "topic", 10, b""),
        ("cluster", b"i" * 16, "topic", 1, b"0"),
    ]
    epochs = {channel_epoch(*part) for part in parts}
    assert len(epochs) == len(parts)
    assert {len(epoch) for epoch in epochs} == {8}


def test_only_channels_with_a_rule_in_their_own_partition_have_an_epoch() -> None:
    """A channel without a rule, a key that is no text, and a record in another partition have none, nor a ring."""
    rings = opened()
    own = IDENTITY.partition_of(b"room")
    size = rings.size_bytes
    for key, partition in ((b"other", IDENTITY.partition_of(b"other")), (b"\xff", 0), (b"room", (own + 1) % 4)):
        assert rings.add(partition, key, [(10, 1, b"x")]) is None
        assert rings.epoch_in(partition, key) is None
    assert rings.size_bytes == size
    assert rings.add(own, b"room", [(10, 1, b"x")]) == rings.epoch_in(own, b"room") == IDENTITY.epoch(own, b"room")
    assert rings.add((own + 1) % 4, b"room", [(11, 1, b"x")]) is None


def test_keys_of_others_do_not_grow_the_memory() -> None:
    """However many keys without a rule other programs use, only some are remembered."""
    rings = opened()
    for number in range(30_000):
        assert rings.rule_of(b"other-%d" % number) is None
    assert len(rings._unruled) <= 10_000  # pyright: ignore[reportPrivateUsage]


def test_the_ring_that_was_not_used_goes_first() -> None:
    """When memory is short, a channel that was neither published to nor asked for is forgotten before one that was."""
    rings = opened(10_000)
    names = [b"room-%d" % number for number in range(5)]
    for offset, name in enumerate(names):
        rings.add(IDENTITY.partition_of(name), name, [(10 + offset, 1, b"x" * 100)])
    asked = Query(names[0], RULE, None, 10, 1000)
    for number in range(200):
        filler = b"room-filler-%d" % number
        rings.add(IDENTITY.partition_of(filler), filler, [(100 + number, 1, b"x" * 100)])
        rings.answer(asked, None)
        assert rings.size_bytes <= 10_000
    assert rings.known_from(names[0]) == 10
    assert [rings.known_from(name) > 10 for name in names[1:]] == [True] * 4


def test_a_single_ring_is_bounded_too() -> None:
    """A channel whose messages alone are too many for the memory keeps the newest of them."""
    rings = HistoryRings(5_000, HistoryRules({"*": History(max_messages=1000)}))
    rings.follow(LogIdentity("", b"", "t", 1), {0: 0})
    for offset in range(100):
        rings.add(0, b"room", [(offset, -1, b"x" * 500)])
    found = rings.answer(Query(b"room", History(max_messages=1000), None, 1000, 1_000_000), None)
    assert 1 < len(found.items) < 10
    assert found.items[-1].place.offset == 100
    assert rings.known_from(b"room") == found.items[0].place.offset - 1
    assert rings.size_bytes <= 5_000


def test_what_was_read_is_joined_only_to_what_follows_it() -> None:
    """If a ring begins later than what was read ends, as after an eviction meanwhile, there may be a hole between."""
    rings = opened()
    rings.add(IDENTITY.partition_of(b"room"), b"room", [(12, 1, b"new")])
    rings.backfill(b"room", RULE, [(b"room", b"old", 5, 1)], 5, 8)
    assert rings.known_from(b"room") == 10
    rings.backfill(b"room", RULE, [(b"room", b"old", 9, 1)], 8, 10)
    assert rings.known_from(b"room") == 8


def test_channels_that_were_read_beside_others_are_known_only_without_a_hole() -> None:
    """If records between what was read and the floor are missing, as after an eviction meanwhile, nothing is taken."""
    rings = opened()
    own = IDENTITY.partition_of(b"room")
    aside = rings.ring_aside(own, b"room", 8)
    assert aside is not None
    aside.prepend([(b"room", b"old", 5, 1)], 4)
    adopt(rings, own, {b"room": aside}, 4, 8)
    assert rings.known_from(b"room") == 10


def test_a_ring_that_is_full_is_known_from_its_first_message_on() -> None:
    """Of a channel with more messages than are kept nothing is known before the oldest that is kept."""
    rings = opened()
    own = IDENTITY.partition_of(b"room")
    aside = rings.ring_aside(own, b"room", 10)
    assert aside is not None
    aside.prepend([(b"room", b"%d" % offset, offset, 1) for offset in (9, 8, 7, 6)], 6)
    adopt(rings, own, {b"room": aside}, 2, 10)
    assert rings.known_from(b"room") == 7
    assert rings.known_from(b"room-2") in (2, 10)


def test_a_ring_that_begins_after_a_hole_is_not_continued() -> None:
    """A ring that a reading could not be joined to is not taken to reach back to it by the next reading."""
    rings = opened()
    own = IDENTITY.partition_of(b"room")
    rings.add(own, b"room", [(12, 1, b"new")])
    adopt(rings, own, {}, 4, 10)
    aside = rings.ring_aside(own, b"room", 4)
    assert aside is not None
    aside.prepend([(b"room", b"old", 3, 1)], 2)
    adopt(rings, own, {b"room": aside}, 2, 4)
    assert rings.known_from(b"room") == 10


def test_nothing_is_adopted_after_something_was_forgotten() -> None:
    """If a ring was evicted, or a partition reset, while the log was read, the floor stays: also between two steps."""
    for step in (0, 1, 2):
        rings = opened()
        own = IDENTITY.partition_of(b"room")
        others = {key: Ring(own, b"epoch", 10, 3) for key in (b"room-1", b"room-2")}
        steps = rings.adopt(own, others, 2, 10, rings.forgotten)
        for _ in range(step):
            next(steps)
        rings.reset(own, 8)
        assert list(steps) == []
        assert rings.known_from(b"room") == 8


def test_more_messages_at_once_than_a_ring_holds() -> None:
    """The newest ones are held, and everything before them counts as left out, also what the ring had before."""
    rings = HistoryRings(1_000_000, HistoryRules({"*": History(max_messages=2)}))
    rings.follow(LogIdentity("", b"", "t", 1), {0: 0})
    rings.add(0, b"room", [(0, -1, b"0")])
    alone = rings.size_bytes
    rings.add(0, b"room", [(offset, -1, b"%d" % offset) for offset in range(1, 9)])
    assert rings.known_from(b"room") == 6
    found = rings.answer(Query(b"room", History(max_messages=2), None, 10, 1000), None)
    assert [item.payload for item in found.items] == [b"6", b"7", b"8"]
    assert rings.size_bytes == alone + 2 * 171


def test_path_tests_are_no_messages() -> None:
    """A path test that is read back from the log is left out, and so is known not to be a message."""
    ring = Ring(0, bytes(8), since=10, max_items=10)
    test = encode_path_test(b"TEST_ID8", origin=bytes(8), published_at=0.0)
    ring.prepend([(b"room", test, 9, 1), (b"room", b"x", 8, 1), (b"room", test, 7, 1)], 7)
    assert (list(ring.items), ring.since, ring.is_full) == ([(8, 1, b"x")], 7, False)
