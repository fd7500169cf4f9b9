"""`backplane.explain.recollection`: what is remembered of clients that are gone, and of refused joins."""

from __future__ import annotations

import pytest

from backplane.errors import BrokerUnavailableError, JoinRefusedError, TooManyChannelsError
from backplane.explain.recollection import Recollection
from tests.unit.doubles import FakeClient

pytestmark = pytest.mark.anyio


def every(*_: object) -> bool:
    """Mean all."""
    return True


async def test_ended_clients() -> None:
    """The last three that are meant, the last first, with how they ended."""
    recollection = Recollection()
    for number in range(300):
        recollection.ended(FakeClient(f"{number}"), "ada", (4000, "reload") if number % 2 else None)
    found = recollection.ended_clients(every)
    assert [(each.id, each.user, each.code, each.reason) for each in found] == [
        ("299", "ada", 4000, "reload"),
        ("298", "ada", None, ""),
        ("297", "ada", 4000, "reload"),
    ]
    assert recollection.ended_clients(lambda client, _: client == "99") == ()
    assert [each.id for each in recollection.ended_clients(lambda client, _: client == "100")] == ["100"]


@pytest.mark.parametrize(
    ("error", "by", "reason"),
    [
        (JoinRefusedError("not yours"), "authorize", "not yours"),
        (KeyError("secret"), "authorize", "KeyError"),
        (TooManyChannelsError("too many"), "limit", "too many"),
        (BrokerUnavailableError("gone", adapter="redis"), "broker", "redis: gone"),
    ],
)
async def test_refused_joins(error: Exception, by: str, reason: str) -> None:
    """What refused the join is known by its error; the text of an error of the application is not kept."""
    recollection = Recollection()
    recollection.join_failed(FakeClient("00"), "ada", "a", error)
    recollection.join_failed(FakeClient("00"), "ada", "b", error)
    [found] = recollection.refused_joins("a", lambda _, user: user == "ada")
    assert (found.client, found.by, found.reason) == ("00", by, reason)
    assert recollection.refused_joins("a", lambda client, _: client == "01") == ()
