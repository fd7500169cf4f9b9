"""The trace that `backplane publish --traceparent` continues: its context goes along, and no span is made here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Self

from backplane.errors import ConfigurationError
from backplane.header import TRACE_CONTEXT, pack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from backplane.broadcaster import BrokerUrl
    from backplane.message import Message, Receipt

__all__ = ["CarriedTrace"]

# W3C Trace Context: version, trace id, span id, flags; later versions may append more.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)


class CarriedTrace:
    """Implements `backplane.message_tracing` for one publish, without OpenTelemetry.

    Args:
        traceparent: A span of another program, as in the header of that name.

    Attributes:
        skipped_spans: 0: no span is made.
        extensions: What goes into the header of the message; empty where the span is not sampled.

    Raises:
        ConfigurationError: It is no such header.
    """

    def __init__(self, traceparent: str) -> None:
        found = _TRACEPARENT.fullmatch(traceparent.strip())
        if found is None or (found[1] == "00" and found[5]):
            raise ConfigurationError(
                f"--traceparent takes the header of W3C Trace Context, such as "
                f"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01, not {traceparent!r:.100}"
            )
        context = bytes.fromhex(found[4] + found[2] + found[3])
        self.skipped_spans: int = 0
        self.extensions: bytes = pack([(TRACE_CONTEXT, context)]) if context[0] & 1 else b""

    def tracer(self, _url: BrokerUrl, _pattern_of: Callable[[str], str | None], /) -> Self:
        """Return itself."""
        return self

    def note_template(self, _template: str, _names: re.Pattern[str], /) -> None:
        """Do nothing: no span is named here."""

    def publish(self, _channel: str, /) -> Self:
        """Return itself, to be entered."""
        return self

    def deliver(self, _channel: str, _batch: Sequence[Message], /, *, received_ns: int, subscribers: int) -> None:
        """Make no span."""

    def handler_entered(self) -> None:
        """Do nothing: nothing is served."""

    def encoded(self, _size_bytes: int, /) -> None:
        """Do nothing: there is no span."""

    def published(self, _receipt: Receipt, /) -> None:
        """Do nothing: there is no span."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Do nothing: there is no span."""
