"""`backplane.unix_sockets.folder`: private to this user in every part, and short enough for a socket."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from backplane.unix_sockets.folder import FolderError, PathTooLongError, default_directory, open_folder
from backplane.unix_sockets.sockets import MAX_NAME_LENGTH, MAX_PATH_BYTES


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
    with pytest.raises(FolderError, match=problem):
        open_folder("app", parent / "own")
    monkeypatch.undo()
    parent.chmod(0o1777)  # as /tmp is
    assert open_folder("app", parent / "own").is_dir()


@pytest.mark.parametrize("runtime", [True, False])
def test_the_default_folder_is_private_in_every_part(
    directory: Path, monkeypatch: pytest.MonkeyPatch, *, runtime: bool
) -> None:
    """The default directory is in the runtime directory, else in the temporary one, and belongs to this user."""
    if runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory / "none"))
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(directory))
    base = default_directory()
    assert base == directory / ("backplane" if runtime else f"backplane-{os.geteuid()}")
    folder = open_folder("app", base)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (base, folder)] == [0o700, 0o700]
    base.chmod(0o755)
    with pytest.raises(FolderError, match="open to other users"):
        open_folder("app", base)
    assert open_folder("app", base, shared=True) == folder


def test_no_temporary_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host on which nothing can be written is reported as such."""

    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", none)
    with pytest.raises(FolderError, match=r"no temporary directory .*No usable"):
        default_directory()


def test_a_file_in_its_place(directory: Path) -> None:
    """A path in which no folder can be made is named."""
    (directory / "file").write_text("")
    with pytest.raises(FolderError, match=r"cannot use the folder '.*file/own/app-.*' \(Not a directory\)"):
        open_folder("app", directory / "file" / "own")


def test_a_long_path(directory: Path) -> None:
    """A directory takes as many bytes as leave room for the longest name of a socket, and not one more."""
    digest = 12
    room = MAX_PATH_BYTES - len(os.fsencode(directory)) - len("//x/") - digest - MAX_NAME_LENGTH + 1
    longest = directory / ("x" * room)
    folder = open_folder("app", longest)
    assert len(os.fsencode(folder / ("s" * MAX_NAME_LENGTH))) <= MAX_PATH_BYTES
    with pytest.raises(PathTooLongError, match="1 bytes too long"):
        open_folder("app", directory / ("x" * (room + 1)))
    with pytest.raises(PathTooLongError):
        open_folder("app", longest, name_length=MAX_NAME_LENGTH + 1)


@pytest.mark.parametrize("name", ["a/b", "a:b", "ä", "..", "\udcff", "x" * 300, ""])
def test_hostile_names(directory: Path, name: str) -> None:
    """Whatever the name of an application, its folder is in the directory, and another name has another folder."""
    folder = open_folder(name, directory / "own")
    assert folder.parent == directory / "own"
    assert folder.is_dir()
    assert folder != open_folder(name + "x", directory / "own")
