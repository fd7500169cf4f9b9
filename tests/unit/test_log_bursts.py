"""`backplane.log_bursts`: the first of many log lines at once, the rest as one."""

from __future__ import annotations

import asyncio
import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING

import pytest

from backplane.log_bursts import LogBursts

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

logger = logging.getLogger("backplane.test")

WAIT_SECONDS = 30.0


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
    """The first event is logged at once; those that follow in the window are one line with the text of the last."""
    bursts = LogBursts(window_seconds=0.05)
    for number in range(30):
        bursts.log(logger, logging.WARNING, "client %d is slow", number)
    assert lines.texts == ["client 0 is slow"]
    await lines.until(lambda: len(lines.records) == 2)
    assert lines.texts[1] == "29 more within 0.05 s, the last one: client 29 is slow"
    assert {record.levelno for record in lines.records} == {logging.WARNING}


async def test_a_burst_that_goes_on(lines: Lines) -> None:
    """A burst longer than the window is one line per window, and each event is counted in one of them."""
    bursts = LogBursts(window_seconds=0.05)
    total = 0
    while len(lines.records) < 4:
        bursts.log(logger, logging.WARNING, "again")
        total += 1
        await asyncio.sleep(0)
    bursts.flush()
    counts = [int(text.partition(" more")[0]) for text in lines.texts if " more within " in text]
    assert sum(counts) + lines.texts.count("again") == total


async def test_events_far_apart(lines: Lines) -> None:
    """Events further apart than the window are logged unchanged."""
    bursts = LogBursts(window_seconds=0.001)
    for number in range(3):
        bursts.log(logger, logging.WARNING, "event %d", number)
        await asyncio.sleep(0.01)
    assert lines.texts == ["event 0", "event 1", "event 2"]


async def test_levels_are_counted_separately(lines: Lines) -> None:
    """A warning after messages of the same text at another level is logged as a warning."""
    bursts = LogBursts()
    bursts.log(logger, logging.INFO, "refused: %s", "the worker drains")
    for _ in range(2):
        bursts.log(logger, logging.WARNING, "refused: %s", "the broker is away")
    bursts.flush()
    assert [record.levelno for record in lines.records] == [logging.INFO, logging.WARNING, logging.WARNING]


async def test_kinds_are_counted_separately(lines: Lines) -> None:
    """A burst of one kind delays no line of another kind."""
    bursts = LogBursts()
    for _ in range(3):
        bursts.log(logger, logging.WARNING, "one %s", "x")
        bursts.log(logger, logging.ERROR, "other %s", "y")
    assert lines.texts == ["one x", "other y"]
    bursts.flush()
    assert lines.texts[2:] == [
        "2 more within 10 s, the last one: one x",
        "2 more within 10 s, the last one: other y",
    ]


async def test_no_timer_while_nothing_is_counted(lines: Lines) -> None:
    """A single event leaves no timer, nor does a flush; flushing again logs nothing."""
    bursts = LogBursts()
    bursts.log(logger, logging.WARNING, "alone")
    (burst,) = bursts._bursts.values()  # pyright: ignore[reportPrivateUsage]
    assert burst._timer is None  # pyright: ignore[reportPrivateUsage]
    bursts.log(logger, logging.WARNING, "alone")
    timer = burst._timer  # pyright: ignore[reportPrivateUsage]
    assert timer is not None
    bursts.flush()
    bursts.flush()
    assert (timer.cancelled(), burst._timer) == (True, None)  # pyright: ignore[reportPrivateUsage]
    assert lines.texts == ["alone", "1 more within 10 s, the last one: alone"]


async def test_traceback_of_the_first_alone(lines: Lines) -> None:
    """An error is logged with its traceback once in a burst, with the location of the caller."""
    bursts = LogBursts()
    for _ in range(2):
        bursts.log(logger, logging.ERROR, "failed", exc_info=KeyError("a fault"))
    bursts.flush()
    assert [bool(record.exc_info) for record in lines.records] == [True, False]
    assert lines.records[0].filename == "test_log_bursts.py"


async def test_level_that_is_off(lines: Lines) -> None:
    """An event at a level that is off is not counted."""
    bursts = LogBursts()
    for _ in range(2):
        bursts.log(logger, logging.DEBUG, "hidden")
    bursts.flush()
    assert lines.texts == []


async def test_words_with_percent_signs(lines: Lines) -> None:
    """A percent sign in an argument is not formatted again, not even in the summary."""
    bursts = LogBursts()
    for _ in range(2):
        bursts.log(logger, logging.WARNING, "refused: %s", "100 %s")
    bursts.flush()
    assert lines.texts == ["refused: 100 %s", "1 more within 10 s, the last one: refused: 100 %s"]


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

    bursts = LogBursts(window_seconds=0.01)
    user.set("alice")
    logger.addFilter(see)
    try:
        bursts.log(logger, logging.WARNING, "one")
        bursts.log(logger, logging.WARNING, "one")
        await asyncio.wait_for(done.wait(), WAIT_SECONDS)
    finally:
        logger.removeFilter(see)
    assert seen == ["alice", "no user"]
