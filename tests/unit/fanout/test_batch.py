"""`backplane.fanout.batch`: messages in order, their frames built once, and excluded subscribers."""

from __future__ import annotations

import gc
import secrets
import weakref
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import backplane.fanout.batch
from backplane.errors import InvalidDataError
from backplane.fanout.batch import Batch, source_of
from backplane.fanout.frames import compress_frame, encode_frame
from backplane.message import Message, Position
from tests.unit.doubles import messages_in

if TYPE_CHECKING:
    from collections.abc import Callable


def text(data: str | bytes, excluded: bytes | None = None) -> Message:
    """Return a message."""
    return Message(channel="a", data=data, excluded=excluded)


def test_order_and_size() -> None:
    """A batch has its messages in order and the size of their data, however they were added."""
    batch = Batch(text("1"), text(b"\x00\xff"))
    batch.add(text("345"))
    assert [message.data for message in batch] == ["1", b"\x00\xff", "345"]
    assert (batch.size_bytes, batch.excludes) == (6, False)


def test_empty() -> None:
    """An empty batch is no bytes."""
    assert (Batch().frames, Batch().compressed(12), Batch().size_bytes) == (b"", b"", 0)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_excludes(position: int) -> None:
    """One message that excludes a subscriber marks the batch, at whichever place it is."""
    excluded: list[bytes | None] = [None, None, None]
    excluded[position] = b"12345678"
    assert Batch(*(text("x", token) for token in excluded)).excludes


def test_frames_are_those_of_its_messages() -> None:
    """The bytes for a socket are the frames of the messages, one after the other, text as text and binary as binary."""
    assert Batch(text("é"), text(b"\xff"), text("")).frames == (
        encode_frame("é") + encode_frame(b"\xff") + encode_frame("")
    )


def test_frames_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For any number of sockets, each message is encoded once, and once for each window size."""
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
    """An empty result is cached too."""
    batch = Batch()
    assert batch.frames == b""
    first = batch.frames
    monkeypatch.setattr(Batch, "__iter__", None)  # building the frames again would fail
    assert batch.frames is first


def test_compressed() -> None:
    """For a socket with permessage-deflate the frames are compressed for its window size."""
    batch = Batch(text("x" * 1_000), text("y" * 1_000))
    assert batch.compressed(9) == compress_frame("x" * 1_000, 9) + compress_frame("y" * 1_000, 9)
    assert len(batch.compressed(15)) < len(batch.frames) / 10
    assert messages_in(batch.compressed(15)) == ["x" * 1_000, "y" * 1_000]


def test_batch_without_exclusion_is_the_same_object() -> None:
    """Subscribers that no message excludes share the batch and its bytes."""
    batch = Batch(text("1", b"other___"), text("2"))
    assert batch.for_token(b"12345678") is batch


def test_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For any number of subscribers the messages are searched once for those that they exclude."""
    batch = Batch(*(text(str(number), secrets.token_bytes(8)) for number in range(4)), text("4", b"12345678"))
    assert batch.for_token(b"other___") is batch
    monkeypatch.setattr(Batch, "__iter__", None)  # searching again would fail
    assert batch.for_token(b"another_") is batch
    shorter = batch.for_token(b"12345678")
    assert (len(shorter), shorter.size_bytes, shorter.excludes) == (4, 4, True)


def test_excluded_from_every_message() -> None:
    """A subscriber that every message excludes gets an empty batch."""
    batch = Batch(text("1", b"12345678"), text("2", b"12345678"))
    shorter = batch.for_token(b"12345678")
    assert (list(shorter), shorter.frames, shorter.size_bytes, shorter.excludes) == ([], b"", 0, False)
    assert len(batch) == 2


messages = st.lists(st.tuples(st.text(max_size=300) | st.binary(max_size=300), st.none() | st.integers(0, 2)))


@given(messages)
def test_each_gets_what_does_not_exclude_it(parts: list[tuple[str | bytes, int | None]]) -> None:
    """Every subscriber gets exactly the messages that do not exclude it, in order, and their bytes."""
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
    """A message is compressed once, however many shorter batches have it: in a chat there is one per sender."""
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


# --- envelopes -------------------------------------------------------------------------------------------------------


def in_brackets(message: Message) -> str:
    """Return the envelope of a message."""
    return f"<{message.data!r}>"


@given(messages)
def test_envelope_of_what_does_not_exclude(parts: list[tuple[str | bytes, int | None]]) -> None:
    """Every subscriber gets the envelopes of the messages that do not exclude it, by whichever of two tokens it has."""
    tokens = [secrets.token_bytes(8) for _ in range(3)]
    batch = Batch(*(text(data, None if who is None else tokens[who]) for data, who in parts))
    for numbers in ((0,), (0, 1), (2, 2), (2, 1, 0)):
        mine = batch
        for number in numbers:
            mine = mine.for_token(tokens[number])
        expected = [f"<{data!r}>" for data, who in parts if who not in numbers]
        enveloped = mine.enveloped(in_brackets)
        assert [message.data for message in enveloped] == expected
        assert enveloped.excludes == any(who is not None and who not in numbers for _, who in parts)
        assert messages_in(enveloped.frames) == expected
        for window_bits in (9, 15, 9):
            assert messages_in(enveloped.compressed(window_bits)) == expected
        assert enveloped.size_bytes == sum(map(len, expected))


def test_envelope_that_leaves_out_what_excludes() -> None:
    """Where an envelope leaves out some messages, a subscriber gets the others that do not exclude it."""
    batch = Batch(text("1", b"12345678"), text("2"), text("3", b"12345678"), text("4", b"other___"), text("5"))

    def even(message: Message) -> object:
        return message.data if int(message.data) % 2 == 0 else None

    def odd(message: Message) -> object:
        return message.data if int(message.data) % 2 else None

    mine = batch.for_token(b"12345678")
    assert messages_in(mine.enveloped(even).frames) == ["2", "4"]
    assert messages_in(mine.enveloped(odd).compressed(12)) == ["5"]
    assert mine.enveloped(even) is batch.enveloped(even)
    assert messages_in(mine.for_token(b"other___").enveloped(even).frames) == ["2"]


def test_few_envelopes_are_remembered() -> None:
    """An application that makes a function for each client does not keep the functions of all clients alive."""
    batch = Batch(text("1"))

    def new() -> Callable[[Message], str]:
        return lambda message: f"<{message.data!r}>"

    envelopes = [new() for _ in range(100)]
    assert {message.data for envelope in envelopes for message in batch.enveloped(envelope)} == {"<'1'>"}
    alive = [weakref.ref(envelope) for envelope in envelopes]
    envelopes.clear()
    gc.collect()
    assert sum(one() is not None for one in alive) <= 8


def test_envelopes_are_made_once() -> None:
    """For any number of subscribers, each message is enveloped once, and its frame built once."""
    calls: list[str | bytes] = []

    def envelope(message: Message) -> str:
        calls.append(message.data)
        return "x"

    batch = Batch(text("1", b"12345678"), text("2", b"other___"), text("3"))
    for token in (b"12345678", b"other___", b"another_"):
        shorter = batch.for_token(token)
        assert shorter.enveloped(envelope) is shorter.enveloped(envelope)
        assert shorter.enveloped(envelope).frames == encode_frame("x") * len(shorter)
    assert calls == ["1", "2", "3"]
    assert batch.enveloped(in_brackets).frames == encode_frame("<'1'>") + encode_frame("<'2'>") + encode_frame("<'3'>")


def test_envelope_keeps_what_a_subscriber_needs_to_know() -> None:
    """An enveloped message has the channel, the position and the exclusion of its source."""
    message = Message(channel="a", data="1", excluded=b"12345678", position=Position(b"an epoch", 1, 2))
    (enveloped,) = Batch(message).enveloped(in_brackets)
    assert (enveloped.channel, enveloped.excluded, enveloped.position) == ("a", b"12345678", message.position)
    assert (source_of(enveloped), source_of(message)) == (message, message)


def test_envelope_that_leaves_out_or_cannot_be_sent() -> None:
    """`None` leaves a message out; what is no text becomes JSON; what cannot be sent raises."""
    assert not Batch(text("1")).enveloped(lambda _: None)
    assert [message.data for message in Batch(text("1")).enveloped(lambda _: [1])] == ["[1]"]
    with pytest.raises(InvalidDataError):
        Batch(text("1")).enveloped(lambda _: object())
