"""The chaos suite: `pytest` runs the telling half of it, `pytest tests/chaos --chaos=full` all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.judge import Judge
from tests.chaos.site import BROKERS, Site


def pytest_configure(config: pytest.Config) -> None:
    """Know the marker."""
    config.addinivalue_line("markers", "full: only with --chaos=full")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let what is judged run alone, and deselect what only the full suite runs."""
    for item in items:
        if Path(__file__).parent in item.path.parents and "judge" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.alone("within how many seconds a fault is found and over is what it promises"))
    if config.getoption("chaos") == "full":
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


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
    return Judge(request.node.user_properties)
