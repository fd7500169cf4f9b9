"""The brokers of the end-to-end tests. They differ in the URL only."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from tests.chromium import chromium_page
from tests.e2e.brokers import brokers_by_default

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from playwright.async_api import Page

_SERVER_LOGS = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")


@pytest.fixture(autouse=True)
def server_logs_as_before() -> Generator[None]:
    """Restore the loggers that a server in this process configures, for the tests after it."""
    logs = [logging.getLogger(name) for name in _SERVER_LOGS]
    before = [(log.level, log.propagate, log.handlers[:]) for log in logs]
    yield
    for log, (level, propagate, handlers) in zip(logs, before, strict=True):
        log.setLevel(level)
        log.propagate, log.handlers[:] = propagate, handlers


@pytest.fixture(params=brokers_by_default("ipc", "redis", "nats", "kafka"))
def broker_url(request: pytest.FixtureRequest) -> str:
    """The URL of each broker that connects processes, in turn."""
    if request.param == "ipc":
        return str(request.getfixturevalue("ipc_url"))
    return str(request.getfixturevalue(f"{request.param}_broker").own_url)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's web proxy away from servers on the loopback."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture
async def page() -> AsyncGenerator[Page]:
    """A page of a headless Chromium."""
    async with chromium_page() as opened:
        yield opened
