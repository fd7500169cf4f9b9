"""Redis Sentinel for tests: a primary, its replica, and three sentinels."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from tests.brokers.broker import BrokerMissingError
from tests.brokers.certificate import self_signed_certificate
from tests.brokers.process import install, made, wait_until
from tests.brokers.redis import RedisConfig, RedisProcess

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["SERVICE", "RedisSentinels", "private_sentinels", "sentinel_of"]

SERVICE = "rooms"
"""Name of the service at the sentinels."""

# Short times, so that tests are fast. Redis 7.0 makes the periods configurable; they default to 10, 2, 1 and 30 s.
# The period of PING stays at 1 s: while the primary is down, a sentinel promotes only a replica whose last INFO is not
# older than five of these periods, and it then asks for INFO once per second.
_OPTIONS = {"down-after-milliseconds": 500, "failover-timeout": 2000, "parallel-syncs": 1}
_PERIODS = {"info-period": 200, "publish-period": 200, "ask-period": 100, "tilt-period": 1000}


def private_sentinels(
    folder: Path, *, password: str = "", sentinel_password: str = "", tls: bool = False
) -> RedisSentinels:
    """Return a private primary, replica and three sentinels, not started.

    Raises:
        BrokerMissingError: This machine has no `redis-server`.
    """
    program = _program()
    certificate = self_signed_certificate(folder) if tls else None
    return RedisSentinels(program, folder, password, sentinel_password, certificate)


def sentinel_of(port: int, folder: Path, *, down_after_milliseconds: int) -> RedisProcess:
    """Return a single sentinel, not started, for a server without a password.

    Raises:
        BrokerMissingError: This machine has no `redis-server`.
    """
    options = {**_OPTIONS, "down-after-milliseconds": down_after_milliseconds}
    return _SentinelProcess(_program(), RedisConfig(), folder, port=port, options=options)


class RedisSentinels:
    """The servers of one service, as programs of this machine, started on entry and stopped on exit.

    Attributes:
        nodes: The data nodes; the first is the primary at first.
        sentinels: The sentinels.
        url: The URL of the service at all sentinels, for `Backplane`.
    """

    def __init__(
        self, program: str, folder: Path, password: str, sentinel_password: str, certificate: Path | None
    ) -> None:
        self._stack = ExitStack()
        self._passwords = (password, sentinel_password)
        self._certificate = certificate
        arguments = ["--repl-diskless-sync-delay", "0", "--masterauth", password]
        arguments += ["--tls-replication", "yes"] if certificate else []
        config = RedisConfig(password=password, arguments=tuple(arguments))
        primary = RedisProcess(program, config, made(folder / "primary"), certificate)
        arguments += ["--replicaof", "127.0.0.1", str(primary.port)]
        config = replace(config, arguments=tuple(arguments))
        self.nodes = (primary, RedisProcess(program, config, made(folder / "replica"), certificate))
        self.sentinels = [
            _SentinelProcess(
                program,
                RedisConfig(password=sentinel_password),
                made(folder / f"sentinel-{number}"),
                certificate,
                port=primary.port,
                password=password,
            )
            for number in range(3)
        ]
        self.url = self.url_of(self.sentinels)

    def url_of(self, sentinels: Sequence[RedisProcess]) -> str:
        """Return the URL of the service at these sentinels."""
        password, sentinel_password = self._passwords
        login = f":{password}@" if password else ""
        options = [f"sentinel_password={sentinel_password}"] if sentinel_password else []
        options += [f"ssl_ca_certs={self._certificate}"] if self._certificate else []
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
        scheme = "rediss+sentinel" if self._certificate else "redis+sentinel"
        return f"{scheme}://{login}{hosts}/{SERVICE}{'?' if options else ''}{'&'.join(options)}"

    def ask(self, server: RedisProcess, *command: str) -> Any:
        """Return the answer of a server to a command; `None` if it does not answer, or refuses."""
        from redis import Redis, RedisError

        client: Any = Redis
        settings = {
            "port": server.port,
            "password": self._passwords[server in self.sentinels] or None,
            "socket_timeout": 1,
            "protocol": 2,
            "decode_responses": True,
        }
        if self._certificate:
            settings |= {"ssl": True, "ssl_ca_certs": str(self._certificate)}
        with suppress(RedisError), client(host="127.0.0.1", **settings) as link:
            return link.execute_command(*command)

    def other(self, node: RedisProcess) -> RedisProcess:
        """Return the data node other than `node`."""
        return self.nodes[node is self.nodes[0]]

    def failover(self) -> None:
        """Make a sentinel promote the replica, and wait until all of them name it."""
        old, new = self.nodes

        def is_done() -> bool:
            # Refused during a failover; one that was aborted is started again.
            if self._named(self.sentinels[0]) == old.port:
                self.ask(self.sentinels[0], "SENTINEL", "FAILOVER", SERVICE)
            return self._is_promoted(new)

        wait_until(is_done, f"the sentinels replace {old.url} by {new.url}", seconds=40)

    def replace_unseen(self) -> None:
        """Make the sentinels name the replica, as a second primary, while the old primary is not demoted.

        This is the state of clients that reach an old primary which the sentinels cannot reach, and of all clients in
        the seconds before the sentinels have demoted it.
        """
        for sentinel in self.sentinels:
            self.ask(sentinel, "SENTINEL", "REMOVE", SERVICE)
        self.ask(self.nodes[1], "REPLICAOF", "NO", "ONE")
        for sentinel in self.sentinels:
            self.ask(sentinel, "SENTINEL", "MONITOR", SERVICE, "127.0.0.1", str(self.nodes[1].port), "2")

    def demote(self, node: RedisProcess) -> None:
        """Make `node` a replica of the other node, as an operator can; its clients keep their connections."""
        self.ask(node, "REPLICAOF", "127.0.0.1", str(self.other(node).port))
        self.wait_until_demoted(node)

    def wait_until_promoted(self, node: RedisProcess) -> None:
        """Wait until `node` is a primary and every sentinel names it."""
        wait_until(lambda: self._is_promoted(node), f"the sentinels name {node.url}", seconds=60)

    def wait_until_demoted(self, node: RedisProcess) -> None:
        """Wait until `node` reports that it is a replica."""
        wait_until(lambda: (self.ask(node, "ROLE") or [""])[0] == "slave", f"{node.url} is a replica", seconds=30)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            wait_until(lambda: self.ask(self.nodes[1], "ROLE")[3] == "connected", "the replica has its primary")
            for sentinel in self.sentinels:
                stack.enter_context(sentinel)
                for name, milliseconds in _PERIODS.items():
                    self.ask(sentinel, "SENTINEL", "DEBUG", name, str(milliseconds))
            wait_until(lambda: all(map(self._knows_all, self.sentinels)), "the sentinels know all", seconds=30)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _named(self, sentinel: RedisProcess) -> int:
        """Return the port of the primary that a sentinel names."""
        return int((self.ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE) or ["0"])[-1])

    def _is_promoted(self, node: RedisProcess) -> bool:
        return (
            all(self._named(sentinel) == node.port for sentinel in self.sentinels)
            and (self.ask(node, "ROLE") or [""])[0] == "master"
        )

    def _knows_all(self, sentinel: RedisProcess) -> bool:
        """Whether it knows the other sentinels, and a replica that could take over."""
        others: list[list[str]] | None = self.ask(sentinel, "SENTINEL", "SENTINELS", SERVICE)
        replicas: list[list[str]] | None = self.ask(sentinel, "SENTINEL", "REPLICAS", SERVICE)
        if not others or not replicas:
            return False
        (replica,) = replicas
        fields = dict(zip(replica[::2], replica[1::2], strict=True))
        return len(others) == 2 and fields.get("master-link-status") == "ok"


class _SentinelProcess(RedisProcess):
    def __init__(
        self,
        program: str,
        config: RedisConfig,
        folder: Path,
        certificate: Path | None = None,
        *,
        port: int,
        password: str = "",
        options: dict[str, int] = _OPTIONS,
    ) -> None:
        super().__init__(program, config, folder, certificate)
        options_lines = [f"sentinel {name} {SERVICE} {value}" for name, value in options.items()]
        lines = [f"sentinel monitor {SERVICE} 127.0.0.1 {port} 2", *options_lines]
        lines += [f"sentinel auth-pass {SERVICE} {password}"] if password else []
        lines += ["tls-replication yes"] if certificate else []
        self._file = folder / "sentinel.conf"  # the sentinel writes to it too
        self._file.write_text("\n".join([*lines, ""]))

    def command(self) -> list[str]:
        login = ["--requirepass", self._config.password] if self._config.password else []
        return [self._program, str(self._file), "--sentinel", "--bind", "127.0.0.1", *login, *self.port_arguments()]


def _program() -> str:
    program = shutil.which("redis-server") or install("redis-server")
    if program is None:
        raise BrokerMissingError("no redis-server, which runs as a sentinel too")
    return program
