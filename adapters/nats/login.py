"""nats-py connects and logs in; what it is not left to decide stands here.

The only module that knows nats-py. `_Stream` is its transport, so that every byte of a login passes here: an INFO is
checked, and kept, before nats-py acts on it. Once the server has accepted the login, nats-py is stopped where it would
begin to read by itself. Of its private names three are in use: `Client._transport`, for there is no other way to give
it one, and `_io_reader` and `_io_writer` of its `TcpTransport`, for there is no other way to take the socket from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nats.aio.client import Client, RawCredentials
from nats.aio.transport import TcpTransport
from nats.errors import Error
from pydantic import BaseModel

from backplane.adapters.nats.group import unavailable
from backplane.adapters.nats.parser import MAX_LINE_BYTES
from backplane.adapters.shared.credentials import ask_credentials
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerError, ConfigurationError, MissingDependencyError

if TYPE_CHECKING:
    import asyncio
    import ssl
    from collections.abc import Callable, Mapping

    from backplane.adapters.nats.broadcaster import NatsOptions
    from backplane.adapters.nats.link import NatsLink
    from backplane.broadcaster import BrokerUrl

__all__ = ["NatsLogin", "ServerInfo", "Tls"]

_CREDENTIALS: Final = re.compile(r"-{3,}BEGIN (NATS USER JWT|USER NKEY SEED)-{3,}\n\S+\n-{3,}END")


class ServerInfo(BaseModel):
    """What a server announces in INFO, as far as it is of use here.

    Attributes:
        server_id: Another one after each start of the server.
        version: As `2.10.29`.
        max_payload: Largest payload for this connection, in bytes; no bound where it is not more than 0.
        headers: Whether it knows headers.
        nonce: What an NKey has to sign.
        tls_required: Whether it expects a TLS handshake next.
        tls_available: Whether it accepts one.
        connect_urls: `host:port` of the servers of its cluster.
        ldm: Whether it is in lame duck mode, about to close its connections.
    """

    server_id: str = ""
    version: str = ""
    max_payload: int = 0
    headers: bool = False
    nonce: str | None = None
    tls_required: bool = False
    tls_available: bool = False
    connect_urls: list[str] | None = None
    ldm: bool = False


@dataclass(frozen=True, slots=True)
class Tls:
    """Whether and how to encrypt.

    Attributes:
        required: End the connection where the server offers no TLS, before anything is sent.
        first: Start with the handshake, before the server's INFO.
        make_context: Called at each login that requires TLS. To a server that requires it though nobody here does,
            nats-py connects with the system's authorities.
    """

    required: bool
    first: bool
    make_context: Callable[[], ssl.SSLContext]


class NatsLogin:
    """Who this client is. Files are read at each login, so that a rotated secret needs no restart.

    Args:
        url: User name and password; a lone user name is a token.
        options: Files, or a callable, in their place.

    Raises:
        ConfigurationError: More than one kind of credentials.
        MissingDependencyError: NKeys need a package that is not installed.
    """

    def __init__(self, url: BrokerUrl, options: NatsOptions) -> None:
        self._username, self._password = url.username, url.password
        self._options = options
        given = {
            "a password in the URL": url.password is not None or (url.username and not options.password_file),
            "password_file": options.password_file,
            "user_credentials": options.user_credentials,
            "nkeys_seed": options.nkeys_seed,
            "credentials": options.credentials,
        }
        if len(kinds := [kind for kind, value in given.items() if value]) > 1:
            raise ConfigurationError(f"nats: {' and '.join(kinds)} are given, and a login takes one of them")
        if options.user_credentials or options.nkeys_seed:
            try:
                import_module("nkeys")  # nats-py would miss it at the login only
            except ImportError as error:
                raise MissingDependencyError(
                    f"nats: NKeys need a package that is not installed ({error}): pip install 'fastapi-backplane[nats]'"
                ) from error

    async def open(self, link: NatsLink, tls: Tls) -> None:
        """Connect to the server of `link`, log in, and let `link` go on with the connection.

        What fails, or is cancelled, leaves no connection. A callable that provides credentials has the time of a
        connect for itself.

        Raises:
            OSError: There is no server, it did not answer in time, or its certificate is not trusted.
            ConfigurationError: The callable that `credentials` names is not there, or returned something else.
            BrokerError: A file cannot be read or holds no credentials, the server offers no TLS, or it has ended the
                connection, with its words.
        """
        credentials = await self._credentials()
        stream = _Stream(link, tls)
        try:
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
                error_cb=_give_up,
                allow_reconnect=False,  # one link, and the core opens the next one
                connect_timeout=None,  # the caller has one
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
        except Exception as error:  # of nkeys, base64, PyNaCl: their words can show a secret
            raise BrokerError(f"these credentials cannot be used ({type(error).__name__})", adapter="nats") from None

    async def _credentials(self) -> Mapping[str, Any]:
        """Return them as arguments of `Client.connect`."""
        options = self._options
        if options.credentials:
            return await self._handed_out(options.credentials)
        if options.user_credentials:
            return _user_credentials(_read(options.user_credentials), options.user_credentials)
        if options.nkeys_seed:
            return {"nkeys_seed_str": _read(options.nkeys_seed)}
        password = _read(options.password_file) if options.password_file else self._password
        if self._username is not None and password is not None:
            return {"user": self._username, "password": password}
        token = password or self._username
        return {"token": token} if token else {}

    async def _handed_out(self, path: str) -> Mapping[str, Any]:
        match await ask_credentials(path, adapter="nats", seconds=self._options.connect_timeout_seconds):
            case (str() as username, str() as password):
                return {"user": username, "password": password}
            case str() as text if _CREDENTIALS.search(text):
                return _user_credentials(text, path)
            case str() as token:
                return {"token": token}
            case other:
                raise ConfigurationError(
                    f"nats: {path} must return a token, (username, password), or the text of a .creds file, "
                    f"not {type(other).__name__}"
                )


class _LoggedInError(Exception):
    """Stops nats-py once the server has accepted the login, before it begins to read and to ping by itself."""


class _Stream(TcpTransport):
    """nats-py's transport, for one login.

    Args:
        link: What goes on with the connection, and is informed of every INFO.
        tls: Whether to go on without TLS.
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
        """Be there before the connection is, else nats-py makes a transport of its own."""
        return True

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: int) -> None:
        """Connect; a line may be as long as it may later."""
        try:
            await super().connect(uri, MAX_LINE_BYTES, connect_timeout)
        except ValueError as error:  # of the resolver; a cluster may name anything
            raise unavailable(f"{self._link.server} is no address: {error}") from error

    async def connect_tls(self, uri: Any, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int) -> None:
        """Encrypt, unless somebody has written in front of the handshake."""
        if await self._unread() or self._writer.is_closing():  # uvloop would fail in a callback
            raise unavailable("the connection ended: not a TLS handshake after the INFO")
        await super().connect_tls(uri, ssl_context, buffer_size, connect_timeout)
        self._link.is_encrypted = True

    def write(self, payload: bytes) -> None:
        """Keep it for the next `readline`: what leaves in one piece does not end the connection before it is read."""
        if self._tls.required and not self._link.is_encrypted:  # whatever nats-py makes of an INFO
            raise BrokerError("the connection is not encrypted; nothing was sent", adapter="nats")
        self._unsent += payload

    async def drain(self) -> None:
        """Wait for nothing: a login is small."""

    async def readline(self) -> bytes:
        """Return the first INFO. Raise at the PONG, and at an error, of which nats-py does not notice each."""
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
                if (greeting := self._informed(line[4:])) is not None:
                    return greeting
            else:
                words = line.removeprefix(b"-ERR").decode(errors="replace").strip(" '\r\n")[:300]
                raise unavailable(f"the connection ended: {words or 'closed by the server'}")

    def _flush(self) -> None:
        if self._unsent:
            self._writer.write(self._unsent)
            self._unsent = b""

    def _informed(self, text: bytes) -> bytes | None:
        """Let the link know of an INFO; return what nats-py is to know of the first one."""
        try:
            info = ServerInfo.model_validate_json(text)
        except ValueError:
            raise unavailable("the connection ended: the server sent an INFO that cannot be read") from None
        self._link.inform(info)
        if self._is_greeted:  # nats-py would take it for the answer to its CONNECT
            return None
        self._is_greeted = True
        if self._tls.required and not (self._link.is_encrypted or info.tls_required or info.tls_available):
            # INFO comes unprotected: whoever is on the way can take the offer out of it.
            raise BrokerError("the server offers no TLS; nothing was sent to it", adapter="nats")
        # nats-py encrypts where the server requires it. The servers of a cluster are remembered elsewhere.
        known = info.model_copy(update={"tls_required": info.tls_required or self._tls.required})
        return b"INFO %b\r\n" % known.model_dump_json(exclude={"connect_urls"}, exclude_none=True).encode()

    async def hand_over(self) -> None:
        """Let the link go on with the connection, and with what was received on it and not read."""
        await self._link.take_over(self._writer.transport, await self._unread(), self)

    def abort(self) -> None:
        """End the connection at once, where there is one."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()

    @property
    def _writer(self) -> asyncio.StreamWriter:
        assert self._io_writer is not None
        return self._io_writer

    async def _unread(self) -> bytes:
        """Return what was received and not read; the reader is of no use after that."""
        assert self._io_reader is not None
        self._io_reader.feed_eof()  # so that `read` waits for nothing
        return await self._io_reader.read()


async def _give_up(error: Exception) -> None:
    """Raise what nats-py could not do, in place of another try."""
    raise error


def _user_credentials(text: str, place: str) -> Mapping[str, Any]:
    # nats-py searches for a JWT that is not there without end.
    if set(_CREDENTIALS.findall(text)) != {"NATS USER JWT", "USER NKEY SEED"}:
        raise BrokerError(f"{place} holds no JWT and NKey seed of a user", adapter="nats")
    return {"user_credentials": RawCredentials(text)}


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError) as error:
        raise BrokerError(f"cannot read the credentials: {error}", adapter="nats") from error
