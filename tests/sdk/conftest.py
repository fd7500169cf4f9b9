"""What the tests with official SDKs share: the servers, the programs, and a proxy between them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn
from uuid import uuid4

import pytest

from backplane.testing import FaultProxy
from tests.brokers.redis import RedisConfig
from tests.chaos.target import FaultTarget
from tests.chromium import chromium_page
from tests.sdk.install import MissingError
from tests.sdk.sdk import PROGRAMS, Program, SdkClient, running
from tests.sdk.servers import SERVERS, SdkServer, command_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator
    from pathlib import Path

    from playwright.async_api import Page


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: client and server run in processes of their own."""
    return "asyncio", {"use_uvloop": False}


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[SdkServer]:
    """Each server in turn, shared by the tests of a module."""
    try:
        command = command_of(request.param)
    except MissingError as error:
        skip_without(str(error))
    with SdkServer(command, tmp_path_factory.mktemp(request.param)) as running_server:
        yield running_server


@pytest.fixture
async def proxy(server: SdkServer) -> AsyncGenerator[FaultProxy]:
    """A proxy to the server, which breaks connections."""
    async with FaultProxy(server.url) as between:
        yield between


@pytest.fixture
def own() -> str:
    """What makes the names of users and channels unique in one test."""
    return f"-{uuid4().hex[:8]}"


@pytest.fixture(params=PROGRAMS, ids=str)
def program(request: pytest.FixtureRequest) -> Program:
    """Each SDK in each encoding, installed."""
    found: Program = request.param
    try:
        found.command()
    except MissingError as error:
        skip_without(str(error))
    return found


@pytest.fixture
async def client(program: Program, tmp_path: Path) -> AsyncGenerator[SdkClient]:
    """A client of the program."""
    async with running(program, tmp_path) as started:
        yield started


@pytest.fixture
def target(request: pytest.FixtureRequest, storage: str) -> FaultTarget:
    """A broker that the test breaks: all but `redis, nothing kept` keep the history over a restart."""
    name, _, volatile = storage.partition(", ")
    start = request.getfixturevalue(f"private_{name}")
    if name == "redis":
        keep = () if volatile else ("--appendonly", "yes", "--appendfsync", "always")
        return FaultTarget.of(name, start(RedisConfig(arguments=keep)))
    return FaultTarget.of(name, start(jetstream=True) if name == "nats" else start())


@pytest.fixture
async def page() -> AsyncGenerator[Page]:
    """A page of a headless Chromium."""
    async with chromium_page() as opened:
        yield opened


def skip_without(reason: str) -> NoReturn:
    """Skip, but fail in CI, where a run that skips everything must not pass."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must not run without the SDKs: {reason}", pytrace=False)
    pytest.skip(f"Tests on SDKs were skipped: {reason}.")
