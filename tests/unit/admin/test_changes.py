"""`backplane.admin.changes`: what is published and closed, by whom, and what is refused."""

from __future__ import annotations

import base64
import logging
from typing import TYPE_CHECKING, Any

import pytest

from backplane import Backplane
from tests.unit.admin.kit import CHANGE, browsing
from tests.unit.asgi_client import Client, data_of

if TYPE_CHECKING:
    import httpx

pytestmark = pytest.mark.anyio

ALL = {"publish", "disconnect", "tail"}


async def post(client: httpx.AsyncClient, name: str, body: Any) -> tuple[int, Any]:
    """Return the status and the body of the answer to a change."""
    response = await client.post(f"api/{name}", headers=CHANGE, json=body)
    return response.status_code, response.json()


async def test_publish(caplog: pytest.LogCaptureFixture) -> None:
    """Text and bytes reach the subscribers of the channel; the log names the visitor and the channel, not the data."""
    caplog.set_level(logging.INFO)
    async with (
        Backplane("memory://") as backplane,
        browsing(backplane, allow=ALL) as client,
        backplane.subscribe("a") as messages,
    ):
        published = {"channel": "a", "position": None}
        assert await post(client, "publish", {"channel": "a", "text": "secret"}) == (200, published)
        await post(client, "publish", {"channel": "a", "base64": base64.b64encode(b"\0\1").decode()})
        assert await data_of(messages, 2) == ["secret", b"\0\1"]
    lines = [record.getMessage() for record in caplog.records if record.name == "backplane.admin.changes"]
    assert lines == ["admin: publish of 'a' by Ada (6 characters)", "admin: publish of 'a' by Ada (2 bytes)"]


@pytest.mark.parametrize("name", ["publish", "disconnect"])
async def test_change_without_the_right(name: str) -> None:
    """A right that `allow` lacks is 403 and changes nothing, whatever the others allow; reading the page stays so."""
    async with Backplane("memory://", cluster=True) as backplane, backplane.subscribe("a") as messages:
        one = Client()
        async with backplane.connect(one.websocket, "a") as connection:
            for allow in (set[str](), ALL - {name}):
                async with browsing(backplane, allow=allow) as client:
                    status, body = await post(client, name, {"channel": "a", "text": "refused"})
                    assert (status, name in body["detail"]) == (403, True)
                    assert (await client.get("")).status_code == 200
            await backplane.publish("a", "published")
            assert await data_of(messages, 1) == ["published"]
            assert not connection.is_over


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({"text": "b"}, 400, "channel: Field required"),
        ({"channel": "a"}, 400, "give one of 'text' and 'base64'"),
        ({"channel": "a", "text": "b", "base64": ""}, 400, "give one of 'text' and 'base64'"),
        ({"channel": 1, "text": "b"}, 400, "channel: Input should be a valid string"),
        ({"channel": "a", "text": {"type": "img"}}, 400, "text: Input should be a valid string"),
        ({"channel": "a", "base64": "?"}, 400, "Value error"),
        ({"channel": "a", "text": "b", "to": "c"}, 400, "to: Extra inputs are not permitted"),
        ({"channel": "", "text": "b"}, 400, "a channel name cannot be empty"),
        ({"channel": "$backplane/control", "text": "b"}, 400, "are reserved"),
        ([], 400, "Input should be an object"),
        ({"channel": "a", "text": "b" * 5_000_000}, 400, "the body takes more than"),
    ],
)
async def test_publish_of_what_is_none(body: Any, status: int, detail: str) -> None:
    """What cannot be published is refused with what is wrong."""
    async with Backplane("memory://") as backplane, browsing(backplane, allow=ALL) as client:
        answered, answer = await post(client, "publish", body)
        assert (answered, detail in answer["detail"]) == (status, True), answer


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
async def test_body_that_is_no_json(content: bytes) -> None:
    """A body that cannot be parsed is 400."""
    headers = {**CHANGE, "Content-Type": "application/json"}
    async with Backplane("memory://") as backplane, browsing(backplane, allow=ALL) as client:
        response = await client.post("api/publish", headers=headers, content=content)
        assert (response.status_code, "JSON" in response.json()["detail"]) == (400, True)


async def test_publish_while_not_started() -> None:
    """A worker that has not started, or has stopped, answers 503."""
    async with browsing(Backplane("memory://"), allow=ALL) as client:
        assert (await post(client, "publish", {"channel": "a", "text": "b"}))[0] == 503


async def test_disconnect(caplog: pytest.LogCaptureFixture) -> None:
    """Connections are closed by id, by client key and by channel, with the code; others stay."""
    caplog.set_level(logging.INFO)
    async with Backplane("memory://", cluster=True) as backplane, browsing(backplane, allow=ALL) as client:
        one, two, three, stays = Client(), Client(), Client(), Client()
        async with (
            backplane.connect(stays.websocket, "other", client_key="linus") as other,
            backplane.connect(one.websocket, "a", client_key="ada") as first,
            backplane.connect(two.websocket, "a", client_key="grace"),
            backplane.connect(three.websocket, "a", client_key="ken"),
        ):
            done: dict[str, Any] = {"asked": 1, "answered": 1, "missing": [], "closed": 1}
            body: dict[str, Any] = {"connections": [first.id], "code": 4001, "reason": "log in again"}
            assert await post(client, "disconnect", body) == (200, done)
            assert await one.receives() == 4001
            assert await post(client, "disconnect", {"client_key": "grace"}) == (200, done)
            assert await two.receives() == 4503
            assert await post(client, "disconnect", {"channel": "a", "code": 4000}) == (200, done)
            assert await three.receives() == 4000
            assert not other.is_over
    assert f"admin: disconnect of '{first.id}' by Ada (code 4001)" in caplog.text


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({}, "name the connections that are meant"),
        ({"connections": []}, "connections: List should have at least 1 item"),
        ({"connections": ["0" * 16] * 101}, "connections: List should have at most 100 items"),
        ({"connections": [1]}, "connections.0: Input should be a valid string"),
        ({"connections": ["none"]}, "connection takes a Connection"),
        ({"client_key": 1}, "client_key: Input should be a valid string"),
        ({"channel": ""}, "a channel name cannot be empty"),
        ({"channel": "a", "code": 1005}, "a close code is"),
        ({"channel": "a", "code": "4000"}, "code: Input should be a valid integer"),
        ({"channel": "a", "reason": 1}, "reason: Input should be a valid string"),
    ],
)
async def test_disconnect_of_what_is_none(body: Any, detail: str) -> None:
    """What selects no connection, and a code that cannot be sent, is refused, and closes nothing."""
    async with Backplane("memory://", cluster=True) as backplane, browsing(backplane, allow=ALL) as client:
        one = Client()
        async with backplane.connect(one.websocket, "a") as connection:
            status, answer = await post(client, "disconnect", body)
            assert (status, detail in answer["detail"]) == (400, True), answer
            assert not connection.is_over


async def test_disconnect_without_a_cluster() -> None:
    """Workers that apply no commands are not asked: the answer states what is needed."""
    async with Backplane("memory://") as backplane, browsing(backplane, allow=ALL) as client:
        status, answer = await post(client, "disconnect", {"channel": "a"})
        assert (status, "cluster=True" in answer["detail"]) == (400, True)
