"""`backplane.explain.recollection`: what is remembered of clients that are gone, and of refused joins."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest

from backplane.connection.policy import ConnectionPolicy
from backplane.errors import (
    AuthorizeTimeoutError,
    BrokerUnavailableError,
    ClosedError,
    InvalidTokenError,
    JoinRefusedError,
    TooManyChannelsError,
)
from backplane.explain.recollection import ended_clients, recent_events, refused_joins
from backplane.journal.events import (
    BROKER_MISFIT,
    CHANNEL_REVOKED,
    CLIENT_ENDED,
    DELIVERY_FAILED,
    HISTORY_MISFIT,
    PUBLISH_REFUSED,
)
from backplane.journal.journal import Journal
from tests.unit.doubles import FakeClient

pytestmark = pytest.mark.anyio

logger = logging.getLogger("tests")


def every(*_: object) -> bool:
    """Mean all."""
    return True


async def test_ended_clients() -> None:
    """The last three that are meant, the last first, with who ended them, and how."""
    journal = Journal()
    for number in range(300):
        ended: dict[str, Any] = {"by": "worker", "code": 4000, "reason": "reload"} if number % 2 else {"by": "client"}
        journal.log(logger, CLIENT_ENDED, "gone", **FakeClient(f"{number}", "ada").named, **ended)
    found = ended_clients(journal, every)
    assert [(each.id, each.user, each.by, each.code, each.reason) for each in found] == [
        ("299", "ada", "worker", 4000, "reload"),
        ("298", "ada", "client", None, ""),
        ("297", "ada", "worker", 4000, "reload"),
    ]
    assert ended_clients(journal, lambda client, _: client == "99") == ()
    assert [each.id for each in ended_clients(journal, lambda client, _: client == "100")] == ["100"]


async def test_a_clock_that_was_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has happened is never in the future."""
    journal = Journal()
    journal.log(logger, CLIENT_ENDED, "gone", **FakeClient("00", None).named, by="client")
    before = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: before)
    [found] = ended_clients(journal, every)
    assert (found.seconds_ago, found.user) == (0.0, None)


@pytest.mark.parametrize(
    ("error", "by", "reason"),
    [
        (JoinRefusedError("not yours"), "authorize", "authorize"),
        (AuthorizeTimeoutError("later"), "authorize", "authorize did not answer"),
        (InvalidTokenError("the token has expired"), "authorize", "the token has expired"),
        (KeyError("secret"), "authorize", "KeyError"),
        (TooManyChannelsError("too many"), "limit", "too many"),
        (BrokerUnavailableError("gone", adapter="redis"), "broker", "redis: gone"),
    ],
)
async def test_refused_joins(error: Exception, by: str, reason: str) -> None:
    """What refused the join is known by its error; the text of an error of the application is not kept."""
    policy = ConnectionPolicy()
    policy.join_failed("a", error, FakeClient("00", "ada"))
    policy.join_failed("b", error, FakeClient("00", "ada"))
    [found] = refused_joins(policy.journal, "a", lambda _, user: user == "ada")
    assert (found.client, found.by, found.reason) == ("00", by, reason)
    assert refused_joins(policy.journal, "a", lambda client, _: client == "01") == ()


async def test_a_client_that_ended_meanwhile() -> None:
    """One that is gone before its join is decided was refused nothing."""
    policy = ConnectionPolicy()
    policy.join_failed("a", ClosedError("ended"), FakeClient("00", "ada"))
    assert refused_joins(policy.journal, "a", every) == ()


async def test_events() -> None:
    """What was logged of the channel, or of a client: the last three, the last one first, without refused joins."""
    policy = ConnectionPolicy()
    journal = policy.journal
    for number in range(3):
        journal.log(logger, DELIVERY_FAILED, "failed on %(channel)r: %(error)s", channel="a", error=number)
    journal.log(logger, PUBLISH_REFUSED, "refused on %(channel)r", channel="b")
    policy.join_failed("a", JoinRefusedError("no"), FakeClient("00", "ada"))
    assert [text for _, text in recent_events(journal, "b", ())] == ["refused on 'b'"]
    assert [text for _, text in recent_events(journal, "a", ())] == [f"failed on 'a': {number}" for number in (2, 1, 0)]
    journal.log(logger, DELIVERY_FAILED, "%(connection)s failed", connection="c1")
    assert recent_events(journal, "c", {"c1"}) == ((0.0, "c1 failed"),)


async def test_events_of_the_broker() -> None:
    """After those of the channel come the last ones of the broker as a whole; not those of other channels."""
    journal = Journal()
    journal.log(logger, HISTORY_MISFIT, "no history of %(channel)r", channel="a")
    journal.log(logger, CHANNEL_REVOKED, "%(channels)s revoked", channels="a, b")
    for number in range(4):
        journal.log(logger, BROKER_MISFIT, "queue is %(reason)s full", reason=number)
    full = [f"queue is {number} full" for number in (3, 2, 1)]
    assert [text for _, text in recent_events(journal, "a", ())] == ["no history of 'a'", *full]
    assert [text for _, text in recent_events(journal, "b", ())] == full
