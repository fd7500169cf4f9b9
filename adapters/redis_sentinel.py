"""`redis+sentinel://` and `rediss+sentinel://`: the primary that Redis Sentinel names, found anew with each start.

The sentinels are asked all at once. What more than half of them name is the primary; short of that the newest
configuration among the answers is (`config-epoch`, by which sentinels settle it among themselves:
https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/).

PUBLISH works on a replica, and on a primary that was replaced, and reaches only who is there: `check` finds it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic import SecretStr  # noqa: TC002  # pydantic reads the annotation
from redis.exceptions import RedisError, ResponseError

from backplane.adapters.redis import RedisBroadcaster, RedisOptions, connect_error, host_and_port
from backplane.adapters.redis_link import abort, unavailable
from backplane.errors import BrokerAuthenticationError, BrokerError, BrokerUnavailableError, ConfigurationError

if TYPE_CHECKING:
    from backplane.broadcaster import BrokerUrl, Sink

__all__ = ["RedisSentinelBroadcaster", "RedisSentinelOptions"]

_DEFAULT_PORT: Final = 26379


class RedisSentinelOptions(RedisOptions):
    """Options of `redis+sentinel://` and `rediss+sentinel://`.

    User and password of the URL are those of the data nodes and are never shown to a sentinel.
    """

    sentinel_username: str | None = None
    """User at the sentinels."""
    sentinel_password: SecretStr | None = None
    """Password at the sentinels, where they want one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """What one sentinel, or several that agree, name as the primary."""

    address: tuple[str, int]
    epoch: int
    is_down: bool

    def __str__(self) -> str:
        return f"{_text(self.address)}{', which is down' if self.is_down else ''}"


class RedisSentinelBroadcaster(RedisBroadcaster):
    """One link to the primary of one service. The URL names the sentinels, its path is the name of the service."""

    options_class = RedisSentinelOptions

    def __init__(self, url: BrokerUrl, options: RedisSentinelOptions) -> None:
        super().__init__(url, options)
        password = options.sentinel_password
        self._login = (options.sentinel_username, None if password is None else password.get_secret_value())

    async def start(self, sink: Sink) -> None:
        """Ask the sentinels, connect, and see that it is a primary."""
        self._named = await self._discover()
        self._address = self._named.address
        self._where = f"{_text(self._address)} (the primary, as the sentinels of {self.url} say)"
        await super().start(sink)
        await self._require_primary()

    async def check(self) -> None:
        """See that the server is still a primary, and the one that the sentinels name, as far as they answer."""
        await self._require_primary()
        try:
            named = await self._discover()
        except BrokerError:  # who names nobody says nothing against this link
            return
        # A sentinel that just started anew names the primary of its configuration file until the others tell it.
        if named.address != self._address and named.epoch >= self._named.epoch:
            raise unavailable(f"{_text(self._address)} was replaced: the sentinels of {self.url} name {named}")

    def _read_url(self) -> None:
        self._sentinels = [host_and_port(part, _DEFAULT_PORT) for part in self.url.netloc.split(",")]
        self._service = self.url.path[1:]
        if not self._service or "/" in self._service:
            raise ConfigurationError(
                f"redis: the path of the URL is the name of the service, not {self.url.path!r}: "
                f"{self.url.scheme}://host1:26379,host2:26379/mymaster"
            )

    async def _require_primary(self) -> None:
        if self._publisher is None:
            raise unavailable("the link is closed")
        role = await self._publisher.role()
        if role not in ("master", ""):  # nothing: an ACL does not grant ROLE
            raise unavailable(f"{self._where} says itself that it is a {role}")

    async def _discover(self) -> _Named:
        """Ask every sentinel, and wait for no more of them than it takes to be sure.

        Raises:
            BrokerError: None names a primary that is up, or they contradict each other.
        """
        answers: dict[str, _Named | BrokerError] = {}
        asking = {asyncio.create_task(self._ask(address)): _text(address) for address in self._sentinels}
        pending = set(asking)
        try:
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                answers.update((asking[task], task.result()) for task in done)
                named = [answer for answer in answers.values() if isinstance(answer, _Named) and not answer.is_down]
                most = Counter(named).most_common(1)
                if most and most[0][1] > len(self._sentinels) // 2:
                    return most[0][0]
        finally:
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending)
        return self._newest(answers)

    def _newest(self, answers: dict[str, _Named | BrokerError]) -> _Named:
        named = [answer for answer in answers.values() if isinstance(answer, _Named) and not answer.is_down]
        newest = max((answer.epoch for answer in named), default=0)
        found = {answer for answer in named if answer.epoch == newest}
        if len(found) == 1:
            return found.pop()
        words = "; ".join(f"{where}: {str(answer).removeprefix('redis: ')}" for where, answer in answers.items())
        if found:
            raise unavailable(
                f"the sentinels of {self.url} contradict each other ({words}): "
                f"see that all of them monitor the same {self._service!r}"
            )
        failures = [answer for answer in answers.values() if isinstance(answer, BrokerError)]
        if len(failures) == len(answers):
            for failure in failures:
                if not failure.retriable:
                    raise failure
        raise unavailable(f"no sentinel of {self.url} names a primary of {self._service!r} that is up ({words})")

    async def _ask(self, address: tuple[str, int]) -> _Named | BrokerError:
        connection = self._connection(address, *self._login)
        try:
            async with asyncio.timeout(self.options.connect_timeout_seconds):
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_command("SENTINEL", "MASTER", self._service)
                return _named(await connection.read_response())
        except TimeoutError:
            return unavailable(f"no answer within {self.options.connect_timeout_seconds:g} s")
        except (RedisError, OSError) as error:
            refused = self._refusal(error, f"the sentinel {_text(address)}")
            refused.__cause__ = error
            return refused
        finally:
            abort(connection)

    def _refusal(self, error: Exception, where: str) -> BrokerError:
        """Return the error of one sentinel, in words that say what to do."""
        if isinstance(error, ResponseError) and "No such master" in str(error):
            words = f"{where} knows no service {self._service!r}: the path of the URL must be a name it monitors"
            return BrokerError(words, adapter="redis", retriable=False)
        found = connect_error(error, where)
        if isinstance(found, BrokerAuthenticationError):
            way_out = "set sentinel_password, and sentinel_username where it has users"
            return BrokerAuthenticationError(f"{where} refused the credentials: {error}; {way_out}", adapter="redis")
        if isinstance(error, ResponseError) and isinstance(found, BrokerUnavailableError):
            return unavailable(f"{where} refused SENTINEL MASTER, is it a sentinel? {error}")
        return found


def _named(reply: Any) -> _Named:
    """Read the answer to SENTINEL MASTER, names and values in turn."""
    told = dict(zip(reply[::2], reply[1::2], strict=False))
    flags = set(told[b"flags"].split(b","))
    return _Named(
        address=(told[b"ip"].decode(), int(told[b"port"])),
        epoch=int(told[b"config-epoch"]),
        is_down=not flags.isdisjoint({b"s_down", b"o_down"}) or b"master" not in flags,
    )


def _text(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
