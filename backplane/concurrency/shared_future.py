"""Wait for a future that several callers wait for."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

__all__ = ["outcome_of"]

_T = TypeVar("_T")


async def outcome_of(future: asyncio.Future[_T]) -> _T:
    """Return the result of `future`, which a cancellation of the caller leaves as it is.

    `asyncio.shield` does the same, but on Python 3.14 it reports a failure to the loop's exception handler where its
    caller was cancelled before. Here a failure reaches the callers that remain. Where none remains it is not reported.

    Raises:
        BaseException: What the future ended with.
    """
    future.add_done_callback(_retrieve)
    await asyncio.wait((future,))
    return future.result()


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Keep asyncio from logging a failure as one that was never retrieved."""
    if not future.cancelled():
        future.exception()
