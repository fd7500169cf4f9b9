"""`backplane.statistics`: every figure has a name and a description, and the names stay when the code changes."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, fields
from typing import get_args

import pytest

from backplane.close_codes import CloseCode
from backplane.statistics import Consumer, Counters, DropReason, LossReason, Statistics, Transport
from tests.unit.doubles import counted

FIGURES = {
    CloseCode.NORMAL_CLOSURE: "closed_normal",
    CloseCode.INVALID_DATA: "closed_invalid_data",
    CloseCode.MESSAGE_TOO_BIG: "closed_too_big",
    CloseCode.INTERNAL_ERROR: "closed_internal_error",
    CloseCode.SERVICE_RESTART: "closed_service_restart",
    CloseCode.TRY_AGAIN_LATER: "closed_try_again_later",
    CloseCode.MESSAGES_MISSED: "closed_messages_missed",
    CloseCode.EXPIRED: "closed_expired",
    CloseCode.MAX_AGE: "closed_max_age",
    CloseCode.SILENT: "closed_silent",
    CloseCode.TOO_MANY_MESSAGES: "closed_too_many_messages",
    CloseCode.FORBIDDEN: "closed_forbidden",
    CloseCode.IDLE: "closed_idle",
    CloseCode.TOO_MANY_CHANNELS: "closed_too_many_channels",
}


@pytest.mark.parametrize("code", CloseCode)
@pytest.mark.parametrize("transport", get_args(Transport))
def test_every_close_code_is_counted(code: CloseCode, transport: Transport) -> None:
    """Each code this package closes with has a figure of its own, and is counted by how the client was served."""
    counters = Counters()
    counters.count_close(code, transport)
    assert counted(counters) == {FIGURES[code]: 1}
    assert counters.closes == {(transport, FIGURES[code]): 1}


def test_code_of_the_application() -> None:
    """A code this package does not know is counted too."""
    counters = Counters()
    for code in (4999, 3000):
        counters.count_close(code, "asgi")
    assert counted(counters) == {"closed_other": 2}


def test_ends_without_a_code() -> None:
    """An end of the client, or of its handler, is counted too."""
    counters = Counters()
    counters.count_end("closed_by_client", "lane")
    counters.count_end("closed_by_client", "asgi")
    counters.count_end("closed_slow", "asgi")
    assert counted(counters) == {"closed_by_client": 2, "closed_slow": 1}


@pytest.mark.parametrize("reason", [*get_args(DropReason), "overrun", "discarded"])
def test_every_loss_is_counted(reason: LossReason) -> None:
    """Each reason why a message is not given has a figure of its own, over all kinds of subscribers."""
    counters = Counters()
    for number, consumer in enumerate(get_args(Consumer), 1):
        counters.count_loss(consumer, reason, number)
    assert counted(counters) == {reason: 6}
    assert counters.losses == {("websocket", reason): 1, ("sse", reason): 2, ("subscription", reason): 3}


def test_snapshot() -> None:
    """A snapshot holds what was counted until then, with what others count, and cannot be changed."""
    counters = Counters(published=2)
    statistics = counters.snapshot(delivered=5, malformed=4, gaps=3, buffered=2, buffer_dropped=1)
    counters.published += 1
    assert {name: count for name, count in statistics.as_dict().items() if count} == {
        "published": 2,
        "delivered": 5,
        "malformed": 4,
        "gaps": 3,
        "buffered": 2,
        "buffer_dropped": 1,
    }
    assert (statistics.published, statistics.delivered) == (2, 5)
    with pytest.raises(FrozenInstanceError):
        statistics.published = 7  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def test_every_counter_is_a_figure() -> None:
    """What a worker counts has a figure of the same name, which begins at 0."""
    counters = {counter.name for counter in fields(Counters) if counter.default == 0}
    assert counters <= Statistics().as_dict().keys()
    assert Counters().snapshot() == Statistics()
    assert set(Statistics().as_dict().values()) == {0}


def test_every_figure_is_documented() -> None:
    """The docstring of the class names each figure once, and no other."""
    documented = re.findall(r"^        (\w+): ", Statistics.__doc__ or "", re.MULTILINE)
    assert sorted(documented) == sorted(Statistics().as_dict())
