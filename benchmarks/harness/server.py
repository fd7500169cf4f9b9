"""A running candidate: started, accepting on every worker, its CPU and memory read, and ended."""

from __future__ import annotations

import json
import os
import socket
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit
from urllib.request import urlopen

import psutil

from tests.brokers.process import end, free_port, start, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Generator, Sequence

    from benchmarks.harness.candidate import Candidate
    from benchmarks.harness.websocket import Dialect

__all__ = ["Server", "ServerError", "cpu_seconds", "families", "listeners", "serving"]

_START_SECONDS = 40.0


class ServerError(Exception):
    """The candidate does not serve; holds the end of its log."""


class Server:
    """A running candidate.

    Attributes:
        stalls: The folder in which its event loops note their longest stall (`servers.stall`).
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int, candidate: Candidate, stalls: Path) -> None:
        self.stalls = stalls
        self.port = port
        self.candidate = candidate
        self.process = process

    def speaking(self, dialect: Dialect) -> Server:
        """Return the same server, to clients of another dialect."""
        return Server(self.process, self.port, replace(self.candidate, dialect=dialect), self.stalls)

    def ask(self, path: str, **arguments: object) -> Any:
        """Call the application over HTTP, and return its answer; it may take five minutes."""
        address = f"http://127.0.0.1:{self.port}/{path}?{urlencode(arguments)}"
        with urlopen(address, timeout=300) as answer:  # on this machine
            return json.load(answer)

    def pids(self) -> list[int]:
        """Return the processes it consists of."""
        return families([self.process.pid])

    def worker_pids(self) -> list[int]:
        """Return those of its processes that have accepted connections."""
        return [pid for pid in self.pids() if self._connections(pid)]

    def sockets_per_worker(self) -> list[int]:
        """Return how many sockets each worker holds."""
        return sorted(filter(None, map(self._connections, self.pids())))

    def resident_bytes(self) -> int:
        """Return the memory of its processes; of what several share each has its part (PSS)."""
        total = 0
        for pid in self.pids():
            with suppress(psutil.NoSuchProcess):
                total += psutil.Process(pid).memory_full_info().pss  # of /proc/PID/smaps_rollup
        return total

    def _connections(self, pid: int) -> int:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            found = psutil.Process(pid).net_connections(kind="tcp")
            return sum(each.laddr.port == self.port and each.status == psutil.CONN_ESTABLISHED for each in found)
        return 0

    def wait_for_workers(self) -> None:
        """Wait until each worker has accepted a connection."""
        seen: set[int] = set()
        probes: list[socket.socket] = []

        def answered() -> bool:
            if self.process.poll() is not None:
                raise ServerError("it has ended")
            for _ in range(2 * self.candidate.workers):
                with suppress(OSError):
                    probes.append(socket.create_connection(("127.0.0.1", self.port), timeout=1))
            seen.update(self.worker_pids())
            enough = len(seen) >= self.candidate.workers
            if len(probes) > 32 or enough:
                while probes:
                    probes.pop().close()
            return enough

        wait_until(answered, f"{self.candidate.workers} workers of {self.candidate.name} accept", _START_SECONDS)


@contextmanager
def serving(candidate: Candidate, *, stalls: bool = False) -> Generator[Server]:
    """Run `candidate`; entered when every worker accepts connections. With `stalls` its event loops are watched.

    Raises:
        ServerError: It does not serve.
    """
    with TemporaryDirectory(prefix="backplane-bench-") as folder:
        port, log, noted = free_port(), Path(folder, "server.log"), Path(folder, "stalls")
        noted.mkdir()
        command = [part.replace("{port}", str(port)) for part in candidate.command]
        # Gunicorn puts a control socket into the home folder; two of them would share it.
        environment = {
            **os.environ,
            "HOME": folder,
            "PORT": str(port),
            **({"BENCH_STALLS": str(noted)} if stalls else {}),
            **candidate.environment,
        }
        process = start(command, cwd=candidate.folder, log=log, env=environment)
        server = Server(process, port, candidate, noted)
        try:
            server.wait_for_workers()
            yield server
        except Exception as error:
            raise ServerError(f"{error!r}; its log ends with:\n{log.read_text()[-3000:]}") from error
        finally:
            _end(process, server.pids())


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the processor time that these processes have used."""
    return sum(map(_cpu_seconds, pids))


def _cpu_seconds(pid: int) -> float:
    # In nanoseconds for each thread, where Linux counts them; what psutil reads counts in hundredths of a second.
    with suppress(OSError, ValueError):
        threads = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
    with suppress(psutil.NoSuchProcess):
        times = psutil.Process(pid).cpu_times()
        return times.user + times.system
    return 0.0


def families(pids: Sequence[int]) -> list[int]:
    """Return these processes and all their children: PostgreSQL has one for each connection."""
    found: list[int] = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(pid)
            found += [own.pid, *(child.pid for child in own.children(recursive=True))]
    return found


def listeners(url: str) -> list[int]:
    """Return the processes of this machine that listen at the hosts of `url`; none where they cannot be known."""
    hosts = urlsplit(url).netloc.rpartition("@")[2].split(",")
    ports = {int(port) for host in hosts if (port := host.rpartition(":")[2]).isdigit()}
    with suppress(psutil.AccessDenied):
        listening = [each for each in psutil.net_connections(kind="tcp") if each.status == psutil.CONN_LISTEN]
        return sorted({each.pid for each in listening if each.laddr and each.laddr.port in ports and each.pid})
    return []


def _end(process: subprocess.Popen[bytes], pids: Sequence[int]) -> None:
    # The clients are gone or are going to be; nothing of an orderly end is measured here.
    end(process, seconds=3)
    for pid in pids[1:]:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
