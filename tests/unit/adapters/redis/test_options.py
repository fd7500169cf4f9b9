"""`backplane.adapters.redis.options`: what contradicts itself, and as whom to log in."""

from __future__ import annotations

import asyncio
import sys
import threading
from types import ModuleType
from typing import Any

import pytest

from backplane.adapters.redis.options import RedisOptions, login
from backplane.broadcaster import BrokerUrl
from backplane.broker.registry import broadcaster_from_url
from backplane.errors import BrokerUnavailableError, ConfigurationError

pytestmark = pytest.mark.anyio

URL = BrokerUrl.parse("redis://localhost")


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of the application's own."""
    module = ModuleType("provider_of_tokens")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def options(path: str = "provider_of_tokens:token") -> RedisOptions:
    """Return options that name a callable."""
    return RedisOptions(credentials=path)


@pytest.mark.parametrize("scheme", ["redis", "valkey", "unix", "redis+sentinel"])
@pytest.mark.parametrize("option", ["ssl_ca_certs=/ca.pem", "ssl_check_hostname=true", "ssl_cert_reqs=required"])
def test_tls_option_without_tls_is_refused(scheme: str, option: str) -> None:
    """A URL that asks for TLS by an option, and not by its scheme, opens nothing in clear."""
    address = "/run/redis.sock" if scheme == "unix" else "localhost/mymaster" if "+" in scheme else "localhost"
    with pytest.raises(ConfigurationError, match="speaks no TLS: use rediss://"):
        broadcaster_from_url(f"{scheme}://{address}?{option}")


@pytest.mark.parametrize(
    "url", ["rediss://h?ssl_keyfile=k", "redis://u:p@h?credentials=a:b", "redis://h?credentials=a"]
)
def test_contradicting_options_are_refused(url: str) -> None:
    """A key without its certificate, two kinds of credentials, and a callable without a module are refused."""
    with pytest.raises(ConfigurationError):
        broadcaster_from_url(url)


async def test_url_holds_the_credentials() -> None:
    """Without the option user and password of the URL are used."""
    url = BrokerUrl.parse("redis://alice:secret@localhost")
    assert await login(url, RedisOptions()) == ("alice", "secret")


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("token", (None, "token")),
        (("token",), (None, "token")),
        (("alice", "token"), ("alice", "token")),
        ((None, "token"), (None, "token")),
    ],
)
async def test_callable_is_asked_at_each_connect(provider: Any, returned: object, expected: tuple[str, str]) -> None:
    """What it returns now is what is used now, as redis-py's credential providers return it."""
    provider.token = lambda: returned
    assert await login(URL, options()) == expected


async def test_blocking_callable_blocks_a_thread_only(provider: Any) -> None:
    """A plain function runs in a thread of its own, for the event loop serves others."""
    threads: list[threading.Thread] = []

    def token() -> str:
        threads.append(threading.current_thread())
        return "token"

    provider.token = token
    await login(URL, options())
    assert threads[0] is not threading.current_thread()


async def test_coroutine_function_is_awaited(provider: Any) -> None:
    """An async function, and a method of an object, are called as well."""

    class Provider:
        async def token(self) -> tuple[str, str]:
            await asyncio.sleep(0)
            return "alice", "token"

    provider.instance = Provider()
    assert await login(URL, options("provider_of_tokens:instance.token")) == ("alice", "token")


async def test_callable_that_raises_is_an_outage_and_shows_no_secret(provider: Any) -> None:
    """A token service that is away is tried again; the words of its error can hold a token and are left out."""

    def token() -> str:
        raise RuntimeError("hunter2 expired")

    provider.token = token
    with pytest.raises(BrokerUnavailableError, match="provider_of_tokens:token raised RuntimeError at test") as raised:
        await login(URL, options())
    assert "hunter2" not in str(raised.value)


async def test_callable_that_hangs_is_given_up(provider: Any) -> None:
    """The time to connect bounds it."""
    provider.token = asyncio.Event().wait
    hasty = RedisOptions(credentials="provider_of_tokens:token", connect_timeout_seconds=0.01)
    with pytest.raises(BrokerUnavailableError, match=r"took longer than 0\.01 s"):
        await login(URL, hasty)


@pytest.mark.parametrize("returned", [None, 5, ("a", "b", "c"), (), ("alice", None)])
async def test_callable_that_returns_something_else_is_refused(provider: Any, returned: object) -> None:
    """The error names what it must return."""
    provider.token = lambda: returned
    with pytest.raises(ConfigurationError, match="must return a password or"):
        await login(URL, options())


@pytest.mark.parametrize("path", ["no_such_module:token", "provider_of_tokens:nothing", "provider_of_tokens:a.b"])
async def test_callable_that_is_not_there_is_refused(provider: Any, path: str) -> None:
    """A path that cannot be imported is an error of the configuration, which names it."""
    with pytest.raises(ConfigurationError, match="cannot be imported"):
        await login(URL, options(path))


@pytest.mark.parametrize("url", ["redis://localhost/3", "redis://localhost?db=3", "unix:///run/redis.sock?db=3"])
def test_database_number_is_a_warning(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A database separates no channels, which is logged with the option that does."""
    broadcaster_from_url(url)
    (record,) = caplog.records
    assert "names database 3, and Redis pub/sub knows no databases" in record.getMessage()
    assert "?prefix=" in record.getMessage()


@pytest.mark.parametrize("url", ["redis://localhost", "redis://localhost/0", "redis://localhost/?db=0"])
def test_first_database_is_no_warning(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The number that every URL has by default is not logged."""
    broadcaster_from_url(url)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://one,two", "leads to one server"),
        ("unix://run/redis.sock", "begins with a slash"),
        ("unix:///", "begins with a slash"),
    ],
)
def test_address_that_makes_no_sense_is_refused(url: str, words: str) -> None:
    """Several hosts, and a path without its slash, are refused before anything is opened."""
    with pytest.raises(ConfigurationError, match=words):
        broadcaster_from_url(url)
