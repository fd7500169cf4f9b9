"""An application of another framework on two real servers, which only the broker joins."""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.brokers.process import free_port
from tests.server_process import server_process

if TYPE_CHECKING:
    from collections.abc import Generator

    from websockets.asyncio.client import ClientConnection

__all__ = ["SECONDS", "received", "two_servers"]

SECONDS = 60
"""Within how many seconds what is waited for must arrive."""


@contextmanager
def two_servers(module: str, url: str, folder: Path, *options: str) -> Generator[list[int]]:
    """Run `app` of a module of this folder on two Uvicorns with options, and return their ports.

    Args:
        module: The module.
        url: Of the broker, in `BACKPLANE_URL`.
        folder: Where the logs are written.
        options: Of Uvicorn.
    """
    with ExitStack() as stack:
        ports = [free_port(), free_port()]
        processes = [
            stack.enter_context(
                server_process(
                    [sys.executable, "-m", "uvicorn", f"{module}:app", "--port", str(port), *options],
                    folder,
                    cwd=Path(__file__).parent,
                    name=f"server-{port}",
                    environment={"BACKPLANE_URL": url},
                )
            )
            for port in ports
        ]
        for process in processes:
            process.wait_until(partial(_listens, process.log), "it listens", seconds=SECONDS)
        yield ports


async def received(client: ClientConnection) -> str:
    """Return the next message of a client."""
    async with asyncio.timeout(SECONDS):
        return str(await client.recv())


def _listens(log: Path) -> bool:
    return "running on" in log.read_text()
