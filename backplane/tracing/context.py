"""The trace context of a message: a span to the extensions of its header, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from backplane.header import BAGGAGE, MAX_EXTENSIONS_BYTES, TRACE_CONTEXT, TRACESTATE, pack, value_of
from backplane.message import ExtendedMessage

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from backplane.message import Message

__all__ = ["extensions_of", "is_sampled", "span_context_of", "with_baggage"]

# Flags (1 byte), trace id (16), span id (8).
_TRACE_CONTEXT_BYTES: Final = 25
_SPAN_ID_AT: Final = 17
# Tracestate is limited by W3C Trace Context: longer ones may be dropped.
_MAX_TRACESTATE_BYTES: Final = 512

_baggage: Final = W3CBaggagePropagator()


def extensions_of(span: SpanContext, baggage: Context | None = None) -> bytes:
    """Return the extensions that carry a span to the workers; those that do not fit are left out.

    Args:
        span: The span.
        baggage: The context whose baggage goes along. Defaults to none.
    """
    ids = span.trace_id.to_bytes(16) + span.span_id.to_bytes(8)
    values = [(TRACE_CONTEXT, bytes((span.trace_flags & 0xFF,)) + ids)]
    if span.trace_state and len(state := span.trace_state.to_header().encode()) <= _MAX_TRACESTATE_BYTES:
        values.append((TRACESTATE, state))
    packed = pack(values)
    if baggage is not None:
        carrier: dict[str, str] = {}
        _baggage.inject(carrier, baggage)
        if carrier:
            with_it = packed + pack([(BAGGAGE, carrier["baggage"].encode())])
            packed = with_it if len(with_it) <= MAX_EXTENSIONS_BYTES else packed
    return packed


def is_sampled(message: Message) -> bool:
    """Return whether the publish of a message is sampled."""
    return _sampled_context(message) is not None


def span_context_of(message: Message) -> SpanContext | None:
    """Return the span that published a message; `None` where it was not sampled, or not traced."""
    value = _sampled_context(message)
    if value is None:
        return None
    return SpanContext(
        int.from_bytes(value[1:_SPAN_ID_AT]),
        int.from_bytes(value[_SPAN_ID_AT:]),
        is_remote=True,
        trace_flags=TraceFlags(value[0]),
        trace_state=TraceState.from_header([_text(message, TRACESTATE)]),
    )


def with_baggage(message: Message, context: Context) -> Context:
    """Return a context with the baggage of a message."""
    text = _text(message, BAGGAGE)
    return _baggage.extract({"baggage": text}, context) if text else context


def _sampled_context(message: Message) -> bytes | None:
    """Return the trace context of a message, as in its header, if it is a valid one and sampled."""
    if not isinstance(message, ExtendedMessage):
        return None
    value = value_of(message.extensions, TRACE_CONTEXT)
    if value is None or len(value) != _TRACE_CONTEXT_BYTES or not value[0] & TraceFlags.SAMPLED:
        return None
    return value if any(value[1:_SPAN_ID_AT]) and any(value[_SPAN_ID_AT:]) else None  # zeros are no id


def _text(message: Message, kind: int) -> str:
    """Return a value of a message as text; nothing without it, and where it is not ASCII, as both must be."""
    value = value_of(message.extensions, kind) if isinstance(message, ExtendedMessage) else None
    return value.decode() if value is not None and value.isascii() else ""
