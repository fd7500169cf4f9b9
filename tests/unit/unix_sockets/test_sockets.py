"""`backplane.unix_sockets.sockets`: groups do not see each other, and only stale sockets are removed."""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from backplane.unix_sockets.sockets import (
    bind_socket,
    connect_socket,
    foreign_peer,
    is_socket_name,
    list_sockets,
    remove_stale,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_groups(directory: Path) -> None:
    """The sockets of one group are listed without those of another, or of none."""
    opened = [bind_socket(directory, 1, group) for group in ("", "0a-", "0b-")]
    try:
        names = [name for _, name in opened]
        assert [list_sockets(directory, group) for group in ("", "0a-", "0b-", "0c-")] == [
            [names[0]], [names[1]], [names[2]], [],
        ]  # fmt: skip
        assert names[1].startswith(f"0a-{os.getpid()}-")
    finally:
        for listener, _ in opened:
            listener.close()


@pytest.mark.parametrize("name", ["", "../1-00000000.sock", "1-00000000.sock/x", "x1-00000000.sock", "1-0000000g.sock",
                                  "1-00000000.sock\n", "01234567890-00000000.sock"])  # fmt: skip
def test_hostile_names(name: str) -> None:
    """What another process calls its socket does not lead out of the folder."""
    assert not is_socket_name(name)
    assert not is_socket_name("0a-" + name, "0a-")


def test_a_folder_that_is_gone(directory: Path) -> None:
    """A folder that was removed can neither be listed nor listened in, and nothing is left open."""
    with pytest.raises(FileNotFoundError):
        list_sockets(directory / "gone")
    with pytest.raises(FileNotFoundError):
        bind_socket(directory / "gone", 1)


def test_private(directory: Path) -> None:
    """Only this user can connect, whatever the umask; the sticky bit protects against cleaners."""
    mask = os.umask(0)
    try:
        listener, name = bind_socket(directory, 1)
    finally:
        os.umask(mask)
    with listener:
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o1600
        with connect_socket(directory / name) as connection:
            assert foreign_peer(connection) is None


def test_another_user(directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The socket of another user is not used, and that is logged."""
    listener, name = bind_socket(directory, 1)
    user = os.geteuid()
    monkeypatch.setattr("backplane.unix_sockets.sockets.os.geteuid", lambda: user + 1)
    with listener, pytest.raises(ConnectionRefusedError):
        connect_socket(directory / name)
    assert f"ignored the socket {directory / name} of user {user}" in caplog.text


def test_stale(directory: Path) -> None:
    """A socket of a process that is gone is removed; one that is bound and does not listen yet is kept for a minute."""
    listener, stale = bind_socket(directory, 1)
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        connect_socket(directory / stale)
    remove_stale(directory / stale)
    assert list_sockets(directory) == []
    remove_stale(directory / stale)  # another process was faster
    with socket.socket(socket.AF_UNIX) as binding:
        path = directory / "1-00000000.sock"
        binding.bind(str(path))
        remove_stale(path)
        assert path.exists()
        os.utime(path, (0, 0))
        remove_stale(path)
        assert not path.exists()


def test_a_full_backlog(directory: Path) -> None:
    """Connecting to a process that accepts nothing, as a stopped one, raises at once where its backlog is full."""
    listener, name = bind_socket(directory, 0)
    connections: list[socket.socket] = []
    with listener:
        try:
            connections.append(connect_socket(directory / name))
            with pytest.raises(BlockingIOError):  # noqa: PT012  # the kernel accepts one or two
                connections.append(connect_socket(directory / name))
                connections.append(connect_socket(directory / name))
        finally:
            for connection in connections:
                connection.close()
