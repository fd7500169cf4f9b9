"""`backplane.centrifugal.service`: the hooks, and what commands do with channels (protocol, sections 3, 4 and 11)."""

from __future__ import annotations

from typing import Any

import pytest

from backplane import Connection, Presence, Who
from backplane.centrifugal import Accepted, Centrifugal, ConnectRequest
from backplane.centrifugal.encoding import PROTOBUF
from tests.unit.centrifugal.world import ANN, Sdk, Site, error, in_seconds, push, serving

pytestmark = pytest.mark.anyio

ROOM, KEPT = "room:1", "rec:a"
DENIED, NOT_AVAILABLE = error(103, "permission denied"), error(108, "not available")


async def connect(client: Sdk, **body: Any) -> Any:
    """Connect, and return the reply."""
    client.send({"id": 1, "connect": body})
    reply = await client.next()
    assert reply.pop("id") == 1
    return reply


# --- connect (section 3) -------------------------------------------------------------------------------------------


async def test_token(site: Site) -> None:
    """A token states the user, data for the application, and when it runs out."""
    site.tokens.claims["data"] = {"n": 1}
    result = (await connect(site.opened(), token=f"ann|{in_seconds(100.9)}"))["connect"]
    assert (result["data"], result["expires"], result["ttl"]) == ({"n": 1}, True, 100)


@pytest.mark.parametrize(("token", "code"), [("old", 109), ("unknown", 100)])
async def test_token_that_is_refused(site: Site, token: str, code: int) -> None:
    """With 109 the SDK gets a new token and connects again, with 100 it tries again."""
    assert (await connect(site.opened(), token=token))["error"]["code"] == code


async def test_token_that_is_none(site: Site) -> None:
    """The client is closed with 3500, and stays away."""
    client = site.opened()
    client.send({"id": 1, "connect": {"token": "none"}})
    assert await client.closed() == (3500, "invalid token")


async def test_request(site: Site) -> None:
    """The hook gets what the client sends, its name and version cut."""
    headers = {"x-tenant": "a"}
    sent = {"token": ANN, "data": {"n": 1}, "name": "n" * 17, "version": "v" * 65, "headers": headers}
    await connect(site.opened(), **sent)
    expected = ConnectRequest(token=ANN, data=b'{"n":1}', name="n" * 16, version="v" * 64, headers=headers)
    assert site.requests == [expected]


async def test_answer_of_the_hook(site: Site) -> None:
    """What the hook states is used, and for the rest what the token states."""
    site.tokens.claims |= {"data": 1, "channels": ("a",)}
    site.accepted = Accepted(data=2, channels=["b"], expires_at=in_seconds(100.9))
    found = (await connect(site.opened(), token=ANN))["connect"]
    assert (found["data"], list(found["subs"]), found["ttl"]) == (2, ["b"], 100)
    site.accepted = Accepted()
    found = (await connect(site.opened(), token=ANN))["connect"]
    assert (found["data"], list(found["subs"]), "ttl" in found) == (1, ["a"], False)


async def test_user_of_the_hook(site: Site) -> None:
    """The user that the hook names replaces that of the token, with what is shown of it."""
    site.tokens.claims["info"] = {"of": "the token"}
    site.accepted = Accepted(user="bob", info={"of": "the hook"})
    client = await site.connected()
    await client.subscribe(ROOM)
    found = await client.ask("presence", channel=ROOM)
    bob = {"user": "bob", "client": "bob", "conn_info": {"of": "the hook"}}
    assert found == {"presence": {"presence": {"bob": bob}}}


@pytest.mark.parametrize("presence", [None, Who(user="eve")])
async def test_channels_that_the_hook_joins(site: Site, presence: Who | None) -> None:
    """The user that it names after that is present in them, and no other."""

    async def on_connect(connection: Connection, _: object) -> Accepted:
        await connection.join(ROOM)
        return Accepted(user="bob")

    site.centrifugal.on_connect(on_connect)
    client = await site.connected(presence=presence)
    assert list((await site.backplane.present(ROOM)).users) == ["bob"]
    client.leave()
    assert client.serving is not None
    await client.serving
    assert list((await site.backplane.present(ROOM)).users) == []


@pytest.mark.parametrize("accepted", [Accepted(user=""), Accepted(user="x" * 200), Accepted(user="a", info=object())])
async def test_user_that_cannot_be_used(site: Site, accepted: Accepted) -> None:
    """A client with such a user is refused."""
    site.accepted = accepted
    assert await connect(site.opened(), token=ANN) == error(107, "bad request")


# --- permissions ---------------------------------------------------------------------------------------------------


COMMANDS = [
    ("publish", {"channel": "a", "data": 1}),
    ("presence", {"channel": ROOM}),
    ("presence_stats", {"channel": ROOM}),
    ("history", {"channel": KEPT}),
]


@pytest.mark.parametrize(("name", "body"), COMMANDS)
async def test_permissions(site: Site, name: str, body: dict[str, Any]) -> None:
    """What the hook does not permit is error 103, and so is everything without a hook."""
    client = await site.connected()
    assert name in await client.ask(name, **body)
    site.permitted.clear()
    assert await client.ask(name, **body) == DENIED
    site.centrifugal = Centrifugal(site.backplane)
    assert await (await site.connected()).ask(name, **body) == DENIED


@pytest.mark.parametrize(("channel", "permitted"), [("a", {"presence"}), (ROOM, set[str]())])
async def test_joins_that_are_not_shown(site: Site, channel: str, permitted: set[str]) -> None:
    """A client that wishes for joins and leaves which it may not see is subscribed without them."""
    site.permitted = permitted
    client = await site.connected()
    await client.subscribe(channel, join_leave=True)
    await (await site.connected("bob")).subscribe(channel)
    assert await client.waiting() == []


async def test_joins_without_a_hook(site: Site) -> None:
    """Without a hook no client may see them."""
    site.centrifugal = Centrifugal(site.backplane)
    client = await site.connected()
    await client.subscribe(ROOM, join_leave=True)
    assert await client.waiting() == []


# --- publish (section 11) ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "published"),
    [
        pytest.param({"data": {"n": 1}}, '{"n":1}', id="an object"),
        pytest.param({"data": "text"}, '"text"', id="a text"),
        pytest.param({}, "null", id="nothing"),
    ],
)
async def test_publish(site: Site, data: dict[str, Any], published: str) -> None:
    """What a JSON client publishes is JSON, which is stated in a history."""
    client = await site.connected()
    async with site.backplane.subscribe(KEPT) as messages:
        assert await client.ask("publish", channel=KEPT, **data) == {"publish": {}}
        message: Any = await anext(messages)
    assert (message.data, message.is_json) == (published, True)


@pytest.mark.parametrize(
    ("data", "published", "is_json"),
    [
        pytest.param(b'{"n":1}', '{"n":1}', True, id="JSON"),
        pytest.param(b"text", "text", False, id="a text"),
        pytest.param(b"", "", False, id="nothing"),
        pytest.param(b"\xff\x00", b"\xff\x00", False, id="bytes"),
    ],
)
async def test_publish_in_protobuf(site: Site, data: bytes, published: str | bytes, is_json: bool) -> None:
    """Of a Protobuf client, which sends bytes, JSON is published as JSON, other text as text, the rest as bytes."""
    client = await site.connected(client=Sdk("format=protobuf"))
    async with site.backplane.subscribe(KEPT) as messages:
        client.send({"id": 2, "publish": {"channel": KEPT, "data": data}})
        message: Any = await anext(messages)
    assert (message.data, message.is_json) == (published, is_json)
    assert await client.next() == PROTOBUF.reply(2, "publish", {})


async def test_publications(site: Site) -> None:
    """Each client gets a publication in its encoding; bytes are base64 to a JSON client, and have a tag."""
    client, other = await site.connected(), await site.connected(client=Sdk("format=protobuf"))
    await client.subscribe("a")
    other.send({"id": 2, "subscribe": {"channel": "a"}})
    await other.next()
    await site.backplane.publish("a", b"\x00\xff")
    assert await client.next() == push("a", "pub", {"data": "AP8=", "tags": {"encoding": "base64"}})
    assert await other.next() == PROTOBUF.publication("a", b"\x00\xff", is_json=False, offset=None)


# --- presence ------------------------------------------------------------------------------------------------------


async def test_presence(site: Site) -> None:
    """A channel lists its users, one entry for each, and how many connections they have."""
    clients = [await site.connected(user) for user in (ANN, ANN, "bob")]
    for client in clients:
        await client.subscribe(ROOM)
    client = clients[0]
    listed = {name: {"user": name, "client": name} for name in (ANN, "bob")}
    assert await client.ask("presence", channel=ROOM) == {"presence": {"presence": listed}}
    stats = {"num_clients": 3, "num_users": 2}
    assert await client.ask("presence_stats", channel=ROOM) == {"presence_stats": stats}


@pytest.mark.parametrize("command", ["presence", "presence_stats"])
async def test_presence_that_is_not_offered(site: Site, command: str) -> None:
    """A channel without presence is error 108, and one with numbers alone error 106."""
    assert await (await site.connected()).ask(command, channel="a") == NOT_AVAILABLE
    async with serving(presence=Presence(max_entries=0)) as other:
        assert await (await other.connected()).ask(command, channel=ROOM) == error(106, "limit exceeded")


# --- history -------------------------------------------------------------------------------------------------------


async def test_history(site: Site) -> None:
    """Without a limit a history is answered by its position, and with one by its oldest or newest messages."""
    client = await site.connected()
    for number in range(4):
        await site.backplane.publish(KEPT, number)
    top = (await client.ask("history", channel=KEPT))["history"]
    assert top["publications"] == []
    assert [
        (await listed(client, limit=-1)),
        (await listed(client, limit=2)),
        (await listed(client, limit=2, reverse=True)),
    ] == [[0, 1, 2, 3], [0, 1], [3, 2]]
    whole = (await client.ask("history", channel=KEPT, limit=9))["history"]
    assert whole["publications"][-1]["offset"] == whole["offset"] == top["offset"]


async def test_history_since(site: Site) -> None:
    """A position is not among the messages after it, and before it."""
    client = await site.connected()
    for number in range(4):
        await site.backplane.publish(KEPT, number)
    whole = (await client.ask("history", channel=KEPT, limit=-1))["history"]
    since = {"epoch": whole["epoch"], "offset": whole["publications"][1]["offset"]}
    assert await listed(client, limit=9, since=since) == [2, 3]
    assert await listed(client, limit=1, since=since) == [2]
    assert await listed(client, limit=9, since=since, reverse=True) == [0]
    assert await listed(client, limit=1, since={"offset": since["offset"]}) == [2], "no epoch accepts any"
    never = since | {"offset": since["offset"] ^ 1}
    assert await listed(client, limit=9, since=never) == [2, 3], "of the same number, but no message"


async def listed(client: Sdk, **body: Any) -> list[Any]:
    """Return what is listed of a history."""
    result = (await client.ask("history", channel=KEPT, **body))["history"]
    return [publication["data"] for publication in result.get("publications", ())]


@pytest.mark.parametrize("since", [{"epoch": "_"}, {"epoch": "0123456789abcdef", "offset": 1}, {"offset": 2**60}])
async def test_history_since_what_is_not_found(site: Site, since: dict[str, Any]) -> None:
    """A position of another history is error 112."""
    await site.backplane.publish(KEPT, 1)
    client = await site.connected()
    assert await client.ask("history", channel=KEPT, limit=1, since=since) == error(112, "unrecoverable position")


async def test_history_that_is_not_offered(site: Site) -> None:
    """A channel without a history is error 108."""
    assert await (await site.connected()).ask("history", channel="a") == NOT_AVAILABLE


# --- messages and RPCs ---------------------------------------------------------------------------------------------


async def test_messages(site: Site) -> None:
    """What a client sends goes to the hook, without a reply; without a hook it is dropped."""
    received: list[bytes] = []

    def on_message(_: object, data: bytes) -> None:
        received.append(data)

    client = await site.connected()
    client.send({"send": {"data": 1}})
    assert await client.waiting() == []
    site.centrifugal.on_message(on_message)
    client.send({"send": {"data": {"n": 2}}})
    assert await client.waiting() == []
    assert received == [b'{"n":2}']


async def test_rpc(site: Site) -> None:
    """An RPC is answered by what its function returns; an unknown one is error 104."""
    site.centrifugal.rpc("double")(double)
    client = await site.connected()
    assert await client.ask("rpc", method="double", data=21) == {"rpc": {"data": 42}}
    assert await client.ask("rpc", method="none") == error(104, "method not found")


async def double(_: object, number: int) -> int:
    """Return twice a number."""
    return 2 * number
