"""`backplane.admin.why`: an explanation as the page asks for it."""

from __future__ import annotations

import pytest

from backplane import Backplane
from tests.unit.admin.kit import browsing
from tests.unit.asgi_client import Client

pytestmark = pytest.mark.anyio


def masked(user: str) -> str:
    """Return what is shown of a user."""
    return user[:1] + "…"


async def test_explanation() -> None:
    """The page gets what the command line prints as JSON, after a test message or without one."""
    async with (
        Backplane("memory://", cluster=True) as backplane,
        browsing(backplane) as client,
        backplane.connect(Client().websocket, "<b>", client_key="ada"),
    ):
        await backplane.publish("<b>", "real")
        found = (await client.get("api/explain", params={"client": "ada", "channel": "<b>"})).json()
        assert (found["verdict"], found["tested"], found["answered"]) == ("whole", True, 1)
        found = (await client.get("api/explain", params={"channel": "<B>", "test": "no"})).json()
        assert (found["verdict"], found["tested"], "'<b>'" in found["text"]) == ("no subscribers", False, True)


async def test_users_are_masked() -> None:
    """Of users who were not asked for a part is shown, in sentences too."""
    async with (
        Backplane("memory://", cluster=True) as backplane,
        browsing(backplane, mask=masked) as client,
        backplane.connect(Client().websocket, "a", client_key="adele") as connection,
    ):
        asked = {"client": "adela", "channel": "a", "test": "no"}
        response = await client.get("api/explain", params=asked)
        assert (response.json()["verdict"], "'a…'" in response.json()["text"]) == ("unknown client", True)
        assert "adele" not in response.text
        response = await client.get("api/explain", params={**asked, "client": connection.id})
        assert "adele" not in response.text
        assert response.json()["workers"][0]["clients"][0]["user"] == "a…"
        assert response.json()["verdict"] == "nothing published"


async def test_question_that_cannot_be_answered() -> None:
    """A name that is not legal is 400, and so are workers that do not know each other; one that does not run is 503."""
    async with Backplane("memory://", cluster=True) as backplane, browsing(backplane) as client:
        assert (await client.get("api/explain")).status_code == 400
        assert (await client.get("api/explain", params={"channel": "a", "client": "x" * 513})).status_code == 400
    async with Backplane("memory://") as backplane, browsing(backplane) as client:
        response = await client.get("api/explain", params={"channel": "a"})
        assert (response.status_code, "cluster=True" in response.json()["detail"]) == (400, True)
    async with browsing(Backplane("memory://", cluster=True)) as client:
        assert (await client.get("api/explain", params={"channel": "a"})).status_code == 503
