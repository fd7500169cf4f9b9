"""`backplane.centrifugal.codes`: how a command that failed is answered, and with what a client is closed."""

from __future__ import annotations

import pytest

from backplane import (
    AuthorizeTimeoutError,
    BrokerUnavailableError,
    ClosedError,
    ConfigurationError,
    InvalidChannelError,
    InvalidDataError,
    InvalidTokenError,
    JoinRefusedError,
    PayloadTooLargeError,
    PermissionExpiredError,
    SubscribeError,
    TokenCheckUnavailableError,
    TokenExpiredError,
    TooManyChannelsError,
    TooManyConnectionsError,
)
from backplane.centrifugal.codes import CommandError, Disconnect, close_frame, close_of, error_of
from backplane.close_codes import CloseCode
from backplane.fanout.backlog import TOO_SLOW


@pytest.mark.parametrize(
    ("error", "code", "temporary"),
    [
        (CommandError(400, "no"), 400, False),
        (CommandError(1999, "later", temporary=True), 1999, True),
        (JoinRefusedError("no"), 103, False),
        (InvalidTokenError("no"), 103, False),
        (SubscribeError({"a": "ACL"}), 103, False),
        (PermissionExpiredError("over"), 109, False),
        (TokenExpiredError("over"), 109, False),
        (TooManyChannelsError("1"), 106, False),
        (PayloadTooLargeError(9, 1), 106, False),
        (InvalidChannelError("empty"), 107, False),
        (InvalidDataError("no JSON"), 107, False),
        (TokenCheckUnavailableError("later"), 100, True),
        (TooManyConnectionsError("later"), 100, True),
        (AuthorizeTimeoutError("later"), 100, True),
        (BrokerUnavailableError("away"), 100, True),
        (SubscribeError({}, unconfirmed={"a": "busy"}), 100, True),
        (ClosedError("over"), 100, True),
        (TimeoutError(), 100, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_errors(error: Exception, code: int, temporary: bool) -> None:
    """An SDK tries again after a temporary error, and asks for a token after 109; after any other it does not."""
    answer = error_of(error)
    assert answer is not None
    assert (answer.code, answer.temporary) == (code, temporary)


@pytest.mark.parametrize("error", [KeyError("a fault"), ConfigurationError("a fault")])
def test_faults(error: Exception) -> None:
    """What is a fault of the application has no answer of its own: it is logged."""
    assert error_of(error) is None


@pytest.mark.parametrize("code", [399, 2000, 100, True, "400"])
def test_code_of_an_application(code: int) -> None:
    """The codes that the protocol defines itself are not for applications."""
    with pytest.raises(ConfigurationError, match="400 to 1999"):
        CommandError(code, "no")


@pytest.mark.parametrize(
    ("command", "error", "closed"),
    [
        ("connect", InvalidTokenError("no"), (Disconnect.INVALID_TOKEN, "invalid token")),
        ("refresh", InvalidTokenError("no"), (Disconnect.INVALID_TOKEN, "invalid token")),
        ("refresh", TokenExpiredError("over"), (Disconnect.EXPIRED, "connection expired")),
        ("connect", TokenExpiredError("over"), None),
        ("subscribe", InvalidTokenError("no"), None),
        ("rpc", KeyError("a fault"), None),
    ],
)
def test_closes(command: str, error: Exception, closed: tuple[int, str] | None) -> None:
    """A connection ends with its token; a subscription, which has one of its own, ends alone."""
    assert close_of(command, error) == closed


TRANSLATED = {
    CloseCode.INVALID_DATA: (3501, "bad request"),
    CloseCode.MESSAGE_TOO_BIG: (3501, "message too big"),
    CloseCode.INTERNAL_ERROR: (3004, "internal server error"),
    CloseCode.SERVICE_RESTART: (3001, "shutdown"),
    CloseCode.TRY_AGAIN_LATER: (3004, "not available at present"),
    CloseCode.MESSAGES_MISSED: (3010, "insufficient state"),
    CloseCode.EXPIRED: (3005, "connection expired"),
    CloseCode.MAX_AGE: (3011, "reconnect"),
    CloseCode.SILENT: (3012, "no pong"),
    CloseCode.TOO_MANY_MESSAGES: (3013, "too many requests"),
    CloseCode.TOO_MANY_CHANNELS: (3505, "channel limit"),
}


@pytest.mark.parametrize("code", CloseCode)
def test_codes_of_the_package(code: CloseCode) -> None:
    """Each has a code of the protocol after which SDKs do what it asks for; those that mean the same stay."""
    sent, reason = close_frame(code, "why")
    assert (sent, reason) == TRANSLATED.get(code, (int(code), "why"))
    if code is not CloseCode.NORMAL_CLOSURE:
        assert (sent % 1000 < 500) is code.reconnect


def test_slow() -> None:
    """A client that is too slow has a code of its own."""
    assert close_frame(CloseCode.TRY_AGAIN_LATER, TOO_SLOW) == (3008, "slow")


@pytest.mark.parametrize("code", [3000, 3499, 3500, 3999, 4100, 4499, 4500, 4999, 1001])
def test_codes_of_an_application(code: int) -> None:
    """They are sent as they are, with a reason that no SDK takes for JSON."""
    assert close_frame(code, "enough") == (code, "enough")
    for words in ("7", "true", "null", '{"reconnect":true}', "-1", '"x"', "[1]"):
        assert close_frame(code, words) == (code, f"reason: {words}")
