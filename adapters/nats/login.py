"""The login: nats-py connects and logs in, and what it must not decide is checked here.

The only module that imports nats-py, but for the form of its credentials. `_Stream` is its transport, so every byte of
a login passes through it: an INFO is checked, and kept, before nats-py acts on it. Once the server has accepted the
login, nats-py is stopped at the point where it would begin to read by itself. Three of its private names are used:
`Client._transport`, because there is no other way to give it a transport, and `_io_reader` and `_io_writer` of its
`TcpTransport`, because there is no other way to take the socket over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nats.aio.client import Client
from nats.aio.transport import TcpTransport
from nats.errors import Error

from backplane.adapters.nats.credentials import NatsCredentials
from backplane.adapters.nats.errors import unavailable
from backplane.adapters.nats.parser import MAX_LINE_BYTES
from backplane.adapters.nats.server_info import read_info
from backplane.adapters.shared.hidden_secrets import hiding
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerError

if TYPE_CHECKING:
    import asyncio
    import ssl
    from collections.abc import Callable, Mapping

    from backplane.adapters.nats.link import NatsLink
    from backplane.adapters.nats.options import NatsOptions
    from backplane.broadcaster import BrokerUrl

__all__ = ["NatsLogin", "Tls"]


@dataclass(frozen=True, slots=True)
class Tls:
    """Whether and how to encrypt.

    Attributes:
        required: End the connection where the server offers no TLS, before anything is sent.
        first: Start with the handshake, before the server's INFO.
        make_context: Called at each login that requires TLS. To a server that requires it while the client does not,
            nats-py connects with the system's authorities.
    """

    required: bool
    first: bool
    make_context: Callable[[], ssl.SSLContext]


class NatsLogin:
    """Connects a link and logs in.

    Args:
        url: User name and password; a user name without a password is a token.
        options: Those of the adapter.

    Raises:
        ConfigurationError: More than one kind of credentials.
        MissingDependencyError: NKeys need a package that is not installed.
    """

    def __init__(self, url: BrokerUrl, options: NatsOptions) -> None:
        self._credentials = NatsCredentials(url, options)
        self._options = options

    async def open(self, link: NatsLink, tls: Tls) -> None:
        """Connect to the server of `link`, log in, and hand the connection over to `link`.

        Where it fails, or is cancelled, it leaves no connection. A callable that provides credentials has a time limit
        of its own, as long as that of the connection.

        Raises:
            OSError: There is no server, it did not answer in time, or its certificate is not trusted.
            ConfigurationError: The callable that `credentials` names is missing, or returned something else.
            BrokerError: A file cannot be read or holds no credentials, the server offers no TLS, or it has ended the
                connection; the message holds its reason.
        """
        credentials = await self._credentials.read()
        stream = _Stream(link, tls)
        secrets = (credentials.get("password"), credentials.get("token"))
        try:
            with hiding(*secrets, shown=(link.server, credentials.get("user"))):
                async with PatientTimeout(self._options.connect_timeout_seconds):
                    await self._log_in(stream, link, tls, credentials)
                    await stream.hand_over()
        except BaseException:
            stream.abort()
            raise

    async def _log_in(self, stream: _Stream, link: NatsLink, tls: Tls, credentials: Mapping[str, Any]) -> None:
        client: Any = Client()
        client._transport = stream
        try:
            await client.connect(
                f"nats://{link.server}",
                error_cb=_raise,
                allow_reconnect=False,  # the core opens the next link
                connect_timeout=None,  # the caller has a time limit
                name=self._options.client_name,
                tls=tls.make_context() if tls.required else None,
                tls_hostname=link.server.tls_name,
                tls_handshake_first=tls.first,
                **credentials,
            )
        except _LoggedInError:
            return
        except (OSError, BrokerError):
            raise
        except Error as error:
            raise unavailable(f"nats-py: {str(error).removeprefix('nats: ')}") from error
        except Exception as error:  # of nkeys, base64, PyNaCl: their messages can hold a secret
            raise BrokerError(f"these credentials cannot be used ({type(error).__name__})", adapter="nats") from None


class _LoggedInError(Exception):
    """Stops nats-py once the server has accepted the login, before it begins to read and to ping by itself."""


class _Stream(TcpTransport):
    """nats-py's transport, for one login.

    Args:
        link: The owner of the connection after the login; it is passed every INFO.
        tls: Whether the connection must be encrypted.
    """

    _io_reader: asyncio.StreamReader | None
    _io_writer: asyncio.StreamWriter | None

    def __init__(self, link: NatsLink, tls: Tls) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._link = link
        self._tls = tls
        self._is_greeted = False
        self._unsent = b""

    def __bool__(self) -> bool:
        """Be true before it is connected; otherwise nats-py makes a transport of its own."""
        return True

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: int) -> None:
        """Connect, with the limit of a line that the parser has later too."""
        try:
            await super().connect(uri, MAX_LINE_BYTES, connect_timeout)
        except ValueError as error:  # of the resolver: a cluster may announce any text as an address
            raise unavailable(f"{self._link.server} is no address: {error}") from error

    async def connect_tls(self, uri: Any, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int) -> None:
        """Encrypt, unless bytes were received before the handshake: these are not protected, and may be injected."""
        if await self._unread() or self._writer.is_closing():  # uvloop fails in a callback where it is closing
            raise unavailable("the connection ended: not a TLS handshake after the INFO")
        await super().connect_tls(uri, ssl_context, buffer_size, connect_timeout)
        self._link.is_encrypted = True

    def write(self, payload: bytes) -> None:
        """Keep it for the next `readline`, so that CONNECT and PING are sent in one piece.

        Where the server refuses the CONNECT and closes, a later write would end the connection before its reason is
        read.
        """
        if self._tls.required and not self._link.is_encrypted:  # however nats-py reads an INFO
            raise BrokerError("the connection is not encrypted; nothing was sent", adapter="nats")
        self._unsent += payload

    async def drain(self) -> None:
        """Return at once: a login is small."""

    async def readline(self) -> bytes:
        """Return the first INFO; raise at the PONG, and at every error, some of which nats-py ignores."""
        self._flush()
        while True:
            try:
                line: bytes = await super().readline()  # type: ignore[no-untyped-call]
            except (ValueError, ConnectionError) as error:
                raise unavailable(f"the connection ended: {error}") from error
            if line == b"PONG\r\n":
                raise _LoggedInError
            if line == b"PING\r\n":
                self.write(b"PONG\r\n")
                self._flush()
            elif line.startswith(b"INFO") and line.endswith(b"\r\n"):
                if (greeting := self._info_received(line[4:])) is not None:
                    return greeting
            else:
                reason = line.removeprefix(b"-ERR").decode(errors="replace").strip(" '\r\n")[:300]
                raise unavailable(f"the connection ended: {reason or 'closed by the server'}")

    def _flush(self) -> None:
        if self._unsent:
            self._writer.write(self._unsent)
            self._unsent = b""

    def _info_received(self, text: bytes) -> bytes | None:
        """Pass an INFO on to the link; return the first one in the form in which nats-py is to see it."""
        try:
            info = read_info(text)
        except ValueError as error:
            raise unavailable(f"the connection ended: the server sent {error}") from None
        self._link.inform(info)
        if self._is_greeted:  # nats-py would read a second one as the answer to its CONNECT
            return None
        self._is_greeted = True
        if self._tls.required and not (self._link.is_encrypted or info.tls_required or info.tls_available):
            # INFO is not protected: an attacker between client and server can remove the offer from it.
            raise BrokerError("the server offers no TLS; nothing was sent to it", adapter="nats")
        # nats-py encrypts where the server requires it. It must not follow `connect_urls`: `Servers` does that.
        known = info.model_copy(update={"tls_required": info.tls_required or self._tls.required})
        return b"INFO %b\r\n" % known.model_dump_json(exclude={"connect_urls"}, exclude_none=True).encode()

    async def hand_over(self) -> None:
        """Hand the connection over to the link, with what was received on it and not read."""
        await self._link.take_over(self._writer.transport, await self._unread(), self)

    def abort(self) -> None:
        """End the connection at once, if there is one."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()

    @property
    def _writer(self) -> asyncio.StreamWriter:
        assert self._io_writer is not None
        return self._io_writer

    async def _unread(self) -> bytes:
        """Return what was received and not read; the reader cannot be used after that."""
        assert self._io_reader is not None
        self._io_reader.feed_eof()  # without it `read` waits for the end of the connection
        return await self._io_reader.read()


async def _raise(error: Exception) -> None:
    """Raise an error that nats-py would answer by another try."""
    raise error
