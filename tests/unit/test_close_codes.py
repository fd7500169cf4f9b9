"""`backplane.close_codes`: the numbers that go over the wire, which clients are written against, and their words."""

from __future__ import annotations

import pytest

from backplane.close_codes import CloseCode, check_close, close_reason, comes_back
from backplane.errors import ConfigurationError


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
        "MAX_AGE": 4010,
        "SILENT": 4011,
        "TOO_MANY_MESSAGES": 4029,
        "FORBIDDEN": 4503,
        "IDLE": 4508,
        "TOO_MANY_CHANNELS": 4513,
    }


def test_reconnect() -> None:
    """A client comes back by itself except where the same would happen again, or the application is done with it."""
    assert {code.value for code in CloseCode if not code.reconnect} == {1000, 1007, 1009, 4503, 4508, 4513}


@pytest.mark.parametrize(
    ("code", "back"),
    [
        *((code, True) for code in (1001, 1006, 1011, 1014, 3000, 3499, 4000, 4499)),
        *((code, False) for code in (1000, 1002, 1008, 1009, 3500, 3999, 4500, 4999)),
    ],
)
def test_any_code_has_its_range(code: int, back: bool) -> None:
    """An application's own codes stand in the ranges that client libraries know."""
    assert comes_back(code) is back


@pytest.mark.parametrize("code", [*CloseCode, 1001, 1003, 1008, 1014, 3000, 4999])
def test_code_that_may_be_sent(code: int) -> None:
    """Each code of ours is one that an endpoint may put into a close frame, and so are the other standard ones."""
    check_close(code, "words")


@pytest.mark.parametrize("code", [0, -1, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65536, True, 1000.0, "1000", None])
def test_code_that_may_not_be_sent(code: object) -> None:
    """Any other one is refused with those that are possible."""
    with pytest.raises(ConfigurationError, match="a close code is 1000-1003, 1007-1014 or 3000-4999"):
        check_close(code, "")


@pytest.mark.parametrize("reason", [None, b"words", 7, ["words"]], ids=repr)
def test_reason_that_is_no_text(reason: object) -> None:
    """A reason is text."""
    with pytest.raises(ConfigurationError, match="the reason of a close is a str"):
        check_close(1000, reason)


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (4503, "not yours", "not yours"),
        (4503, "", "forbidden"),
        (1013, " \n", "try again later"),
        (4321, "", "closed by the application"),
        (1000, "x" * 123, "x" * 123),
        (1000, "x" * 124, "x" * 120 + "…"),
        (1000, "é" * 61, "é" * 61),
        (1000, "é" * 62, "é" * 60 + "…"),
        (1000, "😀" * 31, "😀" * 30 + "…"),
        (1000, "x" + "😀" * 31, "x" + "😀" * 29 + "…"),
        (1000, "a\udcffb", "a?b"),
    ],
)
def test_reason(code: int, reason: str, words: str) -> None:
    """A reason is never empty, and cut after a character where a close frame has no room for it."""
    assert close_reason(code, reason) == words
    assert 0 < len(words.encode()) <= 123
