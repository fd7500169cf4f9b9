"""The servers that the SDKs are driven against, with the same rules and the same API: the reference, and ours."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import pytest

from tests.brokers.process import free_port
from tests.sdk.install import reference_server
from tests.server_process import server_process

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from types import TracebackType

__all__ = ["SERVERS", "SdkServer", "command_of", "running_workers"]

SERVERS: Final = ("ours", pytest.param("reference", marks=pytest.mark.full))
"""Which servers the scenarios run against, by default and with `--chaos=full`. `"ours"` is tests/sdk/app.py."""

_HERE: Final = Path(__file__).parent
_ERRORS: Final = re.compile("Traceback|panic:")


def command_of(server: str) -> list[str]:
    """Return how a server of `SERVERS` is run; it listens on the port in the variable PORT.

    Raises:
        MissingError: The reference server cannot be built here.
    """
    return [str(reference_server())] if server == "reference" else [sys.executable, str(_HERE / "app.py")]


class SdkServer:
    """A server that runs during a `with` block. Its methods, the server's own API, block.

    Attributes:
        url: Where clients connect.
    """

    def __init__(self, command: list[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._command = command
        self._environment = dict(environment or {})
        self._folder = folder
        self._port = free_port()
        self._running = ExitStack()
        self.url = f"ws://127.0.0.1:{self._port}/ws"

    def publish(self, channel: str, data: Any, tags: dict[str, str] | None = None) -> None:
        """Publish a JSON value."""
        self._call("publish", channel=channel, data=data, tags=tags or {})

    def subscribe(self, user: str, channel: str) -> None:
        """Subscribe the connections of a user to a channel."""
        self._call("subscribe", user=user, channel=channel)

    def unsubscribe(self, user: str, channel: str, code: int, reason: str) -> None:
        """Unsubscribe the connections of a user from a channel."""
        self._call("unsubscribe", user=user, channel=channel, code=code, reason=reason)

    def disconnect(self, user: str, code: int, reason: str) -> None:
        """Close the connections of a user."""
        self._call("disconnect", user=user, code=code, reason=reason)

    def restart(self) -> None:
        """Kill it and start it again on the same port; what it kept in memory is lost."""
        self.kill()
        self._start()

    def kill(self) -> None:
        """Kill it."""
        self._server.process.kill()
        self._server.process.wait()
        self._running.close()

    def launch(self) -> None:
        """Start it without waiting; from the main thread only."""
        variables = {"PORT": str(self._port), **self._environment}
        self._server = self._running.enter_context(
            server_process(self._command, self._folder, cwd=_HERE, environment=variables, errors=_ERRORS)
        )

    def wait_until_ready(self) -> None:
        """Wait until it answers: from any thread, so that an event loop can run meanwhile."""
        self._server.wait_until(self._is_ready, "it answers")

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._running.__exit__(kind, error, traceback)

    def _start(self) -> None:
        self.launch()
        self.wait_until_ready()

    def _is_ready(self) -> bool:
        with suppress(OSError, HTTPException):
            return self._request("GET", "/ready") == 200
        return False

    def _call(self, name: str, **fields: Any) -> None:
        status = self._request("POST", f"/control/{name}", json.dumps(fields))
        assert status == 200, f"{name}: {status}"

    def _request(self, method: str, path: str, body: str | None = None) -> int:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()


@asynccontextmanager
async def running_workers(
    count: int, folder: Path, environment: Mapping[str, str]
) -> AsyncGenerator[Sequence[SdkServer]]:
    """Run `ours` several times during the block; this event loop, which may have their proxies, is not blocked."""
    workers = [SdkServer(command_of("ours"), folder, environment) for _ in range(count)]
    async with AsyncExitStack() as stack:
        for worker in workers:
            worker.launch()
            stack.push_async_exit(partial(_end, worker))
        for worker in workers:
            await asyncio.to_thread(worker.wait_until_ready)
        yield workers


async def _end(
    worker: SdkServer, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
) -> None:
    await asyncio.to_thread(worker.__exit__, kind, error, traceback)
