"""The shape of the package: what is built, what is imported with it, and what its public names are."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import backplane
from backplane.broadcaster import Broadcaster
from backplane.broker import registry

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PYPROJECT: dict[str, Any] = (
    tomllib.loads((ROOT / "pyproject.toml").read_text()) if (ROOT / "pyproject.toml").is_file() else {}
)

# The tests run against an installed wheel too, with the sources away.
needs_sources = pytest.mark.skipif(not (ROOT / "backplane").is_dir(), reason="the sources are away")

needs_clone = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone")

# What git tracks and a source distribution leaves out: what serves the repository alone, and a link.
NOT_IN_SDIST = re.compile(r"\.ci/|\.github/|\.gitignore$|backplane/adapters$")
PIN = re.compile(r"^(\S+)==(\S+)(?: ; (.+?))? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)

PUBLIC_NAMES = [
    "AllowedOrigins",
    "Answers",
    "Authorize",
    "AuthorizeTimeoutError",
    "Backlog",
    "Backplane",
    "BackplaneCollector",
    "BackplaneError",
    "BrokerAuthenticationError",
    "BrokerError",
    "BrokerUnavailableError",
    "ChannelList",
    "ChannelOrder",
    "ChannelOverview",
    "ChannelRow",
    "Client",
    "ClientEvidence",
    "CloseCode",
    "ClosedError",
    "ConfigurationError",
    "ConnectOptions",
    "Connection",
    "ConnectionList",
    "ConnectionOrder",
    "ConnectionRow",
    "EndedClient",
    "Envelope",
    "Explanation",
    "Finding",
    "FullPolicy",
    "Gap",
    "Health",
    "History",
    "HistoryPage",
    "InvalidChannelError",
    "InvalidDataError",
    "InvalidMessageError",
    "InvalidPositionError",
    "InvalidTokenError",
    "JoinRefusedError",
    "Joined",
    "LifecycleError",
    "Limits",
    "LinkState",
    "Message",
    "MetricsEndpoint",
    "MissingDependencyError",
    "NotStartedError",
    "OnConnection",
    "OnGap",
    "OnMessage",
    "OnSlow",
    "OriginRefusedError",
    "Overview",
    "Overviews",
    "PayloadTooLargeError",
    "PermissionExpiredError",
    "Position",
    "Presence",
    "PresenceChange",
    "PresenceSnapshot",
    "PresenceView",
    "PresenceWatch",
    "PresentUser",
    "Problem",
    "PublishError",
    "PublishOutcomeUnknownError",
    "Receipt",
    "RefusedError",
    "RefusedJoin",
    "Settings",
    "SlowConsumer",
    "SlowConsumerError",
    "StateChange",
    "Statistics",
    "SubscribeError",
    "Subscription",
    "TokenCheckUnavailableError",
    "TokenExpiredError",
    "TooManyChannelsError",
    "TooManyConnectionsError",
    "TooManyPresentError",
    "TypedChannel",
    "Who",
    "Worker",
    "WorkerEvidence",
    "WorkerOverview",
    "WrongLoopError",
    "instrument_metrics",
    "metrics_routes",
]

# What an application may not have, or may want to import later.
OPTIONAL_PACKAGES = [
    "aiokafka",
    "asgiref",
    "asyncpg",
    "channels",
    "django",
    "fastapi",
    "hiredis",
    "jwt",
    "litestar",
    "msgpack",
    "nats",
    "nkeys",
    "opentelemetry",
    "pamqp",
    "prometheus_client",
    "redis",
    "rich",
    "socketio",
    "starlette",
    "typer",
    "uvicorn",
]


def python(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter in `folder` and return how it ended."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )


def adapter_modules() -> list[str]:
    """Return the names of the modules and packages below `backplane.adapters`."""
    folder = Path(importlib.import_module("backplane.adapters").__path__[0])
    files = (file.relative_to(folder).with_suffix("") for file in folder.rglob("*.py"))
    return sorted({".".join(part for part in file.parts if part != "__init__") for file in files} - {""})


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
    """The two mapped packages are where the map has them."""
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
    """Every extra that an error names to be installed exists."""
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


def documented_aliases() -> set[str]:
    """Return the names that a module assigns and documents by a string right after the assignment."""
    names: set[str] = set()
    for path in Path(backplane.__file__).parent.rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for statement, following in pairwise(body):
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                targets = statement.targets if isinstance(statement, ast.Assign) else []
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_every_public_name_is_documented() -> None:
    """Every public class and function has a docstring of its own, and every type alias one after its assignment."""
    public = {name: getattr(backplane, name) for name in PUBLIC_NAMES}
    names = {name for name, value in public.items() if inspect.isclass(value) or inspect.isfunction(value)}
    assert [name for name in names if not getattr(backplane, name).__doc__] == []
    assert set(PUBLIC_NAMES) - names == {
        "AllowedOrigins",
        "Authorize",
        "ChannelOrder",
        "ConnectionOrder",
        "Envelope",
        "FullPolicy",
        "LinkState",
        "OnConnection",
        "OnGap",
        "OnMessage",
        "OnSlow",
    }
    assert set(PUBLIC_NAMES) - names <= documented_aliases()


def test_version() -> None:
    """`backplane.__version__` is the version of the installed distribution."""
    assert backplane.__version__ == version(PYPROJECT["project"]["name"])


def test_module_is_the_command_line(tmp_path: Path) -> None:
    """`python -m backplane` is the command `backplane`."""
    process = python("-m", "backplane", "--version", folder=tmp_path)
    assert (process.stderr, process.stdout) == ("", f"{backplane.__version__}\n")


def test_typed() -> None:
    """The marker that makes type checkers read the package is part of it."""
    assert (Path(backplane.__file__).parent / "py.typed").is_file()


def build(kind: str, folder: Path) -> Path:
    """Build a distribution from a copy of what git tracks, so that nothing else of the work tree gets into it."""
    source = folder / "source"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    process = python("-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(folder / "dist"), str(source))
    assert process.returncode == 0, process.stdout + process.stderr
    (built,) = (folder / "dist").iterdir()
    return built


def tracked() -> list[str]:
    """Return the paths of all files that git tracks."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listing.stdout.split("\0") if name and (ROOT / name).exists()]


def requirements(entries: list[Any]) -> Iterator[Requirement]:
    """Return the requirements of a group or an extra, with those of the groups and own extras that it includes."""
    for entry in entries:
        if isinstance(entry, dict):
            yield from requirements(PYPROJECT["dependency-groups"][entry["include-group"]])
        elif (requirement := Requirement(entry)).name == PYPROJECT["project"]["name"]:
            for extra in requirement.extras:
                yield from requirements(PYPROJECT["project"]["optional-dependencies"][extra])
        else:
            yield requirement


@needs_clone
def test_source_distribution(tmp_path: Path) -> None:
    """The source distribution holds documents, examples, tests and benchmarks, and nothing that git does not track."""
    with tarfile.open(build("sdist", tmp_path)) as archive:
        files = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    made = {"PKG-INFO", "setup.cfg"} | {name for name in files if name.startswith("fastapi_backplane.egg-info/")}
    assert files - made == {name for name in tracked() if not NOT_IN_SDIST.match(name)}


@needs_clone
def test_wheel(tmp_path: Path) -> None:
    """The wheel holds the modules, the marker of types, the script, and what demo and page serve, and nothing else."""
    with zipfile.ZipFile(build("wheel", tmp_path)) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {name for name in tracked() if name.endswith(".py") and name.startswith(("backplane/", "adapters/"))}
    expected = {re.sub("^adapters/", "backplane/adapters/", name) for name in modules}
    demo = {f"backplane/demo/{name}" for name in ("page.html", "centrifuge.js", "centrifuge.LICENSE")}
    page = {name for name in tracked() if name.startswith("backplane/admin/page/")}
    assert files == expected | demo | page | {"backplane/py.typed", "backplane/web/client.js"}


@needs_sources
@pytest.mark.parametrize(
    ("lock", "entries"), [("image", ["fastapi-backplane[all]"]), ("dev", [{"include-group": "dev"}])]
)
def test_lock_satisfies_the_ranges(lock: str, entries: list[Any]) -> None:
    """Every requirement of pyproject.toml is pinned in its range, by hash and by no address; else run `make lock`."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")
    pins = {(canonicalize_name(name), version) for name, version, _, _ in PIN.findall(text)}
    assert (
        "".join(PIN.sub("", text).splitlines())
        == "# This file was autogenerated by uv via the following command:#    make lock"
    )
    for requirement in requirements([*entries, *PYPROJECT["project"]["dependencies"]]):
        versions = [version for name, version in pins if name == canonicalize_name(requirement.name)]
        assert versions, f"{requirement} is not pinned"
        assert [version for version in versions if version not in requirement.specifier] == [], str(requirement)


@needs_sources
def test_locks_agree() -> None:
    """What both lock files pin, they pin at one version: the image runs what the tests run."""
    texts = [(ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8") for lock in ("image", "dev")]
    image, dev = [{(name, version) for name, version, _, _ in PIN.findall(text)} for text in texts]
    assert image - dev == set()


def test_nothing_of_opentelemetry_is_touched(tmp_path: Path) -> None:
    """Without `tracing` nothing of OpenTelemetry is imported, nor any attribute of it read, where it is installed."""
    code = """
import asyncio, sys, types

class Untouchable(types.ModuleType):
    def __getattribute__(self, name):
        touched.append(name)
        return super().__getattribute__(name)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            touched.append(f"import {name}")

touched = []
sys.meta_path.insert(0, Finder())
import backplane, backplane.core, backplane.header
sys.modules["opentelemetry"] = Untouchable("opentelemetry")
touched.clear()

async def use():
    async with backplane.Backplane("memory://") as plane, plane.subscribe("a") as messages:
        await plane.publish("a", "hello")
        assert (await anext(messages)).data == "hello"
        await asyncio.to_thread(plane.sync.publish, "a", "again")
        assert (await anext(messages)).data == "again"

asyncio.run(use())
print(touched)
"""
    process = python("-c", code, folder=tmp_path)
    assert (process.stderr, process.stdout) == ("", "[]\n")


def test_tracing_without_opentelemetry(tmp_path: Path) -> None:
    """Where OpenTelemetry is not installed the import of tracing names the extra to install."""
    code = "import sys; sys.modules['opentelemetry'] = None; import backplane.tracing"
    process = python("-c", code, folder=tmp_path)
    assert process.returncode == 1
    assert process.stderr.rstrip().splitlines()[-1] == (
        "backplane.errors.MissingDependencyError: tracing needs OpenTelemetry: pip install 'fastapi-backplane[otel]'"
    )
