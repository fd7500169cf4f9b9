"""Whether this machine can hold the sockets of a run: open files, local ports, memory. Checked before anything starts.

Each end of a connection is an open file of its process (RLIMIT_NOFILE). Connections from one address to one server
port differ only in their local port, of which the system gives out those of `net.ipv4.ip_local_port_range`, 28,232 by
default; with more client addresses, all of the loopback, there are as many ports more.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from benchmarks.harness.run import Options

__all__ = ["MAX_ADDRESSES", "CapacityError", "allow_many_files", "check", "local_address"]

MAX_ADDRESSES: Final = 64_000

_IN_BLOCK: Final = 250
_PORT_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")

# Publishers, sockets of the warm-up, the broker's, logs.
_SPARE: Final = 512
# The kernel's two sockets, the client's objects, and a server that takes what a FastAPI handler does.
_BYTES_PER_CONNECTION: Final = 64 * 1024
# Workers that share a port do not accept evenly.
_UNEVEN: Final = 1.25


class CapacityError(Exception):
    """This machine cannot hold the sockets; holds what is missing and how to raise it."""


def local_address(number: int, addresses: int) -> str:
    """Return the address of the client with this number, where clients are spread over so many: 127.0.0.1 and on."""
    block, place = divmod(number % addresses, _IN_BLOCK)
    return f"127.0.{block}.{place + 1}"


def allow_many_files(files: int = 0) -> int:
    """Raise the number of files that this process and those it starts may open; returns it.

    Args:
        files: Raise the hard limit to this, where the system permits it. Without it, or where it does not, the limit
            is the hard limit that there is.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for limit in (max(files, hard), hard):
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            break
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def check(options: Options, *, workers: int) -> None:
    """Check that there is room for what `options` opens, and raise the limit of open files where that is needed.

    Raises:
        CapacityError: There is not.
    """
    connections = options.connections + options.stalled - options.in_memory
    missing = [
        each
        for each in (
            _files(connections, options.clients, workers),
            _ports(connections, options.addresses),
            _memory(connections),
        )
        if each
    ]
    if missing:
        raise CapacityError(f"{connections:,} sockets do not fit this machine. {' '.join(missing)}")


def _files(connections: int, clients: int, workers: int) -> str:
    by_worker = connections if workers == 1 else ceil(connections / workers * _UNEVEN)
    needed = max(by_worker, ceil(connections / clients)) + _SPARE
    if (allowed := allow_many_files(needed)) >= needed:
        return ""
    return (
        f"A process needs {needed:,} open files and may have {allowed:,}: `ulimit -n {needed}` in this shell; where "
        "the hard limit is lower, raise it as root (`LimitNOFILE=` of systemd, `--ulimit nofile=` of Docker, "
        "/etc/security/limits.conf, which fs.nr_open bounds), or spread the sockets (--workers, --clients), or let "
        "clients of `idle` have none (--in-memory)."
    )


def _ports(connections: int, addresses: int) -> str:
    lowest, highest = map(int, _PORT_RANGE.read_text().split())
    ports = highest - lowest + 1
    if connections + _SPARE <= addresses * ports:
        return ""
    return (
        f"{addresses:,} client address{'es have' if addresses > 1 else ' has'} {addresses * ports:,} ports: use "
        f"--addresses {ceil((connections + _SPARE) / ports)}, or widen net.ipv4.ip_local_port_range."
    )


def _memory(connections: int) -> str:
    needed, available = connections * _BYTES_PER_CONNECTION, psutil.virtual_memory().available
    if needed <= available:
        return ""
    return (
        f"They take about {needed / 2**30:.1f} GiB, {_BYTES_PER_CONNECTION // 1024} KiB each with both ends and the "
        f"kernel's part, of which {available / 2**30:.1f} GiB are available."
    )
