"""The tables of `durable=true`, and the statements on them. Those that read the history of channels are in `history`.

A position is a snapshot: which transactions had ended when it was taken. Ids are no position, because they become
visible in the order of commits and not in theirs, and no time is one, because a transaction can stay open for any time.
What was committed between two snapshots is exactly what is visible in the second and not in the first.

After a crash the server can use numbers of transactions again that a snapshot takes for ended: those that had left
nothing on disk. So a row is also new where its id is higher than that of any row that was read.

So does a standby that was promoted. Where commits waited for it, and it has the newest row that was read, it has all
that were, and gives new rows higher ids: PostgreSQL logs a sequence before the commit that uses it. So one goes on
there.

A message of a channel's history gets its id at the end of its transaction, under a lock that lasts until it is visible:
so the ids of these are in the order of commits, and are positions. Transactions of the application hold the lock for
their commit alone, by a deferred trigger.
"""

from __future__ import annotations

from typing import Final

__all__ = ["KEY_SECONDS", "RowStatements", "create_statements"]

KEY_SECONDS: Final = 300
"""How long a message with an idempotency key prevents another one."""

_CREATE: Final = """
-- Messages, as long as `retention_seconds`; those of a channel's history, which have a checksum, as long as its rule.
CREATE TABLE IF NOT EXISTS {name}_message (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    channel text NOT NULL,
    payload bytea NOT NULL,
    checksum bigint,
    keep_messages integer,
    keep_seconds double precision,
    key bytea,
    is_placed boolean NOT NULL DEFAULT true
);
CREATE INDEX IF NOT EXISTS {name}_message_xid ON {name}_message (xid);
CREATE INDEX IF NOT EXISTS {name}_message_history ON {name}_message (channel, id) WHERE checksum IS NOT NULL;
CREATE INDEX IF NOT EXISTS {name}_message_key ON {name}_message (channel, key) WHERE key IS NOT NULL;

-- The newest message of each channel's history that was deleted.
CREATE TABLE IF NOT EXISTS {name}_forgotten (
    channel text PRIMARY KEY,
    id bigint NOT NULL,
    checksum bigint NOT NULL
);

-- One row: what was deleted, what is deleted next, and an identity that changes with the tables.
CREATE TABLE IF NOT EXISTS {name}_retention (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch uuid NOT NULL DEFAULT gen_random_uuid(),
    deleted pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    deleted_next pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO {name}_retention DEFAULT VALUES ON CONFLICT DO NOTHING;

-- Adds a message to the history of a channel. Returns its id, its checksum and 0; those of the first message with the
-- key, and 1, where there is one.
CREATE OR REPLACE FUNCTION {name}_keep(text, bytea, bigint, integer, double precision, bytea) RETURNS bigint[]
LANGUAGE plpgsql AS $$
DECLARE
    kept bigint[];
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('{name}_message', 0));
    IF $6 IS NOT NULL THEN
        SELECT ARRAY[id, checksum, 1] INTO kept FROM {name}_message
        WHERE channel = $1 AND key = $6 AND at > clock_timestamp() - interval '{key_seconds} seconds'
        ORDER BY id DESC LIMIT 1;
    END IF;
    IF kept IS NULL THEN
        INSERT INTO {name}_message (channel, payload, checksum, keep_messages, keep_seconds, key)
        VALUES ($1, $2, $3, $4, $5, $6) RETURNING ARRAY[id, checksum, 0] INTO kept;
    END IF;
    RETURN kept;
END $$;

-- The same at the commit of a transaction of the application.
CREATE OR REPLACE FUNCTION {name}_place() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('{name}_message', 0));
    IF NEW.key IS NOT NULL AND EXISTS (
        SELECT FROM {name}_message WHERE channel = NEW.channel AND key = NEW.key AND is_placed
            AND at > clock_timestamp() - interval '{key_seconds} seconds'
    ) THEN
        DELETE FROM {name}_message WHERE id = NEW.id;
    ELSE
        UPDATE {name}_message SET id = DEFAULT, at = clock_timestamp(), is_placed = true WHERE id = NEW.id;
    END IF;
    RETURN NULL;
END $$;
DROP TRIGGER IF EXISTS {name}_place ON {name}_message;
CREATE CONSTRAINT TRIGGER {name}_place AFTER INSERT ON {name}_message DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NOT NEW.is_placed) EXECUTE FUNCTION {name}_place();
"""
_GRANT: Final = """
-- For another role than the owner, which may be the one that runs this:
-- GRANT SELECT, INSERT, UPDATE, DELETE ON {name}_message, {name}_forgotten TO app;
-- GRANT SELECT, UPDATE ON {name}_retention TO app;
"""


_EXIST: Final = """
    SELECT to_regclass('{name}_message') IS NOT NULL AND to_regclass('{name}_retention') IS NOT NULL
        AND to_regclass('{name}_forgotten') IS NOT NULL
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
# What a row is, beside its id: a promoted standby that has lost rows can use their ids again, and their transactions'.
_MARK: Final = "format('%s %s', xid, extract(epoch FROM at))"
# With such settings a commit is confirmed, and visible to others, when a standby has it.
_KEEP: Final = """
    WITH kept AS MATERIALIZED (
        SELECT {name}_keep(channel, payload, checksum, messages, seconds, key) AS one FROM unnest(
            $2::text[], $3::bytea[], $4::bigint[], $5::integer[], $6::double precision[], $7::bytea[]
        ) AS added (channel, payload, checksum, messages, seconds, key)
    )
    SELECT array_agg(one), pg_notify($1, chr(4)) FROM kept
"""
_KEEP_IN: Final = """
    WITH added AS (
        INSERT INTO {name}_message (channel, payload, checksum, keep_messages, keep_seconds, key, is_placed) VALUES (
            CAST($2 AS text), CAST($3 AS bytea), CAST($4 AS bigint), CAST($5 AS integer), CAST($6 AS double precision),
            CAST($7 AS bytea), false
        ) RETURNING 1
    )
    SELECT CAST(current_database() AS text), (SELECT count(*) FROM added), pg_notify(CAST($1 AS text), chr(4))
"""
_PRESENT: Final = """
    SELECT pg_current_snapshot()::text, epoch::text, coalesce(newest.id, 0), newest.mark,
        current_setting('synchronous_standby_names') <> ''
            AND current_setting('synchronous_commit') IN ('on', 'remote_apply', 'remote_write') {more}
    FROM {name}_retention LEFT JOIN (
        SELECT id, {mark} AS mark FROM {name}_message ORDER BY id DESC LIMIT 1
    ) AS newest ON true
"""
_SINCE_MORE: Final = """,
        pg_snapshot_xmax($1::text::pg_snapshot) < pg_snapshot_xmax(deleted) OR EXISTS (
            SELECT FROM pg_snapshot_xip($1::text::pg_snapshot) AS open (xid)
            WHERE pg_visible_in_snapshot(open.xid, deleted)
        ),
        (SELECT {mark} FROM {name}_message WHERE id = $2::bigint),
        NULL::bigint, NULL::text, NULL::bytea, NULL::bigint
"""
# What is not visible in a snapshot began after it, or was in progress then: two ranges of the index, however long a
# transaction has been open. What is visible in it is asked for by a function, so that no plan takes the index on `xid`
# for that, which would read the whole table. The first row has no message.
_SINCE: Final = """
    {present}
    UNION ALL (
        SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, id, channel, payload, checksum FROM (
            SELECT id, channel, payload, checksum FROM {name}_message
            WHERE xid >= pg_snapshot_xmax($1::text::pg_snapshot)
            UNION ALL
            SELECT id, channel, payload, checksum FROM {name}_message
            WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip($1::text::pg_snapshot)))
            UNION ALL
            SELECT id, channel, payload, checksum FROM {name}_message
            WHERE id > $2::bigint AND pg_visible_in_snapshot(xid, $1::text::pg_snapshot)
        ) AS added LIMIT $3
    )
"""
_DISOWN: Final = "UPDATE {name}_retention SET epoch = gen_random_uuid() WHERE epoch = $1::text::uuid"
# `(SELECT true FROM due)` keeps the server from looking at any row where nothing is due, as at most calls.
# Of the history of each channel the oldest are deleted, and the newest of these is noted: a position of it can be
# resumed, as nothing after it is missing.
_RETAIN: Final = """
    WITH due AS (
        SELECT deleted_next FROM {name}_retention
        WHERE changed_at < clock_timestamp() - make_interval(secs => $1) FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM {name}_message USING due
        WHERE checksum IS NULL AND xid < pg_snapshot_xmax(deleted_next) AND pg_visible_in_snapshot(xid, deleted_next)
        RETURNING 1
    ), history AS (
        SELECT channel, id, NOT pg_visible_in_snapshot(xid, (SELECT deleted_next FROM due))
            OR (key IS NOT NULL AND at > clock_timestamp() - interval '{key_seconds} seconds')
            OR (at > clock_timestamp() - make_interval(secs => keep_seconds)
                AND row_number() OVER (PARTITION BY channel ORDER BY id DESC) <= keep_messages + 1) AS is_kept
        FROM {name}_message WHERE checksum IS NOT NULL AND (SELECT true FROM due)
    ), outdated AS (
        DELETE FROM {name}_message AS message USING (
            SELECT channel, min(id) FILTER (WHERE is_kept) AS first_kept FROM history GROUP BY channel
        ) AS kept
        WHERE message.checksum IS NOT NULL AND message.channel = kept.channel
            AND (first_kept IS NULL OR message.id < first_kept) AND (SELECT true FROM due)
        RETURNING message.channel, message.id, message.checksum
    ), forgotten AS (
        INSERT INTO {name}_forgotten SELECT DISTINCT ON (channel) * FROM outdated ORDER BY channel, id DESC
        ON CONFLICT (channel) DO UPDATE SET id = EXCLUDED.id, checksum = EXCLUDED.checksum
    ), noted AS (
        UPDATE {name}_retention
        SET deleted = due.deleted_next, deleted_next = pg_current_snapshot(), changed_at = clock_timestamp()
        FROM due RETURNING 1
    )
    SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM outdated), (SELECT count(*) FROM noted)
"""


_INSPECT: Final = """
    SELECT n_live_tup, n_dead_tup, extract(epoch FROM clock_timestamp() - changed_at)::float8
    FROM {name}_retention, pg_stat_user_tables WHERE relid = to_regclass('{name}_message')
"""


def create_statements(name: str) -> str:
    """Return the SQL that creates the tables, to be run once; again it changes nothing."""
    return (_CREATE + _GRANT).format(name=name, key_seconds=KEY_SECONDS).lstrip()


class RowStatements:
    """The statements on the tables.

    Args:
        name: What the names of the tables begin with: the PostgreSQL channel.

    Attributes:
        exist: Returns whether the tables are there.
        insert: Adds messages, and notifies the workers, in one transaction. Values: the PostgreSQL channel, the
            channels, the payloads.
        keep: Adds messages to the history of their channels, in the same way, and returns what the function returns
            for each. Values: the same, then checksums, how many messages are kept, for how many seconds, and keys.
        insert_in, keep_in: The same for one message, in a transaction of the application; the first column is its
            database.
        position: Returns the present snapshot, the epoch, the highest id, the mark of its row, and whether commits wait
            for a standby.
        since: Returns one row with the same, with whether rows that were committed since a position were deleted, and
            with the mark of the row of the highest id of before; then these rows. Values: the snapshot, the highest
            id, most rows.
        disown: Changes an epoch, where it still is that.
        inspect: Returns how many rows there are, how many deleted ones await vacuum, and how many seconds ago old ones
            were deleted last.
        retain: Deletes the rows that were there at the last deletion, where that is so long ago. Value: the seconds.
    """

    def __init__(self, name: str) -> None:
        self.exist: str = _EXIST.format(name=name)
        self.insert: str = _INSERT.format(name=name)
        self.insert_in: str = _INSERT_IN.format(name=name)
        self.keep: str = _KEEP.format(name=name)
        self.keep_in: str = _KEEP_IN.format(name=name)
        self.position: str = _PRESENT.format(name=name, mark=_MARK, more="")
        more = _SINCE_MORE.format(name=name, mark=_MARK)
        self.since: str = _SINCE.format(name=name, present=_PRESENT.format(name=name, mark=_MARK, more=more))
        self.disown: str = _DISOWN.format(name=name)
        self.inspect: str = _INSPECT.format(name=name)
        self.retain: str = _RETAIN.format(name=name, key_seconds=KEY_SECONDS)
