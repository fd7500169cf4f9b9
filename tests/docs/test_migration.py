"""docs/migration/: the code after a move does what the code before it did."""

from __future__ import annotations

import asyncio
import queue
import re
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI, WebSocketDisconnect
from litestar.testing import TestClient as LitestarClient
from starlette.testclient import TestClient

from backplane import Gap
from backplane.sync import SyncBackplane
from tests.docs.pages import DOCS, Page

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane import Backplane
    from tests.brokers.broker import Broker

TESTED = {
    "from-broadcaster": {"broadcaster", "import"},
    "from-channels": {"layer", "sockets", "views"},
    "from-connection-manager": {"manager"},
    "from-litestar": {"plugin", "history"},
    "from-socketio": {"manager", "script", "server"},
}

pytestmark = pytest.mark.anyio

BEFORE = re.compile(r"^<!-- before: ([\w-]+) -->\n```py\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMES = sorted(path.stem for path in (DOCS / "migration").glob("from-*.md"))


def page(name: str) -> Page:
    """Return a page about a move."""
    return Page(f"migration/{name}.md")


@pytest.mark.parametrize("name", NAMES)
def test_every_python_block_has_a_name_and_a_test(name: str) -> None:
    """No Python of a page is without a name, and none of the tests below has lost its example."""
    names = [found for found, _ in page(name).examples()]
    assert page(name).text.count("```python") == len(names)
    assert sorted(map(str, names)) == sorted(TESTED[name])


@pytest.mark.parametrize("name", NAMES)
def test_code_before_is_python(name: str) -> None:
    """Each page shows one program as it was before, which compiles, and no other code of that kind."""
    ((example, code),) = BEFORE.findall(page(name).text)
    compile(code, f"{name}, before {example}", "exec", dont_inherit=True)
    assert len(re.findall(r"^```py$", page(name).text, re.MULTILINE)) == 1


def before() -> Any:
    """Return the application with a ConnectionManager."""
    ((_, code),) = BEFORE.findall(page("from-connection-manager").text)
    names: dict[str, Any] = {"__name__": "before"}
    exec(compile(code, "before", "exec", dont_inherit=True), names)
    return names["app"]


def after() -> Any:
    """Return the application without one."""
    return page("from-connection-manager").run("manager")["app"]


@pytest.mark.parametrize("make_app", [before, after])
def test_connection_manager(make_app: Callable[[], FastAPI]) -> None:
    """A client is answered, and its room receives what it sends and that it left, before the move and after it."""
    with TestClient(make_app()) as client, client.websocket_connect("/rooms/kitchen") as one:
        with client.websocket_connect("/rooms/kitchen") as other:
            other.send_text("hello")
            assert [other.receive_text(), other.receive_text()] == ["You wrote: hello", "Message: hello"]
            assert one.receive_text() == "Message: hello"
        assert one.receive_text() == "Someone left"


def test_broadcaster() -> None:
    """All clients of the chat receive what one of them sends, the sender included."""
    app = page("from-broadcaster").run("broadcaster")["app"]
    with TestClient(app) as client, client.websocket_connect("/") as one, client.websocket_connect("/") as other:
        one.send_text("hello")
        assert [one.receive_text(), other.receive_text()] == ["hello", "hello"]


def test_channels(ipc_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of a room receive each other, and what the view of Django publishes."""
    from django.conf import settings
    from django.test import RequestFactory

    if not settings.configured:
        settings.configure()
    monkeypatch.setenv("BACKPLANE_URL", ipc_url)
    views = page("from-channels").run("views")
    app = page("from-channels").run("sockets")["app"]
    with (
        views["backplane"],
        TestClient(app) as client,
        client.websocket_connect("/chat/kitchen") as one,
        client.websocket_connect("/chat/kitchen") as other,
    ):
        one.send_text("hello")
        assert [one.receive_text(), other.receive_text()] == ["hello", "hello"]
        answer = views["announce"](RequestFactory().post("/", {"text": "dinner"}), "kitchen")
        assert answer.status_code == 202
        assert [one.receive_text(), other.receive_text()] == ["dinner", "dinner"]


def test_socketio() -> None:
    """Clients join and leave rooms, the others of a room receive what one sends, and nonsense is answered."""
    names = page("from-socketio").run("server")
    backplane: Backplane = names["backplane"]
    with (
        TestClient(names["app"]) as client,
        client.websocket_connect("/chat?user=ada") as ada,
        client.websocket_connect("/chat?user=grace") as grace,
    ):
        for one in (ada, grace):
            one.send_json({"event": "join", "room": "kitchen"})
            one.send_json({"event": "nonsense"})
            assert one.receive_json()["error"] == "invalid message"  # answered after the join
        ada.send_json({"event": "post", "room": "kitchen", "text": "hello"})
        assert grace.receive_json() == {"event": "line", "room": "kitchen", "author": "ada", "text": "hello"}
        grace.send_json({"event": "leave", "room": "kitchen"})
        grace.send_json({"event": "nonsense"})
        assert grace.receive_json()["error"] == "invalid message"
        backplane.sync.publish("room:kitchen", "for ada alone")
        assert ada.receive_text() == "for ada alone"
        grace.send_json({"event": "nonsense"})
        assert grace.receive_json()["error"] == "invalid message"
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/chat"):
            pytest.fail("a client without a user was accepted")


async def test_socketio_manager(ipc_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script emits to the clients of a server, which are notified of a gap."""
    monkeypatch.setenv("BACKPLANE_URL", ipc_url)
    names = page("from-socketio").run("manager")
    packets: asyncio.Queue[str] = asyncio.Queue()

    async def send(_: str, packet: Any) -> None:
        packets.put_nowait(packet.encode())

    names["sio"]._send_eio_packet = send
    names["manager"].initialize()  # as the first client does
    sid = await names["manager"].connect("one", "/")
    await names["sio"].enter_room(sid, "editors")
    await asyncio.to_thread(page("from-socketio").run, "script")
    assert await packets.get() == '42["news",{"id":42}]'
    await names["reload"](Gap(channel="socketio", reason="lost"))
    assert await packets.get() == '42["reload"]'
    await names["manager"].stop()


async def test_broadcaster_import(redis_broker: Broker) -> None:
    """The changed import publishes and receives as before, and its callback is one for gaps."""
    code = page("from-broadcaster").example("import").replace("redis://localhost:6379", redis_broker.url)
    names: dict[str, Any] = {"__name__": "import"}
    exec(compile(code, "from-broadcaster, import", "exec", dont_inherit=True), names)
    async with names["broadcast"] as broadcast, broadcast.subscribe(channel="chatroom") as subscriber:
        await broadcast.publish(channel="chatroom", message="hello")
        event = await subscriber.get()
        assert (event.channel, event.message) == ("chatroom", "hello")
    await names["reload"](Gap(channel="chatroom", reason="lost"))


def test_litestar(ipc_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of the plugin's own handler receives what is published, and with a history what was published before."""
    monkeypatch.setenv("BACKPLANE_URL", ipc_url)
    app = page("from-litestar").run("plugin")["app"]
    with LitestarClient(app) as client, client.websocket_connect("/orders") as socket:
        publisher = SyncBackplane()
        received = False
        while not received:  # the handler accepts the client before it is subscribed
            publisher.publish("orders", "shipped")
            with suppress(queue.Empty):
                received = socket.receive_text(timeout=0.5) == "shipped"
        publisher.close()
    names = page("from-litestar").run("history")
    with LitestarClient(names["app"]) as client:
        assert client.blocking_portal.call(_publish_and_read, names["channels"]) == [b"1", b"2"]


async def _publish_and_read(channels: Any) -> list[bytes]:
    for number in "12":
        await channels.wait_published(number, "orders:1")
    return list(await channels._backend.get_history("orders:1", 2))


async def test_channel_layer(redis_broker: Broker) -> None:
    """The layer of the settings is found by Channels, and a consumer receives what is sent to its group."""
    from channels import layers  # type: ignore[import-untyped]
    from django.conf import settings

    if not settings.configured:
        settings.configure()
    config: dict[str, Any] = page("from-channels").run("layer")["CHANNEL_LAYERS"]["default"]
    config["CONFIG"]["url"] = redis_broker.url
    manager: Any = layers.ChannelLayerManager
    layer: Any = manager._make_backend(SimpleNamespace(configs={"default": config}), "default", config["CONFIG"])
    channel = await layer.new_channel()
    await layer.group_add("chat", channel)
    await layer.group_send("chat", {"type": "chat.message", "text": "hello"})
    assert await layer.receive(channel) == {"type": "chat.message", "text": "hello"}
    await layer.close()
