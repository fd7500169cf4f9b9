"""`backplane.fanout.batch`: messages in order, their frames built once, and who is left out."""

from __future__ import annotations

import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

import backplane.fanout.batch
from backplane.fanout.batch import Batch
from backplane.fanout.frames import compress_frame, encode_frame
from backplane.message import Message
from tests.unit.doubles import messages_in


def text(data: str | bytes, excluded: bytes | None = None) -> Message:
    """Return a message."""
    return Message(channel="a", data=data, excluded=excluded)


def test_order_and_size() -> None:
    """A batch holds its messages in order and knows the size of their data, however they came into it."""
    batch = Batch(text("1"), text(b"\x00\xff"))
    batch.add(text("345"))
    assert [message.data for message in batch] == ["1", b"\x00\xff", "345"]
    assert (batch.size_bytes, batch.excludes) == (6, False)


def test_empty() -> None:
    """A batch of nothing is no bytes."""
    assert (Batch().frames, Batch().compressed(12), Batch().size_bytes) == (b"", b"", 0)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_excludes(position: int) -> None:
    """One message that is not for everybody marks the whole, wherever it stands."""
    excluded: list[bytes | None] = [None, None, None]
    excluded[position] = b"12345678"
    assert Batch(*(text("x", token) for token in excluded)).excludes


def test_frames_are_those_of_its_messages() -> None:
    """The bytes for a socket are the frames of the messages, one after the other, text as text and binary as binary."""
    assert Batch(text("é"), text(b"\xff"), text("")).frames == (
        encode_frame("é") + encode_frame(b"\xff") + encode_frame("")
    )


def test_frames_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sockets ask, each message is encoded once, and once for each window."""
    encoded: list[object] = []

    def encode(data: str | bytes, *window_bits: int) -> bytes:
        encoded.append((data, *window_bits))
        return b"."

    monkeypatch.setattr(backplane.fanout.batch, "encode_frame", encode)
    monkeypatch.setattr(backplane.fanout.batch, "compress_frame", encode)
    batch = Batch(text("1"), text("2"))
    for _ in range(3):
        assert [batch.frames, batch.compressed(9), batch.compressed(15)] == [b".."] * 3
    assert encoded == [("1",), ("2",), ("1", 9), ("2", 9), ("1", 15), ("2", 15)]


def test_built_once_even_when_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the bytes are none is remembered too."""
    batch = Batch()
    assert batch.frames == b""
    first = batch.frames
    monkeypatch.setattr(Batch, "__iter__", None)  # whoever builds again fails
    assert batch.frames is first


def test_compressed() -> None:
    """For a socket with permessage-deflate the frames are compressed, for its window."""
    batch = Batch(text("x" * 1_000), text("y" * 1_000))
    assert batch.compressed(9) == compress_frame("x" * 1_000, 9) + compress_frame("y" * 1_000, 9)
    assert len(batch.compressed(15)) < len(batch.frames) / 10
    assert messages_in(batch.compressed(15)) == ["x" * 1_000, "y" * 1_000]


def test_for_everybody_is_the_same_object() -> None:
    """Whoever is not left out shares the batch, and its bytes, with all others."""
    batch = Batch(text("1", b"other___"), text("2"))
    assert batch.for_token(b"12345678") is batch


def test_left_out_of_everything() -> None:
    """Whoever is left out of every message gets a batch of nothing."""
    batch = Batch(text("1", b"12345678"), text("2", b"12345678"))
    shorter = batch.for_token(b"12345678")
    assert (list(shorter), shorter.frames, shorter.size_bytes, shorter.excludes) == ([], b"", 0, False)
    assert len(batch) == 2


messages = st.lists(st.tuples(st.text(max_size=300) | st.binary(max_size=300), st.none() | st.integers(0, 2)))


@given(messages)
def test_each_gets_what_does_not_exclude_it(parts: list[tuple[str | bytes, int | None]]) -> None:
    """Every subscriber gets exactly the messages that do not name it, in order, and their bytes."""
    tokens = [secrets.token_bytes(8) for _ in range(3)]
    batch = Batch(*(text(data, None if who is None else tokens[who]) for data, who in parts))
    for number, token in enumerate(tokens):
        expected = [data for data, who in parts if who != number]
        mine = batch.for_token(token)
        assert [message.data for message in mine] == expected
        assert messages_in(mine.frames) == expected
        assert messages_in(mine.compressed(9)) == expected
        assert mine.size_bytes == sum(map(len, expected))


def test_shorter_batches_share_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is compressed once, however many shorter batches hold it: each sender of a chat is left out of one."""
    compressed: list[str | bytes] = []

    def compress(data: str | bytes, window_bits: int) -> bytes:
        compressed.append(data)
        return compress_frame(data, window_bits)

    monkeypatch.setattr(backplane.fanout.batch, "compress_frame", compress)
    tokens = [secrets.token_bytes(8) for _ in range(5)]
    batch = Batch(*(text(f"message {number} " * 10, token) for number, token in enumerate(tokens)))
    for token in tokens:
        shorter = batch.for_token(token)
        assert shorter.compressed(12) == b"".join(compress_frame(message.data, 12) for message in shorter)
    assert len(compressed) == len(tokens)
