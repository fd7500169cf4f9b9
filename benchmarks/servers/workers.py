"""Gunicorn's worker on each event loop."""

from __future__ import annotations

from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

__all__ = ["AsyncioLaneWorker", "AsyncioWorker", "UvloopLaneWorker", "UvloopWorker"]

_QUIET = {"http": "auto", "access_log": False}
_LANE = "backplane.server.uvicorn:DirectLaneProtocol"


class AsyncioWorker(UvicornWorker):  # type: ignore[misc]
    """On asyncio."""

    CONFIG_KWARGS = {**_QUIET, "loop": "asyncio"}  # noqa: RUF012


class UvloopWorker(UvicornWorker):  # type: ignore[misc]
    """On uvloop."""

    CONFIG_KWARGS = {**_QUIET, "loop": "uvloop"}  # noqa: RUF012


class AsyncioLaneWorker(UvicornWorker):  # type: ignore[misc]
    """On asyncio, with the direct lane."""

    CONFIG_KWARGS = {**_QUIET, "loop": "asyncio", "ws": _LANE}  # noqa: RUF012


class UvloopLaneWorker(UvicornWorker):  # type: ignore[misc]
    """On uvloop, with the direct lane."""

    CONFIG_KWARGS = {**_QUIET, "loop": "uvloop", "ws": _LANE}  # noqa: RUF012
