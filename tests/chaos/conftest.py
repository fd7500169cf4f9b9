"""The chaos suite: `pytest` runs the telling half of it, `pytest tests/chaos --chaos=full` all."""

from __future__ import annotations

import pytest

from tests.chaos.judge import Judge, Row, lines
from tests.chaos.site import BROKERS, Site

_ROWS = pytest.StashKey[list[Row]]()


def pytest_configure(config: pytest.Config) -> None:
    """Know the marker, and have a place for the figures."""
    config.addinivalue_line("markers", "full: only with --chaos=full")
    config.stash[_ROWS] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what only the full suite runs."""
    if config.getoption("chaos") == "full":
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the figures."""
    if rows := config.stash[_ROWS]:
        terminalreporter.section("chaos")
        for line in lines(rows):
            terminalreporter.write_line(line)


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: it is the network that is broken. This one warns of what is left open."""
    return "asyncio", {"use_uvloop": False}


@pytest.fixture(params=BROKERS)
def site(request: pytest.FixtureRequest) -> Site:
    """One broker after the other that the whole run shares: for faults of the way to it."""
    return Site.at(request.param, request.getfixturevalue(f"{request.param}_broker"))


@pytest.fixture(params=BROKERS)
def own_site(request: pytest.FixtureRequest) -> Site:
    """One broker after the other of the test's own: to kill it."""
    return Site.at(request.param, request.getfixturevalue(f"private_{request.param}")())


@pytest.fixture
def judge(request: pytest.FixtureRequest) -> Judge:
    """Judges a case and keeps its figures."""
    return Judge(request.config.stash[_ROWS])
