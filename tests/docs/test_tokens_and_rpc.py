"""docs/guides/sdk-clients-tokens-and-rpc.md: every example runs as it is on its page."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from backplane import Connection, InvalidTokenError, TokenExpiredError
from backplane.centrifugal import CommandError
from backplane.journal.journal import Journal
from tests.docs.test_guides import DOCS, run

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not DOCS.is_dir(), reason="the documents are away")]

PAGE = "guides/sdk-clients-tokens-and-rpc.md"


@pytest.fixture(autouse=True)
def url(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bus in the environment, as the page presumes it."""
    monkeypatch.setenv("BACKPLANE_URL", "memory://tokens-and-rpc")


async def test_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens that the application makes let a client connect, and subscribe to one channel."""
    monkeypatch.setenv("TOKEN_SECRET", "s" * 64)
    names = run(PAGE, "sdk-tokens")
    connecting, subscribing = await names["token_to_connect"]("ada"), await names["token_to_subscribe"]("ada", "news")
    claims = await names["tokens"].connect(connecting["token"])
    assert (claims.user, claims.info) == ("ada", {"name": "Ada"})
    who = {"user": "ada", "client": "c1"}
    assert (await names["tokens"].subscribe(subscribing["token"], channel="news", **who)).expires_at
    with pytest.raises(InvalidTokenError):
        await names["tokens"].subscribe(subscribing["token"], channel="other", **who)
    with pytest.raises(InvalidTokenError):
        await names["tokens"].connect(subscribing["token"])


async def test_own_tokens() -> None:
    """The application's own object takes a session, and a subscribe to the channel of its user."""
    names = run(PAGE, "sdk-own-tokens")
    tokens = names["SessionTokens"]()
    claims = await tokens.connect("3f9c")
    assert (claims.user, claims.channels) == ("ada", ["user:ada"])
    with pytest.raises(InvalidTokenError):
        await tokens.connect("other")
    names["sessions"]["3f9c"] = ("ada", 0.0)
    with pytest.raises(TokenExpiredError):
        await tokens.connect("3f9c")
    assert tokens.subscribe("", user="ada", channel="user:ada", client="c1").expires_at is None
    with pytest.raises(InvalidTokenError):
        tokens.subscribe("", user="ada", channel="user:bob", client="c1")


async def test_rpc() -> None:
    """A client gets an order and the number of orders, the application's error, or what is wrong with its data."""
    rpcs: Any = run(PAGE, "sdk-rpc")["centrifugal"]._service.rpcs
    connection, journal = cast("Connection", SimpleNamespace(id="00", user="ada")), Journal()
    assert await rpcs.call("orders.get", connection, b'{"id": 7}', journal) == b'{"id":7,"state":"baking"}'
    assert await rpcs.call("orders.count", connection, b"", journal) == b"1"
    for data, code in ((b'{"id": 8}', 404), (b"{}", 107)):
        with pytest.raises(CommandError) as caught:
            await rpcs.call("orders.get", connection, data, journal)
        assert caught.value.code == code
