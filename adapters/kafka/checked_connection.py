"""aiokafka's connection with the checks that it lacks (0.14)."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUntypedBaseClass=false
# aiokafka has no types for its users.

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any, Final

from aiokafka.errors import SaslAuthenticationFailed  # type: ignore[import-untyped]
from aiokafka.protocol.admin import SaslAuthenticateRequest  # type: ignore[import-untyped]

if TYPE_CHECKING:

    class AIOKafkaConnection:
        """The part of aiokafka's connection that is used here; it has no types."""

        _reader: Any
        _versions: Any

        def __init__(self, *args: Any, **options: Any) -> None: ...

        async def connect(self) -> Any:
            """Connect and log in; return a stream reader and a stream writer."""

        def send(self, request: Any, expect_response: bool = True) -> Any:
            """Send a request; return a future of its answer."""

        def close(self, reason: Any = None) -> asyncio.Future[None] | None:
            """Close the connection; return a future of the end of its reading."""

        def _create_reader_task(self) -> Any: ...

        def authenticator_oauth(self) -> Any:
            """Return an authenticator for a token."""

else:
    from aiokafka.conn import AIOKafkaConnection

__all__ = ["CheckedConnection"]

# Fraction of a login's lifetime after which the connection is replaced.
_RENEW_AFTER: Final = 0.8
# No answer is larger: it holds one record of the largest `max_payload_bytes`, or four mebibytes of smaller records.
_MAX_ANSWER_BYTES: Final = 300 * 1024 * 1024


def _is_no_login(record: logging.LogRecord) -> bool:
    """Filter out aiokafka's log lines of a login: at DEBUG they contain the password (0.14)."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    return not any(type(argument).__name__.startswith("SaslAuthenticate") for argument in arguments)


logging.getLogger("aiokafka.conn").addFilter(_is_no_login)


class CheckedConnection(AIOKafkaConnection):
    """Connection that checks the size of answers, the lifetime of a login, and the answer to a token.

    Attributes:
        renew_at: When to replace it, by the event loop's clock.
    """

    renew_at: float = math.inf

    def send(self, request: Any, expect_response: bool = True) -> Any:
        """Send a request; of a login, note its lifetime, which aiokafka ignores."""
        answer: Any = super().send(request, expect_response)
        return self._note_lifetime(answer) if isinstance(request, SaslAuthenticateRequest) else answer

    async def _note_lifetime(self, answer: Any) -> Any:
        received = await answer
        if lifetime_ms := getattr(received, "session_lifetime_ms", 0):
            self.renew_at = asyncio.get_running_loop().time() + _RENEW_AFTER * lifetime_ms / 1000
        return received

    def _create_reader_task(self) -> Any:
        """Limit the size of an answer: the first bytes of a TLS port, read as a size, are 350 MB."""
        reader: Any = self._reader
        read = reader.readexactly

        async def readexactly(n: int) -> Any:
            if not 0 <= n <= _MAX_ANSWER_BYTES:
                raise ConnectionResetError(f"an answer of {n:,} bytes is not Kafka's; does this port speak TLS?")
            return await read(n)

        reader.readexactly = readexactly
        return super()._create_reader_task()

    def authenticator_oauth(self) -> Any:
        """Return an authenticator that checks the broker's answer to the token; aiokafka ignores a refusal."""
        inner: Any = super().authenticator_oauth()
        step = inner.step

        async def checked(answer: bytes | None) -> Any:
            if answer:  # https://www.rfc-editor.org/rfc/rfc7628#section-3.2.2
                raise SaslAuthenticationFailed(answer.decode(errors="replace"))
            return await step(answer)

        inner.step = checked
        return inner
