"""PgBouncer for tests, in front of a PostgreSQL."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from tests.brokers.broker import BrokerMissingError, ProcessBroker
from tests.brokers.postgres import answers_sessions, owned_folder, unprivileged
from tests.brokers.process import install

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PgBouncer"]


class PgBouncer(ProcessBroker):
    """`pgbouncer` as a program of this machine.

    Args:
        url: The PostgreSQL.
        mode: When a connection of the pool is given to another client.
        folder: An empty folder for its log.

    Raises:
        BrokerMissingError: This machine has none.
    """

    def __init__(self, url: str, mode: Literal["session", "transaction"], folder: Path) -> None:
        super().__init__(folder)
        self._program = _program()
        self._address = urlsplit(url)
        self._mode = mode
        self._place = owned_folder()
        self.url = f"postgres://postgres@127.0.0.1:{self.port}/postgres"

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        shutil.rmtree(self._place)

    def command(self) -> list[str]:
        """Return the command, and write the file that it reads."""
        users, file = self._place / "users.txt", self._place / "pgbouncer.ini"
        users.write_text('"postgres" ""\n')
        file.write_text(
            "[databases]\n"
            f"* = host={self._address.hostname} port={self._address.port}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {users}\npool_mode = {self._mode}\n"
        )
        for path in (users, file):
            path.chmod(0o644)
        return unprivileged([self._program, str(file)])

    def answers(self) -> bool:
        """Whether it takes sessions."""
        return answers_sessions(self.port)


def _program() -> str:
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin") or install("pgbouncer")
    if program is None:
        raise BrokerMissingError("no pgbouncer")
    return program
