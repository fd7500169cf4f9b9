"""Reads the history of channels from the table of `durable=true`.

A position is the id of a row, with its checksum: the ids of a history are in the order of commits. It can be resumed
while its row is there, or it is the newest one that was deleted, and no more was added since than the rule keeps.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import lru_cache
from hashlib import blake2b
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from backplane.adapters.postgres.errors import ASYNCPG_ERRORS, connect_error
from backplane.broadcaster import KeptMessage, Recalled
from backplane.concurrency.shared_future import outcome_of
from backplane.errors import BrokerError
from backplane.message import Place, Position

if TYPE_CHECKING:
    from backplane.adapters.postgres.connection import PostgresConnection
    from backplane.history_rules import History

__all__ = ["HistoryReader", "epoch_of"]

_MAX_BATCH: Final = 200
_MAX_BATCH_BYTES: Final = 64 * 1024 * 1024
_MAX_ID: Final = (1 << 63) - 1

# A row for each query and message, or one for a query without a message. Of a history only the newest rows are looked
# at: those that the rule keeps, and one more, which shows that there are older ones.
_RECALL: Final = """
    SELECT query.number, known.epoch, recent.top, newest.checksum, forgotten.id, forgotten.checksum, named.checksum,
        recent.outdated, recent.ids, item.id, item.checksum, item.payload
    FROM unnest(
        $1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::double precision[]
    ) WITH ORDINALITY AS query (channel, after, most, most_bytes, messages, seconds, number)
    CROSS JOIN (SELECT epoch::text AS epoch FROM {name}_retention) AS known
    CROSS JOIN LATERAL (
        SELECT max(id) AS top, array_agg(id) AS ids,
            coalesce(max(id) FILTER (WHERE at < clock_timestamp() - make_interval(secs => query.seconds)), 0)
                AS outdated
        FROM (
            SELECT id, at FROM {name}_message WHERE channel = query.channel AND checksum IS NOT NULL
            ORDER BY id DESC LIMIT query.messages + 1
        ) AS rows
    ) AS recent
    LEFT JOIN {name}_message AS newest ON newest.id = recent.top
    LEFT JOIN {name}_message AS named
        ON named.id = query.after AND named.channel = query.channel AND named.checksum IS NOT NULL
    LEFT JOIN {name}_forgotten AS forgotten ON forgotten.channel = query.channel
    LEFT JOIN LATERAL (
        SELECT id, checksum, payload FROM (
            SELECT *, sum(octet_length(payload)) OVER (ORDER BY id) - octet_length(payload) AS bytes_before FROM (
                SELECT id, checksum, payload FROM {name}_message
                WHERE channel = query.channel AND checksum IS NOT NULL AND id > query.after
                ORDER BY id LIMIT query.most
            ) AS oldest
        ) AS measured WHERE bytes_before <= query.most_bytes
        UNION ALL
        SELECT id, checksum, payload FROM (
            SELECT *, sum(octet_length(payload)) OVER (ORDER BY id DESC) - octet_length(payload) AS bytes_before FROM (
                SELECT id, checksum, payload FROM {name}_message
                WHERE query.after IS NULL AND channel = query.channel AND checksum IS NOT NULL AND id > recent.outdated
                ORDER BY id DESC LIMIT least(query.most, query.messages)
            ) AS latest
        ) AS measured WHERE bytes_before <= query.most_bytes
    ) AS item ON true
    ORDER BY query.number, item.id
"""


class _Query(NamedTuple):
    """One read, which waits for its answer.

    Attributes:
        name: The channel, as in the table.
    """

    name: str
    rule: History
    after: Position | None
    limit: int
    max_bytes: int
    answer: asyncio.Future[Recalled]


class HistoryReader:
    """Reads over one session, many queries in a statement.

    Args:
        connection: The session.
        statement: `HistoryReader.statement`, prepared there.
        where: The server, as errors show it.
    """

    def __init__(self, connection: PostgresConnection, statement: Any, where: str) -> None:
        self._connection = connection
        self._statement = statement
        self._where = where
        self._queries: deque[_Query] = deque()
        self._reading: asyncio.Task[None] | None = None

    @staticmethod
    def statement(name: str) -> str:
        """Return the statement, for tables whose names begin with `name`."""
        return _RECALL.format(name=name)

    async def recall(self, name: str, rule: History, after: Position | None, limit: int, max_bytes: int) -> Recalled:
        """Read from the history of a channel, whose name is as in the table. See `SupportsHistory.recall`.

        Raises:
            BrokerError: The session ended, or the server refused the statement.
        """
        answer: asyncio.Future[Recalled] = asyncio.get_running_loop().create_future()
        self._queries.append(_Query(name, rule, after, limit, max_bytes, answer))
        if self._reading is None:  # it begins in the next pass of the event loop, and takes what comes until then
            self._reading = self._connection.start_task(self._read_all())
        return await outcome_of(answer)

    async def _read_all(self) -> None:
        """Read until no query waits."""
        try:
            while self._queries:
                await self._read(self._take())
        finally:
            self._reading = None

    def _take(self) -> list[_Query]:
        batch: list[_Query] = []
        size = 0
        while self._queries and len(batch) < _MAX_BATCH:
            size += self._queries[0].max_bytes if self._queries[0].limit else 0
            if batch and size > _MAX_BATCH_BYTES:
                break
            batch.append(self._queries.popleft())
        return batch

    async def _read(self, batch: list[_Query]) -> None:
        try:
            rows = await self._connection.fetch(
                self._statement,
                [query.name for query in batch],
                [None if query.after is None else min(query.after.offset, _MAX_ID) for query in batch],
                [query.limit for query in batch],
                [query.max_bytes for query in batch],
                [query.rule.max_messages for query in batch],
                [float(query.rule.max_age_seconds) for query in batch],
            )
            answers = {number: list(group) for number, group in groupby(rows, lambda row: row[0])}
            for number, query in enumerate(batch, 1):
                query.answer.set_result(_recalled(query, answers[number]))
        except ASYNCPG_ERRORS as error:
            _fail(batch, connect_error(error, self._where))
        except BrokerError as error:
            _fail(batch, error)
        except LookupError:
            _fail(batch, BrokerError(f"{self._where} has lost the row of its retention", adapter="postgres"))


def _fail(batch: list[_Query], error: BrokerError) -> None:
    for query in batch:
        if not query.answer.done():
            query.answer.set_exception(error)


@lru_cache(maxsize=4096)
def epoch_of(name: str, epoch: str) -> bytes:
    """Return the epoch of a channel's positions.

    Args:
        name: The channel, as in the table.
        epoch: That of the tables.
    """
    return blake2b(f"{epoch} {name}".encode(), digest_size=8).digest()


def _recalled(query: _Query, rows: list[Any]) -> Recalled:
    _, tables, top, top_checksum, forgotten, forgotten_checksum, named_checksum, outdated, ids, *_ = rows[0]
    epoch = epoch_of(query.name, tables)
    if top is None:
        top, top_checksum = forgotten or 0, forgotten_checksum or 0
    newest = Position(epoch, top, top_checksum)
    items = [KeptMessage(row[11], Place(epoch, row[9], row[10])) for row in rows if row[9] is not None]
    after, first = query.after, outdated
    found = True
    if after is not None:
        first = after.offset
        checksum = named_checksum if named_checksum is not None else _deleted(first, forgotten, forgotten_checksum)
        found = after.epoch == epoch and checksum is not None and after.check == checksum and outdated <= first
    count = sum(one > first for one in ids or ())
    if after is None:
        count = min(count, query.rule.max_messages)
    elif count > query.rule.max_messages:
        found = False
    if not found:
        return Recalled(items=[], top=newest, found=False)
    return Recalled(items=items, top=newest, more=count > len(items))


def _deleted(offset: int, forgotten: int | None, checksum: int | None) -> int | None:
    """Return the checksum of the position after which the rows of a channel begin, where `offset` is its offset."""
    if offset != (forgotten or 0):
        return None
    return checksum or 0
