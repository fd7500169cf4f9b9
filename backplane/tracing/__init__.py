"""Tracing with OpenTelemetry: one span for each publish, and one for each worker that delivers it.

    from backplane.tracing import Tracing

    backplane = Backplane(tracing=Tracing())

Needs the extra `otel`, and an SDK that the application configures as for the rest of it. docs/operations/tracing.md is
the guide.
"""

from __future__ import annotations

from backplane.errors import MissingDependencyError

try:
    import opentelemetry.trace as _api
except ImportError as _error:
    raise MissingDependencyError("tracing needs OpenTelemetry: pip install 'fastapi-backplane[otel]'") from _error

from backplane.tracing.tracing import Tracing

__all__ = ["Tracing"]

del _api
