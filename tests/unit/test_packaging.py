"""The shape of the package: what is built, what is imported with it, and what its public names are."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import backplane
from backplane.broadcaster import Broadcaster
from backplane.broker import registry

ROOT = Path(__file__).parents[2]
PYPROJECT: dict[str, Any] = (
    tomllib.loads((ROOT / "pyproject.toml").read_text()) if (ROOT / "pyproject.toml").is_file() else {}
)

# The tests run against an installed wheel too, with the sources away.
needs_sources = pytest.mark.skipif(not (ROOT / "backplane").is_dir(), reason="the sources are away")

PUBLIC_NAMES = [
    "AuthorizeTimeoutError",
    "Backplane",
    "BackplaneError",
    "BrokerAuthenticationError",
    "BrokerError",
    "BrokerUnavailableError",
    "Client",
    "CloseCode",
    "ClosedError",
    "ConfigurationError",
    "Connection",
    "Gap",
    "Health",
    "InvalidChannelError",
    "InvalidDataError",
    "InvalidMessageError",
    "JoinRefusedError",
    "LifecycleError",
    "Limits",
    "Message",
    "MissingDependencyError",
    "NotStartedError",
    "OriginRefusedError",
    "PayloadTooLargeError",
    "PermissionExpiredError",
    "Position",
    "PublishError",
    "PublishOutcomeUnknownError",
    "RefusedError",
    "Settings",
    "SlowConsumer",
    "SlowConsumerError",
    "StateChange",
    "SubscribeError",
    "Subscription",
    "TooManyChannelsError",
    "TooManyConnectionsError",
    "WrongLoopError",
]

# What an application may not have, or may want to import later.
OPTIONAL_PACKAGES = [
    "aiokafka",
    "fastapi",
    "hiredis",
    "nats",
    "nkeys",
    "redis",
    "rich",
    "starlette",
    "typer",
    "uvicorn",
]


def python(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter in `folder` and return how it ended."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=50
    )


def adapter_modules() -> list[str]:
    """Return the names of the modules beside `backplane.adapters.memory`."""
    folder = Path(importlib.import_module("backplane.adapters").__path__[0])
    return sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__")


@needs_sources
def test_packages_are_the_folders() -> None:
    """The explicit list of packages names every folder that holds an `__init__.py`, and no other."""
    adapters = (ROOT / "adapters").rglob("__init__.py")
    found = {".".join(("backplane", *file.parent.relative_to(ROOT).parts)) for file in adapters}
    for file in (ROOT / "backplane").rglob("__init__.py"):
        found.add(".".join(file.parent.relative_to(ROOT).parts))
    assert sorted(found) == PYPROJECT["tool"]["setuptools"]["packages"]


@needs_sources
def test_package_folders() -> None:
    """The two mapped packages stand where the map says."""
    assert PYPROJECT["tool"]["setuptools"]["package-dir"] == {
        "backplane": "backplane",
        "backplane.adapters": "adapters",
    }


@needs_sources
def test_adapters_link() -> None:
    """Checkers and editors see the adapters through a relative symlink, which a clone anywhere keeps."""
    link = ROOT / "backplane" / "adapters"
    assert link.is_symlink()
    assert link.readlink() == Path("../adapters")


@needs_sources
def test_adapters_under_their_bare_name() -> None:
    """`import adapters`, which would make every class twice, is refused with the right name."""
    process = python("-c", "import adapters")
    assert process.returncode == 1
    assert process.stderr.rstrip().splitlines()[-1] == (
        "ImportError: import backplane.adapters, not adapters: under two names every class would exist twice"
    )


@pytest.mark.parametrize("name", adapter_modules())
def test_adapter_imports(name: str) -> None:
    """Every module of the adapters can be imported as `backplane.adapters.<name>`."""
    module = importlib.import_module(f"backplane.adapters.{name}")
    assert module.__name__ == f"backplane.adapters.{name}"


@needs_sources
def test_entry_points_are_the_built_in_adapters() -> None:
    """The built-in adapters are registered like a third party's, under exactly the schemes the registry knows."""
    declared: dict[str, str] = PYPROJECT["project"]["entry-points"]["backplane.adapters"]
    built_in = registry._BUILT_IN  # pyright: ignore[reportPrivateUsage]
    assert declared == {scheme: target for scheme, (target, _) in built_in.items()}


@needs_sources
def test_extras_are_declared() -> None:
    """Every extra that an error tells the user to install exists."""
    built_in = registry._BUILT_IN  # pyright: ignore[reportPrivateUsage]
    named = {extra for _, extra in built_in.values() if extra is not None}
    assert named - set(PYPROJECT["project"]["optional-dependencies"]) == set()


@pytest.mark.parametrize("scheme", sorted(registry._BUILT_IN))  # pyright: ignore[reportPrivateUsage]
def test_built_in_adapter_exists(scheme: str) -> None:
    """What the registry names for a scheme is there."""
    module, _, name = registry._BUILT_IN[scheme][0].partition(":")  # pyright: ignore[reportPrivateUsage]
    assert issubclass(getattr(importlib.import_module(module), name), Broadcaster)


def test_import_is_light(tmp_path: Path) -> None:
    """`import backplane` imports no web framework, no broker's client and no part of the command line."""
    code = f"import sys, backplane; print([name for name in {OPTIONAL_PACKAGES} if name in sys.modules])"
    process = python("-c", code, folder=tmp_path)
    assert (process.stderr, process.stdout) == ("", "[]\n")


def test_backplane_without_a_framework(tmp_path: Path) -> None:
    """A script that only makes a `Backplane` on memory imports no web framework and no broker's client either."""
    code = (
        "import sys, backplane; backplane.Backplane('memory://'); "
        f"print([name for name in {OPTIONAL_PACKAGES} if name in sys.modules])"
    )
    process = python("-c", code, folder=tmp_path)
    assert (process.stderr, process.stdout) == ("", "[]\n")


def test_public_names() -> None:
    """The public names are these, sorted, and each can be imported."""
    assert backplane.__all__ == PUBLIC_NAMES
    assert sorted(PUBLIC_NAMES) == PUBLIC_NAMES
    assert [name for name in PUBLIC_NAMES if not hasattr(backplane, name)] == []


def test_every_public_name_is_documented() -> None:
    """Every public name says what it is in a docstring of its own."""
    assert [name for name in PUBLIC_NAMES if not getattr(backplane, name).__doc__] == []


def test_typed() -> None:
    """The marker that makes type checkers read the package is part of it."""
    assert (Path(backplane.__file__).parent / "py.typed").is_file()
