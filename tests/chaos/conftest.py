"""The chaos suite: `pytest` runs its most significant cases, `pytest tests/chaos --chaos=full` all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.case_table import CaseRecorder
from tests.chaos.kept import KeptCaseRecorder
from tests.chaos.target import BROKERS, FaultTarget


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run measured cases alone."""
    for item in items:
        if Path(__file__).parent in item.path.parents and "record_case" in getattr(item, "fixturenames", ()):
            item.add_marker(
                pytest.mark.alone(
                    "it measures within how many seconds a fault is detected and recovered from", waits=True
                )
            )


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: the faults are those of the network. This one warns of unclosed resources."""
    return "asyncio", {"use_uvloop": False}


@pytest.fixture(params=BROKERS)
def target(request: pytest.FixtureRequest) -> FaultTarget:
    """Each broker in turn, shared by the whole run: for faults of the network."""
    return FaultTarget.of(request.param, request.getfixturevalue(f"{request.param}_broker"))


@pytest.fixture(params=BROKERS)
def private_target(request: pytest.FixtureRequest) -> FaultTarget:
    """Each broker in turn, private to the test: for faults of the broker."""
    return FaultTarget.of(request.param, request.getfixturevalue(f"private_{request.param}")())


@pytest.fixture
def record_case(request: pytest.FixtureRequest) -> CaseRecorder:
    """Checks a case and records its figures."""
    return CaseRecorder(request.node.user_properties)


@pytest.fixture
def record_kept(request: pytest.FixtureRequest) -> KeptCaseRecorder:
    """Checks a case of kept channels and records its figures."""
    return KeptCaseRecorder(request.node.user_properties)
