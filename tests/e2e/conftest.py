"""The brokers of the end-to-end tests. What differs between them is the URL."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["ipc", "redis", "nats", "kafka"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """One broker that joins processes after the other."""
    if request.param == "ipc":
        return str(request.getfixturevalue("ipc_url"))
    return str(request.getfixturevalue(f"{request.param}_broker").own_url)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's web proxy away from servers on the loopback."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
