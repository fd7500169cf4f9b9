"""Official SDKs on our server: after which closes and errors they come back, and after which they stay away."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import pytest

from tests.sdk.sdk import PROGRAMS
from tests.sdk.story import story

if TYPE_CHECKING:
    from tests.sdk.sdk import SdkClient
    from tests.sdk.servers import SdkServer

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("server", ["ours"], indirect=True)]

WAYS: Final = [
    # the code and reason of the application, and what the SDK reports
    (1000, "the end", "connecting 1"),
    (1001, "away", "connecting 1"),
    (1008, "policy", "connecting 1"),
    (1011, "", "connecting 3004 internal server error"),
    (1012, "restart", "connecting 3001 shutdown"),
    (1013, "busy", "connecting 3004 not available at present"),
    (3000, "first of theirs", "connecting 3000 first of theirs"),
    (3499, "last of theirs", "connecting 3499 last of theirs"),
    (4000, "", "connecting 3010 insufficient state"),
    (4001, "", "connecting 3005 connection expired"),
    (4010, "", "connecting 3011 reconnect"),
    (4011, "", "connecting 3012 no pong"),
    (4029, "", "connecting 3013 too many requests"),
    (4100, "true", "connecting 4100 reason: true"),
    (4499, "", "connecting 4499 closed by the application"),
    (1007, "", "disconnected 3501 bad request"),
    (1009, "", "disconnected 3501 message too big"),
    (3500, "", "disconnected 3500 closed by the application"),
    (3503, "force disconnect", "disconnected 3503 force disconnect"),
    (3999, "last of theirs", "disconnected 3999 last of theirs"),
    (4500, "", "disconnected 4500 closed by the application"),
    (4503, "", "disconnected 4503 forbidden"),
    (4508, "", "disconnected 4508 idle"),
    (4513, "", "disconnected 3505 channel limit"),
    (4600, '{"reconnect":true}', 'disconnected 4600 reason: {"reconnect":true}'),
    (4999, "7", "disconnected 4999 reason: 7"),
]
"""26 ways to close: after the first 15 a client comes back by itself."""


@pytest.mark.full
async def test_ways_to_close(client: SdkClient, server: SdkServer, own: str) -> None:
    """A client comes back, or stays away until its application connects it again."""
    user = f"ann{own}"
    client.send("connect", url=server.url, token=user)
    await client.wait_for("connected")
    expected = ["connecting 0 connect called", "connected {'hello': 'ann'}"]
    for code, reason, report in WAYS:
        server.disconnect(user, code, reason)
        expected.append(report)
        if report.startswith("disconnected"):
            await client.wait_for("disconnected")
            client.send("connect")
            expected.append("connecting 0 connect called")
        await client.wait_for("connected")
        expected.append("connected {'hello': 'ann'}")
    assert story(client.events, own)[""] == expected


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(program, marks=() if (program.sdk == "js") is (program.encoding == "json") else pytest.mark.full)
        for program in PROGRAMS
    ],
    ids=str,
    indirect=True,
)
async def test_a_refresh_with_an_expired_token(client: SdkClient, server: SdkServer, own: str) -> None:
    """A subscription that is refreshed with a token that has expired subscribes again, with a new one."""
    now = int(time.time())
    tokens = [f"ann{own}|{now + 8}", f"ann{own}|5", f"ann{own}|{now + 600}"]
    client.send("connect", url=server.url, token=f"ann{own}")
    client.send("subscribe", channel=f"token:1{own}", tokens=tokens)
    await client.wait_for("subscribed")
    await client.wait_for("subscribed")
    assert story(client.events, own)["token:1"] == [
        "subscribing 0 subscribe called",
        "subscribed at 0 of epoch 1, recoverable positioned",
        "subscribing 2501 subscription expired",
        "subscribed recovered at 0 of epoch 1, recoverable positioned",
    ]
