"""`backplane.adapters.redis_cluster.slots`: slots of names, and the map of the nodes."""

from typing import Any

import hiredis
import pytest

from backplane.adapters.redis_cluster.slots import SLOTS, moved_to, slot_map, slot_of

ONE, TWO = ("10.0.0.1", 7001), ("10.0.0.2", 7002)


@pytest.mark.parametrize(
    ("name", "slot"),
    [
        (b"", 0),
        (b"123456789", 12739),
        (b"foo", 12182),
        (b"{foo}bar", 12182),
        (b"bar{foo}", 12182),
        (b"{}x", 10595),
        (b"{a}{b}", 15495),
        (b"a", 15495),
        (b"{a", 10276),
        (b"}{a}", 15495),
    ],
)
def test_slot_of(name: bytes, slot: int) -> None:
    """The slot is that of the first tag that is not empty, as the server computes it (`CLUSTER KEYSLOT`)."""
    assert slot_of(name) == slot


def test_slot_map() -> None:
    """Each slot has its primary; an empty host or port is that of the node that was asked."""
    reply: list[Any] = [
        [0, 99, [b"10.0.0.1", 7001, b"id-one", []], [b"10.0.0.9", 7009, b"id-nine", []]],
        [200, SLOTS - 1, [b"", 0, b"id-two"]],
    ]
    found = slot_map(reply, TWO)
    assert (found.owners[0], found.owners[99], found.owners[100]) == (ONE, ONE, None)
    assert (found.owners[200], found.owners[-1]) == (TWO, TWO)
    assert found.nodes == {ONE, TWO}
    assert found.ids == {ONE: "id-one", TWO: "id-two"}


def test_changes() -> None:
    """The slots whose node is another one are found, each with the former node."""
    old = slot_map([[0, 9, [b"10.0.0.1", 7001]]], ONE)
    new = slot_map([[0, 8, [b"10.0.0.1", 7001]], [9, 10, [b"10.0.0.2", 7002]]], ONE)
    assert list(old.changes(new)) == [(9, ONE), (10, None)]
    assert new.ids == {ONE: "", TWO: ""}


@pytest.mark.parametrize("reply", [None, b"x", [1], [[0, 1]], [[0, SLOTS, [b"h", 1]]], [[0, 1, [b"\xff", 1]]]])
def test_no_map(reply: Any) -> None:
    """What is no reply to CLUSTER SLOTS is refused."""
    with pytest.raises(ValueError, match="not a reply to CLUSTER SLOTS"):
        slot_map(reply, ONE)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("MOVED 3999 127.0.0.1:6381", (3999, "127.0.0.1", 6381)),
        ("MOVED 1 ::1:6381", (1, "::1", 6381)),
        ("MOVED 1 :6381", (1, "", 6381)),
        ("MOVED 1", None),
        ("ASK 1 h:1", None),
        ("ERR unknown", None),
    ],
)
def test_moved_to(text: str, found: tuple[int, str, int] | None) -> None:
    """A redirection names the slot and the node."""
    assert moved_to(hiredis.ReplyError(text)) == found
