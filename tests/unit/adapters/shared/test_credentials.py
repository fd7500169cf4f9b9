"""`backplane.adapters.shared.credentials`: what the application hands out at each login."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from backplane.adapters.shared.credentials import ask_credentials
from backplane.errors import BrokerUnavailableError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

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


def test_a_function_that_never_returns(tokens: Any) -> None:
    """It holds up neither the end of an event loop nor its threads, and however often it is asked, it runs once."""
    calls: list[str] = []
    returns = threading.Event()

    def hang() -> str:
        calls.append(threading.current_thread().name)
        returns.wait()
        return "at last"

    async def ask(seconds: float) -> str:
        answer: str = await ask_credentials("handed_out:hanging", adapter="redis", seconds=seconds)
        return answer

    tokens.hanging = hang
    for _ in range(3):
        with pytest.raises(BrokerUnavailableError, match="took longer"):
            asyncio.run(ask(0.01))
    assert len(calls) == 1

    async def ask_until_it_returns() -> str:
        asking = asyncio.create_task(ask(20))
        await asyncio.sleep(0)
        returns.set()
        return await asking

    assert asyncio.run(ask_until_it_returns()) == "at last"
    assert asyncio.run(ask(20)) == "at last"
    assert len(calls) == 2


def test_a_function_that_hung_once(tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some time one that has not returned is asked once more, for the next call may answer."""
    monkeypatch.setattr("backplane.adapters.shared.credentials._AGAIN_SECONDS", 0.0)
    returns = threading.Event()
    answers: Iterator[Callable[[], object]] = iter([returns.wait, lambda: "at last"])
    tokens.once = lambda: next(answers)()
    with pytest.raises(BrokerUnavailableError, match="took longer"):
        asyncio.run(ask_credentials("handed_out:once", adapter="redis", seconds=0.01))
    assert asyncio.run(ask_credentials("handed_out:once", adapter="redis", seconds=20)) == "at last"
    returns.set()


@pytest.mark.parametrize("error", [SystemExit, StopIteration], ids=lambda error: error.__name__)
@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "thread"])
async def test_what_no_event_loop_takes(tokens: Any, error: type[BaseException], *, asynchronous: bool) -> None:
    """An exception that would end the event loop, or that no future takes, is one like any other."""

    def leave() -> None:
        raise error("hunter2")

    async def leave_later() -> None:
        leave()

    tokens.current = leave_later if asynchronous else leave
    with pytest.raises(BrokerUnavailableError, match=r"raised (SystemExit|StopIteration|RuntimeError) at") as raised:
        await ask_credentials("handed_out:current", adapter="nats", seconds=20)
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


async def test_module_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the application's module raises when it is imported is a wrong option, and its words are left out."""
    (tmp_path / "failing_at_import.py").write_text("raise KeyError('hunter2')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    words = "kafka: credentials=failing_at_import:token cannot be imported: KeyError at failing_at_import.py:1"
    with pytest.raises(ConfigurationError, match=words) as raised:
        await ask_credentials("failing_at_import:token", adapter="kafka")
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


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
