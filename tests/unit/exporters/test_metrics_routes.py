"""`backplane.exporters.metrics_routes`: what Prometheus is answered, and who may ask."""

from __future__ import annotations

import re
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from opentelemetry.trace import format_trace_id
from prometheus_client.openmetrics.parser import text_string_to_metric_families  # pyright: ignore[reportUnknownVariableType]
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from backplane import Backplane, ConfigurationError, MetricsEndpoint, MissingDependencyError, metrics_routes
from backplane.exporters import metrics_routes as module
from backplane.exporters.prometheus import families_of_scrape
from backplane.metrics.siblings import Scrape
from backplane.metrics.snapshot import snapshot
from backplane.tracing import Tracing
from tests.exported_spans import Exported, context_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response

TEXT = "text/plain; version=0.0.4; charset=utf-8"


def added(endpoint: MetricsEndpoint, backplane: Backplane) -> Starlette:
    """Return a FastAPI application with it as in the documentation."""
    app = FastAPI(lifespan=backplane.lifespan)
    app.add_route("/metrics", endpoint)
    return app


def mounted(endpoint: MetricsEndpoint, backplane: Backplane) -> Starlette:
    """Return an application that mounts it, as the other routes are."""
    return Starlette(lifespan=backplane.lifespan, routes=[Mount("/metrics", endpoint)])


def routed(endpoint: MetricsEndpoint, backplane: Backplane) -> Starlette:
    """Return a plain Starlette application with it as the endpoint of a route."""
    return Starlette(lifespan=backplane.lifespan, routes=[Route("/metrics", endpoint)])


def client_of(**options: Any) -> TestClient:
    """Return a client of an application without other workers."""
    backplane = Backplane("memory://")
    return TestClient(added(metrics_routes(backplane, **options), backplane))


@pytest.mark.parametrize("make", [added, mounted, routed])
def test_places(make: Callable[[MetricsEndpoint, Backplane], Starlette]) -> None:
    """It is an endpoint of any application, at whatever path."""
    backplane = Backplane("memory://")
    with TestClient(make(metrics_routes(backplane), backplane)) as client:
        response = client.get("/metrics")
        assert (response.status_code, response.headers["content-type"]) == (200, TEXT)
        assert response.headers["cache-control"] == "no-store"
        assert re.search(r'^backplane_link_up\{worker="\d+"\} 1\.0$', response.text, re.MULTILINE)
        assert "\nbackplane_scrape_workers_missing 0.0\n" in response.text
        assert client.head("/metrics").text == ""
        refused = client.post("/metrics")
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


def test_called_by_a_route() -> None:
    """A route of the application, which has checks of its own, returns its response."""
    backplane = Backplane(
        "memory://",
    )
    endpoint = metrics_routes(backplane)

    async def checked(request: Request) -> Response:
        return await endpoint(request)

    with TestClient(Starlette(lifespan=backplane.lifespan, routes=[Route("/own", checked)])) as client:
        assert "backplane_link_up" in client.get("/own").text


def test_no_redirect() -> None:
    """With `add_route` the path itself answers."""
    with client_of() as client:
        assert client.get("/metrics", follow_redirects=False).status_code == 200


async def _coroutine(request: Request) -> object:
    return request.headers.get("x-key") == "right"


def _function(request: Request) -> object:
    return request.headers.get("x-key") == "right"


def _raising(request: Request) -> object:
    if request.headers.get("x-key") != "right":
        raise HTTPException(403)
    return "the name of a user"


@pytest.mark.parametrize("authorize", [_coroutine, _function, _raising])
def test_authorize(authorize: Callable[[Request], object]) -> None:
    """It is asked for every request, and a refused one sees nothing."""
    with client_of(authorize=authorize) as client:
        refused = client.get("/metrics")
        assert (refused.status_code, "backplane" in refused.text) == (403, False)
        assert client.get("/metrics", headers={"x-key": "right"}).status_code == 200
        assert client.get("/metrics").status_code == 403


@pytest.mark.parametrize("authorize", ["yes", True, 1])
def test_authorize_is_a_function(authorize: Any) -> None:
    """Anything else is an error when the application is made."""
    with pytest.raises(ConfigurationError, match="authorize must be a function"):
        metrics_routes(Backplane("memory://"), authorize)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text;version=1.0.0;q=0.75,*/*;q=0.1", "application/openmetrics-text"),
        ("application/openmetrics-text;version=99.0.0", "application/openmetrics-text"),
        ("application/openmetrics-text;version=1.0.0;escaping=nonsense", "application/openmetrics-text"),
        ("text/plain;version=1.0.0;escaping=nonsense", "text/plain"),
        ("text/plain;version=0.0.4", "text/plain; version=0.0.4"),
        ("*/*", TEXT),
        ("", TEXT),
        ("application/openmetrics-text; version=nonsense", ("text/plain", "application/openmetrics-text")),
        (",;=,;;==", TEXT),
    ],
)  # fmt: skip
def test_formats(accept: str, content_type: str | tuple[str, ...]) -> None:
    """The form is that which the request accepts, and a header of no sense gets one of them."""
    with client_of() as client:
        response = client.get("/metrics", headers={"accept": accept})
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(content_type)
        is_openmetrics = response.headers["content-type"].startswith("application/openmetrics")
        assert response.text.endswith("# EOF\n") == is_openmetrics


def test_exemplars() -> None:
    """A traced message leaves its trace at its bucket of the lag, where the request accepts OpenMetrics."""
    exported = Exported()
    backplane = Backplane("memory://", tracing=Tracing(exported.provider))
    app = added(metrics_routes(backplane, siblings=False), backplane)

    async def publish(_: Request) -> Response:
        async with backplane.subscribe("orders") as messages:
            with exported.tracer.start_as_current_span("POST"):
                await backplane.publish("orders", "hello")
            await anext(aiter(messages))
        return PlainTextResponse()

    app.add_route("/publish", publish)
    with TestClient(app) as client:
        client.get("/publish")
        text = client.get("/metrics").text
        openmetrics = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}).text
    assert "trace_id" not in text
    found = [
        (sample.labels["stage"], sample.labels["publisher"], sample.exemplar)
        for family in text_string_to_metric_families(openmetrics)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.exemplar is not None
    ]
    trace_id = format_trace_id(context_of(exported.named("POST")).trace_id)
    assert sorted((stage, publisher) for stage, publisher, _ in found) == [("received", "self"), ("written", "self")]
    for _, _, exemplar in found:
        assert exemplar.labels == {"trace_id": trace_id}
        assert 0.0 <= exemplar.value < 60.0
        assert exemplar.timestamp is not None
        assert abs(float(exemplar.timestamp) - time.time()) < 60.0


def test_without_siblings() -> None:
    """`siblings=False` shows this worker, and opens no socket."""
    backplane = Backplane("memory://")
    endpoint = metrics_routes(backplane, siblings=False)
    assert endpoint._siblings is None  # pyright: ignore[reportPrivateUsage]
    with TestClient(added(endpoint, backplane)) as client:
        assert client.get("/metrics").text.count("\nbackplane_link_up{") == 1


@pytest.mark.parametrize("count", [4, 5])
def test_many_workers_are_rendered_in_a_thread(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of up to four workers is made in the event loop, that of more in a thread."""
    threads: list[int] = []
    real = families_of_scrape

    def recording(scrape: Scrape) -> Any:
        threads.append(threading.get_ident())
        return real(scrape)

    async def scrape(_: object) -> Scrape:
        threads.append(threading.get_ident())
        return Scrape([{**snapshot(Backplane("memory://")), "worker": str(pid)} for pid in range(count)], [])

    monkeypatch.setattr(module, "families_of_scrape", recording)
    monkeypatch.setattr("backplane.metrics.siblings.Siblings.scrape", scrape)
    with client_of() as client:
        text = client.get("/metrics").text
    assert text.count("\nbackplane_link_up{") == count
    in_loop, rendering = threads
    assert (rendering == in_loop) == (count == 4)


def test_no_secret() -> None:
    """No URL, user, password, prefix or channel is in the answer."""
    backplane = Backplane("redis://someone:secret@broker.example:6379/?prefix=shop:")
    client = TestClient(Starlette(routes=[Route("/metrics", metrics_routes(backplane))]))
    text = client.get("/metrics").text
    assert 'adapter="redis"' in text
    assert re.findall(r"secret|someone|broker\.example|shop|6379", text) == []


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes when the application is made, and names the command that installs it."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingDependencyError, match=r"metrics_routes .*pip install 'fastapi-backplane\[prometheus\]'"):
        metrics_routes(Backplane("memory://"))
