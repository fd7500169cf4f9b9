"""`backplane.adapters.redis.credentials`: the user and the password of a login."""

from __future__ import annotations

import asyncio
import sys
import threading
from types import ModuleType
from typing import Any

import pytest

from backplane.adapters.redis.credentials import find_credentials
from backplane.adapters.redis.options import RedisOptions
from backplane.broadcaster import BrokerUrl
from backplane.errors import BrokerUnavailableError, ConfigurationError

pytestmark = pytest.mark.anyio

URL = BrokerUrl.parse("redis://localhost")


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a module of the application, importable as `provider_of_tokens`."""
    module = ModuleType("provider_of_tokens")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def options(path: str = "provider_of_tokens:token") -> RedisOptions:
    """Return options that name a callable."""
    return RedisOptions(credentials=path)


async def test_url_holds_the_credentials() -> None:
    """Without the option the credentials are user and password of the URL."""
    url = BrokerUrl.parse("redis://alice:secret@localhost")
    assert await find_credentials(url, RedisOptions()) == ("alice", "secret")


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("token", (None, "token")),
        (("token",), (None, "token")),
        (("alice", "token"), ("alice", "token")),
        ((None, "token"), (None, "token")),
    ],
)
async def test_callable_provides_the_credentials(provider: Any, returned: object, expected: tuple[str, str]) -> None:
    """A callable returns a password, or user and password, in the forms of redis-py's credential providers."""
    provider.token = lambda: returned
    assert await find_credentials(URL, options()) == expected


async def test_blocking_callable_blocks_a_thread_only(provider: Any) -> None:
    """A plain function runs in a thread of its own, so that it does not block the event loop."""
    threads: list[threading.Thread] = []

    def token() -> str:
        threads.append(threading.current_thread())
        return "token"

    provider.token = token
    await find_credentials(URL, options())
    assert threads[0] is not threading.current_thread()


async def test_coroutine_function_is_awaited(provider: Any) -> None:
    """An async function is awaited, also where it is a method of an object."""

    class Provider:
        async def token(self) -> tuple[str, str]:
            await asyncio.sleep(0)
            return "alice", "token"

    provider.instance = Provider()
    assert await find_credentials(URL, options("provider_of_tokens:instance.token")) == ("alice", "token")


async def test_callable_that_raises_is_an_outage_and_shows_no_secret(provider: Any) -> None:
    """An error of a token service is retriable; its message, which can hold a token, is not repeated."""

    def token() -> str:
        raise RuntimeError("hunter2 expired")

    provider.token = token
    with pytest.raises(BrokerUnavailableError, match="provider_of_tokens:token raised RuntimeError at test") as raised:
        await find_credentials(URL, options())
    assert "hunter2" not in str(raised.value)


async def test_callable_that_hangs_is_given_up(provider: Any) -> None:
    """A callable that takes longer than `connect_timeout_seconds` is cancelled."""
    provider.token = asyncio.Event().wait
    hasty = RedisOptions(credentials="provider_of_tokens:token", connect_timeout_seconds=0.01)
    with pytest.raises(BrokerUnavailableError, match=r"took longer than 0\.01 s"):
        await find_credentials(URL, hasty)


@pytest.mark.parametrize("returned", [None, 5, ("a", "b", "c"), (), ("alice", None)])
async def test_callable_that_returns_something_else_is_refused(provider: Any, returned: object) -> None:
    """A value of another type is refused, with what the callable must return."""
    provider.token = lambda: returned
    with pytest.raises(ConfigurationError, match="must return a password or"):
        await find_credentials(URL, options())


@pytest.mark.parametrize("path", ["no_such_module:token", "provider_of_tokens:nothing", "provider_of_tokens:a.b"])
async def test_missing_callable_is_refused(provider: Any, path: str) -> None:
    """A path that cannot be imported is an error of the configuration, which names it."""
    with pytest.raises(ConfigurationError, match="cannot be imported"):
        await find_credentials(URL, options(path))
