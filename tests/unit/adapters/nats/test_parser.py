"""`backplane.adapters.nats.parser`: messages and lines from reads of any size, and the limits of what is accepted."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backplane.adapters.nats.parser import MAX_LINE_BYTES, MAX_PAYLOAD_BYTES, NatsParser

Parsed = list[bytes | tuple[bytes, ...]]


def parsed(*pieces: bytes) -> Parsed:
    """Return the lines, and the messages as `(id, payload)`, in their order."""
    found: Parsed = []
    parser = NatsParser(lambda number, subject, headers, payload: found.append((number, payload)), found.append)
    for piece in pieces:
        parser.feed(piece)
    return found


def message(number: int, payload: bytes, headers: bytes | None) -> bytes:
    """Return a message as the server sends it."""
    if headers is None:
        return b"MSG room %d %d\r\n%b\r\n" % (number, len(payload), payload)
    return b"HMSG room %d reply %d %d\r\n%b%b\r\n" % (number, len(headers), len(headers + payload), headers, payload)


pieces_of_protocol = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"MSG ", b"HMSG ", b"room ", b"1 ", b"-1 ", b"5", b"\r\n", b"PING\r\n", b"INFO {}\r\n", b"9" * 30]
    ),
)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.binary(max_size=60), st.none() | st.binary(max_size=20)), max_size=6),
    st.lists(st.integers(0, 600)),
)
def test_messages_are_whole_whatever_the_reads(
    messages: list[tuple[int, bytes, bytes | None]], cuts: list[int]
) -> None:
    """However the stream is divided into reads, each payload is passed on once, in order, without its headers."""
    data = b"".join(message(*parts) + b"PING\r\n" for parts in messages)
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    pieces = [data[start:stop] for start, stop in itertools.pairwise(places)]
    expected: Parsed = []
    for number, payload, _ in messages:
        expected += [(b"%d" % number, payload), b"PING"]
    assert parsed(*pieces) == expected


@given(st.lists(pieces_of_protocol, max_size=20))
@example([b"MSG room 1 -8\r\n"])
@example([b"HMSG room 1 -8 4\r\n"])
@example([b"MSG room 1 \xb2\r\n"])
def test_any_bytes_end(pieces: list[bytes]) -> None:
    """For any bytes the parser returns, or raises `ValueError`; it passes on no more bytes than it received."""
    found: Parsed = []
    parser = NatsParser(lambda number, subject, headers, payload: found.append((headers, payload)), found.append)
    received = 0
    try:
        for piece in pieces:
            received += len(piece)
            parser.feed(piece)
    except ValueError:
        pass
    assert sum(len(b"".join(item)) if isinstance(item, tuple) else len(item) for item in found) <= received


@pytest.mark.parametrize(
    "line",
    [
        b"MSG room 1 -8",  # was an endless loop in an earlier version
        b"MSG room 1 +8",
        b"MSG room 1 0x8",
        b"MSG room 1 1_0",
        b"MSG room 1 %d" % (MAX_PAYLOAD_BYTES + 1),
        b"MSG room 1 " + b"9" * 5000,
        b"MSG room 1",
        b"MSG room",
        b"MSG room 1 reply more 5",
        b"HMSG room 1 5",
        b"HMSG room 1 6 5",
        b"HMSG room 1 -6 5",
        b"HMSG room 1 reply more 2 5",
    ],
)
def test_a_malformed_message_is_refused(line: bytes) -> None:
    """A malformed size, one over the limit, and missing or extra parts raise."""
    with pytest.raises(ValueError, match=r"size|parts|headers"):
        parsed(line + b"\r\nhello\r\n")


def test_a_payload_has_the_announced_size() -> None:
    """A payload that is not followed by a line end is refused before anything after it is parsed."""
    with pytest.raises(ValueError, match="announced"):
        parsed(b"MSG room 1 3\r\nhello\r\nPING\r\n")


def test_a_line_without_an_end_is_refused() -> None:
    """A line that exceeds the limit is refused, and no more than the limit is kept of it."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="without an end"):
            parsed(*[b"x" * 1000] * (MAX_LINE_BYTES // 1000 + 1))
        assert tracemalloc.get_traced_memory()[1] < 10 * MAX_LINE_BYTES
    finally:
        tracemalloc.stop()


def test_the_largest_payload_is_accepted() -> None:
    """A payload of the largest size that a server can be configured to accept is passed on whole."""
    payload = b"x" * MAX_PAYLOAD_BYTES
    assert parsed(message(1, payload, None)) == [(b"1", payload)]
