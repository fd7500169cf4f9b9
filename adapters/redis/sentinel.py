"""`redis+sentinel://` and `rediss+sentinel://`: the primary that Redis Sentinel names, looked up at each start.

All sentinels are asked at the same time. The primary is the one that more than half of them name. Without a majority it
is the one with the newest configuration (`config-epoch`, by which sentinels agree among themselves:
https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/).

PUBLISH succeeds on a replica and on a former primary, and reaches only the subscribers there; `check` detects both.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

import hiredis
from pydantic import SecretStr  # noqa: TC002  # pydantic reads the annotation

from backplane.adapters.redis.address_race import first_usable
from backplane.adapters.redis.broadcaster import RedisBroadcaster
from backplane.adapters.redis.connect import Endpoint
from backplane.adapters.redis.errors import unavailable
from backplane.adapters.redis.link import RedisLink
from backplane.adapters.redis.options import RedisOptions
from backplane.adapters.shared.error_chain import reason_of
from backplane.adapters.shared.server_address import format_address
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerAuthenticationError, BrokerError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from backplane.adapters.redis.credentials import Credentials
    from backplane.adapters.redis.server_info import Address
    from backplane.broadcaster import BrokerUrl, Options, Sink

__all__ = ["RedisSentinelBroadcaster", "RedisSentinelOptions"]

_DEFAULT_PORT: Final = 26379

_Host = tuple[str, int]


class RedisSentinelOptions(RedisOptions):
    """Options of `redis+sentinel://` and `rediss+sentinel://`.

    User and password of the URL are those of the data nodes and are never sent to a sentinel.
    """

    sentinel_username: str | None = None
    """User at the sentinels."""
    sentinel_password: SecretStr | None = None
    """Password at the sentinels, where they require one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _NamedPrimary:
    """The primary that one sentinel names, or several that agree."""

    address: _Host
    epoch: int
    is_down: bool

    def __str__(self) -> str:
        return f"{format_address(self.address)}{', which is down' if self.is_down else ''}"


class RedisSentinelBroadcaster(RedisBroadcaster):
    """One link to the primary of one service. The URL names the sentinels, its path is the name of the service.

    The sentinels of the URL name others. Those are asked where the ones of the URL name no primary.
    """

    options_class: ClassVar[type[Options]] = RedisSentinelOptions
    _replica_hint: ClassVar[str] = "the sentinels will name another server"

    def __init__(self, url: BrokerUrl, options: RedisSentinelOptions) -> None:
        self._learned: set[_Host] = set()
        self._named: _NamedPrimary | None = None
        super().__init__(url, options)
        password = options.sentinel_password
        self._credentials: Credentials = (
            options.sentinel_username,
            None if password is None else password.get_secret_value(),
        )

    async def start(self, sink: Sink) -> None:
        """Ask the sentinels, connect to the server that they name, and check that it is a primary."""
        self._named = named = await self._discover()
        where = f"{format_address(named.address)} (the primary that the sentinels of {self.url} name)"
        self._primary.endpoint = Endpoint(named.address, where, self.url, self.options)
        await super().start(sink)

    async def check(self) -> None:
        """Check that the server is still a primary, and the one that the sentinels name, as far as they answer.

        Raises:
            BrokerUnavailableError: It is not.
        """
        await self._check_connections()
        current = self._named
        try:
            named = await self._discover()
        except BrokerError:  # without an answer nothing contradicts the link
            return
        # A sentinel that has just started names the primary of its configuration file, with the epoch of that time,
        # until the other sentinels have updated it.
        if current is not None and named.address != current.address and named.epoch >= current.epoch:
            raise unavailable(
                f"{format_address(current.address)} was replaced: the sentinels of {self.url} name {named}"
            )

    def _read_url(self) -> Endpoint:
        self._sentinels: list[_Host] = self.url.servers(_DEFAULT_PORT, adapter="redis")
        self._service: str = self.url.path[1:]
        if not self._service or "/" in self._service:
            raise ConfigurationError(
                f"redis: the path of the URL is the name of the service, not {self.url.path!r}: "
                f"{self.url.scheme}://host1:26379,host2:26379/mymaster"
            )
        return Endpoint(self._sentinels[0], str(self.url), self.url, self.options)  # until they name the primary

    async def _discover(self) -> _NamedPrimary:
        """Ask every known sentinel, and return as soon as a majority of those of the URL, or of all, agrees.

        The others are not enough by themselves: their addresses can be reachable inside their own network only.

        Raises:
            BrokerError: None names a primary that is up, or they contradict each other.
        """
        answers: dict[str, _NamedPrimary | BrokerError] = {}
        known = {*self._sentinels, *self._learned}
        asking = {asyncio.create_task(self._ask(address)): format_address(address) for address in known}
        pending = set(asking)
        try:
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                answers.update((asking[task], task.result()) for task in done)
                for hosts in (set(map(format_address, self._sentinels)), set(asking.values())):
                    if (named := _majority(answers, hosts)) is not None:
                        return named
        finally:
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending)
        return self._newest(answers)

    def _newest(self, answers: Mapping[str, _NamedPrimary | BrokerError]) -> _NamedPrimary:
        """Return the primary of the newest configuration among the answers.

        Raises:
            BrokerError: None names a primary that is up, or two of the newest epoch contradict each other.
        """
        named = [answer for answer in answers.values() if isinstance(answer, _NamedPrimary) and not answer.is_down]
        newest_epoch = max((answer.epoch for answer in named), default=0)
        newest = {answer for answer in named if answer.epoch == newest_epoch}
        if len(newest) == 1:
            return newest.pop()
        listed = "; ".join(
            f"{where}: {reason_of(answer) if isinstance(answer, BrokerError) else answer}"
            for where, answer in answers.items()
        )
        if newest:
            raise unavailable(
                f"the sentinels of {self.url} contradict each other ({listed}): "
                f"see that all of them monitor the same {self._service!r}"
            )
        failures = [answer for answer in answers.values() if isinstance(answer, BrokerError)]
        if len(failures) == len(answers):
            for failure in failures:
                if not failure.retriable:
                    raise failure
        raise unavailable(f"no sentinel of {self.url} names a primary of {self._service!r} that is up ({listed})")

    async def _ask(self, host: _Host) -> _NamedPrimary | BrokerError:
        """Return the primary that one sentinel names, or why it names none."""
        where = f"the sentinel {format_address(host)}"
        endpoint = Endpoint(host, where, self.url, self.options)

        async def open_link(address: Address) -> RedisLink:
            link = RedisLink()
            await endpoint.connect(link, address, self._credentials)
            return link

        link: RedisLink | None = None
        try:
            async with PatientTimeout(self.options.connect_timeout_seconds):
                link = await first_usable(await endpoint.addresses(), open_link)
                named = _read_primary(await link.ask(b"SENTINEL", b"MASTER", self._service.encode()))
                if others := await self._other_sentinels(link):
                    self._learned = {host, *others}
                return named
        except TimeoutError:
            return unavailable(f"no answer within {self.options.connect_timeout_seconds:g} s")
        except (BrokerError, hiredis.ReplyError) as error:
            refusal = self._refusal(error, where)
            refusal.__cause__ = error
            return refusal
        finally:
            if link is not None:
                link.end("it was asked")

    async def _other_sentinels(self, link: RedisLink) -> list[_Host]:
        """Return the other sentinels that it knows; none where an ACL denies the command."""
        try:
            reply = await link.ask(b"SENTINEL", b"SENTINELS", self._service.encode())
        except hiredis.ReplyError:
            return []
        return [_read_address(dict(zip(entry[::2], entry[1::2], strict=False))) for entry in reply]

    def _refusal(self, error: Exception, where: str) -> BrokerError:
        """Return the error of one sentinel, with what to do about it."""
        if "No such master" in str(error):
            message = f"{where} knows no service {self._service!r}: the path of the URL must be a name it monitors"
            return BrokerError(message, adapter="redis", retriable=False)
        if isinstance(error, hiredis.ReplyError):
            return unavailable(f"{where} refused SENTINEL MASTER, is it a sentinel? {error}")
        if isinstance(error, BrokerAuthenticationError):
            hint = "set sentinel_password, and sentinel_username where it has users"
            return BrokerAuthenticationError(f"{reason_of(error)}; {hint}", adapter="redis")
        assert isinstance(error, BrokerError)
        return error


def _majority(answers: Mapping[str, _NamedPrimary | BrokerError], hosts: Collection[str]) -> _NamedPrimary | None:
    """Return the primary that more than half of these hosts name."""
    named = [answers[host] for host in hosts if host in answers]
    up = Counter(answer for answer in named if isinstance(answer, _NamedPrimary) and not answer.is_down)
    most = up.most_common(1)
    return most[0][0] if most and most[0][1] > len(hosts) // 2 else None


def _read_primary(reply: Any) -> _NamedPrimary:
    """Read the reply to SENTINEL MASTER: names and values in turn."""
    fields = dict(zip(reply[::2], reply[1::2], strict=False))
    flags = set(fields[b"flags"].split(b","))
    return _NamedPrimary(
        address=_read_address(fields),
        epoch=int(fields[b"config-epoch"]),
        is_down=not flags.isdisjoint({b"s_down", b"o_down"}) or b"master" not in flags,
    )


def _read_address(fields: Mapping[bytes, bytes]) -> _Host:
    return fields[b"ip"].decode(), int(fields[b"port"])
