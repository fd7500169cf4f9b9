"""Where an error was raised, without its text."""

from __future__ import annotations

from pathlib import PurePath

__all__ = ["place_of"]


def place_of(error: BaseException) -> str:
    """Return the type of an error and where it was raised: `KeyError at shop.py:12`.

    For errors of functions of the application. The text and the traceback of the error are left out, since they can
    hold the message that the function was called with.
    """
    name, raised = type(error).__name__, error.__traceback__
    while raised is not None and raised.tb_next is not None:
        raised = raised.tb_next
    return (
        name if raised is None else f"{name} at {PurePath(raised.tb_frame.f_code.co_filename).name}:{raised.tb_lineno}"
    )
