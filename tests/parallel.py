"""How the tests run side by side, `pytest -n auto`: what is handed to which worker, and when, and which run alone.

Every test may run beside every other one. One that cannot, as it measures or needs idle cores, is marked
`alone("the reason")`: it runs when all others are done, while nothing else does. A broker that takes long to
start is run by the process that started the workers, for all of them: tests/brokers/commons.py.
"""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.config import create_terminal_writer

from tests.brokers.commons import COMMONS, Commons, CommonsElsewhere
from tests.brokers.process import locked

if TYPE_CHECKING:
    from collections.abc import Generator

_WORKERS_PER_CORE = 3  # most tests wait most of the time
_SHARES_SERVERS = "tests/examples/"  # started once for all tests of a file
_LOCK = pytest.StashKey[Path]()
_PLACE = pytest.StashKey[Any]()


def pytest_configure(config: pytest.Config) -> None:
    """Know the marker, and in a worker where the lock of the whole run is, and where the person at the terminal."""
    config.addinivalue_line("markers", "alone(reason): runs when all others are done, while nothing else does")
    config.stash[COMMONS] = Commons()
    if hasattr(config, "workerinput"):
        worker: Any = config
        config.stash[COMMONS] = CommonsElsewhere(worker.workerinput["commons"])
        config.stash[_LOCK] = Path(config.option.basetemp).with_name("alone.lock")
        # Its output goes nowhere, and with it the stacks of a test that took too long.
        writer = create_terminal_writer(config, sys.__stderr__)
        config.get_terminal_writer = lambda: writer  # type: ignore[method-assign]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker where the brokers are that all share."""
    stash = node.config.stash
    if _PLACE not in stash:
        stash[_PLACE] = stash[COMMONS].serve()
    node.workerinput["commons"] = stash[_PLACE]


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the brokers that were started here."""
    if (commons := config.stash.get(COMMONS, None)) is not None:
        commons.close()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many workers `-n auto` starts."""
    return _WORKERS_PER_CORE * (os.cpu_count() or 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Hand out one test after the other, in their order; those of one file in one piece where they share servers."""
    from xdist.scheduler import LoadScheduling  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

    class InOrder(LoadScheduling):  # type: ignore[misc]
        def check_schedule(self, node: Any, duration: float = 0) -> None:
            if node.shutting_down:
                return
            if not self.pending:
                node.shutdown()
            elif len(self.node2pending[node]) < 2:  # the one it runs, and the one it must know of to end that
                self._send_tests(node, 1)

        def _send_tests(self, node: Any, num: int) -> None:
            while num < len(self.pending) and self._file(num).startswith(_SHARES_SERVERS):
                if self._file(num) != self._file(num - 1):
                    break
                num += 1
            super()._send_tests(node, num)

        def _file(self, place: int) -> str:
            collection: Any = self.collection
            return str(collection[self.pending[place]]).partition("::")[0]

    config.option.maxschedchunk = 1
    return InOrder(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put those that run alone after all others."""
    items.sort(key=lambda item: item.get_closest_marker("alone") is not None)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around the timeout of the test, which is not for waiting here
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test while none runs alone, or alone while none runs."""
    if (path := item.config.stash.get(_LOCK, None)) is None:
        return (yield)
    with locked(path, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH):
        return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test that does not give the reason why it runs alone."""
    if any(not marker.args for marker in item.iter_markers("alone")):
        pytest.fail("alone needs its reason", pytrace=False)
