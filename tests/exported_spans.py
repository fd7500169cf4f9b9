"""The real OpenTelemetry SDK with an exporter in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

__all__ = ["Exported", "context_of", "parent_id"]


class Exported:
    """The spans of one provider.

    Attributes:
        provider: What `Tracing` is given.
    """

    def __init__(self, *, sampled: bool = True) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=ParentBased(ALWAYS_ON if sampled else ALWAYS_OFF))
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("the application")

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended, in that order."""
        return list(self._exporter.get_finished_spans())

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [span.name for span in self.spans]

    def named(self, name: str) -> ReadableSpan:
        """Return the only one with a name."""
        (span,) = [span for span in self.spans if span.name == name]
        return span


def context_of(span: ReadableSpan) -> SpanContext:
    """Return the identity of a span."""
    assert span.context is not None
    context: SpanContext = span.context
    return context


def parent_id(span: ReadableSpan) -> int | None:
    """Return the id of the parent of a span; `None` of a root."""
    return None if span.parent is None else span.parent.span_id
