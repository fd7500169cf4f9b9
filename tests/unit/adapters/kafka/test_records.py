"""Record batches, readable and malformed."""

# pyright: reportPrivateUsage=false, reportMissingTypeStubs=false

from __future__ import annotations

import pytest
from aiokafka.record.util import calc_crc32c  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane.adapters.kafka.records import Batch, codec_problem, partition_hash, read_batches
from tests.unit.adapters.kafka.doubles import log_batch, values_of


def keys_and_values(batch: Batch) -> list[tuple[bytes | None, bytes | None]]:
    """Return key and value of each record."""
    return [(key, value) for key, value, _, _ in batch.records]


def test_records_before_the_position_are_left_out() -> None:
    """The broker answers with whole batches: records that were read before are skipped."""
    data = bytes(log_batch(b"0", b"1", b"2"))
    assert values_of(data, 1) == [b"1", b"2"]
    assert list(read_batches(data, 3, 3)) == []


def test_a_batch_has_its_leader_epoch_and_the_next_offset() -> None:
    """The position after a batch is the offset after its last one and the leader epoch in which it was written."""
    (batch,) = read_batches(bytes(log_batch(b"0", b"1", base=5, epoch=3)), 5, 7)
    assert (batch.next, batch.epoch, batch.is_complete, batch.problem) == (7, 3, True, "")


@pytest.mark.parametrize("follows", [True, False])
def test_a_damaged_batch_costs_its_own_place_only(follows: bool) -> None:
    """A batch with a wrong checksum has a problem; the batches after it are read."""
    data = log_batch(b"0", b"1", b"2")
    data[-1] ^= 1
    if follows:
        data += log_batch(b"3", base=3)
    damaged, *rest = read_batches(bytes(data), 0, 3 + follows)
    assert ("damaged" in damaged.problem, damaged.records, damaged.next) == (True, [], 3)
    assert [keys_and_values(batch) for batch in rest] == ([[(b"key", b"3")]] if follows else [])


@pytest.mark.parametrize("claimed", [-5, -1, 2**31 - 1])
def test_a_damaged_batch_leads_neither_back_nor_past_the_end(claimed: int) -> None:
    """A last offset that the checksum does not cover is ignored if it does not advance or is after the log's end."""
    data = log_batch(b"0")
    data[23:27] = claimed.to_bytes(4, "big", signed=True)
    (damaged,) = read_batches(bytes(data), 0, 10)
    assert (damaged.problem, damaged.next) == ("damaged records", 1)


@pytest.mark.parametrize(("base", "position"), [(4, 3), (9, 3)])
def test_a_batch_after_missing_offsets_is_not_complete(base: int, position: int) -> None:
    """Offsets that are missing before a batch are detected."""
    (batch,) = read_batches(bytes(log_batch(b"a", base=base)), position, base + 1)
    assert (batch.is_complete, keys_and_values(batch)) == (False, [(b"key", b"a")])


@pytest.mark.parametrize("last_delta", [1, 7])
def test_a_batch_that_lacks_records_is_not_complete(last_delta: int) -> None:
    """A batch from which compaction removed records has fewer records than offsets."""
    data = log_batch(b"a")
    data[23:27] = last_delta.to_bytes(4, "big")
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    (batch,) = read_batches(bytes(data), 0, last_delta + 1)
    assert (batch.is_complete, keys_and_values(batch), batch.next) == (False, [(b"key", b"a")], last_delta + 1)


def test_the_end_of_a_transaction_is_no_missing_record() -> None:
    """A control batch has an offset and no message."""
    data = log_batch(b"")
    data[21:23] = (0x30).to_bytes(2, "big")
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    (batch,) = read_batches(bytes(data), 0, 1)
    assert (batch.is_complete, batch.records, batch.next) == (True, [], 1)


def test_a_missing_codec_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch in a compression that is not installed names it; the description has the pip command."""
    monkeypatch.setattr("aiokafka.codec.cramjam", None)
    data = log_batch(b"a")
    data[21:23] = (4).to_bytes(2, "big")
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    (batch,) = read_batches(bytes(data), 0, 1)
    assert (batch.codec, batch.next, batch.records) == ("zstd", 1, [])
    assert "pip install 'fastapi-backplane[kafka]'" in str(codec_problem("zstd"))
    assert [codec_problem(name) for name in ("gzip", "producer", "uncompressed", "")] == [None] * 4


def with_checksum(data: bytes) -> bytes:
    """Return `data` with a correct checksum of its first batch, so that the parser is reached."""
    return data[:17] + calc_crc32c(data[21:]).to_bytes(4, "big") + data[21:] if len(data) > 21 else data


@given(
    edits=st.lists(st.tuples(st.integers(0, 200), st.binary(min_size=1, max_size=8)), max_size=5),
    cut=st.integers(0, 300),
    repair=st.booleans(),
)
@settings(max_examples=1000, deadline=None)
def test_malformed_records_end_and_advance(edits: list[tuple[int, bytes]], cut: int, repair: bool) -> None:
    """For no bytes does the parser raise, stop advancing, or run for ever."""
    data = bytearray(log_batch(b"0", b"1" * 50) + log_batch(b"2", base=2))
    for place, piece in edits:
        data[place : place + len(piece)] = piece
    log = with_checksum(bytes(data[:cut])) if repair else bytes(data[:cut])
    position = 0
    for count, batch in enumerate(read_batches(log, 0, 3)):
        assert batch.next > position
        assert count < 10
        position = batch.next


@pytest.mark.parametrize(("key", "expected"), [(b"21", -973932308), (b"foobar", -790332482), (b"", 275646681)])
def test_the_partition_is_the_one_that_java_chooses(key: bytes, expected: int) -> None:
    """The hash is murmur2 with the sign bit masked, as in Kafka's own tests of it."""
    assert partition_hash(key) == expected & 0x7FFFFFFF
