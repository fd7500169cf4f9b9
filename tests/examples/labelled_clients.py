"""Clients of which it is known which worker serves them."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.brokers.process import wait_until
from tests.examples.site import SECONDS, Site, running

if TYPE_CHECKING:
    from collections.abc import Generator
    from contextlib import ExitStack

    from websockets.sync.client import ClientConnection

__all__ = ["clients_of_both_workers", "connect_labelled", "running_labelled"]

# At once: of connections one after the other, the same idle worker may take all.
_AT_ONCE = 6


@contextmanager
def running_labelled(
    example: str, command: list[str], folder: Path, broker_url: str, *, tolerated: str | None = None
) -> Generator[Site]:
    """Run an example whose workers say which clients they serve; `command` starts `labelled:app`."""
    labels = {"EXAMPLE": example, "LABELS": str(folder), "PYTHONPATH": str(Path(__file__).parent)}
    with running(command, folder, broker_url=broker_url, environment=labels, tolerated=tolerated) as site:
        yield site


def connect_labelled(stack: ExitStack, site: Site, path: str, **options: Any) -> tuple[ClientConnection, int]:
    """Connect, until the stack ends; return the pid of the worker too."""
    name = f"client-{uuid.uuid4()}"
    headers = {**options.pop("additional_headers", {}), "x-client": name}
    client = stack.enter_context(site.connect(path, additional_headers=headers, **options))
    return client, int((site.folder / name).read_text())


def clients_of_both_workers(stack: ExitStack, site: Site, path: str) -> list[ClientConnection]:
    """Connect until both workers serve a client; return one of each."""
    found: dict[int, ClientConnection] = {}

    def connect_one(_: int) -> tuple[ClientConnection, int]:
        return connect_labelled(stack, site, path)

    def connect_more() -> bool:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for client, worker in pool.map(connect_one, range(_AT_ONCE)):
                found.setdefault(worker, client)
        return len(found) == 2

    wait_until(connect_more, "both workers serve a client", seconds=SECONDS)
    return list(found.values())
