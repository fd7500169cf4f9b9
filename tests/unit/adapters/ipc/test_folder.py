"""The folder of the sockets: private, in the right place, without stale sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backplane.adapters.ipc.folder import bind_socket, connect_socket, open_folder
from backplane.errors import BrokerError, ConfigurationError
from tests.unit.adapters.ipc.processes import Worker, folder_of, sockets

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

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


@pytest.mark.parametrize(("owner", "mode", "problem"), [
    (12345, 0o755, "belongs to user 12345"), (None, 0o777, "can be written by other users"),
])  # fmt: skip
def test_a_path_that_another_user_could_replace_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch, owner: int | None, mode: int, problem: str
) -> None:
    """A user that owns or may write a parent folder could replace ours, so the path is refused."""
    parent = directory / "parent"
    parent.mkdir()
    parent.chmod(mode)
    found = os.stat_result((parent.stat().st_mode, 0, 0, 1, owner or os.geteuid(), 0, 0, 0, 0, 0))
    real_stat = Path.stat

    def changed_stat(path: Path, **options: bool) -> os.stat_result:
        return found if path == parent else real_stat(path, **options)

    monkeypatch.setattr(Path, "stat", changed_stat)
    with pytest.raises(BrokerError, match=problem):
        open_folder("app", parent / "own")
    monkeypatch.undo()
    parent.chmod(0o1777)  # as /tmp is
    assert open_folder("app", parent / "own").is_dir()


async def test_a_peer_of_another_user_is_refused(
    url: str, directory: Path, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process of another user that reaches the sockets is neither accepted nor connected to."""
    worker = await stack.enter_async_context(Worker(url))
    (name,) = sockets(directory)
    listener, foreign = bind_socket(folder_of(directory), 1)
    stack.callback(listener.close)
    folder = folder_of(directory)
    monkeypatch.setattr("backplane.adapters.ipc.folder.os.geteuid", lambda: os.getuid() + 1)
    with socket.socket(socket.AF_UNIX) as ours:
        ours.setblocking(False)
        ours.connect(str(folder / name))
        assert await asyncio.get_running_loop().sock_recv(ours, 1) == b""
    assert f"refused a connection of user {os.getuid()}" in caplog.text
    with pytest.raises(ConnectionRefusedError):
        connect_socket(folder / foreign)
    assert f"ignored the socket {folder / foreign} of user {os.getuid()}" in caplog.text
    assert worker.sink.losses == []


@pytest.mark.parametrize("runtime", [True, False])
def test_the_default_folder_is_private_in_every_part(
    directory: Path, monkeypatch: pytest.MonkeyPatch, *, runtime: bool
) -> None:
    """Without `directory` the folder is in the runtime directory, else below the temporary one, in one of this user."""
    if runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    else:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(directory))
    folder = open_folder("app", None)
    assert folder.parent == directory / ("backplane" if runtime else f"backplane-{os.geteuid()}")
    folder.parent.chmod(0o755)
    with pytest.raises(BrokerError, match="open to other users"):
        open_folder("app", None)


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
