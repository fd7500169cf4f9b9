"""`Tracing`: what an application passes as `Backplane(tracing=...)`, and consumes messages with."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from opentelemetry.context import attach, detach, get_current
from opentelemetry.trace import Link, SpanKind, get_tracer, use_span

from backplane.errors import ConfigurationError
from backplane.message import Message
from backplane.option_checks import check_number
from backplane.tracing.budget import SpanBudget
from backplane.tracing.context import span_context_of, with_baggage
from backplane.tracing.destinations import Templates, broker_attributes
from backplane.tracing.tracer import BackplaneTracer, parent_of

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Generator

    from opentelemetry.trace import TracerProvider

    from backplane.broadcaster import BrokerUrl
    from backplane.message import Gap

__all__ = ["Tracing"]

_SCOPE: Final = "backplane"


class Tracing:
    """Traces publishes and deliveries with OpenTelemetry: `Backplane(tracing=Tracing())`.

    - A publish is a span `send ...`, of kind PRODUCER. It is a child of the current span. Within the handler of a
      WebSocket that `connect` serves, whose own span lasts as long as the client, it begins a trace of its own, which
      is linked to that span.
    - If it is sampled, its trace context goes along with the message, to the workers and never to a client. Else the
      message has no byte more.
    - A worker that delivers sampled messages has one span `deliver ...` for each batch, of kind CONSUMER: from when the
      first message was received until the last subscriber of the worker has been offered them. There is no span for
      each client. Where all sampled messages of a batch are of one trace, it is in that trace. Else it is the root of a
      trace of its own, which the sampler of the application decides on. It is linked to each of them in either case.

    Which traces are sampled is decided by the SDK that the application configures. One object may serve several
    backplanes. Every worker, and every reader of the channels in another language, must read version 2 of the header
    before the first one has tracing: docs/operations/upgrading.md.

    Args:
        tracer_provider: Where the spans go. Defaults to the global one, also if that is set later.
        baggage: Whether the baggage of the publisher goes along with sampled messages, and is the one of `consume`. It
            is sent to the broker as it is. Defaults to `False`.
        channel_names: Whether spans have the name of the channel, which can be personal. Defaults to `True`.
        max_spans_per_second: How many spans of deliveries a process begins in a second; others are counted in
            `skipped_spans`. Defaults to 100.

    Raises:
        ConfigurationError: An option cannot be used.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        *,
        baggage: bool = False,
        channel_names: bool = True,
        max_spans_per_second: float = 100,
    ) -> None:
        if tracer_provider is not None and not callable(getattr(tracer_provider, "get_tracer", None)):
            raise ConfigurationError(f"tracer_provider must be a TracerProvider, not {tracer_provider!r:.100}")
        check_number("max_spans_per_second", max_spans_per_second)
        self._tracer = get_tracer(_SCOPE, tracer_provider=tracer_provider)
        self._templates = Templates()
        self._budget = SpanBudget(max_spans_per_second)
        self._baggage = bool(baggage)
        self._channel_names = bool(channel_names)
        self._consumer = BackplaneTracer(
            self._tracer, {}, self._template_of, self._budget, baggage=self._baggage, channel_names=self._channel_names
        )

    def __repr__(self) -> str:
        return f"<Tracing baggage={self._baggage} channel_names={self._channel_names}>"

    @property
    def skipped_spans(self) -> int:
        """How many spans of deliveries were not made because of `max_spans_per_second`."""
        return self._budget.skipped

    @contextmanager
    def consume(self, message: Message | Gap) -> Generator[None]:
        """Process one message of a subscription in the trace of its publisher: `with tracing.consume(message): ...`.

        What is done in the block belongs to a span `process ...`, of kind CONSUMER: a child of the publish, and linked
        to it. An exception is recorded in the span, and raised further. For a message that is not sampled, or is not
        traced, and for a gap, nothing is done: the current span stays the current one.

            async with backplane.subscribe("orders") as messages:
                async for message in messages:
                    with tracing.consume(message):
                        await process(message)
        """
        if not isinstance(message, Message) or (origin := span_context_of(message)) is None:
            yield
            return
        base = with_baggage(message, get_current()) if self._baggage else None
        name, attributes = self._consumer.described("process", "process", message.channel)
        span = self._tracer.start_span(
            name,
            context=parent_of(origin, get_current() if base is None else base),
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            links=[Link(origin)],
        )
        token = None if base is None else attach(base)
        try:
            with use_span(span, end_on_exit=True):
                yield
        finally:
            if token is not None:
                detach(token)

    def tracer(self, url: BrokerUrl, pattern_of: Callable[[str], str | None]) -> BackplaneTracer:
        """Return the tracing of one backplane. The backplane calls it."""

        def template_of(channel: str) -> str | None:
            return self._templates.template_of(channel, pattern_of)

        return BackplaneTracer(
            self._tracer,
            broker_attributes(url),
            template_of,
            self._budget,
            baggage=self._baggage,
            channel_names=self._channel_names,
        )

    def note_template(self, template: str, names: re.Pattern[str]) -> None:
        """Take the template of a typed channel, which then names its spans. The backplane calls it."""
        self._templates.add(template, names)

    def _template_of(self, channel: str) -> str | None:
        return self._templates.template_of(channel, _no_pattern)


def _no_pattern(_: str) -> str | None:
    return None
