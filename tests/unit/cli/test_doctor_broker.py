"""`backplane.cli.doctor_broker`: a broker that can be reached and returns no message."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backplane.broker.registry import broadcaster_from_url
from backplane.cli import doctor_broker as module
from backplane.cli.diagnosis import Diagnosis
from backplane.cli.doctor_broker import inspect_broker
from backplane.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: nothing is awaited."""
    return "asyncio", {"use_uvloop": False}


@pytest.mark.parametrize(("connect_seconds", "expected"), [(0.1, ["broker", "alarm"]), (None, ["broker"])])
async def test_what_the_adapter_finds_is_shown(
    connect_seconds: float | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the link opens, and messages do not return: its faults, which can be why."""

    async def diagnose(url: str, **_: object) -> Diagnosis:
        capabilities = broadcaster_from_url(url).capabilities
        return Diagnosis(url=url, problem="lost; look", capabilities=capabilities, connect_seconds=connect_seconds)

    async def inspect_configuration(_url: str, _subscribers: Mapping[str, int]) -> list[Finding]:
        return [Finding(check="alarm", level="error", text="x"), Finding(check="version", level="ok", text="x")]

    monkeypatch.setattr(module, "diagnose", diagnose)
    monkeypatch.setattr(module, "inspect_configuration", inspect_configuration)
    findings = [finding async for finding in inspect_broker("memory://", lambda _: None)]
    assert [finding.check for finding in findings] == expected
    assert (findings[0].text, findings[0].cure) == ("lost", "look")
