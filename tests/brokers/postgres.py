"""PostgreSQL for tests: a given one, the machine's `postgres`, or one in Docker."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import psutil

from backplane.adapters.postgres.schema import create_statements
from tests.brokers.broker import Broker, BrokerMissingError, ContainerBroker, GivenBroker, ProcessBroker
from tests.brokers.certificate import self_signed_certificate
from tests.brokers.process import install, locked

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

__all__ = [
    "DURABLE",
    "PostgresConfig",
    "PostgresProcess",
    "answers_sessions",
    "owned_folder",
    "private_postgres",
    "programs",
    "shared_postgres",
    "unprivileged",
]

_IMAGE: Final = "postgres:18.1-alpine"  # as in docker-compose.yml
_OWNER: Final = "postgres"  # neither the server nor PgBouncer runs as root
_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "80",
    "autovacuum": "off",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresConfig:
    """Configuration of a private PostgreSQL.

    Attributes:
        settings: Of `postgresql.conf`.
        sql: Statements that are executed before the first start.
        login: User and password of the URL. With one, passwords are checked.
        tls: Speak TLS, with a self-signed certificate that the URL names as its authority.
    """

    settings: tuple[str, ...] = ()
    sql: tuple[str, ...] = ()
    login: str = _OWNER
    tls: bool = False


DURABLE: Final = PostgresConfig(sql=(create_statements("backplane"),))
"""A server that has the tables of `durable=true`."""


def shared_postgres(folder: Path) -> Broker:
    """Return the PostgreSQL of the run, not started: the one at `BACKPLANE_TEST_POSTGRES_URL`, else a private one.

    Raises:
        BrokerMissingError: This machine has none.
    """
    url = os.environ.get("BACKPLANE_TEST_POSTGRES_URL")
    return GivenBroker(url) if url else private_postgres(PostgresConfig(), folder)


def private_postgres(config: PostgresConfig, folder: Path) -> Broker:
    """Return a private PostgreSQL, not started: the machine's, installed if permitted, else one in Docker.

    Raises:
        BrokerMissingError: This machine has none.
    """
    found = programs()
    if found is not None:
        return PostgresProcess(found, config, folder)
    if config != PostgresConfig():
        raise BrokerMissingError("no postgres, and the one in Docker is not configurable here")
    return _PostgresContainer()


def programs() -> Path | None:
    """Return the folder with `postgres`, `initdb` and others; Debian keeps them out of PATH."""
    return _programs() or (_programs() if install("psql", "postgresql") else None)


def _programs() -> Path | None:
    found = shutil.which("postgres")
    if found is not None:
        return Path(found).resolve().parent
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(folders, key=lambda path: float(path.parent.name), default=None)


def unprivileged(command: Sequence[str]) -> list[str]:
    """Return the command as the user who may run it: not root."""
    if os.geteuid() != 0:
        return list(command)
    return ["setpriv", f"--reuid={_OWNER}", f"--regid={_OWNER}", "--clear-groups", *command]


def owned_folder() -> Path:
    """Return a new folder that this user can enter; those of pytest belong to root alone."""
    folder = Path(tempfile.mkdtemp(prefix="bp-pg-"))
    _give(folder)
    return folder


def _give(path: Path) -> None:
    if os.geteuid() == 0:
        shutil.chown(path, _OWNER, _OWNER)


class PostgresProcess(ProcessBroker):
    """`postgres` as a program of this machine.

    Args:
        programs: The folder of its programs.
        config: Its configuration.
        folder: An empty folder for its log.

    Attributes:
        data: The folder of its data.
    """

    def __init__(self, programs: Path, config: PostgresConfig, folder: Path) -> None:
        super().__init__(folder)
        self._programs = programs
        self._config = config
        self.data: Path = Path()
        self._stack = ExitStack()
        self._certificate = self_signed_certificate(folder) if config.tls else None
        query = f"?sslrootcert={self._certificate}" if self._certificate else ""
        self.url = f"postgres://{config.login}@127.0.0.1:{self.port}/postgres{query}"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._placed())
            self._fill()
            self.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def _placed(self) -> Generator[None]:
        """Give it a folder for its data; end it, and delete them, on exit."""
        place = owned_folder()
        self.data = place / "data"
        try:
            yield
        finally:
            self.stop()
            shutil.rmtree(place)

    def command(self) -> list[str]:
        """Return the command; the data are in a folder that `__enter__` makes."""
        settings = [f"{name}={value}" for name, value in _SETTINGS.items()]
        settings += [f"port={self.port}", f"unix_socket_directories={self.data.parent}", *self._config.settings]
        if self._certificate is not None:
            settings += ["ssl=on", "ssl_cert_file=cert.pem", "ssl_key_file=key.pem"]
        return unprivileged(
            [
                str(self._programs / "postgres"),
                "-D",
                str(self.data),
                *(part for text in settings for part in ("-c", text)),
            ]
        )

    def answers(self) -> bool:
        """Whether it takes sessions."""
        return answers_sessions(self.port)

    def stop(self) -> None:
        """End it, and its sessions with it: "fast", not "smart"."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
        super().stop()

    def kill9(self) -> None:
        """Kill it and its sessions, which would keep its memory for a while."""
        children = self._family()[1:]
        super().kill9()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children)

    def freeze(self) -> None:
        """Send SIGSTOP, to its sessions too."""
        for process in self._family():
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self) -> None:
        """Send SIGCONT, to its sessions too."""
        for process in reversed(self._family()):
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def promote(self) -> None:
        """Make a standby the primary; it takes writes when this returns."""
        command = [str(self._programs / "pg_ctl"), "promote", "-w", "-s", "-D", str(self.data)]
        subprocess.run(unprivileged(command), check=True, capture_output=True)

    @contextmanager
    def standby(self, folder: Path) -> Generator[PostgresProcess]:
        """Start a copy of this running server that follows it, as its standby.

        Args:
            folder: An empty folder for its log.
        """
        standby = PostgresProcess(self._programs, self._config, folder)
        with standby._placed():
            source = f"host=127.0.0.1 port={self.port} user={_OWNER}"
            command = [str(self._programs / "pg_basebackup"), "-D", str(standby.data), "-R", "-X", "stream"]
            subprocess.run(unprivileged([*command, "-c", "fast", "-d", source]), check=True, capture_output=True)
            standby.start()
            yield standby

    def _family(self) -> list[psutil.Process]:
        process = psutil.Process(self._runtime().pid)
        return [process, *process.children(recursive=True)]

    def _fill(self) -> None:
        """Copy new data, and execute the statements of the configuration."""
        shutil.copytree(_template(self._programs), self.data, copy_function=shutil.copy)
        if ":" in self._config.login:
            (self.data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        elif self._config.tls:
            (self.data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 trust\n")
        if self._certificate is not None:
            for name, source in (("cert.pem", self._certificate), ("key.pem", self._certificate.parent / "key.pem")):
                shutil.copy(source, self.data / name)
                (self.data / name).chmod(0o600)
        for path in (self.data, *self.data.rglob("*")):
            _give(path)
        self.data.chmod(0o700)
        if self._config.sql:
            _execute(self._programs, self.data, self._config.sql)


class _PostgresContainer(ContainerBroker):
    def __init__(self) -> None:
        super().__init__(_IMAGE, 5432)
        self.url = f"postgres://{_OWNER}@127.0.0.1:{self.port}/postgres"

    def command(self) -> Sequence[str]:
        return ["postgres", "-c", "fsync=off"]

    def environment(self) -> dict[str, str]:
        return {"POSTGRES_HOST_AUTH_METHOD": "trust"}

    def answers(self) -> bool:
        return answers_sessions(self.port)


def _execute(programs: Path, data: Path, statements: Sequence[str]) -> None:
    """Execute statements on the data of a server that does not run."""
    command = [str(programs / "postgres"), "--single", "-j", "-D", str(data), "postgres"]
    lines = "".join(f"{statement};\n\n" for statement in statements)  # with -j that ends a statement
    subprocess.run(unprivileged(command), input=lines, text=True, check=True, capture_output=True)


def _template(programs: Path) -> Path:
    """Return the data of a new server, which take two seconds to make: once for all runs on this machine."""
    owner = pwd.getpwnam(_OWNER).pw_uid if os.geteuid() == 0 else os.geteuid()
    place = Path(tempfile.gettempdir(), f"backplane-tests-postgres-{owner}-{programs.parent.name}")
    with locked(place.with_suffix(".lock")):
        if not place.exists():
            folder = owned_folder()
            command = [str(programs / "initdb"), "-D", str(folder / "data"), "-U", _OWNER, "-A", "trust"]
            options = ["--no-sync", "--no-instructions", "-E", "UTF8", "--locale=C", "--wal-segsize=1"]
            subprocess.run(unprivileged([*command, *options]), check=True, capture_output=True)
            # Two of three databases are there to be copied: without them a copy of the data takes a third of the time.
            drops = [f"DROP DATABASE template{number}" for number in (0, 1)]
            _execute(programs, folder / "data", ["UPDATE pg_database SET datistemplate = false", *drops])
            (folder / "data").rename(place)
            folder.rmdir()
    if place.stat().st_uid != owner:
        raise BrokerMissingError(f"{place} belongs to another user")
    return place


def answers_sessions(port: int) -> bool:
    """Whether a server takes sessions here, also if it demands a password or TLS."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as link:
        body = struct.pack("!I", 3 << 16) + b"user\0postgres\0database\0postgres\0\0"
        link.sendall(struct.pack("!I", len(body) + 4) + body)
        answer = link.recv(1024)
        return bool(answer) and b"57P03" not in answer  # "the database system is starting up"
    return False
