"""`backplane.centrifugal.protobuf`: the wire format, at its edges."""

from __future__ import annotations

from typing import Any

import pytest

from backplane.centrifugal.command import BadFrameError, Command
from backplane.centrifugal.encoding import PROTOBUF

RPC = "0801 6a03 12016d"
"""A command with the id 1: an rpc of the method m."""


def frame(message: str) -> bytes:
    """Return the frame of one command of less than 128 bytes, given in hexadecimal."""
    content = bytes.fromhex(message)
    return bytes([len(content)]) + content


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ("text", "text frame"),
        (b"", "empty"),
        (b"\x80", "does not end"),
        (b"\x05", "beyond the end"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "beyond the end"),
        (b"\xff" * 9 + b"\x01", "beyond the end"),
        (b"\xff" * 9 + b"\x02", "more than 64 bits"),
        (b"\x80" * 11, "more than 64 bits"),
        (frame("08"), "does not end"),
        (frame("0880"), "does not end"),
        (frame("2a"), "does not end"),
        (frame("6a05 1201"), "beyond the end"),
        (frame("0801 6a03 12026d"), "beyond the end"),
        (frame("0801 6a03 1201ff"), "not UTF-8"),
        (frame("0a00"), "wrong type"),
        (frame("0d00000000"), "wrong type"),
        (frame("6801"), "wrong type"),
        (frame("0801 6a02 1001"), "wrong type"),
        (frame("08 8080808010"), "out of range"),
        (frame("0801 5209 0a0161 38ffffffff0f"), "out of range"),
        (frame("0001"), "field number"),
        (frame("fdffffff7f 00000000"), "field number"),
        (frame(RPC + "a3a4"), "group|does not end"),
        (frame(RPC + "a301 a401"), "group"),
        (frame(RPC + "a401"), "group"),
        (frame(RPC + "a601"), "unknown type"),
        (frame(RPC + "a701"), "unknown type"),
        (frame(RPC + "a101 00000000000000"), "within a field"),
        (frame(RPC + "a501 000000"), "within a field"),
        (frame(RPC + "a001"), "does not end"),
        (frame(RPC + "a201 05"), "beyond the end"),
        (frame("0801 5a00"), "without a known request"),
    ],
    ids=lambda value: value.hex() if isinstance(value, bytes) else value,
)
def test_bad_frames(sent: str | bytes, reason: str) -> None:
    """What is cut, too long, of another type or out of range costs the connection, whatever length it states."""
    with pytest.raises(BadFrameError, match=reason):
        PROTOBUF.decode(sent)


@pytest.mark.parametrize(
    "message",
    [
        RPC,
        "6a03 12016d 0801",
        RPC + "a001 ffffffffffffffffff01",
        RPC + "a101 0000000000000000",
        RPC + "a501 00000000",
        RPC + "a201 02 ffff",
        "0807 6a03 12016b" + RPC,
        "0801 6a06 12016b 12016d",
        "088100 6a03 12016d",
    ],
)
def test_frames_of_one_command(message: str) -> None:
    """Fields in any order, unknown ones of each type, repeated ones and long numbers are read."""
    assert PROTOBUF.decode(frame(message)) == [Command(1, "rpc", {"method": "m"})]


def test_repeated_field_that_is_empty_at_last() -> None:
    """Of a repeated field the last one counts, also if it holds nothing."""
    assert PROTOBUF.decode(frame("0801 6a05 12016d 1200")) == [Command(1, "rpc", {})]


def test_number_of_fields_is_bounded() -> None:
    """120,000 fields of a frame are read, in however many commands, known or not; one more is refused."""
    most = bytes.fromhex("6a00") + bytes.fromhex("0801") * 59_999
    sent = b"\xc0\xa9\x07" + most
    assert len(most) == 120_000
    assert [command.id for command in PROTOBUF.decode(sent * 2)] == [1, 1]
    with pytest.raises(BadFrameError, match="too many fields"):
        PROTOBUF.decode(sent * 2 + frame(RPC))


def test_items_without_key_or_value() -> None:
    """An item of a map may lack its key, its value, or both."""
    headers = "3203 0a0161 3203 120162 3206 0a0163 120164"
    message = f"0801 2219 {headers} 1a03 0a0161 1a00"
    assert PROTOBUF.decode(frame(message)) == [
        Command(1, "connect", {"headers": {"a": "", "": "b", "c": "d"}, "subs": {"a": {}, "": {}}})
    ]


def test_negative_limit() -> None:
    """-1 is a number of ten bytes, as every negative one is."""
    message = "0801 520e 0a0161 38ffffffffffffffffff01"
    assert PROTOBUF.decode(frame(message)) == [Command(1, "history", {"channel": "a", "limit": -1})]


def test_data_is_what_was_sent() -> None:
    """The application's data is any bytes; flags are true whatever number states it."""
    assert PROTOBUF.decode(frame("0801 3a07 0a0161 120200ff")) == [
        Command(1, "publish", {"channel": "a", "data": b"\x00\xff"})
    ]
    assert PROTOBUF.decode(frame("0801 2a05 0a0161 1802")) == [
        Command(1, "subscribe", {"channel": "a", "recover": True})
    ]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (PROTOBUF.ping, "00"),
        (PROTOBUF.reply(2, "publish", {}), "04 0802 4200"),
        (PROTOBUF.reply(2, "rpc", {"data": b"\xff"}), "07 0802 6a03 0a01ff"),
        (PROTOBUF.reply(2, "rpc", {"data": b""}), "04 0802 6a00"),
        (PROTOBUF.reply(300, "presence_stats", {"num_clients": 0}), "05 08ac02 5200"),
        (PROTOBUF.error(2, 100, "\ud800", temporary=True), "0b 0802 1207 0864 12013f 1801"),
        (PROTOBUF.push("a", "join", {"info": {"user": "u"}}), "0c 220a 120161 2a05 0a03 0a0175"),
        (PROTOBUF.push("a", "unsubscribe", {"code": 2500}), "0a 2208 120161 3a03 10c413"),
        (
            PROTOBUF.reply(2, "history", {"publications": [{}, {"offset": 1}], "epoch": None}),
            "0a 0802 5a06 0a00 0a02 3001",
        ),
        (PROTOBUF.join([b"\x00", b"\x00"]), "0000"),
        (
            PROTOBUF.publication("a", "é", is_json=False, offset=200, info={"user": "u"}, tags={"k": ""}),
            "1a 2218 120161 2213 2202c3a9 2a03 0a0175 30c801 3a05 0a016b 1200",
        ),
        (PROTOBUF.publication("a", b"\xff", is_json=False, offset=0), "0a 2208 120161 2203 2201ff"),
    ],
    ids=lambda value: value.hex() if isinstance(value, bytes) else value,
)
def test_replies_and_pushes(written: Any, expected: str) -> None:
    """What is written, byte by byte; an item of a map has both its fields."""
    assert written == bytes.fromhex(expected)


def test_embedded_data() -> None:
    """Texts are their UTF-8 and bytes unchanged, whatever they are marked as."""
    assert PROTOBUF.embed(b"\xff", is_json=True) == b"\xff"
    assert PROTOBUF.embed("{\n}", is_json=True) == b"{\n}"
    assert PROTOBUF.embed("\ud800", is_json=False) == b"?"
    assert PROTOBUF.publication_body("x", is_json=False, offset=None)["data"] == b"x"
