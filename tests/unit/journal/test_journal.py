"""`backplane.journal.journal`: the first of many log lines at once, the rest as one, and the last events in memory."""

from __future__ import annotations

import asyncio
import json
import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING

import pytest

from backplane.journal.events import (
    BROKER_CHANGED,
    CLIENT_CLOSED,
    CLIENT_SLOW,
    GAP_REPORTED,
    HOOK_FAILED,
    LINK_LOST,
    PEER_REFUSED,
)
from backplane.journal.journal import Journal
from backplane.journal.writing import write

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

logger = logging.getLogger("backplane.test")

WAIT_SECONDS = 60.0
SLOW = "client %(connection)s is slow"


class Lines(logging.Handler):
    """Keeps what is logged; a test can wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._changed = asyncio.Event()

    @property
    def texts(self) -> list[str]:
        """The lines."""
        return [record.getMessage() for record in self.records]

    @property
    def fields(self) -> list[dict[str, object]]:
        """What the lines have as fields."""
        return [
            {name.removeprefix("backplane."): value for name, value in vars(record).items() if "backplane." in name}
            for record in self.records
        ]

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.records.append(record)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
async def lines() -> Lines:
    """The lines that the test's logger logs."""
    return Lines()


@pytest.fixture(autouse=True)
def handled(lines: Lines) -> None:
    """Send what is logged to `lines` alone."""
    logger.handlers[:] = [lines]
    logger.propagate = False
    logger.setLevel(logging.INFO)


async def test_first_at_once_and_the_rest_by_number(lines: Lines) -> None:
    """Five events are logged at once; those that follow in the window are one line with the text of the last."""
    journal = Journal(window_seconds=0.05)
    for number in range(30):
        journal.log(logger, CLIENT_SLOW, SLOW, connection=number)
    assert lines.texts == [f"client {number} is slow" for number in range(5)]
    await lines.until(lambda: len(lines.records) == 6)
    assert lines.texts[5] == "25 more within 0.05 s, the last one: client 29 is slow"
    assert {record.levelno for record in lines.records} == {logging.WARNING}


async def test_fields(lines: Lines) -> None:
    """A line has its event, its worker and its fields; those that are `None` are left out, errors are texts."""
    journal = Journal(worker="31-9f2c")
    journal.log(logger, CLIENT_SLOW, SLOW, connection="ab", client_key=None, reason=ValueError("full"), bytes=7)
    assert lines.fields == [
        {"event": "client.slow", "worker": "31-9f2c", "connection": "ab", "reason": "full", "bytes": 7}
    ]


async def test_fields_of_a_count(lines: Lines) -> None:
    """The line that counts many events has their number, and the fields of the last."""
    journal = Journal(worker="w", burst=1)
    for number in range(3):
        journal.log(logger, CLIENT_SLOW, SLOW, connection=number)
    journal.flush()
    assert lines.fields[1] == {
        "event": "client.slow",
        "worker": "w",
        "connection": 2,
        "suppressed": 2,
        "window_seconds": 10.0,
        "last": "client 2 is slow",
    }


async def test_each_of_a_burst_at_debug(lines: Lines) -> None:
    """Where DEBUG is on, those that are counted are logged one by one at that level."""
    logger.setLevel(logging.DEBUG)
    journal = Journal(burst=1)
    for number in range(3):
        journal.log(logger, CLIENT_SLOW, SLOW, connection=number)
    journal.flush()
    assert [
        (record.levelname, field.get("connection")) for record, field in zip(lines.records, lines.fields, strict=True)
    ] == [
        ("WARNING", 0),
        ("DEBUG", 1),
        ("DEBUG", 2),
        ("WARNING", 2),
    ]


async def test_many_slow_clients_are_few_lines(lines: Lines) -> None:
    """Ten thousand slow clients are six lines, and the newest 200 of them are kept."""
    journal = Journal()
    for number in range(10_000):
        journal.log(logger, CLIENT_SLOW, SLOW, connection=number)
    journal.flush()
    assert len(lines.records) == 6
    assert lines.fields[5]["suppressed"] == 9_995
    recent = journal.recent("gaps")
    assert [entry["fields"]["connection"] for entry in recent] == list(range(9_800, 10_000))


async def test_a_burst_that_goes_on(lines: Lines) -> None:
    """A burst longer than the window is one line per window, and each event is counted in one of them."""
    journal = Journal(window_seconds=0.05, burst=1)
    total = 0
    while len(lines.records) < 4:
        journal.log(logger, CLIENT_SLOW, "again")
        total += 1
        await asyncio.sleep(0)
    journal.flush()
    counts = [int(text.partition(" more")[0]) for text in lines.texts if " more within " in text]
    assert sum(counts) + lines.texts.count("again") == total


async def test_events_far_apart(lines: Lines) -> None:
    """Events further apart than the window are logged unchanged."""
    journal = Journal(window_seconds=0.001, burst=1)
    for number in range(3):
        journal.log(logger, CLIENT_SLOW, "event %(number)d", number=number)
        await asyncio.sleep(0.01)
    assert lines.texts == ["event 0", "event 1", "event 2"]


async def test_levels_are_counted_separately(lines: Lines) -> None:
    """A warning after messages of the same text at another level is logged as a warning."""
    journal = Journal(burst=1)
    journal.log(logger, CLIENT_SLOW, "refused: %(reason)s", level=logging.INFO, reason="the worker drains")
    for _ in range(2):
        journal.log(logger, CLIENT_SLOW, "refused: %(reason)s", reason="the broker is away")
    journal.flush()
    assert [record.levelno for record in lines.records] == [logging.INFO, logging.WARNING, logging.WARNING]


async def test_kinds_are_counted_separately(lines: Lines) -> None:
    """A burst of one kind delays no line of another kind."""
    journal = Journal(burst=1)
    for _ in range(3):
        journal.log(logger, CLIENT_SLOW, "one %(what)s", what="x")
        journal.log(logger, HOOK_FAILED, "other %(what)s", what="y")
    assert lines.texts == ["one x", "other y"]
    journal.flush()
    assert lines.texts[2:] == [
        "2 more within 10 s, the last one: one x",
        "2 more within 10 s, the last one: other y",
    ]


async def test_no_timer_while_nothing_is_counted(lines: Lines) -> None:
    """A single event leaves no timer, nor does a flush; flushing again logs nothing."""
    journal = Journal(burst=1)
    journal.log(logger, CLIENT_SLOW, "alone")
    (burst,) = journal._bursts.values()  # pyright: ignore[reportPrivateUsage]
    assert burst._timer is None  # pyright: ignore[reportPrivateUsage]
    journal.log(logger, CLIENT_SLOW, "alone")
    timer = burst._timer  # pyright: ignore[reportPrivateUsage]
    assert timer is not None
    journal.flush()
    journal.flush()
    assert (timer.cancelled(), burst._timer) == (True, None)  # pyright: ignore[reportPrivateUsage]
    assert lines.texts == ["alone", "1 more within 10 s, the last one: alone"]


async def test_traceback_of_the_first_alone(lines: Lines) -> None:
    """An error is logged with its traceback where it passes, with the location of the caller, and not with a count."""
    journal = Journal(burst=1)
    for _ in range(2):
        journal.log(logger, HOOK_FAILED, "failed", exc_info=KeyError("a fault"))
    journal.flush()
    assert [bool(record.exc_info) for record in lines.records] == [True, False]
    assert lines.records[0].filename == "test_journal.py"


async def test_level_that_is_off(lines: Lines) -> None:
    """An event at a level that is off is not counted; it is kept all the same."""
    journal = Journal(burst=1)
    for _ in range(2):
        journal.log(logger, CLIENT_CLOSED, "hidden", level=logging.DEBUG)
        journal.log(logger, GAP_REPORTED, "kept", level=logging.DEBUG)
    journal.flush()
    assert lines.texts == []
    assert [entry["text"] for entry in journal.recent()] == ["kept", "kept"]


async def test_words_with_percent_signs(lines: Lines) -> None:
    """A percent sign in a field is not formatted again, not even in the summary."""
    journal = Journal(burst=1)
    for _ in range(2):
        journal.log(logger, CLIENT_SLOW, "refused: %(reason)s", reason="100 %s")
    journal.flush()
    assert lines.texts == ["refused: 100 %s", "1 more within 10 s, the last one: refused: 100 %s"]


async def test_recent_is_json() -> None:
    """What is kept can be sent as JSON, by kind, from the oldest, and only what is new or the newest."""
    journal = Journal()
    journal.log(logger, LINK_LOST, "%(old)s -> lost: %(reason)s", old="live", reason=OSError("reset"), generation=4)
    journal.log(logger, CLIENT_SLOW, SLOW, connection="ab", client_key="ada")
    journal.log(logger, CLIENT_CLOSED, "not kept")
    lost, slow = journal.recent()
    assert json.loads(json.dumps(lost)) == {
        "number": 1,
        "at": lost["at"],
        "event": "link.lost",
        "level": "WARNING",
        "text": "live -> lost: reset",
        "fields": {"old": "live", "reason": "reset", "generation": 4},
    }
    assert journal.recent("states") == [lost]
    assert journal.recent("gaps", "states", after=1) == [slow]
    assert journal.recent(limit=1) == [slow]
    assert journal.recent(limit=0) == journal.recent("ended") == []


async def test_count_alone(lines: Lines) -> None:
    """What happens to many for one reason is their number at the end, and each at DEBUG; a single one is itself."""
    journal = Journal()
    for number in range(30):
        journal.log(logger, CLIENT_CLOSED, "closing %(connection)s", of_many=True, connection=number)
    assert lines.texts == []
    journal.flush()
    assert lines.texts == ["30 within 10 s, the last one: closing 29"]
    logger.setLevel(logging.DEBUG)
    journal.log(logger, CLIENT_CLOSED, "one %(connection)s", of_many=True, connection=1)
    journal.flush()
    assert [(record.levelname, record.getMessage()) for record in lines.records[1:]] == [
        ("DEBUG", "one 1"),
        ("INFO", "one 1"),
    ]


async def test_parts_that_know_no_worker(lines: Lines) -> None:
    """What an adapter logs is kept by the workers of its event loop while they are open, whatever the level is."""
    worker, other, of_adapter = Journal(worker="w"), Journal(worker="o"), Journal()
    write(logger, BROKER_CHANGED, "too early")
    worker.open()
    write(logger, BROKER_CHANGED, "to %(url)s", level=logging.DEBUG, url="redis://ada:s3cret@one:1")
    of_adapter.log(logger, PEER_REFUSED, "a stranger")
    worker.log(logger, LINK_LOST, "lost")
    worker.close()
    write(logger, BROKER_CHANGED, "too late")
    assert [entry["text"] for entry in worker.recent()] == ["to redis://ada:***@one:1", "a stranger", "lost"]
    assert [entry["text"] for entry in of_adapter.recent()] == ["a stranger"]
    assert other.recent() == []
    assert lines.texts == ["too early", "a stranger", "lost", "too late"]


async def test_count_has_no_context() -> None:
    """The line that counts many events is logged without the context variables of the one that began the burst."""
    user: ContextVar[str] = ContextVar("user", default="no user")
    seen: list[str] = []
    done = asyncio.Event()

    def see(_: logging.LogRecord) -> bool:
        seen.append(user.get())
        if len(seen) == 2:
            done.set()
        return True

    journal = Journal(window_seconds=0.01, burst=1)
    user.set("alice")
    logger.addFilter(see)
    try:
        journal.log(logger, CLIENT_SLOW, "one")
        journal.log(logger, CLIENT_SLOW, "one")
        await asyncio.wait_for(done.wait(), WAIT_SECONDS)
    finally:
        logger.removeFilter(see)
    assert seen == ["alice", "no user"]
