"""How the tests run in parallel with `pytest -n auto`: their order, their workers, and which run alone.

Every test may run in parallel with every other one. One that cannot, as it measures or needs idle cores, is marked
`alone("the reason")`: it runs when all others are done, and no other runs meanwhile. One that waits most of the time,
and only must not be delayed, is marked `alone("the reason", waits=True)`: two of these run at once, and no other
meanwhile. A broker that takes long to start is run by the process that started the workers, for all of them:
tests/brokers/commons.py.
"""

from __future__ import annotations

import fcntl
import os
import sys
from bisect import bisect_left
from contextlib import ExitStack
from functools import cached_property
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.config import create_terminal_writer

from tests.brokers.commons import COMMONS, Commons, CommonsElsewhere
from tests.brokers.process import locked

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

_WORKERS_PER_CORE = 3  # most tests wait most of the time
_COMPUTES = "tests/unit/"  # these use a core all the time
# Started once for all tests of a file.
_SHARES_SERVERS = (
    "tests/chaos/test_amqp_cluster.py",
    "tests/examples/",
    "tests/e2e/test_demo.py",
    "tests/e2e/test_live_page_attacks.py",
    "tests/e2e/test_live_page_faults.py",
    "tests/integration/test_amqp.py",
    "tests/integration/test_amqp_durable.py",
)
_WAITING_AT_ONCE = 2
_LOCKS = pytest.StashKey[list[Path]]()
_PLACE = pytest.StashKey[Any]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker; in a worker also set the locks of the whole run, and a writer to the terminal."""
    config.addinivalue_line(
        "markers",
        "alone(reason, waits=False): runs when all others are done, while no test does, or one more where both wait",
    )
    config.stash[COMMONS] = Commons()
    if hasattr(config, "workerinput"):
        worker: Any = config
        config.stash[COMMONS] = CommonsElsewhere(worker.workerinput["commons"])
        path = Path(config.option.basetemp)
        config.stash[_LOCKS] = [path.with_name(f"alone-{n}.lock") for n in range(_WAITING_AT_ONCE)]
        # The output of a worker is dropped, and with it the stacks of a test that took too long.
        writer = create_terminal_writer(config, sys.__stderr__)
        config.get_terminal_writer = lambda: writer  # type: ignore[method-assign]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give a worker the address of the shared brokers."""
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
    """Schedule one test after the other, in order; those of a file together where they share servers.

    One worker in three begins with the tests that compute, so that no core is idle while the others wait.
    """
    from xdist.scheduler import LoadScheduling  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

    class InOrder(LoadScheduling):  # type: ignore[misc]
        @cached_property
        def computing(self) -> range:
            names: Any = self.collection
            return _that_compute(names)

        def check_schedule(self, node: Any, duration: float = 0) -> None:
            if node.shutting_down:
                return
            if not self.pending:
                node.shutdown()
            elif (
                len(self.node2pending[node]) < 2
            ):  # the one that it runs, and the next one, without which it does not finish the first
                self._send_tests(node, 1)

        def _send_tests(self, node: Any, num: int) -> None:
            names: Any = self.collection
            begins_with_these = _number(node.gateway.id) % 3 == 2
            if not (begins_with_these and _bring_forward(self.pending, self.computing, num)):
                num = _with_its_file(self.pending, names, num)
            super()._send_tests(node, num)

    config.option.maxschedchunk = 1
    return InOrder(config, log)


def _that_compute(names: Sequence[str]) -> range:
    """Return the places of the tests that compute, without those that run alone, which are at the end."""
    marks = [name.startswith(_COMPUTES) for name in names]
    first = marks.index(True) if True in marks else len(marks)
    return range(first, marks.index(False, first) if False in marks[first:] else len(marks))


def _bring_forward(pending: list[int], wanted: range, count: int) -> bool:
    """Put the first of the wanted tests, and those after it, in front; return whether any is left."""
    first = bisect_left(pending, wanted.start)
    if first == len(pending) or pending[first] not in wanted:
        return False
    moved = pending[first : first + count]
    del pending[first : first + count]
    pending[:0] = moved
    return True


def _with_its_file(pending: list[int], names: Sequence[str], count: int) -> int:
    """Return how many tests to send instead of `count`: all of a file that shares servers."""
    files = (names[place].partition("::")[0] for place in islice(pending, count - 1, None))
    if not (file := next(files, "")).startswith(_SHARES_SERVERS):
        return count
    return count + sum(1 for _ in takewhile(file.__eq__, files))


def _number(worker: str) -> int:
    return int(worker.removeprefix("gw"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put those that run alone after all others, at the end those that do not wait."""
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    alone = item.get_closest_marker("alone")
    return 0 if alone is None else 1 if alone.kwargs.get("waits") else 2


@pytest.hookimpl(
    wrapper=True, tryfirst=True
)  # around the timeout of the test, which must not include the wait for the lock
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test while no test runs alone, or alone while no other runs.

    A test shares all locks; one that runs alone holds all, or one of them where it waits most of the time.
    """
    if (paths := item.config.stash.get(_LOCKS, None)) is None:
        return (yield)
    alone = item.get_closest_marker("alone")
    if alone is not None and alone.kwargs.get("waits"):
        paths = [paths[_number(os.environ["PYTEST_XDIST_WORKER"]) % len(paths)]]
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(locked(path, fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test that is marked `alone` without a reason."""
    if any(not marker.args for marker in item.iter_markers("alone")):
        pytest.fail("alone needs its reason", pytrace=False)
