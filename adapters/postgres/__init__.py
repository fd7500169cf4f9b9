"""The PostgreSQL adapter; `backplane[postgres]` installs what it needs."""

from backplane.adapters.postgres.broadcaster import PostgresBroadcaster, PostgresOptions

__all__ = ["PostgresBroadcaster", "PostgresOptions"]
