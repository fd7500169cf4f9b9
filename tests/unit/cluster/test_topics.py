"""`backplane.cluster.topics`: the names of the reserved channels."""

from __future__ import annotations

import pytest

from backplane.channels import MAX_CHANNEL_BYTES, RESERVED_PREFIX
from backplane.cluster.topics import CONTROL, WORKERS, inbox_of, is_inbox, presence_of

WORKER = "0123456789abcdef"


def test_all_are_reserved() -> None:
    """No client can join one of them, and no application can publish to it."""
    topics = [WORKERS, CONTROL, inbox_of(WORKER), presence_of("a"), presence_of("a" * MAX_CHANNEL_BYTES)]
    assert all(topic.startswith(RESERVED_PREFIX) for topic in topics)
    assert len(set(topics)) == len(topics)


@pytest.mark.parametrize("character", ["a", "é", "𝄞"])
def test_presence_of_a_long_channel(character: str) -> None:
    """The channel of the presence is never longer than a channel may be, in bytes, and differs for each channel."""
    names = [character * length + end for length in range(1, 70) for end in "12"]
    names += [("a" * (MAX_CHANNEL_BYTES - 1)) + end for end in "12"]
    topics = [presence_of(name) for name in names]
    assert max(len(topic.encode()) for topic in topics) <= MAX_CHANNEL_BYTES
    assert len(set(topics)) == len(set(names))


def test_presence_keeps_a_name_that_fits() -> None:
    """A name that fits stays readable; the first that does not is hashed."""
    room = MAX_CHANNEL_BYTES - len(presence_of(""))
    assert presence_of("a" * room).endswith("/" + "a" * room)
    assert "sha256" in presence_of("a" * (room + 1))


@pytest.mark.parametrize(
    "topic",
    ["chat", "", WORKERS, CONTROL, inbox_of(""), inbox_of("0123"), inbox_of(WORKER.upper()), inbox_of(WORKER + "\n")],
)
def test_what_is_no_inbox(topic: str) -> None:
    """An answer goes to the inbox of a worker alone."""
    assert not is_inbox(topic)


def test_an_inbox() -> None:
    """The inbox of a worker is recognised."""
    assert is_inbox(inbox_of(WORKER))
