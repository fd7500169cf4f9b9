"""`backplane.centrifugal.endpoint`: its options, and how a client is accepted (protocol, sections 1 and 8)."""

from __future__ import annotations

from typing import Any

import pytest

from backplane import Backplane, ConfigurationError, Limits, Who
from backplane.centrifugal import Centrifugal
from backplane.centrifugal.encoding import PROTOBUF
from tests.unit.centrifugal.world import Sdk, Site, push, serving
from tests.unit.doubles import until_idle
from tests.unit.sockets import driver_of

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ping_seconds": 0}, "ping_seconds"),
        ({"ping_seconds": 2.5}, "ping_seconds"),
        ({"pong_seconds": -1}, "pong_seconds"),
        ({"ping_seconds": 10}, "pong_seconds must be less than ping_seconds, not 10"),
    ],
)
def test_options(options: dict[str, Any], words: str) -> None:
    """Options that cannot be used are refused at once."""
    with pytest.raises(ConfigurationError, match=words):
        Centrifugal(Backplane("memory://"), **options)


@pytest.mark.parametrize("option", ["subprotocol", "envelope", "on_gap", "since", "rewind"])
async def test_options_of_the_protocol(site: Site, option: str) -> None:
    """Options of `connect` in whose place the protocol has its own are refused."""
    options: Any = {option: None}
    with pytest.raises(ConfigurationError, match=f"the protocol has its own {option}: leave out the option"):
        await site.centrifugal.serve(Sdk().websocket, **options)


@pytest.mark.parametrize(
    ("query", "offered", "accepted", "is_protobuf"),
    [
        pytest.param("", (), None, False, id="nothing"),
        pytest.param("", ("other", "centrifuge-json"), "centrifuge-json", False, id="JSON"),
        pytest.param("", ("other",), None, False, id="another"),
        pytest.param("", ("centrifuge-json", "centrifuge-protobuf"), "centrifuge-protobuf", True, id="both"),
        pytest.param("cf_protocol=protobuf", (), None, True, id="cf_protocol"),
        pytest.param("format=protobuf", (), None, True, id="format"),
        pytest.param("format=json&cf_protocol=json", (), None, False, id="JSON by the query"),
    ],
)
async def test_encodings(
    site: Site, query: str, offered: tuple[str, ...], accepted: str | None, is_protobuf: bool
) -> None:
    """A client chooses its encoding by a subprotocol, which is echoed, or by its URL; JSON needs neither."""
    client = Sdk(query, offered)
    client.is_protobuf = is_protobuf
    await site.connected(client=client)
    assert client.accepted == [accepted]
    client.send({"id": 2, "unsubscribe": {"channel": "a"}})
    expected: Any = {"id": 2, "unsubscribe": {}}
    assert await client.next() == (PROTOBUF.reply(2, "unsubscribe", {}) if is_protobuf else expected)


@pytest.mark.parametrize(
    ("query", "pings", "heartbeat"),
    [
        pytest.param("", {"ping": 25, "pong": True}, 25, id="of the protocol"),
        pytest.param("cf_ws_frame_ping_pong=true", {}, 3, id="of WebSocket"),
    ],
)
async def test_pings(site: Site, query: str, pings: dict[str, Any], heartbeat: float) -> None:
    """A client is pinged as the reply states, or by WebSocket where its URL asks for it, as `Limits` state."""
    for max_channels in (7, 7, 8):
        client = site.opened(Sdk(query), limits=Limits(heartbeat_seconds=3, max_channels=max_channels))
        client.send({"id": 1, "connect": {"token": "ann"}})
        result = (await client.next())["connect"]
        assert {name: result[name] for name in ("ping", "pong") if name in result} == pings
    first, second, other = [driver_of(connection).policy.limits for connection in site.connections]
    assert (first.heartbeat_seconds, first.max_message_bytes, first.max_channels) == (heartbeat, 1024 * 1024, 7)
    assert other.max_channels == 8
    assert first is second, "the clients of a worker share their limits"


async def test_handed_over(site: Site) -> None:
    """On a lane a client is served without its handler, to its end."""
    client = site.opened(Sdk(has_lane=True))
    assert client.serving is not None
    await client.serving
    client.send({"id": 1, "connect": {"token": "ann"}})
    assert "connect" in await client.next()
    await client.subscribe("a")
    await site.backplane.publish("a", 1)
    assert await client.next() == push("a", "pub", {"data": 1})
    client.leave()
    await until_idle()
    assert (await site.backplane.health()).connections == 0


async def test_user_of_the_handler() -> None:
    """A user that the handler knows needs no token, and is the user of commands and of presence."""
    async with serving() as site:
        client = site.opened(presence=Who(user="ann"))
        client.send({"id": 1, "connect": {}})
        assert "connect" in await client.next()
        await site.backplane.send_to(user="ann", data=1)
        assert await client.next() == push("", "message", {"data": 1})


async def test_hooks() -> None:
    """Each hook is registered by a decorator that returns the function."""
    centrifugal = Centrifugal(Backplane("memory://"))

    def hook(connection: Any, data: Any) -> None:
        """Do nothing."""

    assert centrifugal.on_connect(hook) is hook
    assert centrifugal.permit(hook) is hook
    assert centrifugal.on_message(hook) is hook
    assert centrifugal.rpc("hook")(hook) is hook
    with pytest.raises(ConfigurationError, match="hook"):
        centrifugal.rpc("hook")(hook)
