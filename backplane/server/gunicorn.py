"""Gunicorn workers with the direct lane: `gunicorn app:app -k backplane.server.gunicorn.Worker`."""

from __future__ import annotations

from backplane.errors import MissingDependencyError
from backplane.server.uvicorn import DirectLaneProtocol, SharedCompressionProtocol

try:
    from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
except ImportError as error:
    raise MissingDependencyError(
        f"this worker needs gunicorn and uvicorn-worker ({error}): pip install gunicorn uvicorn-worker"
    ) from error

__all__ = ["SharedCompressionWorker", "Worker"]


class Worker(UvicornWorker):  # type: ignore[misc]
    """A Uvicorn worker with `backplane.server.uvicorn.DirectLaneProtocol`."""

    CONFIG_KWARGS = {**UvicornWorker.CONFIG_KWARGS, "ws": DirectLaneProtocol}  # noqa: RUF012


class SharedCompressionWorker(Worker):
    """A Uvicorn worker with `backplane.server.uvicorn.SharedCompressionProtocol`."""

    CONFIG_KWARGS = {**Worker.CONFIG_KWARGS, "ws": SharedCompressionProtocol}  # noqa: RUF012
