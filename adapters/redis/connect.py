"""Connecting: every address of a name, TLS, authentication, and what the server there is.

A name can have several addresses, of which some answer, and some of those are no primaries. They are tried one after
the other with a short delay, and the first that is usable wins.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import hiredis

from backplane.adapters.redis.error import connect_error, login_error, meaning, unavailable
from backplane.adapters.redis.link import Address, RedisLink, Server
from backplane.adapters.redis.options import speaks_tls, tls_context
from backplane.adapters.redis.socket import open_socket
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerError, BrokerUnavailableError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Collection, Coroutine, Sequence

    from backplane.adapters.redis.options import Login, RedisOptions
    from backplane.broadcaster import BrokerUrl

__all__ = ["Endpoint", "first_usable", "identify", "info_lines", "primary_of", "text"]

# After it the next address is tried as well: RFC 8305 (Happy Eyeballs) recommends this delay.
_NEXT_ADDRESS_SECONDS: Final = 0.25

_L = TypeVar("_L", bound=RedisLink)


class Endpoint:
    """Where a URL leads, and how to connect there.

    Args:
        target: Host and port, or the path of a Unix socket.
        where: The same in the words of an error.
        url: Its scheme decides about TLS.
        options: Of the adapter.
    """

    def __init__(self, target: Address, where: str, url: BrokerUrl, options: RedisOptions) -> None:
        self.where = where
        self._target = target
        self._url = url
        self._options = options

    async def addresses(self) -> list[Address]:
        """Return every address that the name has now.

        Raises:
            BrokerUnavailableError: It has none, or the resolver did not answer.
        """
        if isinstance(self._target, str):
            return [self._target]
        try:
            async with PatientTimeout(self._options.connect_timeout_seconds):
                return await _resolve(*self._target)
        except (OSError, UnicodeError) as error:  # a label of more than 63 characters is a UnicodeError
            raise connect_error(error, self.where) from error

    async def connect(self, link: RedisLink, address: Address, login: Login) -> None:
        """Connect `link` to one of the addresses, and log in.

        Raises:
            BrokerUnavailableError: Nobody there, or nobody who takes commands.
            BrokerAuthenticationError: The server refused the credentials.
            BrokerError: It has no certificate that is trusted.
        """
        try:
            await self._connect(link, address, login)
        except BaseException:
            link.end("it was given up")
            raise
        link.address = address

    async def _connect(self, link: RedisLink, address: Address, login: Login) -> None:
        where = self.where if address == self._target else f"{self.where} ({text(address)})"
        verb = b"AUTH"
        try:
            async with PatientTimeout(self._options.connect_timeout_seconds):
                await open_socket(link, address, login, client_name=self._options.client_name, tls=self._tls())
                verb = b"PING"  # only the answer shows that the server wants a password
                await link.ask(verb)
        except hiredis.ReplyError as reply:
            if (refused := login_error(verb, reply, where)) is not None:
                raise refused from reply
        except TimeoutError as error:
            silent = TimeoutError(f"no answer within {self._options.connect_timeout_seconds:g} s")
            raise self._error(silent, where) from error
        except (OSError, BrokerUnavailableError) as error:
            raise self._error(error, where) from error

    def _tls(self) -> tuple[ssl.SSLContext, str] | None:
        return (tls_context(self._options), str(self._target[0])) if speaks_tls(self._url) else None

    def _error(self, error: Exception, where: str) -> BrokerError:
        return connect_error(error, where, scheme=self._url.scheme, tls=speaks_tls(self._url))


async def _resolve(host: str, port: int) -> list[Address]:
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            socket.inet_pton(family, host)
            return [(host, port)]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((str(entry[4][0]), int(entry[4][1])) for entry in found))


async def identify(link: RedisLink) -> Server:
    """Return what the server reports about itself.

    Raises:
        BrokerUnavailableError: The link ended, or the server takes no commands at present.
    """
    role, info = await asyncio.gather(_granted(link, b"ROLE"), _granted(link, b"INFO", b"server"))
    fields = info_lines(info)
    return Server(
        role=role[0].decode() if role.__class__ is list else "",
        primary=primary_of(role),
        run_id=fields.get("run_id", ""),
        is_cluster=fields.get("redis_mode", fields.get("server_mode")) == "cluster",
    )


def primary_of(role: Any) -> str:
    """Return whose replica a server is by its answer to ROLE; nothing where it is none, or the answer is another."""
    is_replica = role.__class__ is list and role[0] == b"slave"
    return text((role[1].decode(), role[2])) if is_replica else ""


def info_lines(info: Any) -> dict[str, str]:
    """Return names and values of an answer to INFO; nothing where it was not granted."""
    lines = info.decode(errors="replace").splitlines() if isinstance(info, bytes) else []
    return dict(line.split(":", 1) for line in lines if ":" in line)


async def _granted(link: RedisLink, *words: bytes) -> Any:
    """Return the answer, `None` where the server refuses it: NOPERM, or a command that was renamed."""
    try:
        return await link.ask(*words)
    except hiredis.ReplyError as error:
        if meaning(error) == "passing":
            raise unavailable(f"the server takes no commands at present: {error}") from error
        return None


async def first_usable(addresses: Collection[Address], opened: Callable[[Address], Coroutine[Any, Any, _L]]) -> _L:
    """Return the first link that `opened` returns for one of `addresses`, tried in their order; end all others.

    Raises:
        BrokerError: None is usable.
    """
    failures: list[BrokerError] = []
    untried = deque(addresses)
    tasks: list[asyncio.Task[_L]] = []
    trying: set[asyncio.Task[_L]] = set()
    winner: asyncio.Task[_L] | None = None
    try:
        while winner is None and (untried or trying):
            if untried:
                tasks.append(asyncio.create_task(opened(untried.popleft())))
                trying.add(tasks[-1])
            delay = _NEXT_ADDRESS_SECONDS if untried else None
            done, trying = await asyncio.wait(trying, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            failures += [failure for task in done if isinstance(failure := task.exception(), BrokerError)]
            winner = next((task for task in done if not isinstance(task.exception(), BrokerError)), None)
        await _end_all([task for task in tasks if task is not winner])
    except BaseException:
        await _end_all(tasks)
        raise
    if winner is None:
        raise _combined(failures)
    return winner.result()  # or what is no error of a broker


async def _end_all(tasks: Sequence[asyncio.Task[_L]]) -> None:
    """End what is on its way, and what came through too late."""
    for task in tasks:
        task.cancel()
        task.add_done_callback(_end_result)
    if tasks:
        await asyncio.wait(tasks)


def _end_result(task: asyncio.Task[_L]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().end("another address was faster")


def _combined(failures: Sequence[BrokerError]) -> BrokerError:
    """Return the error of several addresses: one that no repetition mends, else all in one."""
    if not failures:
        return unavailable("the name has no address")
    final = [failure for failure in failures if not failure.retriable]
    if final or len(failures) == 1:
        return (final or failures)[0]
    return unavailable("; ".join(str(failure).removeprefix("redis: ") for failure in failures))


def text(address: Address) -> str:
    """Return an address as a URL writes it."""
    if isinstance(address, str):
        return address
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
