"""docs/guides/testing.md and applications.md: the tests of the first run as such, every example of the second runs."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from fastapi import Depends, WebSocket
from starlette.testclient import TestClient

from backplane import Backplane  # noqa: TC001  # FastAPI reads the annotation
from backplane.lifespan import get_backplane
from tests.docs.pages import Page

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from tests.brokers.broker import Broker

APPLICATIONS = Page("guides/applications.md")
TESTING = Page("guides/testing.md")

TESTED = {"dependency", "starlette", "outside", "sync", "settings"}
MODULES = {"application": "rooms", "served": "served"}
TESTS = {"client": 2, "refused": 1, "subscription": 1, "gap": 1, "workers": 1, "proxy": 1}


@pytest.mark.parametrize(
    ("page", "tested"),
    [(APPLICATIONS, TESTED), (TESTING, {*MODULES, *TESTS})],
    ids=["applications", "testing"],
)
def test_every_python_block_has_a_name_and_a_test(page: Page, tested: set[str]) -> None:
    """No Python of a page is without a name, and none of the tests below has lost its example."""
    names = [found for found, _ in page.examples()]
    assert page.text.count("```python") == len(names)
    assert sorted(map(str, names)) == sorted(tested)


# --- testing.md ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TESTS)
def test_test_of_the_page_passes(name: str, tmp_path: Path, redis_broker: Broker) -> None:
    """A test file of the page passes in another project, with warnings as errors, and none of it is skipped."""
    for example, module in MODULES.items():
        (tmp_path / f"{module}.py").write_text(TESTING.example(example), encoding="utf-8")
    (tmp_path / "test_page.py").write_text(TESTING.example(name), encoding="utf-8")
    backend = "import pytest\n\n@pytest.fixture\ndef anyio_backend() -> str:\n    return 'asyncio'\n"
    (tmp_path / "conftest.py").write_text(backend, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error"],
        cwd=tmp_path,
        env={**os.environ, "REDIS_URL": redis_broker.url, "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert f"{TESTS[name]} passed" in done.stdout
    assert "skipped" not in done.stdout


# --- applications.md -----------------------------------------------------------------------------------------------


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
    app = APPLICATIONS.run("dependency")["app"]
    app.add_api_websocket_route("/listen/{user}", listen)
    with TestClient(app) as client, client.websocket_connect("/listen/ada") as ada:
        assert client.post("/notify/ada", params={"text": "hello"}).status_code == 200
        assert ada.receive_text() == "hello"


def test_starlette() -> None:
    """What one client sends reaches every other, and not itself."""
    names = APPLICATIONS.run("starlette")
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
    script.write_text(APPLICATIONS.example("outside"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        env=os.environ | {"BACKPLANE_URL": "memory://"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_sync(ipc_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `def` endpoint and a task outside publish to the same channel."""
    monkeypatch.setenv("BACKPLANE_URL", ipc_url)
    names = APPLICATIONS.run("sync")
    names["app"].add_api_websocket_route("/listen/{channel}", listen_on(names["backplane"]))
    with TestClient(names["app"]) as client, client.websocket_connect("/listen/orders") as socket:
        assert client.post("/orders/42").status_code == 200
        assert socket.receive_json() == {"id": 42}
        with names["SyncBackplane"]() as outside:
            names["celery_task"](42, outside)
        assert socket.receive_json() == {"id": 42, "state": "shipped"}


def test_settings() -> None:
    """The settings are accepted as they stand there."""
    assert repr(APPLICATIONS.run("settings")["backplane"]) == "<Backplane memory:// closed>"
