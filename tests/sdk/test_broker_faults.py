"""Official SDKs on two workers whose links to the broker are cut, and whose broker ends: nothing is lost unseen."""

from __future__ import annotations

import asyncio
from itertools import product
from typing import TYPE_CHECKING

import pytest

from backplane.testing import FaultProxy
from tests.sdk.counting import HISTORY, check, publishing
from tests.sdk.sdk import PROGRAMS
from tests.sdk.servers import running_workers

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chaos.target import FaultTarget
    from tests.sdk.counting import Numbers
    from tests.sdk.sdk import SdkClient

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(150)]

QUICK = {("go-protobuf", "redis", "kept")}
"""What runs by default."""
CASES = [
    pytest.param(
        *case, id=", ".join(map(str, case)), marks=() if (str(case[0]), *case[1:]) in QUICK else pytest.mark.full
    )
    for case in product(PROGRAMS, ("redis", "redis, nothing kept", "nats", "kafka"), ("kept", "plain"))
]


@pytest.mark.parametrize(("program", "storage", "channel"), CASES, indirect=["program"])
async def test_links_cut_and_broker_ended(
    client: SdkClient, storage: str, target: FaultTarget, channel: str, own: str, tmp_path: Path
) -> None:
    """The links of both workers are cut; then the broker ends twice, the second time while the client returns, too.

    A client loses nothing where the history outlasts the broker; otherwise `recovered` is false where it lost.
    """
    channel += own
    async with (
        target.proxy as links,
        running_workers(2, tmp_path, {"BACKPLANE_URL": links.url, **HISTORY}) as workers,
        FaultProxy(workers[0].url) as proxy,
        publishing(target.url, channel) as numbers,
    ):
        client.send("connect", url=proxy.url, token=f"ann{own}")
        client.send("subscribe", channel=channel, recoverable=True)
        await until_up_to_date(client, numbers)
        links.refuse()
        links.cut()
        await numbers.more(5)
        links.heal()
        await until_up_to_date(client, numbers)
        for leave in (None, proxy.cut):
            await numbers.over_a_restart(target, leave)
            await until_up_to_date(client, numbers)
            proxy.lead_to(workers[1].url)
        numbers.stop()
        await until_up_to_date(client, numbers)
    may_repeat = target.lossless and channel.startswith("plain")
    missing = check(client.events, numbers.confirmed, may_repeat=may_repeat)
    recovered = [event["recovered"] for event in client.events if event.get("was_recovering")]
    assert recovered
    if channel.startswith("plain"):
        assert not any(recovered)
        assert missing or target.lossless
    elif storage == "redis, nothing kept":
        assert not all(recovered)
    else:
        assert (missing, all(recovered)) == (set(), True)


async def until_up_to_date(client: SdkClient, numbers: Numbers) -> None:
    """Wait until the client has a number that is published from now on."""
    newest = await numbers.more(1)
    async with asyncio.timeout(60):
        while not any(event["event"] == "publication" and event["data"]["n"] >= newest for event in client.events):
            await asyncio.sleep(0.05)
