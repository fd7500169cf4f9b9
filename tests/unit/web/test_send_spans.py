"""`backplane.web.send_spans`: the real instrumentation is recognized, with and without its option."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware  # pyright: ignore[reportMissingTypeStubs]
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount

from backplane.web.send_spans import CURE, makes_send_spans

if TYPE_CHECKING:
    from collections.abc import Callable

EXCLUDED: Any = ["receive", "send"]


def instrumented(app: FastAPI, **options: Any) -> FastAPI:
    """Return an application with OpenTelemetry's instrumentation of FastAPI."""
    pytest.importorskip("opentelemetry.instrumentation.fastapi")
    import_module("opentelemetry.instrumentation.fastapi").FastAPIInstrumentor.instrument_app(app, **options)
    return app


def with_middleware(app: Starlette, **options: Any) -> Starlette:
    """Return an application with the middleware of OpenTelemetry, below another one."""
    app.add_middleware(OpenTelemetryMiddleware, **options)
    app.add_middleware(GZipMiddleware)
    return app


def mounted(app: Any) -> Starlette:
    """Return an application in which another one is mounted."""
    return Starlette(routes=[Mount("/inner", app)])


class Circle:
    """A middleware that leads to itself."""

    @property
    def app(self) -> Circle:
        """Itself."""
        return self


class OpenTelemetryMiddlewareOfOld:
    """A version before the option."""


OpenTelemetryMiddlewareOfOld.__name__ = "OpenTelemetryMiddleware"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (FastAPI, False),
        (object, False),
        (Circle, False),
        (lambda: instrumented(FastAPI()), True),
        (lambda: instrumented(FastAPI(), exclude_spans=EXCLUDED), False),
        (lambda: instrumented(FastAPI(), exclude_spans=["receive"]), True),
        (lambda: with_middleware(Starlette()), True),
        (lambda: with_middleware(Starlette(), exclude_spans=EXCLUDED), False),
        (lambda: OpenTelemetryMiddleware(FastAPI()), True),
        (lambda: OpenTelemetryMiddleware(FastAPI(), exclude_spans=EXCLUDED), False),
        (lambda: OpenTelemetryMiddleware(GZipMiddleware(instrumented(FastAPI())), exclude_spans=EXCLUDED), True),
        (lambda: mounted(mounted(instrumented(FastAPI()))), True),
        (lambda: mounted(instrumented(FastAPI(), exclude_spans=EXCLUDED)), False),
        (OpenTelemetryMiddlewareOfOld, True),
    ],
)
def test_makes_send_spans(make: Callable[[], object], expected: bool) -> None:
    """Only the middleware without `exclude_spans` makes them, wherever it is in the application."""
    assert makes_send_spans(make()) is expected


def test_application_that_runs() -> None:
    """Of an application that has answered requests the middlewares are those that it has."""
    app = with_middleware(Starlette())
    app.middleware_stack = app.build_middleware_stack()
    assert makes_send_spans(app)


def test_cure() -> None:
    """What is recommended is accepted by the instrumentation, and makes no such span."""
    pytest.importorskip("opentelemetry.instrumentation.fastapi")
    app = FastAPI()
    instrumentor = import_module("opentelemetry.instrumentation.fastapi").FastAPIInstrumentor
    exec(CURE, {"FastAPIInstrumentor": instrumentor, "app": app})
    assert not makes_send_spans(app)
