"""`backplane.worker.recent_events`: what the workers remember, for a process that asks."""

from __future__ import annotations

import pytest

from backplane import Backplane, ConfigurationError
from backplane.control.messages import Command
from backplane.journal.journal import Journal
from backplane.worker.recent_events import MOST, answer_with
from tests.unit.asgi_client import Client

pytestmark = pytest.mark.anyio


async def test_events_of_all_workers() -> None:
    """Each worker answers with a list, the oldest first, of at most as many as are asked for."""
    async with Backplane("memory://", cluster=True) as backplane:
        for number in range(3):
            async with backplane.connect(Client().websocket, "a", client_key=f"user {number}"):
                pass
        [found] = (await backplane.recent_events()).by_worker.values()
        ended = [event["fields"]["client_key"] for event in found if event["event"] == "client.ended"]
        assert ended == ["user 0", "user 1", "user 2"]
        [last] = (await backplane.recent_events(limit=1)).by_worker.values()
        assert last == found[-1:]
        [states] = (await backplane.recent_events(kinds=["states"])).by_worker.values()
        assert [event["event"] for event in states] == ["link.live"]
        with pytest.raises(ConfigurationError, match="kinds are some of"):
            await backplane.recent_events(kinds=["all"])


@pytest.mark.parametrize("limit", [0, 1.5, MOST + 1])
async def test_limit(limit: int) -> None:
    """A limit is a whole number up to 200."""
    async with Backplane("memory://", cluster=True) as backplane:
        with pytest.raises(ConfigurationError, match="limit must be"):
            await backplane.recent_events(limit=limit)


@pytest.mark.parametrize("wrong", [None, -1, "x", 10**9, [1], ["other"]])
async def test_question_of_another_release(wrong: object) -> None:
    """What is no limit or no kind is not one."""
    assert await answer_with(Journal())(Command(kind="events", arguments={"limit": wrong, "kinds": wrong})) == []
