"""`backplane.credentials`: what the application hands out at each login."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from backplane.credentials import ask_credentials
from backplane.errors import BrokerUnavailableError, ConfigurationError

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def tokens(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a module of the application, `handed_out`."""
    module = ModuleType("handed_out")
    monkeypatch.setitem(sys.modules, "handed_out", module)
    return module


async def coroutine() -> str:
    """Return which thread runs."""
    return threading.current_thread().name


@pytest.mark.parametrize(
    ("function", "here"),
    [(lambda: threading.current_thread().name, False), (coroutine, True)],
    ids=["a function", "a coroutine function"],
)
async def test_where_it_runs(tokens: Any, function: object, *, here: bool) -> None:
    """A coroutine runs in the event loop, and a function, which may wait for a network, in a thread."""
    tokens.current = function
    assert (await ask_credentials("handed_out:current", adapter="redis") == threading.current_thread().name) is here


async def test_method_of_an_object(tokens: Any) -> None:
    """The name can lead to a method, and what a function returns is awaited where it must be."""
    tokens.provider = SimpleNamespace(get=coroutine)
    assert await ask_credentials("handed_out:provider.get", adapter="redis")
    tokens.later = lambda: coroutine()
    assert await ask_credentials("handed_out:later", adapter="redis")


@pytest.mark.parametrize("path", ["no_such_module_here:token", "handed_out:missing", "handed_out:__name__"])
async def test_what_cannot_be_called(path: str) -> None:
    """A module, a name or a callable that is not there is named, with the adapter whose option it is."""
    with pytest.raises(ConfigurationError, match=f"kafka: credentials={path} (cannot be imported|is not callable)"):
        await ask_credentials(path, adapter="kafka")


async def test_an_error_shows_no_secret(tokens: Any) -> None:
    """What the callable raises is tried again later, and its words, which can hold a secret, are left out."""

    def refuse() -> None:
        raise ValueError("hunter2")

    tokens.current = refuse
    with pytest.raises(BrokerUnavailableError) as raised:
        await ask_credentials("handed_out:current", adapter="nats")
    words = "nats: no credentials: handed_out:current raised ValueError at test_credentials.py:"
    assert str(raised.value).startswith(words)
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


async def test_too_late(tokens: Any) -> None:
    """What takes longer than it may is cancelled, and told from a callable that ran into a time limit of its own."""
    tokens.current = asyncio.Event().wait
    with pytest.raises(BrokerUnavailableError, match=r"took longer than 0\.01 s"):
        await ask_credentials("handed_out:current", adapter="nats", seconds=0.01)

    def give_up() -> None:
        raise TimeoutError

    tokens.current = give_up
    with pytest.raises(BrokerUnavailableError, match="raised TimeoutError"):
        await ask_credentials("handed_out:current", adapter="nats", seconds=5)
