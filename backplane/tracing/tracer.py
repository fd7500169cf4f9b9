"""The tracing of one `Backplane`: begins the spans of its publishes and deliveries."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from opentelemetry.context import Context, get_current
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    get_current_span,
    set_span_in_context,
)

from backplane.tracing.context import extensions_of, is_sampled, span_context_of
from backplane.tracing.spans import ProducerSpan, WorkerSpan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.trace import Tracer
    from opentelemetry.util.types import AttributeValue

    from backplane.message import Message
    from backplane.tracing.budget import SpanBudget

__all__ = ["BackplaneTracer", "parent_of"]

# The span that lasts as long as the handler of a client.
_handler_span: Final[ContextVar[SpanContext | None]] = ContextVar("backplane_handler_span", default=None)

# SDKs drop links beyond 128 of a span.
_MAX_LINKS: Final = 128


class BackplaneTracer:
    """Begins the spans of one backplane.

    Args:
        tracer: Makes the spans.
        attributes: What each span states of the broker.
        template_of: Returns the template of a channel, or `None`.
        budget: Bounds the spans of deliveries.
        baggage: Whether the baggage goes along.
        channel_names: Whether spans name the channel.
    """

    def __init__(
        self,
        tracer: Tracer,
        attributes: dict[str, AttributeValue],
        template_of: Callable[[str], str | None],
        budget: SpanBudget,
        *,
        baggage: bool,
        channel_names: bool,
    ) -> None:
        self._tracer = tracer
        self._attributes = attributes
        self._template_of = template_of
        self._budget = budget
        self._baggage = baggage
        self._channel_names = channel_names

    @property
    def skipped_spans(self) -> int:
        """How many spans of deliveries were not made, because there were too many."""
        return self._budget.skipped

    def publish(self, channel: str) -> ProducerSpan:
        """Begin a publish: a child of the current span, unless that is the one of a handler, which lasts for hours."""
        current = get_current_span().get_span_context()
        context: Context | None = None
        links: list[Link] = []
        if current.is_valid and current == _handler_span.get():
            context, links = set_span_in_context(INVALID_SPAN), [Link(current)]
        name, attributes = self.described("send", "send", channel)
        span = self._tracer.start_span(
            name, context=context, kind=SpanKind.PRODUCER, attributes=attributes, links=links
        )
        made = span.get_span_context()
        if not made.trace_flags.sampled or not made.is_valid:
            return ProducerSpan(span, b"")
        return ProducerSpan(span, extensions_of(made, get_current() if self._baggage else None))

    def deliver(
        self, channel: str, batch: Sequence[Message], *, received_ns: int, subscribers: int
    ) -> WorkerSpan | None:
        """Begin the delivery of a batch that holds a sampled message, within the bound.

        Where all of them are of one trace, the delivery is in that trace too. Else it begins one, which is linked.
        """
        sampled = [message for message in batch if is_sampled(message)]
        if not sampled or not self._budget.take():
            return None
        origins = [origin for message in sampled[:_MAX_LINKS] if (origin := span_context_of(message)) is not None]
        name, attributes = self.described("deliver", "process", channel)
        attributes["backplane.deliveries"] = len(batch) * subscribers
        if len(batch) > 1:
            attributes["messaging.batch.message_count"] = len(batch)
        span = self._tracer.start_span(
            name,
            context=parent_of(origins[0]) if len({origin.trace_id for origin in origins}) == 1 else Context(),
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            links=[Link(origin) for origin in origins],
            start_time=received_ns or None,
        )
        times = [message.published_at for message in sampled if message.published_at]
        return WorkerSpan(span, min(times, default=None))

    def handler_entered(self) -> None:
        """Note the span of a handler, in its Context."""
        _handler_span.set(get_current_span().get_span_context())

    def described(self, verb: str, kind: str, channel: str) -> tuple[str, dict[str, AttributeValue]]:
        """Return the name and the attributes of a span: its name has the template, of which there are few."""
        template = self._template_of(channel)
        attributes = {
            **self._attributes,
            "messaging.operation.name": verb,
            "messaging.operation.type": kind,
        }
        if self._channel_names:
            attributes["messaging.destination.name"] = channel
        if template is None:
            return verb, attributes
        attributes["messaging.destination.template"] = template
        return f"{verb} {template}", attributes


def parent_of(origin: SpanContext, context: Context | None = None) -> Context:
    """Return a context in which a span of another process is the parent."""
    return set_span_in_context(NonRecordingSpan(origin), Context() if context is None else context)
