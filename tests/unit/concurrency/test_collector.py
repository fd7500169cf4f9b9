"""`backplane.concurrency.collector`: what garbage collections walk."""

from __future__ import annotations

import gc
from contextlib import suppress

from backplane.concurrency.collector import no_walk_of_what_lives


def test_what_lives_is_left_out() -> None:
    """Until the end of the block, also where that fails; what is made in it is collected as ever."""
    with suppress(ZeroDivisionError), no_walk_of_what_lives():
        assert gc.get_freeze_count() > 1_000
        cycle: list[object] = []
        cycle.append(cycle)
        del cycle
        assert gc.collect() >= 1
        _ = 1 / 0
    assert gc.get_freeze_count() == 0


def test_what_another_has_frozen() -> None:
    """It stays frozen; what has come since is left out too."""
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        new: list[list[object]] = [[] for _ in range(1000)]
        with no_walk_of_what_lives():
            assert gc.get_freeze_count() >= before + len(new)
        assert gc.get_freeze_count() >= before
    finally:
        gc.unfreeze()
