"""Garbage collections while much is released: they walk everything that lives, and the event loop waits."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["no_walk_of_what_lives"]


@contextmanager
def no_walk_of_what_lives() -> Generator[None]:
    """Let garbage collections leave out what exists at this moment, until the end of the block.

    What ends in a burst makes so many objects that a full collection begins, which takes 0.8 s for 50,000 clients.
    What exists is still freed where its last reference goes; only a cycle of it waits for a later collection. Where
    something else has frozen objects before (`gc.freeze`), what exists stays frozen after the block: to end that is up
    to what began it.
    """
    was_frozen = gc.get_freeze_count() > 0
    gc.freeze()
    try:
        yield
    finally:
        if not was_frozen:
            gc.unfreeze()
