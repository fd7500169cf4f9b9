"""The client programs and the reference server: made once into `.cache/sdk`, from pinned packages, and used offline.

`make sdk` makes the programs; otherwise the first test that needs one does, as it does for the reference server, while
other processes wait. Each is kept under the digest of what it was made from, so a changed source or lock file makes it
anew.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from tests.brokers.process import locked, made

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["MissingError", "go_client", "node_modules", "reference_server"]

_HERE: Final = Path(__file__).parent
_CACHE: Final = _HERE.parents[1] / ".cache" / "sdk"


class MissingError(Exception):
    """This machine has no Node or no Go, or the packages could not be installed."""


def node_modules() -> Path:
    """Return the folder that holds the `node_modules` of client.mjs.

    Raises:
        MissingError: There is no Node or no npm, or npm failed.
    """
    sources = [_HERE / "package.json", _HERE / "package-lock.json"]
    return _made("node", sources, _install_node)


def go_client() -> Path:
    """Return the program of client/main.go.

    Raises:
        MissingError: There is no Go, or the build failed.
    """
    return _go("client")


def reference_server() -> Path:
    """Return the program of reference/main.go.

    Raises:
        MissingError: There is no Go, or the build failed.
    """
    return _go("reference")


def _go(name: str) -> Path:
    folder = _HERE / name
    sources = [folder / part for part in ("go.mod", "go.sum", "main.go")]

    def build(into: Path) -> None:
        _run("go", "build", "-mod=readonly", "-trimpath", "-o", str(into / name), ".", cwd=folder)

    return _made(name, sources, build) / name


def _install_node(into: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(_HERE / name, into)
    _run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=into)


def _made(name: str, sources: Sequence[Path], make: Callable[[Path], None]) -> Path:
    """Return a folder that `make` has filled, now or earlier from the same `sources`."""
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    kept = _CACHE / f"{name}-{digest}"
    if not kept.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        with locked(_CACHE / f"{name}.lock"):
            if not kept.exists():
                print(f"Making {name} of tests/sdk in .cache, once ...", file=sys.__stderr__, flush=True)
                with TemporaryDirectory(dir=_CACHE) as folder:
                    make(made(Path(folder) / "made"))
                    for old in _CACHE.glob(f"{name}-*"):
                        shutil.rmtree(old)
                    (Path(folder) / "made").rename(kept)
    return kept


def _run(program: str, *arguments: str, cwd: Path) -> None:
    if shutil.which(program) is None:
        raise MissingError(f"no {program}")
    done = subprocess.run([program, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MissingError(f"{program} failed: {(done.stdout + done.stderr).strip()[-1000:]}")


if __name__ == "__main__":
    for make in (node_modules, go_client):
        sys.stdout.write(f"{make()}\n")
