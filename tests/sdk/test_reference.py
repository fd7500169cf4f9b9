"""Each official SDK in each encoding reports the same events, whichever server it is connected to.

The expectations are what the reference server leads to; servers.py lists the servers that are held to them.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.client import connect as open_socket

from tests.sdk.sdk import PROGRAMS, SdkError
from tests.sdk.story import story

if TYPE_CHECKING:
    from backplane.testing import FaultProxy
    from tests.sdk.sdk import Event, SdkClient
    from tests.sdk.servers import SdkServer

pytestmark = pytest.mark.anyio

REFERENCE_ALONE = pytest.mark.parametrize("server", ["reference"], indirect=True)
"""What our server does not offer: tags, the publisher of a publication, an unsubscribe with any code."""

SLOW = pytest.mark.parametrize(
    "program",
    [
        pytest.param(program, marks=() if (program.sdk == "js") is (program.encoding == "json") else pytest.mark.full)
        for program in PROGRAMS
    ],
    ids=str,
    indirect=True,
)
"""A test that waits for seconds: in the full suite for every program, otherwise for one of each SDK."""


async def connect(client: SdkClient, url: str, **options: Any) -> Event:
    """Connect, and return the event `connected`."""
    client.send("connect", url=url, **options)
    return await client.wait_for("connected")


async def subscribe(client: SdkClient, channel: str, **options: Any) -> Event:
    """Subscribe, and return the event `subscribed`."""
    client.send("subscribe", channel=channel, **options)
    return await client.wait_for("subscribed", channel=channel)


async def test_commands(client: SdkClient, server: SdkServer, own: str) -> None:
    """A client publishes, receives, asks for presence, and calls methods of the server."""
    channel = f"rec:1{own}"
    await connect(client, server.url, token=f"ann{own}")
    await subscribe(client, channel)
    await client.call("publish", channel=channel, data={"n": 1})
    await client.wait_for("publication", data={"n": 1})
    server.publish(channel, {"n": 2})
    await client.wait_for("publication", data={"n": 2})

    present = (await client.call("presence", channel=channel)).values()
    assert [(info["user"], info["conn_info"]) for info in present] == [(f"ann{own}", {"name": f"ann{own}"})]
    assert await client.call("presence_stats", channel=channel) == {"clients": 1, "users": 1}
    assert await client.call("rpc", method="echo", data={"n": 1}) == {"n": 1}
    with pytest.raises(SdkError, match="104: method not found"):
        await client.call("rpc", method="missing", data={})

    await client.call("unsubscribe", channel=channel)
    await client.wait_for("unsubscribed")
    await client.call("disconnect")
    await client.wait_for("disconnected")
    assert story(client.events, own) == {
        "": [
            "connecting 0 connect called",
            "connected {'hello': 'ann'}",
            "disconnected 0 disconnect called",
        ],
        "rec:1": [
            "subscribing 0 subscribe called",
            "subscribed at 0 of epoch 1, recoverable positioned",
            "publication 1: {'n': 1}",
            "publication 2: {'n': 2}",
            "unsubscribed 0 unsubscribe called",
        ],
    }


async def test_messages(client: SdkClient, server: SdkServer, own: str) -> None:
    """A message to the server without a reply, and one from the server; Python's SDK knows neither."""
    await connect(client, server.url, token=f"ann{own}")
    if client.program.sdk != "python":
        await client.call("send", data={"ask": True})
        await client.wait_for("message", data={"ask": True})


async def test_history(client: SdkClient, server: SdkServer, own: str) -> None:
    """The history of a channel is read from its start, from a position and backwards; a foreign epoch is refused."""
    channel = f"rec:1{own}"
    for n in range(1, 8):
        server.publish(channel, n)
    await connect(client, server.url, token=f"ann{own}")

    async def read(**options: Any) -> list[int]:
        found = await client.call("history", channel=channel, **options)
        assert (found["offset"], found["epoch"]) == (top["offset"], top["epoch"])
        offsets.update({publication["data"]: publication["offset"] for publication in found["publications"]})
        return [publication["data"] for publication in found["publications"]]

    offsets: dict[int, int] = {}
    top = await client.call("history", channel=channel)
    assert top["publications"] == []
    everything = await read(limit=-1)
    assert everything[-5:] == [3, 4, 5, 6, 7]  # at least as many as are configured are kept
    assert sorted(offsets.values()) == [offsets[n] for n in everything]
    assert offsets[7] == top["offset"]
    assert await read(limit=2) == everything[:2]
    assert await read(limit=2, reverse=True) == [7, 6]
    assert await read(limit=2, since={"offset": offsets[4], "epoch": top["epoch"]}) == [5, 6]
    with pytest.raises(SdkError, match="112: unrecoverable position"):
        await client.call("history", channel=channel, limit=2, since={"offset": offsets[4], "epoch": "foreign"})


async def test_recovered(client: SdkClient, server: SdkServer, proxy: FaultProxy, own: str) -> None:
    """After a cut a client receives what it missed, two publications the first time and none the second."""
    channel = f"rec:1{own}"
    await connect(client, proxy.url, token=f"ann{own}")
    await subscribe(client, channel, recoverable=True)
    server.publish(channel, 1)
    await client.wait_for("publication", data=1)
    proxy.refuse()
    server.publish(channel, 2)
    server.publish(channel, 3)
    proxy.heal()
    await client.wait_for("connected")
    await client.wait_for("subscribed", recovered=True)
    await client.wait_for("publication", data=3)
    server.publish(channel, 4)
    await client.wait_for("publication", data=4)
    proxy.cut()
    await client.wait_for("connected")
    await client.wait_for("subscribed", recovered=True)
    assert story(client.events, own) == {
        "": [
            "connecting 0 connect called",
            "connected {'hello': 'ann'}",
            "connecting 1",
            "connected {'hello': 'ann'}",
            "connecting 1",
            "connected {'hello': 'ann'}",
        ],
        "rec:1": [
            "subscribing 0 subscribe called",
            "subscribed at 0 of epoch 1, recoverable positioned",
            "publication 1: 1",
            "subscribing 1",
            "subscribed recovered at 1 of epoch 1, recoverable positioned",
            "publication 2: 2",
            "publication 3: 3",
            "publication 4: 4",
            "subscribing 1",
            "subscribed recovered at 4 of epoch 1, recoverable positioned",
        ],
    }
    if client.program.sdk == "js":  # the others do not report it
        subscriptions = [event for event in client.events if event["event"] == "subscribed"]
        assert [event["has_recovered_publications"] for event in subscriptions] == [False, True, False]


async def test_not_recovered(client: SdkClient, server: SdkServer, proxy: FaultProxy, own: str) -> None:
    """A client that missed more than is kept receives no part of it, nor one whose server has lost its memory."""
    channel = f"rec:1{own}"
    await connect(client, proxy.url, token=f"ann{own}")
    await subscribe(client, channel, recoverable=True)
    server.publish(channel, 1)
    await client.wait_for("publication", data=1)
    proxy.refuse()
    for n in range(2, 9):
        server.publish(channel, n)
    proxy.heal()
    await client.wait_for("subscribed", was_recovering=True)
    server.publish(channel, 9)
    await client.wait_for("publication", data=9)
    server.restart()
    await client.wait_for("subscribed", was_recovering=True)
    assert story(client.events, own) == {
        "": [
            "connecting 0 connect called",
            "connected {'hello': 'ann'}",
            "connecting 1",
            "connected {'hello': 'ann'}",
            "connecting 1",
            "connected {'hello': 'ann'}",
        ],
        "rec:1": [
            "subscribing 0 subscribe called",
            "subscribed at 0 of epoch 1, recoverable positioned",
            "publication 1: 1",
            "subscribing 1",
            "subscribed not recovered at 2 of epoch 1, recoverable positioned",
            "publication 3: 9",
            "subscribing 1",
            "subscribed not recovered at 0 of epoch 2, recoverable positioned",
        ],
    }


async def test_state(client: SdkClient, server: SdkServer, own: str) -> None:
    """A position of the application that cannot be recovered from is refused, and one that can is."""
    channel = f"rec:1{own}"
    server.publish(channel, 1)
    await connect(client, server.url, token=f"ann{own}")
    first = await client.call("history", channel=channel)
    server.publish(channel, 2)
    position = {"offset": first["offset"], "epoch": first["epoch"]}
    await subscribe(client, channel, states=[{**position, "epoch": "foreign"}, position])
    await client.wait_for("publication", data=2)
    lines = story(client.events, own)
    assert lines["rec:1 asks"] == ["get_state", "get_state"]
    assert lines["rec:1"] == [
        "subscribing 0 subscribe called",
        "subscribed recovered at 1 of epoch 1, recoverable positioned",
        "publication 2: 2",
    ]


async def test_joins(client: SdkClient, server: SdkServer, own: str) -> None:
    """A client receives its own join, and the join and leave of another user."""
    channel = f"jl:1{own}"
    await connect(client, server.url, token=f"ann{own}")
    await subscribe(client, channel, join_leave=True)
    await client.wait_for("join")
    async with open_socket(server.url, proxy=None) as other:
        await other.send(json.dumps({"id": 1, "connect": {"token": f"bob{own}"}}))
        await other.recv()
        await other.send(json.dumps({"id": 2, "subscribe": {"channel": channel}}))
        await client.wait_for("join")
    await client.wait_for("leave")
    assert story(client.events, own)["jl:1"] == [
        "subscribing 0 subscribe called",
        "subscribed at 0 of epoch 1, recoverable positioned",
        "join ann {'name': 'ann'}",
        "join bob {'name': 'bob'}",
        "leave bob {'name': 'bob'}",
    ]


@SLOW
async def test_ping(client: SdkClient, server: SdkServer, proxy: FaultProxy, own: str) -> None:
    """A client answers pings, and reconnects when none comes."""
    await connect(client, proxy.url.replace("/ws", "/fast"), token=f"ann{own}", max_ping_delay=0.5)
    proxy.record()
    while len(proxy.recorded("to_client")) < 6:  # two pings: the second comes only if the first was answered
        await asyncio.sleep(0.01)
    proxy.silence()
    await client.wait_for("connecting", code=2)
    proxy.heal()
    await client.wait_for("connected")
    assert story(client.events, own) == {
        "": [
            "connecting 0 connect called",
            "connected {'hello': 'ann'}",
            "connecting 2 no ping",
            "connected {'hello': 'ann'}",
        ]
    }


async def test_server_side(client: SdkClient, server: SdkServer, proxy: FaultProxy, own: str) -> None:
    """The server subscribes a client when it connects and later, ends a subscription, and recovers the other one."""
    user, feed, news = f"side{own}", f"rec:feed-side{own}", f"rec:news{own}"
    await connect(client, proxy.url, token=user)
    await client.wait_for("server_subscribed", channel=feed)
    server.publish(feed, 1)
    await client.wait_for("server_publication", channel=feed)
    server.subscribe(user, news)
    await client.wait_for("server_subscribed", channel=news)
    server.publish(news, 1)
    await client.wait_for("server_publication", channel=news)
    server.unsubscribe(user, news, 2000, "server unsubscribe")
    await client.wait_for("server_unsubscribed", channel=news)
    proxy.refuse()
    server.publish(feed, 2)
    proxy.heal()
    await client.wait_for("server_publication", channel=feed, data=2)
    assert story(client.events, own) == {
        "": [
            "connecting 0 connect called",
            "connected {'hello': 'side'}",
            "connecting 1",
            "connected {'hello': 'side'}",
        ],
        "rec:feed-side": [
            "server_subscribed at 0 of epoch 1, recoverable positioned",
            "server_publication 1: 1",
            "server_subscribing",
            "server_subscribed recovered at 1 of epoch 1, recoverable positioned",
            "server_publication 2: 2",
        ],
        "rec:news": [
            "server_subscribed at 0 of epoch 1, recoverable positioned",
            "server_publication 1: 1",
            "server_unsubscribed",
        ],
    }


@SLOW
async def test_connection_token(client: SdkClient, server: SdkServer, own: str) -> None:
    """A token is refreshed when it expires, and the new one when that expires."""
    now = int(time.time())
    tokens = [f"ann{own}|{now + 14}", f"ann{own}|{now + 600}"]
    await connect(client, server.url, token=f"ann{own}|{now + 7}", tokens=tokens)
    await client.wait_for("get_token")
    await client.wait_for("get_token")
    assert story(client.events, own) == {
        "": ["connecting 0 connect called", "connected {'hello': 'ann'}"],
        "asks": ["get_token", "get_token"],
    }


@SLOW
async def test_subscription_token(client: SdkClient, server: SdkServer, own: str) -> None:
    """A token of a subscription is refreshed when it expires, and the new one when that expires."""
    now = int(time.time())
    tokens = [f"ann{own}|{now + seconds}" for seconds in (7, 14, 600)]
    await connect(client, server.url, token=f"ann{own}")
    await subscribe(client, f"token:1{own}", tokens=tokens)
    for _ in tokens:
        await client.wait_for("get_subscription_token")
    assert story(client.events, own) == {
        "": ["connecting 0 connect called", "connected {'hello': 'ann'}"],
        "token:1": ["subscribing 0 subscribe called", "subscribed at 0 of epoch 1, recoverable positioned"],
        "token:1 asks": ["get_subscription_token"] * 3,
    }


async def test_expired_token(client: SdkClient, server: SdkServer, own: str) -> None:
    """A client with a token that has expired asks for another one and connects."""
    await connect(client, server.url, token=f"ann{own}|5", tokens=[f"ann{own}"])
    assert story(client.events, own) == {
        "": [
            "connecting 0 connect called",
            "error 109 token expired",
            "connected {'hello': 'ann'}",
        ],
        "asks": ["get_token"],
    }


async def test_expired_subscription_token(client: SdkClient, server: SdkServer, own: str) -> None:
    """A client with a token of a subscription that has expired asks for another one and subscribes."""
    await connect(client, server.url, token=f"ann{own}")
    await subscribe(client, f"token:1{own}", token=f"ann{own}|5", tokens=[f"ann{own}"])
    assert story(client.events, own) == {
        "": ["connecting 0 connect called", "connected {'hello': 'ann'}"],
        "token:1": ["subscribing 0 subscribe called", "subscribed at 0 of epoch 1, recoverable positioned"],
        "token:1 asks": ["get_subscription_token"],
    }


@pytest.mark.parametrize(
    ("token", "end"),
    [
        ("refused", "disconnected 1000 refused"),
        ("|1", "disconnected 3500 invalid token"),
    ],
)
async def test_refused(client: SdkClient, server: SdkServer, own: str, token: str, end: str) -> None:
    """A client that is refused for good stays away."""
    client.send("connect", url=server.url, token=token)
    await client.wait_for("disconnected")
    assert story(client.events, own)[""][-1] == end


async def test_subscribe_refused(client: SdkClient, server: SdkServer, own: str) -> None:
    """A subscription that is refused for good is over."""
    await connect(client, server.url, token=f"ann{own}")
    client.send("subscribe", channel=f"private:1{own}")
    await client.wait_for("unsubscribed")
    assert story(client.events, own)["private:1"] == [
        "subscribing 0 subscribe called",
        "unsubscribed 103 permission denied",
    ]


async def test_unsubscribed(client: SdkClient, server: SdkServer, own: str) -> None:
    """A client that the server unsubscribes stays out, and is connected."""
    user, channel = f"ann{own}", f"rec:1{own}"
    await connect(client, server.url, token=user)
    await subscribe(client, channel, recoverable=True)
    server.unsubscribe(user, channel, 2000, "server unsubscribe")
    await client.wait_for("unsubscribed")
    assert await client.call("rpc", method="echo", data=1) == 1
    assert story(client.events, own)["rec:1"] == [
        "subscribing 0 subscribe called",
        "subscribed at 0 of epoch 1, recoverable positioned",
        "unsubscribed 2000 server unsubscribe",
    ]


@REFERENCE_ALONE
async def test_publisher(client: SdkClient, server: SdkServer, own: str) -> None:
    """A publication has the tags of its publisher, or the publisher's ids and info, which presence has, too."""
    channel = f"rec:1{own}"
    connected = await connect(client, server.url, token=f"ann{own}")
    await subscribe(client, channel)
    await client.call("publish", channel=channel, data=1)
    server.publish(channel, 2, tags={"kind": "note"})
    client_id: str = connected["client"]
    ann = {"user": f"ann{own}", "client": client_id, "conn_info": {"name": f"ann{own}"}, "chan_info": None}
    await client.wait_for("publication", offset=1, data=1, info=ann, tags={})
    await client.wait_for("publication", offset=2, data=2, info=None, tags={"kind": "note"})
    assert await client.call("presence", channel=channel) == {client_id: ann}


@REFERENCE_ALONE
async def test_unsubscribe_codes(client: SdkClient, server: SdkServer, own: str) -> None:
    """From 2500 on a client subscribes again, from its position or, after 2502, from none; below it does not."""
    user, channel = f"ann{own}", f"rec:1{own}"
    await connect(client, server.url, token=user)
    await subscribe(client, channel, recoverable=True)
    server.publish(channel, 1)
    await client.wait_for("publication")
    server.unsubscribe(user, channel, 2500, "insufficient state")
    await client.wait_for("subscribed", was_recovering=True)
    server.unsubscribe(user, channel, 2502, "state invalidated")
    await client.wait_for("subscribed", was_recovering=True)
    server.unsubscribe(user, channel, 2000, "server unsubscribe")
    await client.wait_for("unsubscribed")
    assert story(client.events, own)["rec:1"] == [
        "subscribing 0 subscribe called",
        "subscribed at 0 of epoch 1, recoverable positioned",
        "publication 1: 1",
        "subscribing 2500 insufficient state",
        "subscribed recovered at 1 of epoch 1, recoverable positioned",
        "subscribing 2502 state invalidated",
        "subscribed not recovered at 1 of epoch 1, recoverable positioned",
        "unsubscribed 2000 server unsubscribe",
    ]


@pytest.mark.parametrize(("code", "reason"), [(3503, "force disconnect"), (4500, "enough")])
async def test_close_codes(client: SdkClient, server: SdkServer, own: str, code: int, reason: str) -> None:
    """A client comes back after a code that permits it, and stays away after one that does not."""
    user = f"ann{own}"
    await connect(client, server.url, token=user)
    server.disconnect(user, 3001, "shutdown")
    await client.wait_for("connected")
    server.disconnect(user, 4100, "another server")
    await client.wait_for("connected")
    server.disconnect(user, code, reason)
    await client.wait_for("disconnected")
    assert story(client.events, own) == {
        "": [
            "connecting 0 connect called",
            "connected {'hello': 'ann'}",
            "connecting 3001 shutdown",
            "connected {'hello': 'ann'}",
            "connecting 4100 another server",
            "connected {'hello': 'ann'}",
            f"disconnected {code} {reason}",
        ]
    }
