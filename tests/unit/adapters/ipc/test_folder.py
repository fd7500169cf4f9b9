"""`backplane.adapters.ipc.folder`: a private folder in the right place, without stale sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from backplane.adapters.ipc.folder import open_folder
from backplane.errors import BrokerError, BrokerUnavailableError, ConfigurationError
from backplane.unix_sockets.sockets import bind_socket, connect_socket
from tests.unit.adapters.ipc.processes import Worker, folder_of, sockets

if TYPE_CHECKING:
    from contextlib import AsyncExitStack
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def test_the_folder_is_private(url: str, directory: Path) -> None:
    """Only this user can use folder and socket, whatever the umask; the sticky bit protects against cleaners."""
    mask = os.umask(0)
    try:
        async with Worker(url):
            folder = folder_of(directory)
            (path,) = folder.iterdir()
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert stat.S_IMODE(path.stat().st_mode) == 0o1600
    finally:
        os.umask(mask)


async def test_a_folder_open_to_others_is_refused(url: str, directory: Path) -> None:
    """A folder is refused where another user could have created a socket."""
    folder_of(directory).chmod(0o770)
    with pytest.raises(BrokerError, match="open to other users") as caught:
        await Worker(url).__aenter__()
    assert not caught.value.retriable


async def test_a_symbolic_link_for_a_folder_is_refused(url: str, directory: Path) -> None:
    """A symbolic link is not followed: another user could have created it."""
    folder = folder_of(directory)
    (directory / "elsewhere").mkdir(mode=0o700)
    folder.rmdir()
    folder.symlink_to(directory / "elsewhere")
    with pytest.raises(BrokerError, match="not a directory"):
        await Worker(url).__aenter__()


async def test_a_folder_of_another_user_is_refused(url: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is refused if its owner, another user, could accept our connections."""
    folder_of(directory)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(BrokerError, match="belongs to user"):
        await Worker(url).__aenter__()


async def test_a_peer_of_another_user_is_refused(
    url: str, directory: Path, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process of another user that reaches the sockets is neither accepted nor connected to."""
    worker = await stack.enter_async_context(Worker(url))
    (name,) = sockets(directory)
    listener, foreign = bind_socket(folder_of(directory), 1)
    stack.callback(listener.close)
    folder = folder_of(directory)
    monkeypatch.setattr("backplane.unix_sockets.sockets.os.geteuid", lambda: os.getuid() + 1)
    with socket.socket(socket.AF_UNIX) as ours:
        ours.setblocking(False)
        ours.connect(str(folder / name))
        assert await asyncio.get_running_loop().sock_recv(ours, 1) == b""
    assert f"refused a connection of user {os.getuid()}" in caplog.text
    with pytest.raises(ConnectionRefusedError):
        connect_socket(folder / foreign)
    assert f"ignored the socket {folder / foreign} of user {os.getuid()}" in caplog.text
    assert worker.sink.losses == []


@pytest.mark.parametrize("directory_name", [None, "open"])
def test_where_the_folder_is(directory: Path, monkeypatch: pytest.MonkeyPatch, directory_name: str | None) -> None:
    """A directory that the URL names may be readable by others; the default one belongs to this user alone."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    named = None if directory_name is None else directory / directory_name
    folder = open_folder("app", named)
    assert folder.parent == (directory / "backplane" if named is None else named)
    folder.parent.chmod(0o755)
    if named is not None:
        assert open_folder("app", named) == folder
        return
    with pytest.raises(BrokerError, match=r"^ipc: .* is open to other users .*: name another one with \?directory="):
        open_folder("app", named)


async def test_a_directory_too_long_for_a_socket_is_refused(directory: Path) -> None:
    """A path over the limit of the operating system raises `ConfigurationError`, which explains it."""
    with pytest.raises(ConfigurationError, match="too long for a Unix socket"):
        await Worker(f"ipc://app?directory={directory / ('x' * 100)}").__aenter__()


async def test_stale_sockets_are_removed_at_the_next_start(url: str, directory: Path) -> None:
    """A socket on which no process listens any more is removed, but not one whose process is about to listen."""
    stale, stale_name = bind_socket(folder_of(directory), 1)
    stale.close()
    with socket.socket(socket.AF_UNIX) as binding:
        binding.bind(str(folder_of(directory) / "1-00000000.sock"))
        async with Worker(url):
            assert stale_name not in sockets(directory)
            assert "1-00000000.sock" in sockets(directory)
        os.utime(folder_of(directory) / "1-00000000.sock", (0, 0))  # as if its process had died before it listened
        async with Worker(url):
            assert "1-00000000.sock" not in sockets(directory)


async def test_a_folder_without_room_for_a_socket(url: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no socket can be made, or the folder cannot be read, the start fails as one that another try can mend."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("backplane.unix_sockets.listener.bind_socket", full)
        with pytest.raises(BrokerUnavailableError, match=r"^ipc: cannot listen in .*No space left"):
            await Worker(url).__aenter__()
    with monkeypatch.context() as patched:
        patched.setattr("backplane.adapters.ipc.node.list_sockets", full)
        with pytest.raises(BrokerUnavailableError, match=r"^ipc: cannot list .*No space left"):
            await Worker(url).__aenter__()
    assert not sockets(directory)
