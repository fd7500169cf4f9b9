"""Clients whose worker is known."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.brokers.process import wait_until
from tests.examples.example_server import SECONDS, ExampleServer, running

if TYPE_CHECKING:
    from collections.abc import Generator
    from contextlib import ExitStack

    from websockets.sync.client import ClientConnection

__all__ = ["clients_of_both_workers", "connect_labelled", "running_labelled"]

# At once: the same idle worker may accept all of several connections in sequence.
_AT_ONCE = 6


@contextmanager
def running_labelled(
    example: str, command: list[str], folder: Path, broker_url: str, *, tolerated: str | None = None
) -> Generator[ExampleServer]:
    """Run an example whose workers record which clients they serve; `command` starts `labelled:app`."""
    labels = {"EXAMPLE": example, "LABELS": str(folder), "PYTHONPATH": str(Path(__file__).parent)}
    with running(command, folder, broker_url=broker_url, environment=labels, tolerated=tolerated) as server:
        yield server


def connect_labelled(
    stack: ExitStack, server: ExampleServer, path: str, **options: Any
) -> tuple[ClientConnection, int]:
    """Connect, until the stack ends; return the client and the pid of its worker."""
    name = f"client-{uuid.uuid4()}"
    headers = {**options.pop("additional_headers", {}), "x-client": name}
    client = stack.enter_context(server.connect(path, additional_headers=headers, **options))
    return client, int((server.folder / name).read_text())


def clients_of_both_workers(stack: ExitStack, server: ExampleServer, path: str) -> list[ClientConnection]:
    """Connect until both workers serve a client; return one of each."""
    found: dict[int, ClientConnection] = {}

    def connect_one(_: int) -> tuple[ClientConnection, int]:
        return connect_labelled(stack, server, path)

    def connect_more() -> bool:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for client, worker in pool.map(connect_one, range(_AT_ONCE)):
                found.setdefault(worker, client)
        return len(found) == 2

    wait_until(connect_more, "both workers serve a client", seconds=SECONDS)
    return list(found.values())
