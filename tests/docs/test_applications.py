"""docs/guides/applications.md: every example runs as it stands there."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from fastapi import Depends, WebSocket
from starlette.testclient import TestClient

from backplane import Backplane  # noqa: TC001  # FastAPI reads the annotation
from backplane.dependencies import get_backplane
from tests.docs.pages import Page

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

PAGE = Page("guides/applications.md")
TESTED = {"dependency", "starlette", "outside", "sync", "settings"}


def test_every_python_block_has_a_name_and_a_test() -> None:
    """No Python of the page is without a name, and none of the tests below has lost its example."""
    names = [found for found, _ in PAGE.examples()]
    assert PAGE.text.count("```python") == len(names)
    assert sorted(map(str, names)) == sorted(TESTED)


def listen_on(backplane: Backplane) -> Callable[[WebSocket, str], Coroutine[Any, Any, None]]:
    """Return an endpoint that receives a channel."""

    async def endpoint(websocket: WebSocket, channel: str) -> None:
        async with backplane.connect(websocket, channel) as connection:
            async for _ in connection:
                pytest.fail("the client sent something")

    return endpoint


async def listen(websocket: WebSocket, user: str, backplane: Annotated[Backplane, Depends(get_backplane)]) -> None:
    """Receive what is notified to a user."""
    async with backplane.connect(websocket, f"user:{user}") as connection:
        async for _ in connection:
            pytest.fail("the client sent something")


def test_dependency() -> None:
    """The route publishes through the injected backplane, which the lifespan has started."""
    app = PAGE.run("dependency")["app"]
    app.add_api_websocket_route("/listen/{user}", listen)
    with TestClient(app) as client, client.websocket_connect("/listen/ada") as ada:
        assert client.post("/notify/ada", params={"text": "hello"}).status_code == 200
        assert ada.receive_text() == "hello"


def test_starlette() -> None:
    """What one client sends reaches every other, and not itself."""
    names = PAGE.run("starlette")
    with (
        TestClient(names["app"]) as client,
        client.websocket_connect("/") as one,
        client.websocket_connect("/") as other,
    ):
        one.send_text("from one")
        assert other.receive_text() == "from one"
        other.send_text("from other")
        assert one.receive_text() == "from other"


def test_outside(tmp_path: Path) -> None:
    """The script runs to its end, and prints nothing."""
    script = tmp_path / "outside.py"
    script.write_text(PAGE.example("outside"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        env=os.environ | {"BACKPLANE_URL": "memory://"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_sync(ipc_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `def` endpoint and a task outside publish to the same channel."""
    monkeypatch.setenv("BACKPLANE_URL", ipc_url)
    names = PAGE.run("sync")
    names["app"].add_api_websocket_route("/listen/{channel}", listen_on(names["backplane"]))
    with TestClient(names["app"]) as client, client.websocket_connect("/listen/orders") as socket:
        assert client.post("/orders/42").status_code == 200
        assert socket.receive_json() == {"id": 42}
        with names["SyncBackplane"]() as outside:
            names["celery_task"](42, outside)
        assert socket.receive_json() == {"id": 42, "state": "shipped"}


def test_settings() -> None:
    """The settings are accepted as they stand there."""
    assert repr(PAGE.run("settings")["backplane"]) == "<Backplane memory:// closed>"
