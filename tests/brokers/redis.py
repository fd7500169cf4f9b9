"""Redis for tests: a given one, the machine's `redis-server`, or one in Docker."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.brokers.broker import Broker, BrokerMissingError, ContainerBroker, GivenBroker, ProcessBroker
from tests.brokers.certificate import self_signed_certificate
from tests.brokers.process import install

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["RedisConfig", "RedisProcess", "empty", "private_redis", "shared_redis"]

_IMAGE = "redis:7.4.2-alpine"  # as in docker-compose.yml


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisConfig:
    """Configuration of a private Redis.

    Attributes:
        password: Password of the default user.
        users: Rules of further users, as for `ACL SETUSER`: `alice on >secret &room-* +@all`.
        login: User and password of the URL. Defaults to the password.
        tls: Speak TLS only, with a self-signed certificate that the URL names as its authority.
        arguments: Further arguments of the command line: `("--client-output-buffer-limit", "pubsub 1mb 512kb 5")`.
    """

    password: str = ""
    users: tuple[str, ...] = ()
    login: str = ""
    tls: bool = False
    arguments: tuple[str, ...] = ()

    def command_line(self) -> list[str]:
        """The arguments that are the same for every server."""
        line = ["--save", "", "--appendonly", "no", *self.arguments]
        if self.password:
            line += ["--requirepass", self.password]
        for rules in self.users:
            line += ["--user", *rules.split()]
        return line

    def url(self, port: int, certificate: Path | None = None) -> str:
        """The URL of a server with this configuration."""
        login = self.login or (self.password and f":{self.password}")
        address = f"{login}@127.0.0.1:{port}" if login else f"127.0.0.1:{port}"
        return f"rediss://{address}?ssl_ca_certs={certificate}" if certificate else f"redis://{address}"


def shared_redis(folder: Path) -> Broker:
    """Return the Redis of the whole run, not started: the one at `BACKPLANE_TEST_REDIS_URL`, else a private one.

    Raises:
        BrokerMissingError: This machine has none.
    """
    url = os.environ.get("BACKPLANE_TEST_REDIS_URL")
    return GivenBroker(url) if url else private_redis(RedisConfig(), folder)


def private_redis(config: RedisConfig, folder: Path) -> Broker:
    """Return a private Redis, not started: `redis-server`, installed if permitted, else one in Docker.

    Raises:
        BrokerMissingError: This machine has none.
    """
    program = shutil.which("redis-server") or install("redis-server")
    if program is not None:
        return RedisProcess(program, config, folder)
    if config.tls:
        raise BrokerMissingError("no redis-server, and the one in Docker speaks no TLS here")
    return _RedisContainer(config)


def empty(broker: Broker) -> None:
    """Delete the keys of a Redis, except of one that is given by a URL: there they can belong to others."""
    from redis import Redis

    client: Any = Redis
    if broker.restartable:
        with client.from_url(broker.url) as link:
            link.flushall()


class RedisProcess(ProcessBroker):
    """`redis-server` as a program of this machine.

    Args:
        program: Its path.
        config: Its configuration.
        folder: An empty folder for its data and its log.
        certificate: A shared certificate for TLS; its key is in the same folder. Defaults to a new one.
    """

    def __init__(self, program: str, config: RedisConfig, folder: Path, certificate: Path | None = None) -> None:
        super().__init__(folder)
        self._program = program
        self._config = config
        self.certificate = certificate or (self_signed_certificate(folder) if config.tls else None)
        self.url = config.url(self.port, self.certificate)

    def command(self) -> list[str]:
        """Return the command line; there is no configuration file."""
        return [self._program, "--bind", "127.0.0.1", *self._config.command_line(), *self.port_arguments()]

    def port_arguments(self) -> list[str]:
        """Return the arguments for its port, with TLS or without."""
        if self.certificate is None:
            return ["--port", str(self.port)]
        line = ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
        files = {"cert": self.certificate, "key": self.certificate.parent / "key.pem", "ca-cert": self.certificate}
        for name, file in files.items():
            line += [f"--tls-{name}-file", str(file)]
        return line

    def answers(self) -> bool:
        """Whether it serves commands."""
        return _answers_ping(self.port, self.certificate)


class _RedisContainer(ContainerBroker):
    def __init__(self, config: RedisConfig) -> None:
        super().__init__(_IMAGE, 6379)
        self._config = config
        self.url = config.url(self.port)

    def command(self) -> list[str]:
        return ["redis-server", *self._config.command_line()]

    def start(self) -> None:
        try:
            super().start()
        except BrokerMissingError as error:
            raise BrokerMissingError(f"no BACKPLANE_TEST_REDIS_URL, no redis-server, {error}") from error

    def answers(self) -> bool:
        return _answers_ping(self.port, None)


def _answers_ping(port: int, certificate: Path | None) -> bool:
    """Whether a Redis serves commands here, also if it requires a password."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as plain:
        context = ssl.create_default_context(cafile=certificate) if certificate else None
        with context.wrap_socket(plain, server_hostname="127.0.0.1") if context else plain as link:
            link.sendall(b"PING\r\n")
            return link.recv(64).startswith((b"+PONG", b"-NOAUTH", b"-NOPERM"))
    return False
