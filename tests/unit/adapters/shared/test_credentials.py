"""`backplane.adapters.shared.credentials`: what a callable of the application provides at each login."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from backplane.adapters.shared.credentials import ask_credentials, ask_login
from backplane.errors import BrokerUnavailableError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def tokens(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a module of the application, importable as `token_service`."""
    module = ModuleType("token_service")
    monkeypatch.setitem(sys.modules, "token_service", module)
    return module


async def coroutine() -> str:
    """Return the name of the current thread."""
    return threading.current_thread().name


@pytest.mark.parametrize(
    ("function", "here"),
    [(lambda: threading.current_thread().name, False), (coroutine, True)],
    ids=["a function", "a coroutine function"],
)
async def test_thread_of_the_call(tokens: Any, function: object, *, here: bool) -> None:
    """A coroutine runs in the event loop, and a function, which may block, in a thread of its own."""
    tokens.current = function
    assert (await ask_credentials("token_service:current", adapter="redis") == threading.current_thread().name) is here


async def test_method_and_awaitable_result(tokens: Any) -> None:
    """The path can name a method, and an awaitable that a function returns is awaited."""
    tokens.provider = SimpleNamespace(get=coroutine)
    assert await ask_credentials("token_service:provider.get", adapter="redis")
    tokens.later = lambda: coroutine()
    assert await ask_credentials("token_service:later", adapter="redis")


@pytest.mark.parametrize("path", ["no_such_module_here:token", "token_service:missing", "token_service:__name__"])
async def test_missing_callable_is_refused(path: str) -> None:
    """A module or a name that does not exist, or is not callable, is named in the error, with the adapter."""
    with pytest.raises(ConfigurationError, match=f"kafka: credentials={path} (cannot be imported|is not callable)"):
        await ask_credentials(path, adapter="kafka")


def test_a_function_that_hangs_runs_once(tokens: Any) -> None:
    """A function that hangs delays neither the end of the event loop nor its threads, and runs once for all logins."""
    calls: list[str] = []
    returns = threading.Event()

    def hang() -> str:
        calls.append(threading.current_thread().name)
        returns.wait()
        return "at last"

    async def ask(seconds: float) -> str:
        answer: str = await ask_credentials("token_service:hanging", adapter="redis", seconds=seconds)
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


def test_a_function_that_hangs_is_called_again(tokens: Any) -> None:
    """After `repeat_seconds` a function that hangs is called once more, because the next call may return."""
    returns = threading.Event()
    answers: Iterator[Callable[[], object]] = iter([returns.wait, lambda: "at last"])
    tokens.once = lambda: next(answers)()

    async def ask(seconds: float) -> object:
        answer: object = await ask_credentials(
            "token_service:once", adapter="redis", seconds=seconds, repeat_seconds=0.0
        )
        return answer

    with pytest.raises(BrokerUnavailableError, match="took longer"):
        asyncio.run(ask(seconds=0.01))
    assert asyncio.run(ask(seconds=20)) == "at last"
    returns.set()


@pytest.mark.parametrize("error", [SystemExit, StopIteration], ids=lambda error: error.__name__)
@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "thread"])
async def test_any_exception_is_unavailable(tokens: Any, error: type[BaseException], *, asynchronous: bool) -> None:
    """An exception that would end the event loop, or that no future accepts, is reported as any other one."""

    def leave() -> None:
        raise error("hunter2")

    async def leave_later() -> None:
        leave()

    tokens.current = leave_later if asynchronous else leave
    with pytest.raises(BrokerUnavailableError, match=r"raised (SystemExit|StopIteration|RuntimeError) at") as raised:
        await ask_credentials("token_service:current", adapter="nats", seconds=20)
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


async def test_failing_module_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the module during its import is a configuration error, which does not repeat its message."""
    (tmp_path / "failing_at_import.py").write_text("raise KeyError('hunter2')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    message = "kafka: credentials=failing_at_import:token cannot be imported: KeyError at failing_at_import.py:1"
    with pytest.raises(ConfigurationError, match=message) as raised:
        await ask_credentials("failing_at_import:token", adapter="kafka")
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


async def test_error_of_the_callable_shows_no_secret(tokens: Any) -> None:
    """An error of the callable is retriable, and its message, which can hold a secret, is not repeated."""

    def refuse() -> None:
        raise ValueError("hunter2")

    tokens.current = refuse
    with pytest.raises(BrokerUnavailableError) as raised:
        await ask_credentials("token_service:current", adapter="nats")
    message = "nats: no credentials: token_service:current raised ValueError at test_credentials.py:"
    assert str(raised.value).startswith(message)
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


async def test_slow_callable_is_cancelled(tokens: Any) -> None:
    """A callable over its time limit is cancelled; one that raises `TimeoutError` itself is reported as raising it."""
    tokens.current = asyncio.Event().wait
    with pytest.raises(BrokerUnavailableError, match=r"took longer than 0\.01 s"):
        await ask_credentials("token_service:current", adapter="nats", seconds=0.01)

    def give_up() -> None:
        raise TimeoutError

    tokens.current = give_up
    with pytest.raises(BrokerUnavailableError, match="raised TimeoutError"):
        await ask_credentials("token_service:current", adapter="nats", seconds=5)


@pytest.mark.parametrize(
    ("returned", "login"),
    [
        ("secret", (None, "secret")),
        (("secret",), (None, "secret")),
        (("ada", "secret"), ("ada", "secret")),
        ((None, "secret"), (None, "secret")),
    ],
)
async def test_login(tokens: Any, returned: object, login: tuple[str | None, str]) -> None:
    """A password, or a user name with it."""
    tokens.login = lambda: returned
    assert await ask_login("token_service:login", adapter="redis", seconds=30) == login


@pytest.mark.parametrize("returned", [None, b"secret", ("ada", None), ("ada", "secret", "more")])
async def test_what_is_no_login_is_refused(tokens: Any, returned: object) -> None:
    """Anything else is refused with its type, without what it holds."""
    tokens.login = lambda: returned
    words = rf"^redis: token_service:login must return a password or .*, not {type(returned).__name__}$"
    with pytest.raises(ConfigurationError, match=words):
        await ask_login("token_service:login", adapter="redis", seconds=30)
