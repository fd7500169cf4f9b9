"""What `backplane doctor` finds of a PostgreSQL server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg  # type: ignore[import-untyped]
import pytest

from backplane.adapters.postgres.inspection import inspect_server, inspect_tables

if TYPE_CHECKING:
    from backplane.findings import Finding

pytestmark = pytest.mark.anyio

_asyncpg: Any = asyncpg


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: nothing is awaited."""
    return "asyncio", {"use_uvloop": False}


class Session:
    """A session whose answers a test gives.

    Attributes:
        is_pooled: It leads to a pooler.
    """

    def __init__(self, *answers: tuple[object, ...] | None, is_pooled: bool = False) -> None:
        self._answers = list(answers)
        self.is_pooled = is_pooled

    async def ask(self, _query: str) -> tuple[object, ...]:
        """Return the next answer; a server that permits nothing refuses."""
        answer = self._answers.pop(0)
        if answer is None:
            raise _asyncpg.PostgresError.new({"C": "42501", "M": "permission denied"})
        return answer


async def levels(session: Any) -> list[str]:
    """Return the levels of what is found."""
    return [finding.level for finding in await inspect_server(session)]


@pytest.mark.parametrize(
    ("session", "expected"),
    [
        (Session((0.0,), (5, 97)), ["ok", "ok", "ok"]),
        (Session((0.02,), (90, 97), is_pooled=True), ["ok", "warning", "warning"]),
        (Session((0.6,), (5, 97)), ["ok", "error", "ok"]),
        (Session(None, None), ["ok", "skipped", "skipped"]),
    ],
)
async def test_server(session: Session, expected: list[str]) -> None:
    """A queue that fills, and sessions that run out, are found."""
    assert await levels(session) == expected


@pytest.mark.parametrize(
    ("answer", "level", "words"),
    [
        ((1000, 50, 600.0), "ok", ""),
        ((1000, 50, 1801.0), "warning", "no worker deletes"),
        ((1000, 200_000, 600.0), "warning", "autovacuum"),
        ((300_000, 200_000, 600.0), "ok", ""),
        (None, "skipped", ""),
    ],
)
async def test_tables(answer: tuple[object, ...] | None, level: str, words: str) -> None:
    """Rows that are not deleted, or not vacuumed, are found."""
    session: Any = Session(answer)
    rows, promotion = await inspect_tables(session, "SELECT", 600.0, is_synchronous=False)
    assert rows.level == level
    assert words in (rows.cure or "")
    assert "is a Gap" in promotion.text


async def test_synchronous_replication_is_named() -> None:
    """A promotion is no gap then."""
    session: Any = Session((0, 0, 0.0))
    found: list[Finding] = await inspect_tables(session, "SELECT", 600.0, is_synchronous=True)
    assert "loses nothing" in found[1].text
