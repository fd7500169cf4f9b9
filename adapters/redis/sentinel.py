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
from typing import TYPE_CHECKING, Any, ClassVar, Final

import hiredis
from pydantic import SecretStr  # noqa: TC002  # pydantic reads the annotation

from backplane.adapters.redis import RedisBroadcaster
from backplane.adapters.redis.connect import Endpoint, first_usable, text
from backplane.adapters.redis.error import unavailable
from backplane.adapters.redis.link import RedisLink
from backplane.adapters.redis.options import RedisOptions, host_and_port
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerAuthenticationError, BrokerError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from backplane.adapters.redis.link import Address
    from backplane.adapters.redis.options import Login
    from backplane.broadcaster import BrokerUrl, Options, Sink

__all__ = ["RedisSentinelBroadcaster", "RedisSentinelOptions"]

_DEFAULT_PORT: Final = 26379

_Host = tuple[str, int]


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

    address: _Host
    epoch: int
    is_down: bool

    def __str__(self) -> str:
        return f"{text(self.address)}{', which is down' if self.is_down else ''}"


class RedisSentinelBroadcaster(RedisBroadcaster):
    """One link to the primary of one service. The URL names the sentinels, its path is the name of the service.

    The sentinels of the URL know others, which are asked where those of the URL name no primary.
    """

    options_class: ClassVar[type[Options]] = RedisSentinelOptions
    _where_to_go = "the sentinels will name another server"

    def __init__(self, url: BrokerUrl, options: RedisSentinelOptions) -> None:
        self._learned: set[_Host] = set()
        super().__init__(url, options)
        password = options.sentinel_password
        self._login: Login = (options.sentinel_username, None if password is None else password.get_secret_value())

    async def start(self, sink: Sink) -> None:
        """Ask the sentinels, connect, and see that it is a primary."""
        self._named = await self._discover()
        where = f"{text(self._named.address)} (the primary, as the sentinels of {self.url} say)"
        self._endpoint = Endpoint(self._named.address, where, self.url, self.options)
        await super().start(sink)

    async def check(self) -> None:
        """See that the server is still a primary, and the one that the sentinels name, as far as they answer."""
        await self._check_connections()
        try:
            named = await self._discover()
        except BrokerError:  # who names nobody says nothing against this link
            return
        # A sentinel that just started anew names the primary of its configuration file until the others tell it.
        if named.address != self._named.address and named.epoch >= self._named.epoch:
            raise unavailable(f"{text(self._named.address)} was replaced: the sentinels of {self.url} name {named}")

    def _read_url(self) -> Endpoint:
        self._sentinels = [host_and_port(part, _DEFAULT_PORT) for part in self.url.netloc.split(",")]
        self._service = self.url.path[1:]
        if not self._service or "/" in self._service:
            raise ConfigurationError(
                f"redis: the path of the URL is the name of the service, not {self.url.path!r}: "
                f"{self.url.scheme}://host1:26379,host2:26379/mymaster"
            )
        return Endpoint(self._sentinels[0], str(self.url), self.url, self.options)  # until they name the primary

    async def _discover(self) -> _Named:
        """Ask every sentinel that is known, and wait for no more of them than it takes to be sure.

        The others that those of the URL know can have addresses which are good inside their network only.

        Raises:
            BrokerError: None names a primary that is up, or they contradict each other.
        """
        answers: dict[str, _Named | BrokerError] = {}
        known = {*self._sentinels, *self._learned}
        asking = {asyncio.create_task(self._ask(address)): text(address) for address in known}
        pending = set(asking)
        try:
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                answers.update((asking[task], task.result()) for task in done)
                for hosts in (set(map(text, self._sentinels)), set(asking.values())):
                    if (named := _majority(answers, hosts)) is not None:
                        return named
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

    async def _ask(self, host: _Host) -> _Named | BrokerError:
        where = f"the sentinel {text(host)}"
        endpoint = Endpoint(host, where, self.url, self.options)

        async def opened(address: Address) -> RedisLink:
            link = RedisLink()
            await endpoint.connect(link, address, self._login)
            return link

        link: RedisLink | None = None
        try:
            async with PatientTimeout(self.options.connect_timeout_seconds):
                link = await first_usable(await endpoint.addresses(), opened)
                named = _named(await link.ask(b"SENTINEL", b"MASTER", self._service.encode()))
                if others := await self._others(link):
                    self._learned = {host, *others}
                return named
        except TimeoutError:
            return unavailable(f"no answer within {self.options.connect_timeout_seconds:g} s")
        except (BrokerError, hiredis.ReplyError) as error:
            refused = self._refusal(error, where)
            refused.__cause__ = error
            return refused
        finally:
            if link is not None:
                link.end("it was asked")

    async def _others(self, link: RedisLink) -> list[_Host]:
        """Return the other sentinels that it knows; none where it does not grant the question."""
        try:
            answer = await link.ask(b"SENTINEL", b"SENTINELS", self._service.encode())
        except hiredis.ReplyError:
            return []
        return [_address(dict(zip(entry[::2], entry[1::2], strict=False))) for entry in answer]

    def _refusal(self, error: Exception, where: str) -> BrokerError:
        """Return the error of one sentinel, in words that say what to do."""
        if "No such master" in str(error):
            words = f"{where} knows no service {self._service!r}: the path of the URL must be a name it monitors"
            return BrokerError(words, adapter="redis", retriable=False)
        if isinstance(error, hiredis.ReplyError):
            return unavailable(f"{where} refused SENTINEL MASTER, is it a sentinel? {error}")
        if isinstance(error, BrokerAuthenticationError):
            way_out = "set sentinel_password, and sentinel_username where it has users"
            words = f"{str(error).removeprefix('redis: ')}; {way_out}"
            return BrokerAuthenticationError(words, adapter="redis")
        assert isinstance(error, BrokerError)
        return error


def _majority(answers: Mapping[str, _Named | BrokerError], hosts: Collection[str]) -> _Named | None:
    """Return the primary that more than half of these hosts name."""
    named = [answers[host] for host in hosts if host in answers]
    up = Counter(answer for answer in named if isinstance(answer, _Named) and not answer.is_down)
    most = up.most_common(1)
    return most[0][0] if most and most[0][1] > len(hosts) // 2 else None


def _named(reply: Any) -> _Named:
    """Read the answer to SENTINEL MASTER, names and values in turn."""
    fields = dict(zip(reply[::2], reply[1::2], strict=False))
    flags = set(fields[b"flags"].split(b","))
    return _Named(
        address=_address(fields),
        epoch=int(fields[b"config-epoch"]),
        is_down=not flags.isdisjoint({b"s_down", b"o_down"}) or b"master" not in flags,
    )


def _address(fields: dict[bytes, bytes]) -> _Host:
    return fields[b"ip"].decode(), int(fields[b"port"])
