"""Logins at a server that the test plays."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from backplane.adapters.nats.link import NatsLink
from backplane.adapters.nats.login import NatsLogin, Tls
from backplane.adapters.nats.options import NatsOptions
from backplane.adapters.nats.servers import Server
from backplane.broadcaster import BrokerUrl
from backplane.testing import RecordingSink

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Mapping

__all__ = ["INFO", "PONG", "TIMEOUT_SECONDS", "attempt", "connect_fields", "no_context"]

INFO = b'INFO {"server_id":"ONE","nonce":"abc","headers":true,"max_payload":1000}\r\n'
PONG = b"PONG\r\n"
TIMEOUT_SECONDS = 60


def no_context() -> ssl.SSLContext:
    """Fail: no test here requires TLS."""
    raise AssertionError("TLS is not required")


class Attempt:
    """A login at a server that the test plays.

    Attributes:
        sent: What the client sent.
        infos: The `server_id` of each INFO that the link received.
        served: Set when the server has sent its last bytes but for further PONG.
        left: Set when the client has closed the connection.
        link: The link that is opened.
    """

    def __init__(self, port: int, url: str, options: Mapping[str, str]) -> None:
        self.sent = b""
        self.infos: list[str] = []
        self.served = asyncio.Event()
        self.left = asyncio.Event()
        self._login = NatsLogin(BrokerUrl.parse(url), NatsOptions.model_validate(options))
        self.link = NatsLink(
            RecordingSink(),
            Server("127.0.0.1", port, "localhost"),
            on_lost=lambda _link, _error: None,
            on_info=lambda link: self.infos.append(link.info.server_id),
            max_pending_bytes=1000,
            line_limits={},
        )

    async def open(self) -> None:
        """Log in."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await self._login.open(self.link, Tls(False, False, no_context))


@asynccontextmanager
async def attempt(
    greeting: bytes = INFO,
    answer: bytes = PONG,
    *,
    closes: bool = False,
    url: str = "nats://one",
    options: Mapping[str, str] | None = None,
) -> AsyncGenerator[Attempt]:
    """Serve one login with `greeting`, with `answer` at the first PING, and with a PONG at each further one.

    Args:
        greeting: What the server sends first.
        answer: What it sends at the first PING.
        closes: Whether it closes the connection after the answer, or after the greeting where there is no answer.
        url: The URL with the credentials.
        options: Those of the adapter.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        if not greeting:
            attempted.served.set()
        answers = answer
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while answers or not closes:
                attempted.sent += (line := await reader.readuntil(b"\r\n"))
                if line == b"PING\r\n":
                    writer.write(answers)
                    attempted.served.set()
                    answers = b"" if closes else PONG
        attempted.left.set()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    attempted = Attempt(listener.sockets[0].getsockname()[1], url, options or {})
    try:
        yield attempted
    finally:
        attempted.link.abort()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await attempted.link.closed.wait()
        listener.close()


async def connect_fields(url: str, **options: str) -> dict[str, Any]:
    """Return the fields of the CONNECT that a login sends."""
    async with attempt(url=url, options=options) as attempted:
        await attempted.open()
    line, _, rest = attempted.sent.partition(b"\r\n")
    assert (line[:8], rest) == (b"CONNECT ", b"PING\r\nPING\r\n")  # the first of nats-py, the second of the link
    fields: dict[str, Any] = json.loads(line[8:])
    return fields
