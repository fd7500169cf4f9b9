"""The lists of channels, connections and events of all workers, and what one is configured with, for the live page."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import JSONResponse

from backplane.admin.overview import own_worker
from backplane.cluster_types import Answers
from backplane.errors import BackplaneError, BrokerError, ConfigurationError, NotStartedError
from backplane.journal.ring import KINDS
from backplane.stats.overview import worker_name
from backplane.worker.configuration import configuration_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from backplane.cluster_types import Worker
    from backplane.core import Backplane
    from backplane.journal.ring import Kept
    from backplane.worker.runtime import Runtime

__all__ = ["Lists"]

_MAX_EVENTS: Final = 100
_SECONDS: Final = 2.0


class Lists:
    """The handlers of `GET api/channels`, `api/connections`, `api/log` and `api/configuration`.

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

    async def events(self, request: Request) -> Response:
        """Answer with the last notable events of all workers, the newest first; the query can name one `kind`.

        Where the others cannot be asked, since the broker is away or they are not known, with those of this worker.
        """
        kind = request.query_params.get("kind")
        kinds: list[Kept] = [known for known in KINDS if kind in (known, None, "")]
        try:
            if not kinds:
                raise ConfigurationError(f"kind is one of {', '.join(KINDS)}")
            answers = await self._recent_events(kinds)
        except BackplaneError as error:
            return _refused(error)
        rows = [self._event(worker, event) for worker, found in answers.by_worker.items() for event in found]
        rows.sort(key=lambda row: row["at"], reverse=True)
        return JSONResponse({**_about(answers), "rows": rows})

    async def _recent_events(self, kinds: list[Kept]) -> Answers:
        runtime = self._running()
        if runtime.cluster is None:
            return Answers(by_worker={own_worker(): runtime.journal.recent(*kinds, limit=_MAX_EVENTS)})
        try:
            return await self._backplane.recent_events(kinds=kinds, limit=_MAX_EVENTS)
        except BrokerError:
            me, *others = await self._backplane.workers()
            missing = [worker for worker in others if worker.is_alive]
            return Answers(by_worker={me: runtime.journal.recent(*kinds, limit=_MAX_EVENTS)}, missing=missing)

    async def configuration(self, request: Request) -> Response:
        """Answer with the settings, limits and options of one worker, whose id is `worker` in the query."""
        wanted = request.query_params.get("worker", "")
        try:
            if (runtime := self._running()).cluster is None:
                answer = {"configuration": configuration_of(runtime)}
                return JSONResponse({**_about(Answers(by_worker={own_worker(): None})), **answer})
            answers = await runtime.cluster.lists.describe(_SECONDS, worker=wanted, in_full=True)
        except BackplaneError as error:
            return _refused(error)
        found = [answer.get("configuration") for answer in answers.by_worker.values()]
        return JSONResponse({**_about(answers), "configuration": found[0] if found else None})

    def _running(self) -> Runtime:
        runtime = self._backplane._runtime  # pyright: ignore[reportPrivateUsage]
        if runtime is None:
            raise NotStartedError("this backplane is not started")
        return runtime

    def _event(self, worker: Worker, event: Mapping[str, Any]) -> dict[str, Any]:
        text, about = str(event["text"]), event["fields"]
        if self._mask is not None and (user := about.get("client_key")):
            text = text.replace(str(user), str(self._mask(str(user))))
        return {
            "id": worker.id,
            "worker": _name(worker),
            **{name: event[name] for name in ("number", "at", "event", "level")},
            "state": about.get("state"),
            "text": text,
        }


def _about(answers: Answers) -> dict[str, Any]:
    """Return how many workers were asked and answered, and which are missing, why: in every merged answer."""
    errors = {_name(worker): reason for worker, reason in answers.errors.items()}
    missing = [*map(_name, answers.missing), *errors]
    answered = len(answers.by_worker)
    return {"asked": answered + len(missing), "answered": answered, "missing": missing, "errors": errors}


def _name(worker: Worker) -> str:
    return worker_name(worker.host, worker.pid, worker.id)


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
