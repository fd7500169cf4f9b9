"""The lists of channels and connections of all workers, one page at a time, as the live page asks for them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

from backplane.errors import BackplaneError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from backplane.core import Backplane

__all__ = ["Lists"]


class Lists:
    """The handlers of `GET api/channels` and `GET api/connections`.

    Args:
        backplane: Which asks the workers.
        mask: Returns what is shown of the user of a connection.
    """

    def __init__(self, backplane: Backplane, mask: Callable[[str], str] | None) -> None:
        self._backplane = backplane
        self._mask = mask

    async def channels(self, request: Request) -> Response:
        """Answer with a page of the channels; the query has `prefix`, `sort`, `limit` and `after`."""
        try:
            options = _options(request, "prefix", "sort", "after")
            return JSONResponse((await self._backplane.list_channels(**options)).to_json())
        except BackplaneError as error:
            return _refused(error)

    async def connections(self, request: Request) -> Response:
        """Answer with a page of the connections; the query has `worker`, `channel` and `client` beside."""
        try:
            options = _options(request, "worker", "channel", "client", "sort", "after")
            page = await self._backplane.list_connections(**options)
        except BackplaneError as error:
            return _refused(error)
        if (mask := self._mask) is not None:
            rows = (row if row.user is None else replace(row, user=str(mask(row.user))) for row in page.rows)
            page = replace(page, rows=tuple(rows))
        return JSONResponse(page.to_json())


def _options(request: Request, *names: str) -> dict[str, Any]:
    """Return the options of a list that the query names; those that are empty count as not given.

    Raises:
        ConfigurationError: `limit` is no number.
    """
    query = request.query_params
    options: dict[str, Any] = {name: query[name] for name in names if query.get(name)}
    limit = query.get("limit")
    if limit:
        if not (limit.isascii() and limit.isdecimal() and len(limit) < 10):
            raise ConfigurationError("limit must be a whole number more than 0")
        options["limit"] = int(limit)
    return options


def _refused(error: BackplaneError) -> Response:
    return JSONResponse({"detail": str(error)}, 400 if isinstance(error, ConfigurationError) else 503)
