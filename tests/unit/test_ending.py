"""`backplane.ending`: which errors of a handler are ordinary ends, and with what code."""

from __future__ import annotations

import asyncio

import pytest

from backplane.closing import CloseCode
from backplane.ending import close_code, reasons
from backplane.errors import (
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    ClosedError,
    InvalidChannelError,
    JoinRefusedError,
    PublishError,
    PublishOutcomeUnknownError,
    SubscribeError,
    TooManyChannelsError,
)

AWAY = BrokerUnavailableError("away")
REFUSED = JoinRefusedError("not this one")
OVER = ClosedError("has ended")
FAULT = KeyError("a fault")


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
    """Whatever the broker failed with, the client is to try again later."""
    assert close_code(error, is_over=False) == CloseCode.TRY_AGAIN_LATER


@pytest.mark.parametrize(
    ("error", "is_over", "code"),
    [
        (None, False, CloseCode.NORMAL),
        (OVER, True, CloseCode.NORMAL),
        (OVER, False, CloseCode.INTERNAL_ERROR),
        (REFUSED, False, CloseCode.FORBIDDEN),
        (SubscribeError({"a": "no permission"}), False, CloseCode.FORBIDDEN),
        (TooManyChannelsError("1"), False, CloseCode.TOO_MANY_CHANNELS),
        (InvalidChannelError("empty"), False, CloseCode.INTERNAL_ERROR),
        (FAULT, False, CloseCode.INTERNAL_ERROR),
        (asyncio.CancelledError(), False, None),
        (KeyboardInterrupt(), False, None),
    ],
    ids=repr,
)
def test_other_errors(error: BaseException | None, is_over: bool, code: CloseCode | None) -> None:
    """A refusal has a code of its own, a fault is one, and a cancelled handler closes with none."""
    assert close_code(error, is_over=is_over) == code


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([AWAY], CloseCode.TRY_AGAIN_LATER),
        ([AWAY, OVER], CloseCode.TRY_AGAIN_LATER),
        ([OVER], CloseCode.NORMAL),
        ([AWAY, REFUSED], CloseCode.FORBIDDEN),
        ([AWAY, ExceptionGroup("inner", [AWAY, FAULT])], CloseCode.INTERNAL_ERROR),
        ([AWAY, ExceptionGroup("inner", [AWAY])], CloseCode.TRY_AGAIN_LATER),
        ([FAULT, KeyboardInterrupt()], None),
    ],
    ids=repr,
)
def test_groups(errors: list[BaseException], code: CloseCode | None) -> None:
    """A group is what the gravest of its errors is."""
    assert close_code(BaseExceptionGroup("of a task group", errors), is_over=True) == code


def test_reasons() -> None:
    """For the log a group is the words of its errors, each once, and bounded."""
    assert reasons(AWAY) == "away"
    assert reasons(ExceptionGroup("several", [AWAY, AWAY])) == "away"
    several = ExceptionGroup("several", [ExceptionGroup("inner", [BrokerError(word) for word in "abcde"]), AWAY])
    assert reasons(several) == "a; b; c (and 3 more)"
