"""The spans of a publish, of the delivery of a batch, and of the consumer of one message."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING

from opentelemetry.trace import Status, StatusCode, format_trace_id

from backplane.lag import lag_of

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from opentelemetry.trace import Span

    from backplane.message import Receipt

__all__ = ["ProducerSpan", "WorkerSpan"]


class ProducerSpan:
    """A publish, from the call to its return. It is not the current span: what adapters do belongs to the caller.

    Args:
        span: The span.
        extensions: What carries it to the workers.

    Attributes:
        extensions: See above.
    """

    __slots__ = ("_span", "extensions")

    def __init__(self, span: Span, extensions: bytes) -> None:
        self._span = span
        self.extensions: bytes = extensions

    def encoded(self, size_bytes: int) -> None:
        """Note the size of the data."""
        self._span.set_attribute("messaging.message.body.size", size_bytes)

    def published(self, receipt: Receipt) -> None:
        """Note where in the history the message is, and whether it was published before."""
        if receipt.position is not None:
            self._span.set_attribute("messaging.message.id", str(receipt.position))
        if receipt.duplicate:
            self._span.set_attribute("backplane.duplicate", True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            # Without its message, which can name the channel.
            self._span.set_attribute("error.type", kind.__qualname__)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class WorkerSpan:
    """The delivery of one batch to the subscribers of this worker, until the last one has been offered it.

    Args:
        span: The span.
        published_at: When the oldest of its sampled messages was published, by its publisher's clock; `None` where
            that is not known.
    """

    __slots__ = ("_published_at", "_span")

    def __init__(self, span: Span, published_at: float | None) -> None:
        self._span = span
        self._published_at = published_at

    @property
    def trace_id(self) -> str:
        """The trace of it, as 32 hex digits; nothing where this span is not sampled."""
        context = self._span.get_span_context()
        return format_trace_id(context.trace_id) if context.trace_flags.sampled else ""

    def end(self) -> None:
        """End it, with the time since the oldest sampled message was published, where that is known."""
        if (lag := lag_of(self._published_at, time())) is not None:
            self._span.set_attribute("backplane.lag", lag)
        self._span.end()
