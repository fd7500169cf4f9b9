"""README.md: every example runs as it stands there, the table tells what the adapters declare, no link is dead."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from fastapi import Depends, Request, WebSocket
from starlette.testclient import TestClient, WebSocketDenialResponse

from backplane import Backplane, BrokerUnavailableError, MissingDependencyError
from backplane.adapters.memory import MemoryBroadcaster
from backplane.dependencies import get_backplane
from backplane.message import ALL
from tests.readme_table import table, written_table
from tests.unit.doubles import until_idle

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from backplane.broadcaster import Sink

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

WAIT_SECONDS = 5.0

TESTED = {
    "sockets",
    "room",
    "outside",
    "sync",
    "consumer",
    "dependency",
    "starlette",
    "gap",
    "health",
    "settings",
    "unavailable",
}


def examples(text: str) -> list[tuple[str | None, str]]:
    """Return every fenced python block with the name that stands before it."""
    fence = re.compile(r"(?:^<!-- example: ([\w-]+) -->\n)?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [(found[1], found[2]) for found in fence.finditer(text)]


def run(name: str) -> dict[str, Any]:
    """Execute an example, and return its names."""
    (code,) = [code for found, code in examples(README) if found == name]
    names: dict[str, Any] = {"__name__": f"readme_{name}"}
    exec(compile(code, f"README.md, example {name}", "exec"), names)
    return names


# --- examples ------------------------------------------------------------------------------------------------------


def test_every_python_block_has_a_name_and_a_test() -> None:
    """No python in the README goes unproven, and none of the tests below has lost its example."""
    names = [name for name, _ in examples(README)]
    assert README.count("```python") == len(names)
    assert sorted(map(str, names)) == sorted(TESTED)


def test_finding_examples() -> None:
    """A block without a name is found as one without a name, and only python counts."""
    text = "<!-- example: one -->\n```python\na\n```\nwords\n```python\nb\n```\n```bash\nc\n```\n"
    assert examples(text) == [("one", "a\n"), (None, "b\n")]


def test_example_room() -> None:
    """Two clients of a room hear each other and the POST route; another room does not."""
    names = run("room")
    with (
        TestClient(names["app"]) as client,
        client.websocket_connect("/rooms/kitchen") as one,
        client.websocket_connect("/rooms/kitchen") as other,
        client.websocket_connect("/rooms/cellar") as elsewhere,
    ):
        one.send_text("hello")
        assert [one.receive_text(), other.receive_text()] == ["hello", "hello"]
        assert client.post("/rooms/kitchen", params={"text": "dinner"}).status_code == 200
        assert [one.receive_text(), other.receive_text()] == ["dinner", "dinner"]
        client.post("/rooms/cellar", params={"text": "dark"})
        assert elsewhere.receive_text() == "dark"
        other.send_bytes(b"\x00")
        assert [one.receive_bytes(), other.receive_bytes()] == [b"\x00", b"\x00"]


def test_example_outside(tmp_path: Path) -> None:
    """The script runs to its end, and says nothing."""
    (code,) = [code for name, code in examples(README) if name == "outside"]
    script = tmp_path / "outside.py"
    script.write_text(code, encoding="utf-8")
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


def test_example_sync(ipc_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `def` endpoint and a task outside publish to the same channel."""
    monkeypatch.setenv("BACKPLANE_URL", ipc_url)
    names = run("sync")
    names["app"].add_api_websocket_route("/listen/{channel}", listen_on(names["backplane"]))
    with TestClient(names["app"]) as client, client.websocket_connect("/listen/orders") as socket:
        assert client.post("/orders/42").status_code == 200
        assert socket.receive_json() == {"id": 42}
        with names["SyncBackplane"]() as outside:
            names["celery_task"](42, outside)
        assert socket.receive_json() == {"id": 42, "state": "shipped"}


def listen_on(backplane: Backplane) -> Callable[[WebSocket, str], Coroutine[Any, Any, None]]:
    """Return an endpoint that receives a channel."""

    async def endpoint(websocket: WebSocket, channel: str) -> None:
        async with backplane.connect(websocket, channel) as connection:
            async for _ in connection:
                pytest.fail("the client sent something")

    return endpoint


@pytest.mark.anyio
async def test_example_consumer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The consumer prints messages and gaps, and ends with the backplane."""
    sinks: list[Sink] = []
    start = MemoryBroadcaster.start

    async def kept_start(self: MemoryBroadcaster, sink: Sink) -> None:
        sinks.append(sink)
        await start(self, sink)

    monkeypatch.setattr(MemoryBroadcaster, "start", kept_start)
    follow_orders: Callable[[Backplane], Coroutine[Any, Any, None]] = run("consumer")["follow_orders"]
    async with Backplane("memory://") as backplane:
        following = asyncio.create_task(follow_orders(backplane))
        await until_idle()  # until it has subscribed: `memory://` confirms without waiting
        await backplane.publish("orders", {"id": 42})
        sinks[0].gap(ALL, "overrun")
        await backplane.publish("orders", "last")
        await until_idle()
    await asyncio.wait_for(following, WAIT_SECONDS)
    assert capsys.readouterr().out.splitlines() == ['orders {"id":42}', "reload: overrun", "orders last"]


async def listen(websocket: WebSocket, user: str, backplane: Annotated[Backplane, Depends(get_backplane)]) -> None:
    """Hear what is notified to a user."""
    async with backplane.connect(websocket, f"user:{user}") as connection:
        async for _ in connection:
            pytest.fail("the client said nothing")


def test_example_dependency() -> None:
    """The route publishes through the injected backplane, which the lifespan has started."""
    app = run("dependency")["app"]
    app.add_api_websocket_route("/listen/{user}", listen)
    with TestClient(app) as client, client.websocket_connect("/listen/ada") as ada:
        assert client.post("/notify/ada", params={"text": "hello"}).status_code == 200
        assert ada.receive_text() == "hello"


def test_example_starlette() -> None:
    """What one client says reaches every other, and not itself."""
    names = run("starlette")
    with (
        TestClient(names["app"]) as client,
        client.websocket_connect("/") as one,
        client.websocket_connect("/") as other,
    ):
        one.send_text("from one")
        assert other.receive_text() == "from one"
        other.send_text("from other")
        assert one.receive_text() == "from other"


def test_example_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client is told of a gap in the words of the application, and stays."""
    sinks: list[Sink] = []
    start = MemoryBroadcaster.start

    async def kept_start(self: MemoryBroadcaster, sink: Sink) -> None:
        sinks.append(sink)
        await start(self, sink)

    monkeypatch.setattr(MemoryBroadcaster, "start", kept_start)
    names = run("gap")
    with TestClient(names["app"]) as client, client.websocket_connect("/prices") as one:
        assert client.portal is not None
        client.portal.call(sinks[0].gap, ALL, "overrun")
        assert one.receive_json() == {"type": "reload", "channel": "prices"}
        client.portal.call(names["backplane"].publish, "prices", "42")
        assert one.receive_text() == "42"


def test_example_health(capsys: pytest.CaptureFixture[str]) -> None:
    """The routes answer, and every change of the state is printed."""
    with TestClient(run("health")["app"]) as client:
        assert [client.get(f"/health/{name}").status_code for name in ("live", "ready")] == [200, 200]
        assert client.get("/health/ready").json()["state"] == "live"
    assert [line.split(" ")[:3] for line in capsys.readouterr().out.splitlines()] == [
        ["starting", "->", "live"],
        ["live", "->", "closed"],
    ]


def test_example_sockets() -> None:
    """A client hears its own orders, is answered what does not validate, and a page of another site stays outside."""
    names = run("sockets")

    async def head() -> int:
        statuses: list[int] = []

        async def send(event: Any) -> None:
            statuses.append(event.get("status"))

        stream = await names["listen"](Request({"type": "http"}), user="ada")
        await stream({"type": "http", "method": "HEAD", "headers": []}, asyncio.Event().wait, send)
        return statuses[0]

    with TestClient(names["app"]) as client, client.websocket_connect("/orders?token=ada") as ada:
        assert client.portal is not None
        assert client.portal.call(head) == 200
        ada.send_json({"item": "tea", "amount": 2})
        assert ada.receive_json() == {"item": "tea", "amount": 2}
        ada.send_json({"item": "tea"})
        assert ada.receive_json()["error"] == "invalid message"
        with pytest.raises(WebSocketDenialResponse) as refused:
            client.websocket_connect("/orders?token=eve", headers={"Origin": "https://evil.example"}).__enter__()
        assert refused.value.status_code == 403


def test_example_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose publish fails because the broker is away is answered 503 with when to try again."""

    async def fail(*_: object) -> None:
        raise BrokerUnavailableError("away")

    with TestClient(run("unavailable")["app"]) as client:
        assert client.post("/rooms/a?text=hello").status_code == 200
        monkeypatch.setattr(MemoryBroadcaster, "publish", fail)
        answer = client.post("/rooms/a?text=hello")
    assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (503, True)


def test_example_settings() -> None:
    """The settings are accepted as they stand there."""
    assert repr(run("settings")["backplane"]) == "<Backplane memory:// closed>"


# --- the table of adapters -----------------------------------------------------------------------------------------


def test_table_is_what_the_adapters_declare() -> None:
    """The table stands there as `python -m tests.readme_table` makes it from the capabilities."""
    try:
        declared = table()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    assert written_table() == declared, "run: python -m tests.readme_table"


# --- links ---------------------------------------------------------------------------------------------------------


def relative_links() -> list[str]:
    """Return the targets of the README's links that stay within the repository."""
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)", prose)
    return [target for target in targets if not re.match(r"[a-z]+:|#", target)]


def test_there_are_links() -> None:
    """The search finds what it looks for."""
    assert relative_links()


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="an installed wheel is tested, what is linked to is away")
@pytest.mark.parametrize("target", relative_links())
def test_link_is_not_dead(target: str) -> None:
    """What the README links to is there."""
    path, _, _ = target.partition("#")
    assert (ROOT / path).exists()
