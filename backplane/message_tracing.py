"""What a `Backplane` asks of its tracing: `backplane.tracing.Tracing` implements it, without it nothing is asked.

The core knows these protocols alone, so it neither imports OpenTelemetry nor needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from backplane.broadcaster import BrokerUrl
    from backplane.message import Message, Receipt

__all__ = ["DeliverySpan", "MessageTracer", "MessageTracing", "PublishSpan"]


class PublishSpan(Protocol):
    """One publish that is traced, or not sampled.

    Attributes:
        extensions: What goes into the header of the message; empty where it is not sampled.
    """

    @property
    def extensions(self) -> bytes:
        """See above."""
        ...

    def encoded(self, size_bytes: int, /) -> None:
        """Take the size of the data as it is published."""
        ...

    def published(self, receipt: Receipt, /) -> None:
        """Take what the publish returns."""
        ...


class DeliverySpan(Protocol):
    """The delivery of one batch that holds a sampled message."""

    @property
    def trace_id(self) -> str:
        """The trace of it, as 32 hex digits; nothing where its own span is not sampled."""
        ...

    def end(self) -> None:
        """The last subscriber has been offered the batch."""
        ...


class MessageTracer(Protocol):
    """The tracing of one `Backplane`. Its methods return at once and do not raise."""

    @property
    def skipped_spans(self) -> int:
        """How many spans of deliveries were not made, because there were too many."""
        ...

    def publish(self, channel: str, /) -> AbstractContextManager[PublishSpan]:
        """Return what is entered for a publish; an error that leaves it is noted."""
        ...

    def deliver(
        self, channel: str, batch: Sequence[Message], /, *, received_ns: int, subscribers: int
    ) -> DeliverySpan | None:
        """Begin the delivery of a batch; `None` where no message of it is sampled.

        Args:
            channel: The channel.
            batch: Its messages.
            received_ns: When the first of them came, in nanoseconds since the epoch; 0 where that is not known.
            subscribers: How many subscribers the channel has.
        """
        ...

    def handler_entered(self) -> None:
        """A handler serves a client from now on, in the Context of the caller: its own span lasts as long as that."""
        ...


@runtime_checkable
class MessageTracing(Protocol):
    """What is passed as `Backplane(tracing=...)`."""

    def tracer(self, url: BrokerUrl, pattern_of: Callable[[str], str | None], /) -> MessageTracer:
        """Return the tracing of one backplane.

        Args:
            url: The broker.
            pattern_of: Returns the pattern of the history or presence rule of a channel, or `None`.
        """
        ...

    def note_template(self, template: str, names: re.Pattern[str], /) -> None:
        """Take the template of a typed channel, and which names it has."""
        ...
