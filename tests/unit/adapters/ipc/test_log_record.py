"""Records of the log, whole, cut and torn."""

from __future__ import annotations

import random
from zlib import crc32

import pytest

from backplane.adapters.ipc.log_record import (
    HEADER_BYTES,
    MARK_BYTES,
    Record,
    RecordParser,
    build_record,
    build_seal,
    read_header,
)

_MARK = b"\x01mark\xff\x00\x02"


def _record(payload: bytes, channel: bytes = b"room", key: bytes = b"") -> bytes:
    return build_record(_MARK, channel, key, payload, time=5.5)[0]


def _parse(data: bytes) -> tuple[list[Record], RecordParser]:
    parser = RecordParser(_MARK)
    return list(parser.parse(data)), parser


def test_a_record_is_read_as_it_was_built() -> None:
    """Channel, key, payload, time and check come back, and the header alone states what it holds."""
    data, check = build_record(_MARK, b"room", b"key", b"payload", time=5.5)
    records, parser = _parse(data)
    assert records == [Record(0, len(data), b"room", b"key", b"payload", 5.5, crc32(b"payload"))]
    assert (parser.position, parser.missing_bytes, parser.sealed) == (len(data), 0, False)
    assert read_header(data, _MARK) == (len(b"roomkey"), len(b"payload"), 5.5, check)
    assert read_header(data, b"anothers") is None
    assert read_header(data[: HEADER_BYTES - 1], _MARK) is None
    assert read_header(build_seal(_MARK), _MARK) is None


def test_records_survive_any_cut_between_two_reads() -> None:
    """Whatever pieces are there at each read, the same records result, when `position` is where the next one begins."""
    chance = random.Random(1)
    payloads = [chance.randbytes(chance.choice([0, 1, 40, 3000])) for _ in range(100)]
    stream = b"".join(_record(payload) for payload in payloads)
    for largest in (1, 10, 1000, 100_000):
        parser, found, at, end = RecordParser(_MARK), list[bytes](), 0, 0
        while end < len(stream):
            end = min(len(stream), end + chance.randint(1, largest))
            found += [record.payload for record in parser.parse(stream[at:end])]
            at += parser.position
        assert found == payloads


@pytest.mark.parametrize("following", [[b"after"], [b"", b"x" * 500, b"after"]])
def test_a_torn_record_is_skipped_wherever_it_ends(following: list[bytes]) -> None:
    """After a record of which any part is missing, exactly the records that follow it are read."""
    torn = _record(b"never" * 20, key=b"key")
    rest = b"".join(map(_record, following))
    for size in range(len(torn)):
        records, parser = _parse(torn[:size] + rest)
        assert [record.payload for record in records] == following
        assert parser.position == size + len(rest)


def test_the_reader_waits_for_the_rest_of_the_last_record() -> None:
    """As long as nothing follows, the end can still come; the bytes that are missing are known from the header on."""
    whole = _record(b"first")
    last = _record(b"last" * 50)
    for size in range(len(last)):
        records, parser = _parse(whole + last[:size])
        assert [record.payload for record in records] == [b"first"]
        assert parser.position == len(whole)
        assert parser.missing_bytes <= len(last)
    assert _parse(last[:-1])[1].missing_bytes == len(last)


def test_a_damaged_header_never_asks_for_more_than_its_names() -> None:
    """A size that is no size would have the reader allocate gigabytes."""
    header = bytearray(_record(b"payload")[:HEADER_BYTES])
    header[MARK_BYTES:] = b"\xff" * (HEADER_BYTES - MARK_BYTES)
    _, parser = _parse(bytes(header))
    assert parser.missing_bytes <= HEADER_BYTES + 2**16 + 2**8


def test_bytes_that_are_no_record_are_skipped() -> None:
    """Garbage between two records, such as zeros after a crash of the host, hides neither."""
    chance = random.Random(2)
    for garbage in (b"\0" * 3000, chance.randbytes(100), _MARK[:5], _MARK + b"\0" * 100, _record(b"x")[:-1] + b"y"):
        records, _ = _parse(_record(b"one") + garbage + _record(b"two"))
        assert [record.payload for record in records] == [b"one", b"two"]


def test_random_damage_never_makes_a_record_that_was_not_written() -> None:
    """With one byte changed, each record that is read is one that was written, in order."""
    chance = random.Random(3)
    written = [chance.randbytes(20) for _ in range(20)]
    stream = b"".join(map(_record, written))
    for _ in range(500):
        data = bytearray(stream)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        read = [record.payload for record in _parse(bytes(data))[0]]
        assert len(read) >= len(written) - 2
        remaining = iter(written)
        assert all(payload in remaining for payload in read)


def test_nothing_exists_after_a_seal() -> None:
    """The parser stops after the first SEAL, also one that follows a torn record."""
    seal = build_seal(_MARK)
    for start in (_record(b"one"), _record(b"one") + _record(b"torn" * 9)[:-1]):
        records, parser = _parse(start + seal + _record(b"two") + seal)
        assert [record.payload for record in records] == [b"one"]
        assert (parser.sealed, parser.position) == (True, len(start) + len(seal))
