"""One line of the log: a sentence for people, and the same as fields for programs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from backplane.journal.fields import PREFIX, Value, extra, flat
from backplane.journal.names import names_are_hidden, without_names
from backplane.journal.place import place_of
from backplane.journal.ring import rings_of_loop

if TYPE_CHECKING:
    import logging
    from collections.abc import Mapping

    from backplane.journal.events import Event

__all__ = ["write", "write_line"]


def write(
    logger: logging.Logger,
    event: Event,
    message: str,
    /,
    *,
    level: int | None = None,
    exc_info: BaseException | None = None,
    **fields: object,
) -> None:
    """Log an event that cannot come in bursts, of a part that has no `Journal`; for one that has there is its `log`.

    The workers of this event loop keep it, if it is of a kind that is kept.

    Args:
        logger: Of the module that logs.
        event: What has happened.
        message: The sentence, into which fields are put: `"the link to %(url)s was lost"`.
        level: Instead of that of the event.
        exc_info: An error whose traceback is logged.
        **fields: What a program can read: texts, numbers, errors (as texts); `None` is left out.
    """
    level = event.level if level is None else level
    is_logged = logger.isEnabledFor(level)
    if not is_logged and event.kept is None:
        return
    values = flat(fields)
    if event.kept is not None:
        for ring in rings_of_loop():
            ring.add(event.kept, time.time(), event.name, level, message, values)
    if is_logged:
        write_line(logger, level, event.name, message, values, exc_info=exc_info, stacklevel=2)


def write_line(
    logger: logging.Logger,
    level: int,
    event: str,
    message: str,
    fields: Mapping[str, Value],
    *,
    more: Mapping[str, Value] | None = None,
    exc_info: BaseException | None = None,
    stacklevel: int = 1,
) -> None:
    """Log a line with the names in it as they are, or as hashes.

    Args:
        logger: As of `write`.
        level: The level.
        event: The name of the event.
        message: As of `write`.
        fields: What is put into the message, and what is logged with it.
        more: What is only logged with it.
        exc_info: As of `write`.
        stacklevel: As in `logging`: 1 is who calls this.
    """
    if names_are_hidden():
        fields = without_names(fields)
        if exc_info is not None:  # its text can hold a name
            fields, exc_info = {**fields, "error": place_of(exc_info)}, None
    values = extra(event, fields)
    for name, value in (more or {}).items():
        values[PREFIX + name] = value
    arguments = (fields,) if fields else ()  # `logging` would take an empty mapping for an argument too many
    logger.log(level, message, *arguments, exc_info=exc_info, extra=values, stacklevel=stacklevel + 1)
