"""What every command shares: how it speaks to a person, and with which status it ends."""

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

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = [
    "INSTALL_HINT",
    "UrlArgument",
    "err",
    "fail",
    "failing_in_words",
    "given_url",
    "out",
    "printing_nothing_more",
    "progress",
    "require_modules",
    "say",
    "showing_warnings",
    "standard_input",
    "url_option",
    "visible",
]

INSTALL_HINT = 'run: pip install "fastapi-backplane[cli]"'

_URL_HELP = "The broker. `env` takes the variable BACKPLANE_URL, `-` reads a line of standard input."

UrlArgument = Annotated[str, typer.Argument(metavar="URL", help=_URL_HELP, show_default=False)]


def url_option(default: str) -> Any:
    """Return the option `--url` of a command, which without it takes what `default` names."""
    return typer.Option(metavar="URL", help=_URL_HELP, show_default=default)


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """Go on: that nobody reads any more (`backplane demo | head`) is no reason to end a server."""


out: _Output = _Output(highlight=False, markup=False, emoji=False)
err: _Output = _Output(highlight=False, markup=False, emoji=False, stderr=True)


def say(text: str, *, console: Console = err) -> None:
    """Say something beside the matter, in one line."""
    console.print(visible(text), style="dim", soft_wrap=True)


def fail(text: str, *, status: int = 1) -> NoReturn:
    """End the command with `status` and one line that says why."""
    err.print(visible(f"backplane: {text}"), soft_wrap=True)
    raise typer.Exit(status)


def printing_nothing_more() -> None:
    """Drop what standard output still holds, where writing has failed: Python would try once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def require_modules(what: str, *names: str) -> None:
    """End with a word where a module that `what` needs is not installed."""
    if missing := [name for name in names if find_spec(name) is None]:
        fail(f"{what} needs {', '.join(missing)}; {INSTALL_HINT}")


@contextmanager
def failing_in_words(what: str = "") -> Generator[None]:
    """End the command where the package raises: status 2 for what the user wrote, 1 for what the broker did."""
    try:
        yield
    except (ConfigurationError, InvalidChannelError, InvalidDataError) as error:
        fail(str(error), status=2)
    except BackplaneError as error:
        fail(f"{what}{error}")


def given_url(url: str) -> str:
    """Return the broker's URL; `env` and `-` keep a password out of the list of processes and of the shell's history.

    Prints a warning where a password stands in the argument.

    Raises:
        ConfigurationError: The variable is not set, or what was given is empty, as it is where a shell replaced a
            variable that is not set, or is no URL.
    """
    if url == "-":
        url = standard_input().readline().decode(errors="replace").strip()
        if "://" not in url:
            raise ConfigurationError("the first line of standard input is no URL")
        return url
    if not url.strip():
        raise ConfigurationError("the broker's URL is empty: is BACKPLANE_URL set where the shell replaced it?")
    if url != "env":
        if "://" not in url:
            raise ConfigurationError(
                "a broker URL starts with its scheme, such as redis://localhost; `env` in its place takes the variable "
                "BACKPLANE_URL"
            )
        if _holds_secret(url):
            say(
                "backplane: the list of processes shows the password of this URL to every user of the machine: "
                "write `env` in its place and set BACKPLANE_URL, or `-` and give it on standard input"
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
        raise ConfigurationError("standard input is closed, and - reads it")
    return typer.get_binary_stream("stdin")


def _holds_secret(url: str) -> bool:
    try:
        parts = BrokerUrl.parse(url)
    except ValueError:  # whoever opens it says what is wrong
        return False
    # A lone user name is a token on NATS.
    return parts.password is not None or (parts.username is not None and parts.scheme in {"nats", "tls"})


def visible(text: str) -> str:
    r"""Return `text` in one line with nothing a terminal would act on: what cannot be printed is escaped, as in `\x1b`.

    A backslash stays as it is: this is for people, and `--json` is exact.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


@contextmanager
def progress(*, shown: bool = True) -> Generator[Callable[[str], None]]:
    """Show what is being done, for as long as it is, where a person looks at the terminal."""
    if not (shown and err.is_terminal):
        yield lambda _: None
        return
    with err.status("") as status:
        yield lambda text: status.update(Text(visible(text)))


@contextmanager
def showing_warnings() -> Generator[None]:
    """Say what the package logs as a warning: a lost link, say."""
    handler = _Saying(logging.WARNING)
    logger = logging.getLogger("backplane")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Saying(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"backplane: {record.getMessage()}")
