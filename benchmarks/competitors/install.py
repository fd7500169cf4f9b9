"""`make competitors`: install each competitor into an environment of its own under `.cache/competitors`.

The versions are those that its requirements pin. One that cannot be installed is reported there and in every result,
and the others are installed nevertheless.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from benchmarks.competitors.catalog import COMPETITORS, ENVIRONMENTS, FOLDER

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["main"]


def main(names: list[str]) -> int:
    """Install the competitors with these names, or all; returns how many failed."""
    failed = 0
    for name in names or COMPETITORS:
        environment = ENVIRONMENTS / name
        pinned = FOLDER / name / COMPETITORS[name].pinned
        if _is_current(environment, pinned):
            print(f"{name}: installed")
            continue
        print(f"{name}: installing ...", flush=True)
        shutil.rmtree(environment, ignore_errors=True)
        environment.mkdir(parents=True)
        reason = _INSTALL[COMPETITORS[name].runs_on](environment, pinned)
        (environment / ("failed.txt" if reason else "installed")).write_text(reason)
        if reason:
            failed += 1
            print(f"{name}: FAILED\n{reason}")
    return failed


def _is_current(environment: Path, pinned: Path) -> bool:
    mark = environment / "installed"
    sources = [pinned, *pinned.parent.glob("*.js"), *pinned.parent.glob("*.go")]
    return mark.exists() and all(mark.stat().st_mtime > source.stat().st_mtime for source in sources)


def _install_python(environment: Path, pinned: Path) -> str:
    made = _run(sys.executable, "-m", "venv", "--without-pip", str(environment))
    pip = ("-m", "pip", "--python", str(environment / "bin" / "python"), "--disable-pip-version-check", "install")
    return made or _run(sys.executable, *pip, "--quiet", "--requirement", str(pinned))


def _install_node(environment: Path, pinned: Path) -> str:
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "there is no Node here"
    for name in ("app.js", "package.json", "package-lock.json"):
        shutil.copy(pinned.parent / name, environment)
    # Node finds what it requires beside the file, so the application goes there too.
    return _run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(environment))


def _install_go(environment: Path, pinned: Path) -> str:
    if shutil.which("go") is None:
        return "there is no Go here"
    return _run("go", "build", "-mod=readonly", "-o", str(environment / "app"), ".", folder=pinned.parent)


def _run(*command: str, folder: Path = FOLDER) -> str:
    """Return why a command failed; empty if it did not."""
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    return f"{found.stdout}{found.stderr}"[-2000:] or f"status {found.returncode}" if found.returncode else ""


_INSTALL: Final = {"Python": _install_python, "Node": _install_node, "Go": _install_go}


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
