"""What the commands share: output to a terminal, exit statuses, the URL argument."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NoReturn, cast

import typer
from rich.console import Console
from rich.text import Text

from backplane.broadcaster import BrokerUrl
from backplane.errors import BackplaneError, ConfigurationError, InvalidChannelError, InvalidDataError
from backplane.journal.events import GAP_REPORTED
from backplane.journal.fields import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = [
    "INSTALL_HINT",
    "UrlArgument",
    "discard_output",
    "err",
    "exiting_on_errors",
    "fail",
    "note",
    "out",
    "progress",
    "require_modules",
    "resolve_url",
    "showing_warnings",
    "standard_input",
    "url_option",
    "visible",
]

INSTALL_HINT = 'run: pip install "fastapi-backplane[cli]"'

_URL_HELP = "The broker. `env` takes the variable BACKPLANE_URL, `-` reads a line of standard input."

UrlArgument = Annotated[str, typer.Argument(metavar="URL", help=_URL_HELP, show_default=False)]


def url_option(default: str) -> Any:
    """Return the option `--url` of a command; `default` is what the help shows as its default."""
    return typer.Option(metavar="URL", help=_URL_HELP, show_default=default)


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """Go on: a closed output (`backplane demo | head`) is no reason to end a server."""


out: _Output = _Output(highlight=False, markup=False, emoji=False)
err: _Output = _Output(highlight=False, markup=False, emoji=False, stderr=True)


def note(text: str, *, console: Console = err) -> None:
    """Print a dim line beside the command's output."""
    console.print(visible(text), style="dim", soft_wrap=True)


def fail(text: str, *, status: int = 1) -> NoReturn:
    """End the command with `status` and one line that gives the reason."""
    err.print(visible(f"backplane: {text}"), soft_wrap=True)
    raise typer.Exit(status)


def discard_output() -> None:
    """Discard what standard output has buffered, as writing failed: Python would write it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def require_modules(what: str, *names: str) -> None:
    """End the command if a module that `what` needs is not installed."""
    if missing := [name for name in names if find_spec(name) is None]:
        fail(f"{what} needs {', '.join(missing)}; {INSTALL_HINT}")


@contextmanager
def exiting_on_errors(what: str = "") -> Generator[None]:
    """End the command where the package raises: status 2 for wrong input, 1 for an error of the broker."""
    try:
        yield
    except (ConfigurationError, InvalidChannelError, InvalidDataError) as error:
        fail(str(error), status=2)
    except BackplaneError as error:
        fail(f"{what}{error}")


def resolve_url(url: str) -> str:
    """Return the broker's URL; `env` and `-` keep a password out of the process list and the shell's history.

    Prints a warning if the argument holds a password.

    Raises:
        ConfigurationError: The variable is not set, or the argument is no URL, or is empty, as where a shell
            replaced a variable that is not set.
    """
    if url == "-":
        url = standard_input().readline().decode(errors="replace").strip()
        if "://" not in url:
            raise ConfigurationError("the first line of standard input is not a URL")
        return url
    if not url.strip():
        raise ConfigurationError("the broker's URL is empty: was BACKPLANE_URL set when the shell replaced it?")
    if url != "env":
        if "://" not in url:
            raise ConfigurationError(
                "a broker URL starts with its scheme, such as redis://localhost; `env` in its place takes the variable "
                "BACKPLANE_URL"
            )
        if _holds_secret(url):
            note(
                "backplane: the process list shows the password of this URL to every user of the machine: "
                "write `env` in its place and set BACKPLANE_URL, or write `-` and pass it on standard input"
            )
        return url
    if not (found := os.environ.get("BACKPLANE_URL")):
        raise ConfigurationError("BACKPLANE_URL is not set: set it, or name the broker's URL")
    return found


def standard_input() -> BinaryIO:
    """Return what `-` reads.

    Raises:
        ConfigurationError: It is closed.
    """
    if cast("object", sys.stdin) is None:
        raise ConfigurationError("standard input is closed, but `-` reads it")
    return typer.get_binary_stream("stdin")


def _holds_secret(url: str) -> bool:
    try:
        parts = BrokerUrl.parse(url)
    except ValueError:  # reported when it is opened
        return False
    # On NATS a user name without a password is a token.
    return parts.password is not None or (parts.username is not None and parts.scheme in {"nats", "tls"})


def visible(text: str) -> str:
    r"""Return `text` in one line without control characters: what is not printable is escaped, as in `\x1b`.

    A backslash is not escaped: this is for reading; `--json` is exact.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


@contextmanager
def progress(*, shown: bool = True) -> Generator[Callable[[str], None]]:
    """Show the present step, if standard error is a terminal."""
    if not (shown and err.is_terminal):
        yield lambda _: None
        return
    with err.status("") as status:
        yield lambda text: status.update(Text(visible(text)))


@contextmanager
def showing_warnings() -> Generator[None]:
    """Print the warnings that the package logs, such as a lost link."""
    handler = _NotingHandler(logging.WARNING)
    logger = logging.getLogger("backplane")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _NotingHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, PREFIX + "event", "") == GAP_REPORTED.name:  # shown where the messages are, in its place
            return
        note(f"backplane: {record.getMessage()}")
