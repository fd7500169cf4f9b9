"""`backplane.centrifugal.subscriptions`: the answer to a subscribe, and what is recovered (protocol, section 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from backplane import History
from tests.unit.centrifugal.world import Sdk, Site, error, push, serving

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.anyio

KEPT = "rec:a"
FIRST = {"recoverable": True, "positioned": True}
LOST = FIRST | {"was_recovering": True}


async def publish(site: Site, *values: int, channel: str = KEPT) -> None:
    """Publish numbers."""
    for value in values:
        await site.backplane.publish(channel, value)


async def again(client: Sdk, channel: str = KEPT, **position: Any) -> Any:
    """Unsubscribe, subscribe with a position, and return the result."""
    await client.ask("unsubscribe", channel=channel)
    return await client.subscribe(channel, recover=True, **position)


def values(publications: Sequence[Any]) -> list[Any]:
    """Return what was published."""
    return [publication["data"] for publication in publications]


async def test_first_visit(site: Site, client: Sdk) -> None:
    """The result has the epoch and the offset of the newest message, and gives back nothing."""
    await publish(site, 1)
    result = await client.subscribe(KEPT)
    epoch, offset = result.pop("epoch"), result.pop("offset")
    assert result == FIRST
    assert len(epoch) == 16
    await publish(site, 2)
    pushed = (await client.next())["push"]["pub"]
    assert pushed.pop("offset") > offset > 0
    assert pushed == {"data": 2}


async def test_recovery(site: Site, client: Sdk) -> None:
    """A client that comes back gets all that it missed, in order, and the offset that it sent."""
    first = await client.subscribe(KEPT)
    await client.ask("unsubscribe", channel=KEPT)
    await publish(site, 1, 2)
    position = {"epoch": first["epoch"], "offset": first.get("offset", 0)}
    result = await again(client, **position)
    publications = result.pop("publications")
    assert result == LOST | {"recovered": True, "epoch": first["epoch"]}
    assert values(publications) == [1, 2]
    assert (await again(client, epoch=first["epoch"], offset=publications[0]["offset"]))[
        "publications"
    ] == publications[1:]


async def test_recovery_of_nothing(site: Site, client: Sdk) -> None:
    """One that has missed nothing is recovered too, without publications."""
    await publish(site, 1)
    first = await client.subscribe(KEPT)
    position = {"epoch": first["epoch"], "offset": first["offset"]}
    assert await again(client, **position) == LOST | position | {"recovered": True}


@pytest.mark.parametrize(
    "position",
    [
        pytest.param({"epoch": "_"}, id="no epoch"),
        pytest.param({"epoch": "0123456789abcdef", "offset": 1}, id="of another history"),
        pytest.param({"offset": 2**64 - 1}, id="no offset"),
    ],
)
async def test_position_that_is_not_found(site: Site, client: Sdk, position: dict[str, Any]) -> None:
    """It is answered with the present position, and nothing is given back."""
    await publish(site, 1)
    first = await client.subscribe(KEPT)
    result = await again(client, **{"epoch": first["epoch"]} | position)
    assert result == LOST | {"epoch": first["epoch"], "offset": first["offset"]}


async def test_position_without_an_epoch(site: Site, client: Sdk) -> None:
    """No epoch accepts any, and no offset asks for everything that is kept."""
    await publish(site, 1, 2)
    result = await client.subscribe(KEPT, recover=True)
    assert (result["recovered"], values(result["publications"])) == (True, [1, 2])


async def test_more_than_a_reply_gives_back() -> None:
    """Of more than 300 messages none is given back, never a part; the position is that of the newest."""
    async with serving(history=History(max_messages=400)) as site:
        client = await site.connected()
        first = await client.subscribe(KEPT)
        await client.ask("unsubscribe", channel=KEPT)
        await publish(site, *range(300))
        assert len((await again(client, epoch=first["epoch"]))["publications"]) == 300
        await publish(site, 300)
        newest = (await client.next())["push"]["pub"]["offset"]
        assert await again(client, epoch=first["epoch"]) == LOST | {"epoch": first["epoch"], "offset": newest}


async def test_state_of_the_application(site: Site, client: Sdk) -> None:
    """With bit 1 of `flag` a position that is not found is error 112, and the client is not subscribed."""
    await publish(site, 1)
    refused = await client.ask("subscribe", channel=KEPT, recover=True, epoch="_", flag=3)
    assert refused == error(112, "unrecoverable position")
    await publish(site, 2)
    assert (await client.subscribe(KEPT, recover=True, flag=3))["recovered"]


async def test_channel_without_a_history(site: Site, client: Sdk) -> None:
    """Each subscription has an epoch of its own: a client that comes back is not recovered, whatever `flag` asks."""
    first = await client.subscribe("a")
    result = await again(client, "a", epoch=first["epoch"], flag=3)
    assert first.pop("epoch") != result.pop("epoch")
    assert (first, result) == (FIRST, LOST)
    await site.backplane.publish("a", 1)
    assert await client.next() == push("a", "pub", {"data": 1})


async def test_first_message_of_a_history(site: Site, client: Sdk) -> None:
    """Where nothing was published yet the offset is 0, from which the first message is recovered."""
    first = await client.subscribe("rec:new")
    assert "offset" not in first
    await client.ask("unsubscribe", channel="rec:new")
    await publish(site, 1, channel="rec:new")
    assert values((await again(client, "rec:new", epoch=first["epoch"]))["publications"]) == [1]


async def test_messages_that_exclude_the_client(site: Site) -> None:
    """What a join gives back is without the messages that exclude its client."""
    client = site.opened()
    client.send({"id": 1, "connect": {"token": "ann"}})
    name = (await client.next())["connect"]["client"]
    await site.backplane.publish(KEPT, 1, exclude=name)
    await publish(site, 2)
    assert values((await client.subscribe(KEPT, recover=True))["publications"]) == [2]
