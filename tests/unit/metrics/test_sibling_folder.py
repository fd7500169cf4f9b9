"""`backplane.metrics.sibling_folder`: where no folder can be used. The rest of it is tested in `test_siblings.py`."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from backplane.metrics import sibling_folder
from backplane.unix_sockets.folder import FolderError


def test_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reasons of all folders are named."""
    monkeypatch.setattr(sibling_folder, "_directories", lambda: iter([Path("/proc/x"), Path("/proc/y")]))
    with pytest.raises(FolderError, match=r"/proc/x.*; .*/proc/y"):
        sibling_folder.open_sibling_folder()


def test_no_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has none, no container shares the folder with another one."""
    monkeypatch.setattr(Path, "readlink", Mock(side_effect=FileNotFoundError))
    assert sibling_folder.namespace() == ""
