"""Sockets by the thousand: what does not fit this machine is refused before it runs; clients have many addresses."""

from __future__ import annotations

import resource
import socket
import threading
from typing import TYPE_CHECKING

import psutil
import pytest
import typer

from benchmarks import __main__ as command
from benchmarks.choice import Choice, check_capacity
from benchmarks.harness import capacity
from benchmarks.harness.capacity import CapacityError, check, local_address
from benchmarks.harness.run import Options
from benchmarks.harness.sockets import connect
from benchmarks.harness.websocket import PLAIN
from benchmarks.plans import SHORT

if TYPE_CHECKING:
    from pathlib import Path

MANY = 1_000_000


def test_too_few_files_are_reported_with_the_number_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each process needs is compared: a share of the sockets, and all of them with one of each."""

    def allowed(_: int = 0) -> int:
        return 2000

    monkeypatch.setattr(capacity, "allow_many_files", allowed)
    with pytest.raises(CapacityError, match=r"needs 2,514 open files and may have 2,000: `ulimit -n 2514`"):
        check(Options(connections=2000), workers=1)
    check(Options(connections=2000, clients=2), workers=4)
    check(Options(connections=2000, in_memory=1500), workers=1)


def test_the_limit_of_files_is_raised_as_far_as_needed() -> None:
    """A soft limit below the hard one is no obstacle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (600, hard))
    try:
        check(Options(connections=200), workers=1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 714
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_few_ports_are_reported_with_the_addresses_to_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each address has the ports of the system's range."""
    (tmp_path / "range").write_text("40000\t40999\n")
    monkeypatch.setattr(capacity, "_PORT_RANGE", tmp_path / "range")
    with pytest.raises(CapacityError, match=r"1 client address has 1,000 ports: use --addresses 2,"):
        check(Options(connections=1000), workers=1)
    check(Options(connections=1000, addresses=2), workers=1)


def test_too_little_memory_is_reported() -> None:
    """A number of sockets that takes more than there is does not start."""
    count = psutil.virtual_memory().total // (64 * 1024) + 1
    with pytest.raises(CapacityError, match=r"They take about .* GiB are available"):
        check(Options(connections=count, addresses=MANY, clients=MANY), workers=MANY)


def test_nothing_runs_where_a_later_part_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A session ends before its first scenario, without a result; clients without sockets need no room."""
    too_many = (("connections", 100 * MANY),)
    parts = [*SHORT[:1], ("memory", Choice(options=too_many))]
    with pytest.raises(typer.Exit):
        command.session(parts, tmp_path / "result.json")
    assert "memory: 100,000,002 sockets do not fit" in capsys.readouterr().out.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []
    check_capacity([("presence", Choice(options=too_many))])


def test_clients_connect_from_many_addresses() -> None:
    """They take turns; with one address the system chooses it."""
    assert [local_address(number, 3) for number in range(4)] == ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.1"]
    addresses = {local_address(number, 1000) for number in range(1000)}
    assert len(addresses) == 1000
    assert "127.0.3.250" in addresses
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        opening = [_answering(server, count) for count in (3, 1)]
    assert opening == [{"127.0.0.1", "127.0.0.2", "127.0.0.3"}, {"127.0.0.1"}]


def _answering(server: socket.socket, addresses: int) -> set[str]:
    """Connect three clients, and return the addresses that the server sees."""
    ends: list[tuple[socket.socket, tuple[str, int]]] = []

    def accept() -> None:
        for _ in range(3):
            end, address = server.accept()
            end.recv(65536)
            end.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
            ends.append((end, address))

    accepting = threading.Thread(target=accept)
    accepting.start()
    clients = connect(server.getsockname()[1], ["/ws/a"] * 3, PLAIN, addresses=addresses)
    accepting.join()
    for each in (*(end for end, _ in ends), *(client.sock for client in clients)):
        each.close()
    return {address[0] for _, address in ends}
