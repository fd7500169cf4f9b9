"""`backplane.connection.ending`: which errors of a handler are ordinary ends, and with what code and words."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from fastapi import HTTPException as FastAPIHTTPException
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from starlette.exceptions import HTTPException, WebSocketException
from starlette.websockets import WebSocketDisconnect

from backplane.close_codes import CloseCode
from backplane.connection.ending import Ending, ending, reasons, refusal
from backplane.errors import (
    AuthorizeTimeoutError,
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    ClosedError,
    InvalidChannelError,
    InvalidMessageError,
    InvalidTokenError,
    JoinRefusedError,
    PayloadTooLargeError,
    PermissionExpiredError,
    PublishError,
    PublishOutcomeUnknownError,
    SlowConsumerError,
    SubscribeError,
    TokenCheckUnavailableError,
    TokenExpiredError,
    TooManyChannelsError,
    TooManyConnectionsError,
)
from backplane.web.framework_errors import framework_ending

AWAY = BrokerUnavailableError("away")
REFUSED = JoinRefusedError("not this one")
OVER = ClosedError("has ended")
FAULT = KeyError("a fault")
GONE = WebSocketDisconnect(1001)
CHOSEN = WebSocketException(4321, "not you")


def end_of(error: BaseException | None, *, is_over: bool = True) -> Ending | None:
    """Return how an error ends a client, in an application of Starlette."""
    return ending(error, is_over=is_over, of_framework=framework_ending)


@pytest.mark.parametrize(
    "error",
    [
        BrokerError("any"),
        AWAY,
        PublishOutcomeUnknownError("no answer"),
        PublishError("refused"),
        BrokerAuthenticationError("wrong password"),
        SubscribeError({}, unconfirmed={"a": "busy"}),
    ],
    ids=lambda error: type(error).__name__,
)
def test_broker_errors(error: BrokerError) -> None:
    """Whatever the broker failed with, the client is to try again later, and reads none of the broker's words."""
    assert end_of(error) == Ending(1013, "the broker is not available: try again later", error)


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (REFUSED, CloseCode.FORBIDDEN, "not this one"),
        (SubscribeError({"a": "ACL of user bob"}), CloseCode.FORBIDDEN, "this channel is not allowed"),
        (InvalidChannelError("empty"), CloseCode.FORBIDDEN, "empty"),
        (TooManyChannelsError("1"), CloseCode.TOO_MANY_CHANNELS, "1"),
        (PermissionExpiredError("run out"), CloseCode.EXPIRED, "run out"),
        (
            InvalidMessageError([{"msg": "no number", "type": "int"}]),
            CloseCode.INVALID_DATA,
            "invalid message: no number",
        ),
        (PayloadTooLargeError(9_000, 1_000), CloseCode.MESSAGE_TOO_BIG, "a message may take 1,000 bytes on the broker"),
        (SlowConsumerError("a consumer of channel 'a'"), CloseCode.TRY_AGAIN_LATER, "too slow"),
        (AuthorizeTimeoutError("later"), CloseCode.TRY_AGAIN_LATER, "later"),
        (InvalidTokenError("no such session"), CloseCode.FORBIDDEN, "no such session"),
        (TokenExpiredError("over"), CloseCode.EXPIRED, "over"),
        (
            TokenCheckUnavailableError("the keys of id.internal are not known"),
            CloseCode.TRY_AGAIN_LATER,
            "not available at present: try again later",
        ),
        (GONE, CloseCode.NORMAL_CLOSURE, ""),
        (RuntimeError('Cannot call "send" once a close message has been sent.'), CloseCode.NORMAL_CLOSURE, ""),
        (
            RuntimeError('Cannot call "receive" once a disconnect message has been received.'),
            CloseCode.NORMAL_CLOSURE,
            "",
        ),
        (RuntimeError("Unexpected ASGI message, after sending 'websocket.close'."), CloseCode.NORMAL_CLOSURE, ""),
        (WebSocketException(1008, "not you"), 1008, "not you"),
        (WebSocketException(4321), 4321, "closed by the application"),
        (HTTPException(401), CloseCode.FORBIDDEN, "Unauthorized"),
        (HTTPException(404, "no such room"), CloseCode.FORBIDDEN, "no such room"),
        (FastAPIHTTPException(403, {"why": "not you"}), CloseCode.FORBIDDEN, "Forbidden"),
        (HTTPException(429), CloseCode.TRY_AGAIN_LATER, "Too Many Requests"),
        (HTTPException(503, "no database"), CloseCode.TRY_AGAIN_LATER, "no database"),
        (RequestValidationError([{"msg": "secret"}]), CloseCode.INVALID_DATA, "the request is not valid"),
        (WebSocketRequestValidationError([{"msg": "secret"}]), CloseCode.INVALID_DATA, "the request is not valid"),
    ],
    ids=repr,
)
def test_ordinary_errors(error: Exception, code: int, reason: str) -> None:
    """A refusal, what the client caused, and the framework's own errors each have a code and words."""
    assert end_of(error) == Ending(code, reason, error)


def test_no_error() -> None:
    """A handler that returned, or found its connection over, has a normal end."""
    assert (end_of(None), end_of(OVER)) == (Ending(1000), Ending(1000, "", OVER))


@pytest.mark.parametrize(
    "error",
    [
        FAULT,
        RuntimeError("mine"),
        TooManyConnectionsError("of another socket"),
        WebSocketException(1006),
        WebSocketException(5000),
    ],
    ids=repr,
)
def test_faults(error: Exception) -> None:
    """Any other error is a fault, and so is one of the framework whose code cannot be sent."""
    assert end_of(error) == Ending(1011, "", error, is_fault=True)


class UnspeakableError(RuntimeError):
    """An error that cannot be put into words."""

    def __str__(self) -> str:
        """Fail."""
        raise ValueError("no words")


@pytest.mark.parametrize(
    "error", [HTTPException(cast("int", "403"), "not you"), UnspeakableError()], ids=["status", "words"]
)
def test_error_that_cannot_be_looked_at(error: Exception) -> None:
    """An error whose own parts fail is a fault like any other: its client is closed."""
    assert end_of(error) == Ending(1011, "", error, is_fault=True)


def test_closed_error_of_something_else() -> None:
    """A `ClosedError` while the connection is open is about something else, and is a fault."""
    assert end_of(OVER, is_over=False) == Ending(1011, "", OVER, is_fault=True)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt()], ids=repr)
def test_cancelled(error: BaseException) -> None:
    """A handler that was cancelled closes with no code."""
    assert end_of(error) is None


@pytest.mark.parametrize(
    ("errors", "gravest"),
    [
        ([AWAY], AWAY),
        ([AWAY, OVER], AWAY),
        ([OVER, GONE], OVER),
        ([AWAY, REFUSED], REFUSED),
        ([GONE, CHOSEN, REFUSED], REFUSED),
        ([GONE, CHOSEN, AWAY], CHOSEN),
        ([REFUSED, ExceptionGroup("inner", [AWAY, FAULT])], FAULT),
        ([OVER, ExceptionGroup("inner", [AWAY])], AWAY),
        ([FAULT, KeyboardInterrupt()], None),
    ],
    ids=repr,
)
def test_groups(errors: list[BaseException], gravest: BaseException | None) -> None:
    """A group is what the gravest of its errors is: a fault, then what keeps clients away, then what passes."""
    found = end_of(BaseExceptionGroup("of a task group", errors))
    assert (found and found.error) is gravest
    assert found == (None if gravest is None else end_of(gravest))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OVER, CloseCode.SERVICE_RESTART),
        (TooManyConnectionsError("full"), CloseCode.TRY_AGAIN_LATER),
        (REFUSED, CloseCode.FORBIDDEN),
        (ExceptionGroup("of authorize", [REFUSED]), CloseCode.FORBIDDEN),
        (FAULT, CloseCode.INTERNAL_ERROR),
    ],
    ids=repr,
)
def test_refusals(error: Exception, code: int) -> None:
    """For a client whose handshake is refused, a full worker and one that ends are ordinary too."""
    found = refusal(error, framework_ending)
    assert found is not None
    assert (found.code, found.is_fault) == (code, error is FAULT)


@pytest.mark.parametrize(("closed_with", "kind"), [((4503, "banned"), JoinRefusedError), ((4444, ""), ClosedError)])
def test_refusal_of_a_client_that_was_closed(closed_with: tuple[int, str], kind: type[Exception]) -> None:
    """A client that is closed in its handshake is refused with that code, for good where it is to stay away."""
    found = refusal(OVER, framework_ending, closed_with)
    assert found is not None
    assert ((found.code, found.reason), type(found.error)) == (closed_with, kind)


def test_reasons() -> None:
    """For the log a group is the words of its errors, each once, and bounded."""
    assert reasons(AWAY) == "away"
    assert reasons(ExceptionGroup("several", [AWAY, AWAY])) == "away"
    several = ExceptionGroup("several", [ExceptionGroup("inner", [BrokerError(word) for word in "abcde"]), AWAY])
    assert reasons(several) == "a; b; c (and 3 more)"
