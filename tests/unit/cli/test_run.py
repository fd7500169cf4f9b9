"""`backplane run`: what it hands to Uvicorn, and what it refuses before that."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from backplane.cli import app

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def in_a_folder_with_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that holds `shop.py`, which is not imported."""
    (tmp_path / "shop.py").write_text("raise AssertionError('imported')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(os, "environ", {**os.environ})


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Uvicorn's own command line is given."""
    arguments: list[str] = []
    monkeypatch.setattr(importlib.import_module("backplane.cli.run"), "_uvicorn", arguments.extend)
    return arguments


def run(*arguments: str) -> tuple[int, str]:
    """Run the command; return its status and what it said."""
    result = CliRunner().invoke(app, ["run", *arguments])
    assert result.stdout == ""
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["src/shop.py"], "write package.module:name, as in src.shop:app"),
        (["shop"], "as in shop:app"),
        (["shop:"], "as in shop:app"),
        ([":app"], "as in main:app"),
        (["shoq:app"], "there is no module 'shoq' here"),
        (["shoq.web:app"], "cannot import 'shoq.web'"),
        ([".shop:app"], "cannot import '.shop'"),
        (["shop:app", "--url", "reddis://localhost"], "did you mean 'redis'?"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], words: str, given: list[str]) -> None:
    """A wrong place or URL ends with status 2 and one line, before any server starts."""
    status, said = run(*arguments)
    assert status == 2
    assert words in said
    assert said.count("\n") == 1
    assert given == []


def test_defaults(given: list[str]) -> None:
    """With nothing but the place, Uvicorn runs one worker, or as many as it finds in the environment, with the lane."""
    assert run("shop:app") == (0, "")
    assert given == [
        "shop:app",
        "--http=backplane.server.http:BoundedHTTPProtocol",
        "--ws=backplane.server.uvicorn:DirectLaneProtocol",
        "--ws-max-size=1048576",
        "--ws-per-message-deflate=False",
        "--host=127.0.0.1",
        "--port=8000",
        "--log-level=info",
        "--timeout-graceful-shutdown=15",
    ]
    assert "BACKPLANE_URL" not in os.environ


def test_options_are_passed_on(given: list[str]) -> None:
    """Each option reaches Uvicorn, the URL the environment, and what stands behind `--` comes last."""
    options = ["--workers", "4", "--uds", "sock", "--reload", "--factory", "--timeout-graceful-shutdown", "3"]
    assert run("shop:app", *options, "--shared-compression", "--url", "memory://", "--", "--backlog", "9") == (0, "")
    assert given == [
        "shop:app",
        "--http=backplane.server.http:BoundedHTTPProtocol",
        "--ws=backplane.server.uvicorn:SharedCompressionProtocol",
        "--ws-max-size=1048576",
        "--ws-per-message-deflate=True",
        "--workers=4",
        "--host=127.0.0.1",
        "--port=8000",
        "--uds=sock",
        "--log-level=info",
        "--timeout-graceful-shutdown=3",
        "--reload",
        "--factory",
        "--backlog",
        "9",
    ]
    assert os.environ["BACKPLANE_URL"] == "memory://"
