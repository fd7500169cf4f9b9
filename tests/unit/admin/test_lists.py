"""`backplane.admin.lists`: channels and connections as the page asks for them."""

from __future__ import annotations

import pytest

from backplane import Answers, Backplane, BrokerUnavailableError, Limits, Worker
from tests.unit.admin.kit import browsing
from tests.unit.asgi_client import Client

pytestmark = pytest.mark.anyio


def masked(user: str) -> str:
    """Return what is shown of a user."""
    return user[:1] + "…"


async def test_lists() -> None:
    """The channels with their subscribers, and the connections with their users, of which `mask` shows a part."""
    async with (
        Backplane("memory://", cluster=True) as backplane,
        browsing(backplane, mask=masked) as client,
        backplane.connect(Client().websocket, "<b>", client_key="ada") as ada,
        backplane.connect(Client().websocket, "<b>", "other"),
    ):
        page = (await client.get("api/channels", params={"prefix": "<", "limit": "10", "after": ""})).json()
        assert [(row["name"], row["subscribers"]) for row in page["rows"]] == [("<b>", 2)]
        assert (page["asked"], page["answered"], page["missing"]) == (1, 1, [])
        page = (await client.get("api/connections", params={"client": "ada"})).json()
        assert [(row["id"], row["user"]) for row in page["rows"]] == [(ada.id, "a…")]
        page = (await client.get("api/connections", params={"channel": "other"})).json()
        assert [row["user"] for row in page["rows"]] == [None]


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("api/channels?limit=x", "limit must be a whole number"),
        ("api/channels?limit=1000000", "limit must be at most"),
        ("api/channels?sort=size", "sort must be one of"),
        ("api/connections?after=x", "after takes the position"),
        ("api/connections?limit=-1", "limit must be a whole number"),
    ],
)
async def test_question_that_cannot_be_answered(path: str, detail: str) -> None:
    """An option that cannot be used is 400, with what is wrong."""
    async with Backplane("memory://", cluster=True) as backplane, browsing(backplane) as client:
        response = await client.get(path)
        assert (response.status_code, detail in response.json()["detail"]) == (400, True), response.text


async def test_lists_without_a_cluster_or_a_start() -> None:
    """Where workers do not know each other the answer states what is needed; one that is not started answers 503."""
    async with Backplane("memory://") as backplane, browsing(backplane) as client:
        response = await client.get("api/channels")
        assert (response.status_code, "cluster=True" in response.json()["detail"]) == (400, True)
    async with browsing(Backplane("memory://", cluster=True)) as client:
        assert (await client.get("api/connections")).status_code == 503


async def test_events() -> None:
    """The last notable events of the workers, the newest first, with what is shown of a user."""
    async with Backplane("memory://", cluster=True) as backplane, browsing(backplane, mask=masked) as client:
        async with backplane.connect(Client().websocket, "a", client_key="adele"):
            pass
        found = (await client.get("api/log")).json()
        assert (found["asked"], found["answered"], found["missing"]) == (1, 1, [])
        assert "client.ended" in [row["event"] for row in found["rows"]]
        assert "adele" not in str(found)
        assert [row["at"] for row in found["rows"]] == sorted((row["at"] for row in found["rows"]), reverse=True)
        states = (await client.get("api/log?kind=states")).json()["rows"]
        assert [(row["event"], row["state"]) for row in states] == [("link.live", "live")]
        assert (await client.get("api/log?kind=other")).status_code == 400


async def test_events_of_this_worker_alone() -> None:
    """Where the workers do not know each other, and where the broker is away, a worker answers for itself."""
    async with Backplane("memory://") as backplane, browsing(backplane) as client:
        found = (await client.get("api/log")).json()
        assert (found["asked"], [row["event"] for row in found["rows"]]) == (1, ["link.live"])
    async with Backplane("memory://", cluster=True) as backplane, browsing(backplane) as client:

        async def fail(**_: object) -> Answers:
            raise BrokerUnavailableError("away", adapter="memory")

        known = await backplane.workers()
        other = Worker(id="f" * 16, host="web-2", pid=7)

        async def workers() -> list[Worker]:
            return [*known, other, Worker(id="e" * 16, is_alive=False)]

        backplane.recent_events, backplane.workers = fail, workers  # type: ignore[method-assign]
        found = (await client.get("api/log")).json()
        assert (found["asked"], found["missing"]) == (2, ["web-2/7-ffff"])
        assert [row["event"] for row in found["rows"]] == ["link.live"]
    async with browsing(Backplane("memory://")) as client:
        assert (await client.get("api/log")).status_code == 503


async def test_configuration() -> None:
    """A worker states its settings and limits, and which of them are changed, with or without a cluster."""
    limits = Limits(max_channels=7)
    for cluster in (True, False):
        async with Backplane("memory://", cluster=cluster, limits=limits) as backplane, browsing(backplane) as client:
            me = (await backplane.workers())[0].id if cluster else ""
            found = (await client.get("api/configuration", params={"worker": me})).json()
            assert (found["asked"], found["answered"], found["missing"]) == (1, 1, [])
            configuration = found["configuration"]
            assert configuration["limits"]["max_channels"] == 7
            assert configuration["changed"] == {"max_channels": 7}
    async with Backplane("memory://", cluster=True) as backplane, browsing(backplane) as client:
        found = (await client.get("api/configuration", params={"worker": "f" * 16})).json()
        assert (found["asked"], found["configuration"]) == (0, None)
    async with browsing(Backplane("memory://")) as client:
        assert (await client.get("api/configuration")).status_code == 503
