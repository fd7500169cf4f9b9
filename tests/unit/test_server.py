"""`backplane.server`: what its modules say where something they need is not installed."""

from __future__ import annotations

import importlib
import sys

import pytest

from backplane.errors import MissingDependencyError


@pytest.mark.parametrize(
    ("module", "missing", "words"),
    [
        ("backplane.server.gunicorn", "uvicorn_worker", "pip install gunicorn uvicorn-worker"),
        ("backplane.server.http", "uvicorn.protocols.http.auto", "pip install 'uvicorn>=0.52.4'"),
        ("backplane.server.uvicorn", "websockets.server", "pip install 'uvicorn>=0.52.4' 'websockets>=14'"),
    ],
)
def test_missing_package(module: str, missing: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a package is missing the import says what to install."""
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingDependencyError, match=missing) as caught:
        importlib.import_module(module)
    assert words in str(caught.value)
