"""The tables of `durable=true`, and the statements on them.

A position is a snapshot: which transactions had ended when it was taken. Ids are no position, because they become
visible in the order of commits and not in theirs, and no time is one, because a transaction can stay open for any time.
What was committed between two snapshots is exactly what is visible in the second and not in the first.

After a crash the server can use numbers of transactions again that a snapshot takes for ended: those that had left
nothing on disk. So a row is also new where its id is higher than that of any row that was read.
"""

from __future__ import annotations

from typing import Final

__all__ = ["RowStatements", "create_statements"]

_CREATE: Final = """
-- Messages, as long as `retention_seconds`.
CREATE TABLE IF NOT EXISTS {name}_message (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    channel text NOT NULL,
    payload bytea NOT NULL
);
CREATE INDEX IF NOT EXISTS {name}_message_xid ON {name}_message (xid);

-- One row: what was deleted, what is deleted next, and an identity that changes with the tables.
CREATE TABLE IF NOT EXISTS {name}_retention (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch uuid NOT NULL DEFAULT gen_random_uuid(),
    deleted pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    deleted_next pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO {name}_retention DEFAULT VALUES ON CONFLICT DO NOTHING;
"""
_GRANT: Final = """
-- For another role than the owner, which may be the one that runs this:
-- GRANT SELECT, INSERT, DELETE ON {name}_message TO app;
-- GRANT SELECT, UPDATE ON {name}_retention TO app;
"""


_EXIST: Final = """
    SELECT to_regclass('{name}_message') IS NOT NULL AND to_regclass('{name}_retention') IS NOT NULL
"""
_INSERT: Final = """
    WITH added AS (
        INSERT INTO {name}_message (channel, payload) SELECT * FROM unnest($2::text[], $3::bytea[]) RETURNING 1
    )
    SELECT (SELECT count(*) FROM added), pg_notify($1, chr(4))
"""
_INSERT_IN: Final = """
    WITH added AS (
        INSERT INTO {name}_message (channel, payload) VALUES (CAST($2 AS text), CAST($3 AS bytea)) RETURNING 1
    )
    SELECT CAST(current_database() AS text), (SELECT count(*) FROM added), pg_notify(CAST($1 AS text), chr(4))
"""
_POSITION: Final = """
    SELECT pg_current_snapshot()::text, epoch::text, (SELECT coalesce(max(id), 0) FROM {name}_message)
    FROM {name}_retention
"""
# What is not visible in a snapshot began after it, or was in progress then: two ranges of the index, however long a
# transaction has been open.
_SINCE: Final = """
    SELECT known.snapshot, known.epoch, known.is_outdated, added.id, added.channel, added.payload FROM (
        SELECT pg_current_snapshot()::text AS snapshot, epoch::text AS epoch,
            pg_snapshot_xmax($1::text::pg_snapshot) < pg_snapshot_xmax(deleted) OR EXISTS (
                SELECT FROM pg_snapshot_xip($1::text::pg_snapshot) AS open (xid)
                WHERE pg_visible_in_snapshot(open.xid, deleted)
            ) AS is_outdated
        FROM {name}_retention
    ) AS known LEFT JOIN (
        SELECT id, channel, payload FROM {name}_message WHERE xid >= pg_snapshot_xmax($1::text::pg_snapshot)
        UNION ALL
        SELECT id, channel, payload FROM {name}_message
        WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip($1::text::pg_snapshot)))
        UNION ALL
        SELECT id, channel, payload FROM {name}_message
        WHERE id > $2::bigint AND xid < pg_snapshot_xmax($1::text::pg_snapshot)
            AND xid <> ALL (ARRAY(SELECT pg_snapshot_xip($1::text::pg_snapshot)))
        LIMIT $3
    ) AS added ON true
"""
_RETAIN: Final = """
    WITH due AS (
        SELECT deleted_next FROM {name}_retention
        WHERE changed_at < clock_timestamp() - make_interval(secs => $1) FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM {name}_message USING due
        WHERE xid < pg_snapshot_xmax(deleted_next) AND pg_visible_in_snapshot(xid, deleted_next) RETURNING 1
    ), noted AS (
        UPDATE {name}_retention
        SET deleted = due.deleted_next, deleted_next = pg_current_snapshot(), changed_at = clock_timestamp()
        FROM due RETURNING 1
    )
    SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM noted)
"""


def create_statements(name: str) -> str:
    """Return the SQL that creates the tables, to be run once; again it changes nothing."""
    return (_CREATE + _GRANT).format(name=name).lstrip()


class RowStatements:
    """The statements on the tables.

    Args:
        name: What the names of the tables begin with: the PostgreSQL channel.

    Attributes:
        exist: Returns whether the tables are there.
        insert: Adds messages, and notifies the workers, in one transaction. Values: the PostgreSQL channel, the
            channels, the payloads.
        insert_in: The same for one message, in a transaction of the application; the first column is its database.
        position: Returns the present snapshot, the epoch, and the highest id.
        since: Returns the rows that were committed since a position, each with the snapshot of the statement, with the
            epoch, and with whether some of them were deleted; one row without a message where there is none. Values:
            the snapshot, the highest id, most rows.
        retain: Deletes the rows that were there at the last deletion, where that is so long ago. Value: the seconds.
    """

    def __init__(self, name: str) -> None:
        self.exist: str = _EXIST.format(name=name)
        self.insert: str = _INSERT.format(name=name)
        self.insert_in: str = _INSERT_IN.format(name=name)
        self.position: str = _POSITION.format(name=name)
        self.since: str = _SINCE.format(name=name)
        self.retain: str = _RETAIN.format(name=name)
