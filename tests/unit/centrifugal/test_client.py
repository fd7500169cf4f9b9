"""`backplane.centrifugal.client`: in which order a client is answered, what it is pushed, how it ends."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from backplane import Backlog, Limits
from backplane.centrifugal import Accepted, CommandError, expiry
from backplane.centrifugal import client as client_module
from backplane.worker import runtime
from tests.unit.asgi_client import data_of
from tests.unit.centrifugal.world import ANN, Sdk, Site, error, in_seconds, push, serving
from tests.unit.doubles import run_passes, until_idle
from tests.unit.kit import WAIT_SECONDS
from tests.unit.sockets import driver_of

if TYPE_CHECKING:
    from backplane import Connection

pytestmark = pytest.mark.anyio

CONNECT = {"id": 1, "connect": {"token": ANN}}
PUSHED = push("a", "pub", {"data": 1})
TEMPORARY = 100


def never(*_: object) -> float:
    """Let the clients of a gap have their turns within days."""
    return 1e6


def unsubscribed(code: int, reason: str, channel: str = "a") -> dict[str, Any]:
    """Return the push of the end of a subscription."""
    return push(channel, "unsubscribe", {"code": code, "reason": reason})


# --- connect (sections 2 and 3) ------------------------------------------------------------------------------------


async def test_connect(site: Site) -> None:
    """The reply states the client, the version, and how it is pinged."""
    client = site.opened()
    client.send(CONNECT)
    reply = await client.next()
    assert len(reply["connect"].pop("client")) == 16
    assert reply == {"id": 1, "connect": {"version": "test", "ping": 25, "pong": True}}


async def test_one_frame(site: Site) -> None:
    """Commands after the connect in its frame are carried out after it."""
    client = site.opened()
    client.send(CONNECT, {"id": 2, "subscribe": {"channel": "a"}}, {"id": 3, "subscribe": {"channel": "b"}})
    replies = [await client.next() for _ in range(3)]
    assert [(reply["id"], *reply) for reply in replies] == [
        (1, "id", "connect"),
        (2, "id", "subscribe"),
        (3, "id", "subscribe"),
    ]


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(['{"id":2,"subscribe":{"channel":"a"}}'], id="before the connect"),
        pytest.param(["{}"], id="a pong before the connect"),
        pytest.param([json.dumps(CONNECT), json.dumps(CONNECT)], id="connect twice"),
        pytest.param([json.dumps(CONNECT), "{}"], id="a pong that was not asked for"),
        pytest.param(["no JSON"], id="no JSON"),
        pytest.param([b"\x00"], id="Protobuf"),
    ],
)
async def test_violations(site: Site, frames: list[str | bytes]) -> None:
    """What the protocol does not allow closes the client with 3501, after which it stays away."""
    client = site.opened()
    for frame in frames:
        client.write(frame)
    assert await client.closed() == (3501, "bad request")


async def test_refused_connect(site: Site) -> None:
    """After an error as the answer to its connect nothing more of a client is carried out."""

    def refuse(*_: object) -> Accepted:
        raise CommandError(400, "not today")

    site.centrifugal.on_connect(refuse)
    client = site.opened()
    client.send(CONNECT, {"id": 2, "subscribe": {"channel": "a"}})
    client.send({"id": 3, "publish": {"channel": "a", "data": 1}})
    assert await client.waiting() == [{"id": 1} | error(400, "not today")]
    assert (site.asked, site.backplane.statistics().published) == (0, 0)


async def test_connect_that_is_too_large(site: Site) -> None:
    """A connect of more than 64 KiB is refused."""
    client = site.opened()
    client.send({"id": 1, "connect": {"data": "x" * 70_000}}, {"id": 2, "publish": {"channel": "a"}})
    assert await client.waiting() == [{"id": 1} | error(107, "bad request")]


async def test_client_without_a_connect(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not connect in time, or was refused and stays, is closed with 3502 (section 8)."""
    monkeypatch.setattr(client_module, "_STALE_SECONDS", 0.01)
    silent, refused = site.opened(), site.opened()
    refused.send({"id": 1, "connect": {"token": "old"}})
    assert [await silent.closed(), await refused.closed()] == [(3502, "stale")] * 2


async def test_end_before_a_connect(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing becomes of the time that a client had which has left before."""
    monkeypatch.setattr(client_module, "_STALE_SECONDS", 0.01)
    client = site.opened()
    await until_idle()
    client.leave()
    await site.opened().closed()  # which was opened after it
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_connect_in_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has connected is not."""
    monkeypatch.setattr(client_module, "_STALE_SECONDS", 0.5)
    client = await site.connected()
    await site.opened().closed()  # which was opened after it
    assert "unsubscribe" in await client.ask("unsubscribe", channel="a")


# --- server-side subscriptions (section 3) -------------------------------------------------------------------------


# --- subscribe and unsubscribe (sections 2, 4 and 12) --------------------------------------------------------------


async def test_subscribe_twice(site: Site, client: Sdk) -> None:
    """A second subscribe of a channel is error 105, also while the first is under way; the channel goes on."""
    twice = error(105, "already subscribed")
    site.gate.close()
    client.send({"id": 2, "subscribe": {"channel": "a"}}, {"id": 3, "subscribe": {"channel": "a"}})
    await until_idle()
    site.gate.open()
    replies = {reply.pop("id"): reply for reply in await client.waiting()}
    assert (replies[3], "subscribe" in replies[2]) == (twice, True)
    assert await client.ask("subscribe", channel="a") == twice
    await site.backplane.publish("a", 1)
    assert await client.next() == PUSHED


async def test_unsubscribe_waits_for_the_subscribe(site: Site, client: Sdk) -> None:
    """An unsubscribe of a channel whose subscribe is under way is carried out after it."""
    site.gate.close()
    client.send({"id": 2, "subscribe": {"channel": "a"}}, {"id": 3, "unsubscribe": {"channel": "a"}})
    await until_idle()
    site.gate.open()
    assert [reply["id"] for reply in await client.waiting()] == [2, 3]
    await site.backplane.publish("a", 1)
    assert await client.waiting() == []


@pytest.mark.parametrize(
    ("command", "wish"),
    [
        ("subscribe", {"type": 1}),
        ("subscribe", {"tf": {"key": "k"}}),
        ("subscribe", {"delta": "fossil"}),
        ("publish", {"type": 1}),
    ],
)
async def test_channels_of_another_kind(client: Sdk, command: str, wish: dict[str, Any]) -> None:
    """Maps, filters and deltas are not offered: error 107 (section 13)."""
    assert await client.ask(command, channel="a", **wish) == error(107, "bad request")


async def test_subscribe_that_is_refused(client: Sdk) -> None:
    """What `authorize` refuses is error 103."""
    assert await client.ask("subscribe", channel="secret") == error(103, "permission denied")


async def test_more_channels_than_are_allowed(site: Site) -> None:
    """One channel more than `Limits` allow is error 106, also while another is under way."""
    client = await site.connected(limits=Limits(max_channels=1))
    site.gate.close()
    client.send({"id": 2, "subscribe": {"channel": "a"}}, {"id": 3, "subscribe": {"channel": "b"}})
    await until_idle()
    site.gate.open()
    first, second = await client.waiting()
    assert ("subscribe" in first, second) == (True, {"id": 3} | error(106, "limit exceeded"))
    assert await client.ask("subscribe", channel="c") == error(106, "limit exceeded")


async def test_subscribe_that_is_not_decided_in_time(site: Site, client: Sdk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is answered in time by a temporary error, and its channel is not joined: the SDK tries again."""
    monkeypatch.setattr(client_module, "_COMMAND_SECONDS", 0.01)
    site.gate.close()
    late = await client.ask("subscribe", channel="a")
    assert (late["error"]["code"], late["error"]["temporary"]) == (100, True)
    site.gate.open()
    monkeypatch.setattr(client_module, "_COMMAND_SECONDS", WAIT_SECONDS)
    assert "subscribe" in await client.ask("subscribe", channel="a")


async def test_token_of_a_subscribe(site: Site, client: Sdk) -> None:
    """A token permits a channel about which `authorize` is not asked, and can pass data for the application."""
    site.tokens.granted["data"] = {"n": 1}
    result = await client.subscribe("secret", token=ANN)
    assert (result["data"], "expires" in result, site.asked) == ({"n": 1}, False, 0)
    (asked,) = site.tokens.asked
    assert asked.pop("client")
    assert asked == {"user": ANN, "channel": "secret"}


@pytest.mark.parametrize(("token", "code"), [("old", 109), ("none", 103), ("unknown", 100)])
async def test_token_that_does_not_permit(client: Sdk, token: str, code: int) -> None:
    """With 109 the SDK gets a new token, with 100 it tries again, with 103 it gives up (section 9)."""
    refused = await client.ask("subscribe", channel="a", token=token)
    assert refused["error"]["code"] == code


# --- what expires (section 7) --------------------------------------------------------------------------------------


async def test_connection_that_expires(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply states when; a client that does not refresh is closed with 3005 some time after that."""
    monkeypatch.setattr(expiry, "_REFRESH_SECONDS", 0.0)
    client = site.opened()
    client.send({"id": 1, "connect": {"token": f"ann|{in_seconds(0.01)}"}})
    result = (await client.next())["connect"]
    assert (result["expires"], result["ttl"]) == (True, 1)
    assert await client.closed() == (3005, "connection expired")


async def test_permission_of_a_hook() -> None:
    """Where there are no tokens nothing can be refreshed: the client is closed in time, and the reply states no end."""
    async with serving(has_tokens=False) as site:
        site.accepted = Accepted(expires_at=in_seconds(0.01))
        client = site.opened()
        client.send(CONNECT)
        assert "expires" not in (await client.next())["connect"]
        assert await client.closed() == (3005, "connection expired")


async def test_refresh(site: Site) -> None:
    """A new token prolongs the connection, for ever where it states no end."""
    client = await site.connected(f"ann|{in_seconds(60)}")
    timers = driver_of(site.connections[0]).timers
    before = timers.expires_at
    reply = await client.ask("refresh", token=f"ann|{in_seconds(100.9)}")
    assert reply["refresh"].pop("client")
    assert reply == {"refresh": {"version": "test", "expires": True, "ttl": 100}}
    assert before is not None
    assert timers.expires_at == pytest.approx(before + 40.9, abs=1)
    reply = await client.ask("refresh", token=ANN)
    assert ("expires" in reply["refresh"], timers.expires_at) == (False, None)


@pytest.mark.parametrize(
    ("token", "end"),
    [
        ("old", (3005, "connection expired")),
        ("none", (3500, "invalid token")),
        ("bob", (3500, "invalid token")),
    ],
)
async def test_refresh_that_is_refused(client: Sdk, token: str, end: tuple[int, str]) -> None:
    """A client whose new token is too old comes back; one whose token is none, or another user's, stays away."""
    client.send({"id": 2, "refresh": {"token": token}})
    assert await client.closed() == end


async def test_refresh_that_cannot_be_checked(client: Sdk) -> None:
    """The SDK tries again."""
    assert (await client.ask("refresh", token="unknown"))["error"]["temporary"]


async def test_refresh_without_tokens() -> None:
    """An endpoint without tokens has nothing to refresh."""
    async with serving(has_tokens=False) as site:
        assert await (await site.connected()).ask("refresh", token=ANN) == error(108, "not available")


async def test_sub_refresh(client: Sdk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new token prolongs the subscription, for ever where it states no end."""
    monkeypatch.setattr(expiry, "_REFRESH_SECONDS", 0.3)
    await client.subscribe("a", token=f"ann|{in_seconds(0)}")
    reply = await client.ask("sub_refresh", channel="a", token=f"ann|{in_seconds(100.9)}")
    assert reply == {"sub_refresh": {"expires": True, "ttl": 100}}
    await client.subscribe("b", token=f"ann|{in_seconds(0)}")
    assert await client.ask("sub_refresh", channel="b", token=ANN) == {"sub_refresh": {}}
    await client.subscribe("c", token=f"ann|{in_seconds(0)}")
    assert await client.next() == unsubscribed(2501, "subscription expired", "c")


async def test_sub_refresh_without_a_subscription(client: Sdk) -> None:
    """It is error 103."""
    assert await client.ask("sub_refresh", channel="a", token=ANN) == error(103, "permission denied")


@pytest.mark.parametrize("body", [{"token": ANN}, {"channel": "a"}, {"channel": "a", "token": ANN, "type": 1}])
async def test_sub_refresh_that_lacks_something(client: Sdk, body: dict[str, Any]) -> None:
    """Without a channel, as centrifuge-python 0.5 sends it, or a token, or of another kind, it is error 107."""
    await client.subscribe("a")
    assert await client.ask("sub_refresh", **body) == error(107, "bad request")


async def test_sub_refresh_that_is_too_old(client: Sdk) -> None:
    """It ends the subscription with 2501: the SDK subscribes again, and gets a new token."""
    await client.subscribe("a", token=ANN)
    client.send({"id": 9, "sub_refresh": {"channel": "a", "token": "old"}})
    assert await client.waiting() == [unsubscribed(2501, "subscription expired"), {"id": 9, "sub_refresh": {}}]


@pytest.mark.parametrize("token", ["old", "ann|4000000000"])
async def test_unsubscribe_while_a_token_is_read(site: Site, client: Sdk, token: str) -> None:
    """Whatever the token states, it ends nothing, and the channel stays left."""
    await client.subscribe("a")
    site.tokens.gate.close()
    client.send({"id": 9, "sub_refresh": {"channel": "a", "token": token}})
    await until_idle()
    (connection,) = site.connections
    await connection.leave("a")
    site.tokens.gate.open()
    ended, reply = await client.waiting()
    assert (ended, "sub_refresh" in reply) == (unsubscribed(2000, "server unsubscribe"), True)


# --- gaps (section 6) ----------------------------------------------------------------------------------------------


# --- pings (section 8) ---------------------------------------------------------------------------------------------


async def test_ping(site: Site, client: Sdk) -> None:
    """A ping is an empty reply, and its answer an empty command; a second answer closes the client."""
    site.ping()
    assert await client.next() == {}
    client.write("{}")
    assert "unsubscribe" in await client.ask("unsubscribe", channel="a")
    client.write("{}")
    assert await client.closed() == (3501, "bad request")


async def test_no_answer_to_a_ping(site: Site, client: Sdk) -> None:
    """A client that does not answer in time is closed with 3012."""
    site.ping()
    site.ping()
    assert await client.closed() == (3012, "no pong")


async def test_message_to_a_client(site: Site, client: Sdk) -> None:
    """What the application sends to one client is a push without a channel: JSON as it is, else a text."""
    (connection,) = site.connections
    await connection.send({"n": 1})
    await connection.send("text")
    messages = [push("", "message", {"data": data}) for data in ({"n": 1}, "text")]
    assert await client.waiting() == messages


# --- limits and faults (sections 9 and 12) -------------------------------------------------------------------------


async def test_command_that_is_too_large(client: Sdk) -> None:
    """A command of more than 64 KiB is error 107; the client goes on."""
    assert await client.ask("publish", channel="a", data="x" * 70_000) == error(107, "bad request")
    assert "unsubscribe" in await client.ask("unsubscribe", channel="a")


async def test_commands_per_second(site: Site) -> None:
    """Commands beyond what `Limits` allow are error 111, also where one frame holds them all."""
    client = await site.connected(limits=Limits(max_messages_per_second=1, max_burst=2))
    client.send(*({"id": number, "unsubscribe": {"channel": "a"}} for number in range(2, 6)))
    replies = [await client.next() for _ in range(4)]
    refused = [reply for reply in replies if "error" in reply]
    assert {reply["error"]["code"] for reply in refused} == {111}
    assert 0 < len(refused) < 4


async def test_fault_of_the_application(site: Site, client: Sdk, caplog: pytest.LogCaptureFixture) -> None:
    """What a hook raises is logged, and answered by a temporary error; a `CommandError` is the answer."""

    def permit(_: object, action: str, channel: str) -> bool:
        raise CommandError(404, "no such room") if action == "history" else ZeroDivisionError("of a test")

    site.centrifugal.permit(permit)
    assert await client.ask("history", channel="rec:a") == error(404, "no such room")
    assert await client.ask("publish", channel="a") == error(100, "internal server error", temporary=True)
    assert "of a test" in caplog.text


async def test_message_without_a_reply(site: Site, client: Sdk) -> None:
    """What fails in a `send`, which has no reply, leaves the client connected."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("of a test")

    site.centrifugal.on_message(fail)
    client.send({"send": {"data": 1}})
    assert await client.waiting() == []
    assert "unsubscribe" in await client.ask("unsubscribe", channel="a")


async def test_order_of_publishes(site: Site, client: Sdk) -> None:
    """Publishes of a client keep their order, however long the hook takes about each."""
    delays = iter((3, 2, 1, 0))

    async def permit(*_: object) -> bool:
        await run_passes(next(delays))
        return True

    site.centrifugal.permit(permit)
    async with site.backplane.subscribe("a") as messages:
        client.send(*({"id": number, "publish": {"channel": "a", "data": number}} for number in range(2, 6)))
        assert await data_of(messages, 4) == ["2", "3", "4", "5"]


async def held_back(site: Site) -> Sdk:
    """Return a client that reads nothing, with a reply on its way that is larger than what may wait for it."""
    for number in range(10):
        await site.backplane.publish("rec:a", f"{number:2000}")
    client = await site.connected(backlog=Backlog(max_bytes=10_000))
    client.reading.close()
    client.send({"id": 2, "history": {"channel": "rec:a", "limit": -1}})
    await until_idle()
    return client


async def test_large_replies(site: Site) -> None:
    """They wait for one another until the client reads, and small ones do not; what is published follows them."""
    client = await held_back(site)
    client.send({"id": 3, "history": {"channel": "rec:a", "limit": -1}})
    client.send({"id": 4, "subscribe": {"channel": "rec:a", "recover": True}})
    client.send({"id": 5, "unsubscribe": {"channel": "b"}})
    await until_idle()
    await site.backplane.publish("rec:a", "new")
    client.reading.open()
    replies = await client.waiting()
    assert [reply.get("id") for reply in replies] == [2, 5, 3, 4, None]
    assert [len(replies[2]["history"]["publications"]), len(replies[3]["subscribe"]["publications"])] == [10, 10]
    assert replies[4]["push"]["pub"]["data"] == "new"


async def test_many_replies_with_what_was_missed(site: Site) -> None:
    """A client that comes back to many channels is not too slow for what they give back, however little may wait."""
    channels = [f"rec:{number}" for number in range(5)]
    for channel in channels:
        await site.backplane.publish(channel, " " * 8_000)
    client = await site.connected(backlog=Backlog(max_bytes=10_000))
    client.reading.close()
    client.send(*({"id": 2, "subscribe": {"channel": channel, "recover": True}} for channel in channels))
    await until_idle()
    client.reading.open()
    assert ["subscribe" in reply for reply in await client.waiting()] == [True] * 5


@pytest.mark.parametrize("command", [{"history": {"limit": -1}}, {"subscribe": {"recover": True}}])
async def test_large_replies_that_are_not_read(
    site: Site, monkeypatch: pytest.MonkeyPatch, command: dict[str, dict[str, Any]]
) -> None:
    """They are dropped in time, for a temporary error; a channel whose subscribe has no reply is left."""
    client = await held_back(site)
    monkeypatch.setattr(client_module, "_COMMAND_SECONDS", 0.01)
    ((name, body),) = command.items()
    client.send({"id": 4, name: {"channel": "rec:a"} | body})
    outbox = driver_of(site.connections[0]).outbox
    async with asyncio.timeout(WAIT_SECONDS):
        while not outbox:
            await asyncio.sleep(0.001)
    client.reading.open()
    large, failed = await client.waiting()
    assert (large["id"], failed["id"], failed["error"]["code"]) == (2, 4, 100)
    assert not site.connections[0].channels


async def test_gap_before_a_large_reply(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply is sent, and nothing of the channel after it until the client subscribes again."""
    monkeypatch.setattr(runtime, "stagger_window", never)
    client = await held_back(site)
    client.send({"id": 4, "subscribe": {"channel": "rec:a", "recover": True}})
    await until_idle()
    site.gap("rec:a")
    await site.backplane.publish("rec:a", 1)
    client.reading.open()
    assert [reply["id"] for reply in await client.waiting()] == [2, 4]


async def test_large_reply_to_a_subscribe_that_is_over(site: Site) -> None:
    """A channel that is left before its reply is answered by a temporary error."""
    client = await held_back(site)
    client.send({"id": 4, "subscribe": {"channel": "rec:a", "recover": True}})
    await until_idle()
    await site.connections[0].leave("rec:a")
    client.reading.open()
    large, failed = await client.waiting()
    assert (large["id"], failed["id"], failed["error"]["code"]) == (2, 4, 100)


async def test_frame_of_many_commands(client: Sdk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is carried out in slices, in order."""
    monkeypatch.setattr(client_module, "_SLICE", 2)
    client.send(*({"id": number, "unsubscribe": {"channel": "a"}} for number in range(2, 7)))
    assert [reply["id"] for reply in await client.waiting()] == [2, 3, 4, 5, 6]


# --- the end -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_refused", [True, False])
async def test_close_by_a_hook(site: Site, is_refused: bool) -> None:
    """A client that a hook closes is answered nothing more, and what follows in its frame is not carried out."""

    async def on_connect(connection: Connection, _: object) -> None:
        await connection.close(4503, "banned")
        if is_refused:
            raise CommandError(400, "banned")

    site.centrifugal.on_connect(on_connect)
    client = site.opened()
    client.send(CONNECT, {"id": 2, "subscribe": {"channel": "a"}})
    assert await client.closed() == (4503, "banned")
    assert site.asked == 0


async def test_end_while_commands_are_under_way(site: Site, client: Sdk) -> None:
    """A client that leaves is in no channel, whatever is under way, and has no timer left."""
    await client.subscribe("a", token=f"ann|{in_seconds(60)}")
    site.gate.close()
    client.send({"id": 3, "subscribe": {"channel": "room:1", "join_leave": True}})
    await until_idle()
    site.gap("a")
    client.leave()
    assert client.serving is not None
    await client.serving
    site.gate.open()
    assert (await site.backplane.present("room:1")).connections == 0


async def test_end_of_the_worker(site: Site, client: Sdk) -> None:
    """A client of a worker that ends is closed with 3001, and comes back."""
    await client.subscribe("a")
    await site.backplane.drain()
    assert await client.closed() == (3001, "shutdown")
