"""The lists of channels, connections and events of all workers, as the live page asks for them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import JSONResponse

from backplane.errors import BackplaneError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from backplane.cluster_types import Worker
    from backplane.core import Backplane

__all__ = ["Lists"]

_MAX_EVENTS: Final = 100


class Lists:
    """The handlers of `GET api/channels`, `GET api/connections` and `GET api/log`.

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

    async def events(self, _: Request) -> Response:
        """Answer with the last notable events of all workers, the newest first."""
        try:
            answers = await self._backplane.recent_events(limit=_MAX_EVENTS)
        except BackplaneError as error:
            return _refused(error)
        rows = [self._event(worker, event) for worker, found in answers.by_worker.items() for event in found]
        rows.sort(key=lambda row: row["at"], reverse=True)
        unanswered = {worker.id: "" for worker in answers.missing} | {
            worker.id: reason for worker, reason in answers.errors.items()
        }
        asked = len(answers.by_worker) + len(unanswered)
        about = {"asked": asked, "answered": len(answers.by_worker), "missing": list(unanswered)}
        return JSONResponse({**about, "rows": rows})

    def _event(self, worker: Worker, event: Mapping[str, Any]) -> dict[str, Any]:
        text, user = str(event["text"]), event["fields"].get("client_key")
        if self._mask is not None and user:
            text = text.replace(str(user), str(self._mask(str(user))))
        where = f"{worker.host or '?'}/{worker.pid}"
        return {"worker": where, **{name: event[name] for name in ("number", "at", "event", "level")}, "text": text}


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
