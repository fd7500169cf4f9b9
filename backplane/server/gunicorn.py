"""Gunicorn workers with the direct lane: `gunicorn app:app -k backplane.server.gunicorn.Worker`."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, ClassVar

from backplane.errors import MissingDependencyError
from backplane.server.bounds import BOUNDS
from backplane.server.http import BoundedHTTPProtocol
from backplane.server.uvicorn import DirectLaneProtocol, SharedCompressionProtocol

if TYPE_CHECKING:

    class UvicornWorker:
        """What is used of the base class, which has no types."""

        CONFIG_KWARGS: ClassVar[dict[str, Any]]

        def handle_exit(self, sig: int, frame: Any) -> None:
            """End the worker."""

else:
    try:
        from uvicorn_worker import UvicornWorker
    except ImportError as _error:
        raise MissingDependencyError(
            f"this worker needs gunicorn and uvicorn-worker ({_error}): pip install gunicorn uvicorn-worker"
        ) from _error

__all__ = ["SharedCompressionWorker", "Worker"]


class Worker(UvicornWorker):
    """A Uvicorn worker with the direct lane and bounds on what a client may cost.

    To change them, subclass it with other `CONFIG_KWARGS`, which are options of `uvicorn.Config`.
    """

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
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
    """`Worker` with `backplane.server.uvicorn.SharedCompressionProtocol`."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        **Worker.CONFIG_KWARGS,
        "ws": SharedCompressionProtocol,
        "ws_per_message_deflate": True,
    }
