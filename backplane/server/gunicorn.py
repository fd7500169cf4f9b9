"""Gunicorn workers with the direct lane: `gunicorn app:app -k backplane.server.gunicorn.Worker`."""

from __future__ import annotations

import signal
from typing import Any

from backplane.errors import MissingDependencyError
from backplane.server.bounds import BOUNDS
from backplane.server.http import BoundedHTTPProtocol
from backplane.server.uvicorn import DirectLaneProtocol, SharedCompressionProtocol

try:
    from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
except ImportError as error:
    raise MissingDependencyError(
        f"this worker needs gunicorn and uvicorn-worker ({error}): pip install gunicorn uvicorn-worker"
    ) from error

__all__ = ["SharedCompressionWorker", "Worker"]


class Worker(UvicornWorker):  # type: ignore[misc]
    """A Uvicorn worker with the direct lane and bounds on what a client may cost.

    To change them, subclass it with other `CONFIG_KWARGS`, which are options of `uvicorn.Config`.
    """

    CONFIG_KWARGS = {  # noqa: RUF012
        **UvicornWorker.CONFIG_KWARGS,
        **BOUNDS,
        "http": BoundedHTTPProtocol,
        "ws": DirectLaneProtocol,
    }

    def handle_exit(self, sig: int, frame: Any) -> None:
        """End on SIGQUIT, which Gunicorn sends its workers on Ctrl-C and Uvicorn would ignore."""
        super().handle_exit(sig, frame)
        signal.raise_signal(signal.SIGTERM)


class SharedCompressionWorker(Worker):
    """The same, with `backplane.server.uvicorn.SharedCompressionProtocol`."""

    CONFIG_KWARGS = {**Worker.CONFIG_KWARGS, "ws": SharedCompressionProtocol, "ws_per_message_deflate": True}  # noqa: RUF012
