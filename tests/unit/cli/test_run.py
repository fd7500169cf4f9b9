"""`backplane run`: the arguments of Uvicorn, and what is refused before it starts."""

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
    """The arguments that Uvicorn's command line receives."""
    arguments: list[str] = []
    monkeypatch.setattr(importlib.import_module("backplane.cli.run"), "_uvicorn", arguments.extend)
    return arguments


def run(*arguments: str) -> tuple[int, str]:
    """Run the command; return its status and standard error."""
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
def test_wrong_arguments_are_reported(arguments: list[str], words: str, given: list[str]) -> None:
    """A wrong application or URL ends with status 2 and one line, before any server starts."""
    status, errors = run(*arguments)
    assert status == 2
    assert words in errors
    assert errors.count("\n") == 1
    assert given == []


def test_defaults(given: list[str]) -> None:
    """By default Uvicorn runs with the lane, and with one worker or as many as the environment sets."""
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
    """Each option reaches Uvicorn, the URL the environment; what follows `--` comes last."""
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
