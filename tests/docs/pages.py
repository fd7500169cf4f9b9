"""What the tests of the documentation share: the marked blocks of a page, and a reader that follows it."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from websockets.sync.client import ClientConnection, connect

from tests.brokers.process import free_port, start, wait_until
from tests.server_process import end_with_children

if TYPE_CHECKING:
    from collections.abc import Generator

    from backplane import Backplane

__all__ = ["DOCS", "ROOT", "Page", "Reader", "ports", "until_subscribed"]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_SECONDS = 60.0
_EXAMPLE = re.compile(r"(?:^<!-- example: ([\w-]+) -->\n)?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OUTPUT = re.compile(r"^<!-- output: ([\w-]+) -->\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMANDS = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;]*[A-Za-z]|[78])")

_connect: Any = connect  # what it returns is typed otherwise from one release of websockets to the next


async def until_subscribed(backplane: Backplane, channel: str) -> None:
    """Wait until a consumer has joined `channel`: it has begun to, and the broker confirms the channel."""
    async with asyncio.timeout(_SECONDS):
        while not (await backplane.health()).channels:
            await asyncio.sleep(0)
        async with backplane.subscribe(channel):
            pass


class Page:
    """One page of the documentation.

    Args:
        path: Its path below `docs`, or `../README.md`.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.text = (DOCS / path).read_text(encoding="utf-8")

    def examples(self) -> list[tuple[str | None, str]]:
        """Return every fenced Python block with the name that stands before it."""
        return [(found[1], found[2]) for found in _EXAMPLE.finditer(self.text)]

    def example(self, name: str) -> str:
        """Return the Python block of this name."""
        (code,) = [code for found, code in self.examples() if found == name]
        return str(code)

    def run(self, name: str) -> dict[str, Any]:
        """Execute the example of this name, and return its names."""
        names: dict[str, Any] = {"__name__": f"{Path(self.path).stem}_{name}".replace("-", "_")}
        exec(compile(self.example(name), f"{self.path}, example {name}", "exec", dont_inherit=True), names)
        return names

    def output(self, name: str) -> list[str]:
        """Return the lines of the output of this name."""
        (lines,) = [str(found[2]) for found in _OUTPUT.finditer(self.text) if found[1] == name]
        return lines.splitlines()

    def command(self, beginning: str) -> str:
        """Return the one command of the page that begins so; the same command may stand there more than once."""
        lines = [line for block in _COMMANDS.finditer(self.text) for line in str(block[1]).splitlines()]
        (found,) = {line for line in lines if line.startswith(beginning)}
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Follows a page in a folder: saves its files, and runs its commands with other ports.

    Attributes:
        page: The page.
        folder: Where the reader is.
        replaced: What stands in the page, such as a port, and what is used in its place.
    """

    page: Page
    folder: Path
    replaced: dict[str, str]

    def save(self, name: str) -> None:
        """Save the example of this name as a module."""
        (self.folder / f"{name}.py").write_text(self.page.example(name), encoding="utf-8")

    def run(self, beginning: str, *, stdin: str | None = None) -> str:
        """Run the command that begins so to its end, and return what it prints."""
        done = subprocess.run(
            ["bash", "-c", self._command(beginning)],
            cwd=self.folder,
            env=self._environment(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def running(self, beginning: str, port: str = "8000") -> Generator[Path]:
        """Run the server that is started by this command, entered when it answers; yields its log."""
        log = self.folder / f"server-{port}.log"
        command = ["bash", "-c", f"exec env {self._command(beginning)}"]
        process = start(command, cwd=self.folder, log=log, env=self._environment())

        def answers() -> bool:
            assert process.poll() is None, "the server has ended"
            with suppress(OSError, HTTPException):
                return self.ask("GET", "/openapi.json", port)[0] == 200
            return False

        try:
            wait_until(answers, f"{beginning} answers", seconds=_SECONDS)
            yield log
        except BaseException as error:
            error.add_note(f"The log of the server:\n{log.read_text()[-10_000:]}")
            raise
        finally:
            killed = end_with_children(process)
        assert not killed, f"it did not end on SIGTERM:\n{log.read_text()}"

    @contextmanager
    def printing(self, beginning: str) -> Generator[Path]:
        """Run a command that goes on until Ctrl-C, entered at once; yields the file of what it prints."""
        log = self.folder / f"{beginning.split()[1]}.log"
        process = start(
            ["bash", "-c", f"exec {self._command(beginning)}"], cwd=self.folder, log=log, env=self._environment()
        )
        try:
            yield log
        finally:
            killed = end_with_children(process)
        assert not killed, log.read_text()

    def connect(self, port: str = "8000", room: str = "kitchen") -> ClientConnection:
        """Connect as the page's `websockets` command does; to be closed by the caller."""
        command = shlex.split(self.page.command(f"websockets ws://127.0.0.1:{port}/"))
        path = command[1].partition(port)[2]
        return self.open(port, path.replace("kitchen", room))

    def open(self, port: str, path: str) -> ClientConnection:
        """Open a WebSocket; to be closed by the caller."""
        url = f"ws://127.0.0.1:{self.replaced[port]}{path}"
        client: ClientConnection = _connect(url, open_timeout=_SECONDS, close_timeout=_SECONDS, proxy=None)
        return client

    def talk(self, line: str) -> list[str]:
        """Run the page's `websockets` command, type a line into it, and return what it shows."""
        shown = self.run("websockets ws://", stdin=f"{line}\n")
        return [part.strip("> ") for part in _ESCAPES.sub("\n", shown).splitlines() if part.strip("> ")]

    def ask(self, method: str, path: str, port: str = "8000") -> tuple[int, str]:
        """Send a request; return the status and the body of the answer."""
        connection = HTTPConnection("127.0.0.1", int(self.replaced[port]), timeout=_SECONDS)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def wait_for_output(self, log: Path, name: str) -> None:
        """Wait until the log has each line that the page shows as `name`, with numbers of its own."""
        for line in self.page.output(name):
            shown = partial(_shows, log, re.compile(_any_number(self._replace(line))))
            wait_until(shown, f"{line!r} is in {log}", seconds=_SECONDS)

    def _command(self, beginning: str) -> str:
        return self._replace(self.page.command(beginning))

    def _replace(self, text: str) -> str:
        for found, used in self.replaced.items():
            text = text.replace(found, used)
        return text

    def _environment(self) -> dict[str, str]:
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"PATH": programs, "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
        return {**os.environ, **own, "XDG_RUNTIME_DIR": "", "COLUMNS": "500", "PYTHONDONTWRITEBYTECODE": "1"}


def ports(*named: str) -> dict[str, str]:
    """Return a free port for each one that a page names."""
    return {port: str(free_port()) for port in named}


def _shows(log: Path, pattern: re.Pattern[str]) -> bool:
    return pattern.search(log.read_text(encoding="utf-8")) is not None


def _any_number(line: str) -> str:
    """Return a regular expression for a line with any numbers in place of its own."""
    return r"\s+".join(re.sub(r"\d+(?:[.:]\d+)*", r"[\\d.:]+", re.escape(word)) for word in line.split())
