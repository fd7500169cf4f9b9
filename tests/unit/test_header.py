"""`backplane.header`: extensions and path tests, byte by byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.header import (
    BAGGAGE,
    PATH_TEST,
    TRACE_CONTEXT,
    TRACESTATE,
    can_be_skipped,
    critical_types,
    extensions_of,
    pack,
    path_test_id,
    value_of,
    without_extensions,
)

TRACE = bytes.fromhex("01 000102030405060708090a0b0c0d0e0f 1011121314151617")
START = b"\xbfBP\x02\x00ORIGIN_8\x00\x06\x0a\x24\x18\x25\xe1\x20"
PATH_TEST_PAYLOAD = START + b"\x00\x0a\x81\x08TEST_ID8"

types = st.integers(0, 255)
values = st.lists(st.tuples(types, st.binary(max_size=600)), max_size=6)


def test_layout() -> None:
    """An extension is its type, the size of its value and the value; a long value has several parts."""
    assert (TRACE_CONTEXT, TRACESTATE, BAGGAGE, PATH_TEST) == (0x01, 0x02, 0x03, 0x81)
    assert pack([(TRACE_CONTEXT, TRACE), (TRACESTATE, b"a=b")]) == b"\x01\x19" + TRACE + b"\x02\x03a=b"
    assert pack([(BAGGAGE, b"x" * 300)]) == b"\x03\xff" + b"x" * 255 + b"\x03\x2d" + b"x" * 45
    assert (pack([]), pack([(9, b"")])) == (b"", b"\x09\x00")


@given(values)
def test_round_trip(packed: list[tuple[int, bytes]]) -> None:
    """The value of a type is all of its parts, in order; a type that is not there has none."""
    extensions = pack(packed)
    for kind in range(256):
        parts = [value for found, value in packed if found == kind]
        assert value_of(extensions, kind) == (b"".join(parts) if parts else None)
    critical = {kind for kind, _ in packed if kind >= 0x80}
    assert critical_types(extensions) == critical
    assert can_be_skipped(extensions) is (not critical)


@given(values, st.integers(1, 20))
def test_cut_short(packed: list[tuple[int, bytes]], missing: int) -> None:
    """Extensions that end within one are not well-formed."""
    extensions = pack([*packed, (9, b"x" * 20)])[:-missing]
    assert (critical_types(extensions), can_be_skipped(extensions)) == (None, False)


@given(st.binary(max_size=64))
def test_any_bytes(extensions: bytes) -> None:
    """Any bytes are well-formed or not, and never an exception; what can be skipped has no critical type."""
    assert can_be_skipped(extensions) is (critical_types(extensions) == set())


def test_extensions_of_a_payload() -> None:
    """They are found after the header, and after an excluded connection; a payload without them is of version 1."""
    assert extensions_of(START + b"\x00\x05\x02\x03a=bhello") == b"\x02\x03a=b"
    assert without_extensions(START + b"\x00\x05\x02\x03a=bhello") == START.replace(b"\x02", b"\x01", 1) + b"hello"
    excluding = START[:4] + b"\x02" + START[5:] + b"EXCLUDED"
    assert extensions_of(excluding + b"\x00\x02\x09\x00hello") == b"\x09\x00"
    assert without_extensions(excluding + b"\x00\x02\x09\x00hello")[21:] == b"EXCLUDEDhello"


@pytest.mark.parametrize(
    "payload",
    [b"", b"hello", b"\xbfBP", START[:3] + b"\x01" + START[4:] + b"\x00\x00", START[:20], START, START + b"\x00"],
    ids=["empty", "foreign", "magic", "version-1", "cut-short", "no-size", "half-a-size"],
)
def test_payloads_without_extensions(payload: bytes) -> None:
    """A payload of another version, or cut short, has none."""
    assert extensions_of(payload) is None
    assert path_test_id(payload) is None


@pytest.mark.parametrize("size", [1_025, 65_535])
def test_too_many_extensions(size: int) -> None:
    """More than 1,024 bytes are not read; as many are."""
    assert extensions_of(START + size.to_bytes(2) + bytes(size)) is None
    assert extensions_of(START + (1_024).to_bytes(2) + bytes(1_024)) == bytes(1_024)


def test_layout_of_a_path_test() -> None:
    """A path test has 33 bytes: no data, no flag, no other extension."""
    assert (len(PATH_TEST_PAYLOAD), path_test_id(PATH_TEST_PAYLOAD)) == (33, b"TEST_ID8")


@pytest.mark.parametrize(
    "payload",
    [
        PATH_TEST_PAYLOAD[:-1],
        PATH_TEST_PAYLOAD + b"x",
        PATH_TEST_PAYLOAD[:4] + b"\x01" + PATH_TEST_PAYLOAD[5:],
        PATH_TEST_PAYLOAD.replace(b"\x81", b"\x82"),
        PATH_TEST_PAYLOAD.replace(b"\x81\x08", b"\x81\x07"),
        PATH_TEST_PAYLOAD.replace(b"\xbfBP\x02", b"\xbfBP\x01"),
        b"x" * 33,
    ],
    ids=["short", "with data", "with a flag", "another type", "another size", "version 1", "foreign"],
)
def test_what_is_no_path_test(payload: bytes) -> None:
    """Whatever differs from a path test is none."""
    assert path_test_id(payload) is None
