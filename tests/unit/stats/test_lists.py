"""`backplane.stats.lists`: pages of several workers are merged, and each names the workers that are not in it."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from backplane import Backplane, ConfigurationError, Settings
from backplane.cluster_types import Answers, Worker
from backplane.stats.lists import Lists
from backplane.stats.queries import ChannelQuery, ConnectionQuery
from tests.unit.asgi_client import Client
from tests.unit.kit import WAIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.control.messages import Selector

pytestmark = pytest.mark.anyio

BRISK = Settings(worker_heartbeat_seconds=0.2)
ONE, TWO, THREE = (Worker(id=f"{number:016x}", host="web", pid=number) for number in (1, 2, 3))


class Asked:
    """Answers as workers would.

    Attributes:
        questions: The arguments of each question.
    """

    def __init__(self, *answers: Answers) -> None:
        self.questions: list[dict[str, Any]] = []
        self._answers = list(answers)

    async def ask(self, _kind: str, _selector: Selector, arguments: dict[str, Any], _seconds: float) -> Answers:
        """Return the next answers."""
        self.questions.append(arguments)
        return self._answers.pop(0)


def lists(*answers: Answers) -> tuple[Lists, Asked]:
    """Return lists of workers that answer so."""
    asked = Asked(*answers)
    requests: Any = asked
    return Lists(requests), asked


def page(total: int, **channels: int) -> dict[str, Any]:
    """Return a page of channels, as a worker answers it."""
    return {"total": total, "rows": [{"name": name, "subscribers": count} for name, count in channels.items()]}


async def test_a_part_is_never_silent() -> None:
    """Workers that did not answer, answered with an error, or answered something else, are missing by name."""
    answers = Answers(
        by_worker={ONE: page(1, a=1), TWO: {"rows": 5, "total": 1}}, errors={THREE: "no"}, missing=[Worker(id="f" * 16)]
    )
    found = await lists(answers)[0].channels(ChannelQuery(), 2)
    assert (found.asked, found.answered) == (4, 1)
    assert found.missing == ("?/?-ffff", "web/2-0000", "web/3-0000")
    assert found.errors == {"web/2-0000": "the answer is none of this version", "web/3-0000": "no"}
    assert found.to_json().keys() == {"asked", "answered", "missing", "errors", "total", "rows"}
    json.dumps(found.to_json())


NONSENSE: list[Any] = [None, 5, [], {}, {"rows": []}, {"rows": [{}], "total": 1}, {"rows": [], "total": "x"}]


@pytest.mark.parametrize("answer", NONSENSE)
async def test_nonsense_is_an_error(answer: Any) -> None:
    """Another program can answer anything."""
    found = await lists(Answers(by_worker={ONE: answer}))[0].connections(ConnectionQuery(), None, 2)
    assert (found.answered, found.missing, found.rows) == (0, ("web/1-0000",), ())


async def test_a_position_of_another_program() -> None:
    """A row without a place in the order comes last."""
    rows = [{"id": "b", "position": "nonsense"}, {"id": "a", "position": "-1:a"}]
    found = await lists(Answers(by_worker={ONE: {"total": 2, "rows": rows}}))[0].connections(ConnectionQuery(), None, 2)
    assert [row.id for row in found.rows] == ["a", "b"]


async def test_channels_that_were_cut_are_asked_for_by_name() -> None:
    """A worker that left a channel out, which others named, is asked for its number."""
    first = Answers(by_worker={ONE: page(9, a=5, b=4), TWO: page(1, b=3)})
    second = Answers(by_worker={ONE: page(2, a=5, b=4), TWO: page(2, b=3, a=1)})
    found, asked = lists(first, second)
    channels = await found.channels(ChannelQuery(limit=2), 2)
    assert [(row.name, row.subscribers, row.workers) for row in channels.rows] == [("b", 7, 2), ("a", 6, 2)]
    assert (asked.questions[1]["names"], channels.total) == (("b", "a"), 10)


async def test_channels_where_the_second_answer_is_missing() -> None:
    """The numbers of the first one stay: those of a part would be smaller."""
    first = Answers(by_worker={ONE: page(9, a=5), TWO: page(9, a=3)})
    found, _ = lists(first, Answers(by_worker={ONE: page(1, a=5)}, missing=[TWO]))
    assert [row.subscribers for row in (await found.channels(ChannelQuery(limit=1), 2)).rows] == [8]


@pytest.mark.parametrize("answers", [{ONE: page(9, a=5)}, {ONE: page(1, a=5), TWO: page(1, a=5)}])
async def test_whole_lists_are_asked_for_once(answers: dict[Worker, Any]) -> None:
    """With one worker, or where none left anything out, the numbers are exact at once."""
    found, asked = lists(Answers(by_worker=answers))
    await found.channels(ChannelQuery(), 2)
    assert len(asked.questions) == 1


# --- of real workers ---


@asynccontextmanager
async def cluster(count: int) -> AsyncGenerator[list[Backplane]]:
    """Run some workers that know each other."""
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(Backplane("memory://", cluster=True, settings=BRISK)) for _ in range(count)
        ]
        async with asyncio.timeout(WAIT_SECONDS):
            while any([len(await worker.workers()) < count for worker in workers]):
                await asyncio.sleep(0.01)
        yield workers


async def test_channels_of_all_workers() -> None:
    """They are merged, in both orders, page by page, and by prefix."""
    async with (
        cluster(2) as (first, second),
        first.subscribe("a", "b", "room:1"),
        second.subscribe("b", "room:1", "room:2"),
        second.subscribe("b"),
    ):
        found = await first.list_channels()
        assert (found.asked, found.answered, found.missing) == (2, 2, ())
        assert [(row.name, row.subscribers, row.workers) for row in found.rows] == [
            ("b", 3, 2),
            ("room:1", 2, 2),
            ("a", 1, 1),
            ("room:2", 1, 1),
        ]
        assert [row.name for row in (await first.list_channels(limit=1)).rows] == ["b"]
        assert [row.name for row in (await first.list_channels(prefix="room:")).rows] == ["room:1", "room:2"]
        names: list[str] = []
        while rows := (await second.list_channels(sort="name", limit=1, after=names[-1] if names else None)).rows:
            names.append(rows[0].name)
        assert names == ["a", "b", "room:1", "room:2"]


async def test_connections_of_all_workers() -> None:
    """They are found by channel, user, id and worker, in an order, page by page."""
    async with cluster(2) as (first, second), AsyncExitStack() as stack:
        for worker, key, channels in [(first, "ada", ("a", "b")), (second, "ada", ("a",)), (second, "bob", ())]:
            client = Client()
            await stack.enter_async_context(worker.connect(client.websocket, *channels, client_key=key))
        found = await first.list_connections(sort="channels")
        assert (found.asked, found.answered, found.total) == (2, 2, 3)
        assert [(row.user, row.channels) for row in found.rows] == [("ada", ("a", "b")), ("ada", ("a",)), ("bob", ())]
        first_row = found.rows[0]
        assert (first_row.transport, first_row.waiting_bytes, first_row.dropped) == ("asgi", 0, 0)
        assert first_row.received_seconds_ago is not None
        assert first_row.opened_at > 1e9

        assert (await first.list_connections(channel="a")).total == 2
        assert (await first.list_connections(client="bob")).total == 1
        assert [row.id for row in (await second.list_connections(client=first_row.id)).rows] == [first_row.id]
        (own, _) = await first.workers()
        assert [row.id for row in (await second.list_connections(worker=own.id)).rows] == [first_row.id]

        pages: list[str] = []
        after = None
        while rows := (await first.list_connections(sort="opened", limit=1, after=after)).rows:
            pages.append(rows[0].id)
            after = rows[0].position
        assert pages == [row.id for row in (await first.list_connections(sort="opened")).rows]
        assert len(set(pages)) == 3


async def test_what_workers_are_configured_with() -> None:
    """Each states it, by its name, so that they can be compared."""
    async with cluster(2) as (first, second):
        runtime = first._runtime  # pyright: ignore[reportPrivateUsage]
        assert runtime is not None
        answers = await runtime.members().lists.describe(WAIT_SECONDS)
        assert {each.id for each in answers.by_worker} == {each.id for each in await second.workers()}
        assert [described["settings"]["wire_format"] for described in answers.by_worker.values()] == ["header"] * 2


@pytest.mark.parametrize("arguments", [{"sort": "x"}, {"limit": 0}, {"after": 5}, {"timeout_seconds": 0}])
async def test_what_cannot_be_asked_for(arguments: dict[str, Any]) -> None:
    """It is refused before a worker is asked."""
    async with cluster(1) as (worker,):
        with pytest.raises(ConfigurationError):
            await worker.list_channels(**arguments)
        with pytest.raises(ConfigurationError):
            await worker.list_connections(**arguments)
