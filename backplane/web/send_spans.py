"""Whether OpenTelemetry's instrumentation of an application makes a span for each send of each socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.routing import Mount

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CURE", "makes_send_spans"]

CURE: Final = 'FastAPIInstrumentor.instrument_app(app, exclude_spans=["receive", "send"])'
"""What to write instead."""

_MIDDLEWARE: Final = "OpenTelemetryMiddleware"
# A middleware that leads to itself ends the search.
_MAX_DEPTH: Final = 200


def makes_send_spans(app: object) -> bool:
    """Return whether a broadcast makes a span for each client that does not use the direct lane.

    It looks through the middlewares of the application, and of those that are mounted in it, for the one of
    `opentelemetry-instrumentation-asgi`, which that of FastAPI adds. OpenTelemetry is not imported. A middleware that
    does not keep what it wraps as `app` is not looked through.

    Args:
        app: An ASGI application: Starlette, FastAPI, or a middleware around one. Where it has answered no request yet,
            its middlewares are made for this, once more than for itself.
    """
    return any(_is_open(layer) for layer in _layers(app, _MAX_DEPTH))


def _layers(app: Any, depth: int) -> Iterator[object]:
    """Return an application, its middlewares, and those of the applications that are mounted in it."""
    while app is not None and depth:
        depth -= 1
        yield app
        if isinstance(app, Starlette):
            for route in app.routes:
                if isinstance(route, Mount):
                    yield from _layers(route.app, depth)
            app = app.middleware_stack or app.build_middleware_stack()
        else:
            app = getattr(app, "app", None)


def _is_open(layer: object) -> bool:
    """Return whether this is the middleware, without the option. Versions before the option make every span."""
    return type(layer).__name__ == _MIDDLEWARE and not getattr(layer, "exclude_send_span", False)
