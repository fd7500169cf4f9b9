"""`metrics_routes`: an endpoint for Prometheus, on which any worker shows all workers of its server.

app.add_route("/metrics", metrics_routes(backplane))
"""

from __future__ import annotations

import asyncio
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, overload

from backplane.errors import ConfigurationError
from backplane.exporters.prometheus import families_of_scrape, require_prometheus
from backplane.metrics.siblings import Scrape, siblings_of
from backplane.metrics.snapshot import snapshot

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from prometheus_client.metrics_core import Metric as Family
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from backplane.core import Backplane

__all__ = ["MetricsEndpoint", "metrics_routes"]

_MAX_RENDERED_IN_LOOP: Final = 4
"""Workers whose samples are made into text in the event loop, 2 ms for each. Those of more are made in a thread."""


def metrics_routes(
    backplane: Backplane,
    authorize: Callable[[Request], bool | str | Awaitable[bool | str | None] | None] | None = None,
    *,
    siblings: bool = True,
) -> MetricsEndpoint:
    """Return an endpoint for Prometheus, for `app.add_route("/metrics", ...)`.

    It answers with the metrics of all workers that the same server started, each with its process id as the label
    `worker`, whichever of them gets the request: in the text format of Prometheus, or that of OpenMetrics where the
    request accepts it. A worker that does not answer within a second, since it is stopped or its event loop is blocked,
    is named by `backplane_worker_up` with the value 0 and counted in `backplane_scrape_workers_missing`; its other
    series are absent from this scrape. One that has ended is absent. The broker is not asked, so that it works in an
    outage. No URL, channel, client or address is in the answer.

    Call it where the application is made, before the backplane is started: from the start on, each worker listens on a
    Unix socket in a private folder (`$XDG_RUNTIME_DIR`, else the temporary directory), by which the others ask it.

    Args:
        backplane: What is measured.
        authorize: A function or coroutine function that is asked for every request whether it may read; `False` is
            answered with 403. It may raise the framework's `HTTPException` instead. Defaults to all: keep the path away
            from the public at the proxy.
        siblings: Whether the other workers of the server are shown. `False` shows the worker that gets the request, and
            opens no socket: right where each worker is scraped at an address of its own, as one process per pod is.

    Raises:
        MissingDependencyError: prometheus-client is not installed.
        ConfigurationError: `authorize` is no function.
    """
    require_prometheus("metrics_routes")
    if authorize is not None and not callable(authorize):  # pyright: ignore[reportUnnecessaryComparison]
        raise ConfigurationError(f"authorize must be a function of the request, not {authorize!r:.100}")
    return MetricsEndpoint(backplane, authorize, siblings=siblings)


class MetricsEndpoint:
    """What `metrics_routes` returns: an ASGI application, for `add_route`, `Route` and `mount` at any path.

    Called with a request it returns the response, for a route of the application that has checks of its own:
    `return await endpoint(request)`.
    """

    def __init__(self, backplane: Backplane, authorize: Callable[[Request], Any] | None, *, siblings: bool) -> None:
        self._backplane = backplane
        self._authorize = authorize
        self._siblings = siblings_of(backplane) if siblings else None

    @overload
    def __call__(self, scope: Request, /) -> Awaitable[Response]: ...
    @overload
    def __call__(self, scope: Scope, receive: Receive, send: Send, /) -> Awaitable[None]: ...
    def __call__(
        self, scope: Request | Scope, receive: Receive | None = None, send: Send | None = None, /
    ) -> Awaitable[Response | None]:
        """Answer as an ASGI application, or return the response for a request."""
        from starlette.requests import Request

        if isinstance(scope, Request):
            return self._respond(scope)
        assert receive is not None
        assert send is not None
        return self._serve(Request(scope, receive), receive, send)

    async def _serve(self, request: Request, receive: Receive, send: Send) -> None:
        response = await self._respond(request)
        await response(request.scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        from starlette.responses import PlainTextResponse, Response

        if request.method not in {"GET", "HEAD"}:
            return PlainTextResponse("Method Not Allowed", 405, headers={"Allow": "GET, HEAD"})
        if not await self._may_read(request):
            return PlainTextResponse("Forbidden", 403)
        scrape = Scrape([snapshot(self._backplane)], []) if self._siblings is None else await self._siblings.scrape()
        body, content_type = await _rendered(scrape, request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})

    async def _may_read(self, request: Request) -> bool:
        if self._authorize is None:
            return True
        answer = self._authorize(request)
        return bool(await answer if isawaitable(answer) else answer)


async def _rendered(scrape: Scrape, accept: str) -> tuple[bytes, str]:
    if len(scrape.snapshots) <= _MAX_RENDERED_IN_LOOP:
        return _render(scrape, accept)
    return await asyncio.to_thread(_render, scrape, accept)


def _render(scrape: Scrape, accept: str) -> tuple[bytes, str]:
    from prometheus_client.exposition import choose_encoder

    try:
        render, content_type = choose_encoder(accept)
        return render(_Scraped(scrape)), content_type
    except (ValueError, TypeError):  # a header that asks for a version or an escaping of no sense
        render, content_type = choose_encoder("")
        return render(_Scraped(scrape)), content_type


class _Scraped:
    """A collector of prometheus-client for what was scraped."""

    def __init__(self, scrape: Scrape) -> None:
        self._scrape = scrape

    def collect(self) -> Iterator[Family]:
        return families_of_scrape(self._scrape)
