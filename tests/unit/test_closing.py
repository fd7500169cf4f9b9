"""`backplane.closing`: the numbers that go over the wire, which clients are written against."""

from __future__ import annotations

from backplane.closing import CloseCode


def test_numbers() -> None:
    """The numbers are part of the interface: clients compare with them."""
    assert {code.name: code.value for code in CloseCode} == {
        "NORMAL": 1000,
        "INVALID_DATA": 1007,
        "TOO_BIG": 1009,
        "INTERNAL_ERROR": 1011,
        "SERVICE_RESTART": 1012,
        "TRY_AGAIN_LATER": 1013,
        "MESSAGES_MISSED": 4000,
        "EXPIRED": 4001,
        "FORBIDDEN": 4003,
        "IDLE": 4008,
        "MAX_AGE": 4010,
        "SILENT": 4011,
        "TOO_MANY_CHANNELS": 4013,
        "TOO_MANY_MESSAGES": 4029,
    }


def test_reconnect() -> None:
    """A client comes back by itself except where the same would happen again, or the application is done with it."""
    assert {code.value for code in CloseCode if not code.reconnect} == {1000, 1007, 1009, 4003, 4013}


def test_every_code_may_be_sent() -> None:
    """Each is one that an endpoint may put into a close frame (RFC 6455 section 7.4)."""
    reserved = {1004, 1005, 1006, 1015}
    assert all((1000 <= code <= 1014 or 3000 <= code <= 4999) and code not in reserved for code in CloseCode)
