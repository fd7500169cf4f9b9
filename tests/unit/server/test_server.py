"""`backplane.server`: missing packages, and invalid requests in the log; the rest is in tests/integration."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from backplane.errors import MissingDependencyError


@pytest.mark.parametrize(
    ("module", "missing", "words"),
    [
        ("backplane.server.gunicorn", "uvicorn_worker", "pip install gunicorn uvicorn-worker"),
        ("backplane.server.http", "uvicorn.protocols.http.auto", "pip install 'uvicorn>=0.52.4'"),
        ("backplane.server.uvicorn", "websockets.server", "pip install 'uvicorn>=0.52.4' 'websockets>=14'"),
    ],
)
def test_missing_package(module: str, missing: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a package is missing the import error names what to install."""
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingDependencyError, match=missing) as caught:
        importlib.import_module(module)
    assert words in str(caught.value)


@pytest.mark.anyio
@pytest.mark.parametrize("protocol", ["BoundedHTTPProtocol", "BoundedH11Protocol"])
async def test_invalid_requests_do_not_fill_the_log(protocol: str, caplog: pytest.LogCaptureFixture) -> None:
    """A client that repeats an invalid request gets a response each time, and causes one line in the log."""

    async def app(_: object, __: object, ___: object) -> None:
        """Not reached."""

    config = Config(app, log_config=None)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    make = getattr(importlib.import_module("backplane.server.http"), protocol)
    server = await loop.create_server(lambda: make(config, state, {}), "127.0.0.1", 0)
    async with server:
        for _ in range(5):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"no request\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 400")
            writer.close()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "Invalid HTTP request received."
    ]
