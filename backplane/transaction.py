"""One statement inside a transaction of the application, whichever library that belongs to; none of them is imported.

The library is found by the class of the object that the application hands in.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from backplane.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Statement", "execute", "execute_sync"]


class Statement(NamedTuple):
    """A statement, which returns one row whose first column is the name of the database.

    Attributes:
        sql: With `$1`, `$2` ... in place of the values.
        values: The values.
        database: The database that it belongs into; `None` where that is not known.
    """

    sql: str
    values: tuple[object, ...]
    database: str | None


async def execute(session: object, statement: Statement) -> None:
    """Execute `statement` in the transaction of `session`, which is of an asynchronous or a synchronous library.

    A synchronous one blocks the event loop while the server answers.

    Raises:
        ConfigurationError: The object is none of those that are known, it is in no transaction, or its database is
            another one.
        Exception: What the library raises where the server refuses the statement.
    """
    kind = _kind_of(session)
    if kind in _ASYNC:
        database = await _ASYNC[kind](session, statement)
    else:
        database = _SYNC[kind](session, statement)
    _check_database(statement, database)


def execute_sync(session: object, statement: Statement) -> None:
    """Execute `statement` in the transaction of `session`, which is of a synchronous library.

    Raises:
        ConfigurationError: As `execute`; or the library is asynchronous.
        Exception: What the library raises where the server refuses the statement.
    """
    kind = _kind_of(session)
    if kind in _ASYNC:
        raise ConfigurationError(
            f"{type(session).__name__} belongs to asynchronous code: `await backplane.publish_in(...)` of a Backplane"
        )
    _check_database(statement, _SYNC[kind](session, statement))


def _kind_of(session: object) -> str:
    """Return library and class of `session`, of which it can be a subclass."""
    for base in type(session).__mro__:
        kind = f"{base.__module__.partition('.')[0]}.{base.__name__}"
        if kind in _ASYNC or kind in _SYNC:
            return kind
    raise ConfigurationError(
        "publish_in takes a session or connection of SQLAlchemy, or a connection or cursor of asyncpg or psycopg, "
        f"not {type(session).__module__}.{type(session).__name__}"
    )


def _check_database(statement: Statement, database: str) -> None:
    if statement.database not in (None, database):
        raise ConfigurationError(
            f"this transaction is in the database {database!r}, and the workers listen in {statement.database!r}: "
            "notifications stay in their database"
        )


def _refuse_autocommit(session: object) -> ConfigurationError:
    return ConfigurationError(
        f"this {type(session).__name__} is in no transaction, so the message would be sent at once: begin one first"
    )


# -- SQLAlchemy --------------------------------------------------------------------------------------------------------


async def _in_async_session(session: Any, statement: Statement) -> str:
    return await _in_async_connection(await session.connection(), statement)


async def _in_async_connection(connection: Any, statement: Statement) -> str:
    return str(await connection.run_sync(_in_connection, statement))


def _in_session(session: Any, statement: Statement) -> str:
    return _in_connection(session.connection(), statement)


def _in_connection(connection: Any, statement: Statement) -> str:
    dialect = connection.dialect
    if dialect.name != "postgresql":
        raise ConfigurationError(f"publish_in needs a transaction of PostgreSQL, and this one is of {dialect.name}")
    if _commits_at_once(connection):
        raise _refuse_autocommit(connection)
    text: Any = sys.modules["sqlalchemy"].text
    names = {f"value_{number}": value for number, value in enumerate(statement.values, 1)}
    return str(connection.execute(text(_numbered(statement.sql, ":value_{}")), names).scalar_one())


def _commits_at_once(connection: Any) -> bool:
    """Return whether the connection commits each statement by itself."""
    if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        return True
    detect = getattr(connection.dialect, "detect_autocommit_setting", None)  # of newer versions
    return detect is not None and bool(detect(connection.connection.dbapi_connection))


# -- drivers -----------------------------------------------------------------------------------------------------------


async def _in_asyncpg(connection: Any, statement: Statement) -> str:
    if not connection.is_in_transaction():
        raise _refuse_autocommit(connection)
    return str(await connection.fetchval(statement.sql, *statement.values))


async def _in_async_psycopg(connection: Any, statement: Statement) -> str:
    if connection.autocommit and not connection.info.transaction_status:  # 0 is idle
        raise _refuse_autocommit(connection)
    async with connection.cursor(row_factory=_first_column) as cursor:
        await cursor.execute(*_with_percents(statement))
        return str(await cursor.fetchone())


async def _in_async_cursor(cursor: Any, statement: Statement) -> str:
    return await _in_async_psycopg(cursor.connection, statement)


def _in_psycopg(connection: Any, statement: Statement) -> str:
    if connection.autocommit and not connection.info.transaction_status:
        raise _refuse_autocommit(connection)
    with connection.cursor(row_factory=_first_column) as cursor:
        cursor.execute(*_with_percents(statement))
        return str(cursor.fetchone())


def _in_cursor(cursor: Any, statement: Statement) -> str:
    return _in_psycopg(cursor.connection, statement)


def _first_column(_cursor: object) -> Callable[[Any], object]:
    """Make a row of psycopg its first column, whatever form the rows of the connection have."""
    return lambda row: row[0]


def _with_percents(statement: Statement) -> tuple[str, dict[str, object]]:
    names = {f"value_{number}": value for number, value in enumerate(statement.values, 1)}
    return _numbered(statement.sql, "%(value_{})s"), names


def _numbered(sql: str, form: str) -> str:
    return re.sub(r"\$(\d+)", lambda found: form.format(found[1]), sql)


_ASYNC: Final[dict[str, Callable[[Any, Statement], Any]]] = {
    "sqlalchemy.AsyncSession": _in_async_session,
    "sqlalchemy.async_scoped_session": _in_async_session,
    "sqlalchemy.AsyncConnection": _in_async_connection,
    "asyncpg.Connection": _in_asyncpg,
    "asyncpg.PoolConnectionProxy": _in_asyncpg,
    "psycopg.AsyncConnection": _in_async_psycopg,
    "psycopg.AsyncCursor": _in_async_cursor,
}
_SYNC: Final[dict[str, Callable[[Any, Statement], str]]] = {
    "sqlalchemy.Session": _in_session,
    "sqlalchemy.scoped_session": _in_session,
    "sqlalchemy.Connection": _in_connection,
    "psycopg.Connection": _in_psycopg,
    "psycopg.Cursor": _in_cursor,
}
