"""The command line: its output and its exit status."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from backplane.cli import app

LAST_LINE = "Ctrl-C"  # the last line of the panel


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port in use."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_version_is_that_of_the_distribution() -> None:
    """`--version` prints the version of the installed distribution."""
    result = CliRunner().invoke(app, ["--version"])

    assert result.exit_code == 0
    assert result.stdout == version("fastapi-backplane") + "\n"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        pytest.param("localhost:6379", "a broker URL starts with its scheme", id="no scheme"),
        pytest.param("reddis://localhost", "did you mean 'redis'?", id="misspelt scheme"),
        pytest.param("memory://?max_payload=1", "did you mean 'max_payload_bytes'?", id="misspelt option"),
    ],
)
def test_bad_url_is_explained(url: str, words: str) -> None:
    """A wrong URL ends the demo with status 2 and one line that states the mistake."""
    result = CliRunner().invoke(app, ["demo", "--port", "0", "--url", url])

    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_absent_broker_is_reported_once() -> None:
    """A broker that cannot be used ends the demo with status 1 and one line, before any worker starts."""
    result = CliRunner().invoke(app, ["demo", "--port", "0", "--url", "ipc://demo?directory=/dev/null"])

    assert result.exit_code == 1
    assert "cannot use the folder" in result.stderr
    assert result.stderr.count("\n") == 1


def test_taken_port_is_reported_with_a_hint(taken_port: int) -> None:
    """A taken port ends the demo with status 1 and one line that names the option to choose another."""
    result = CliRunner().invoke(app, ["demo", "--port", str(taken_port), "--url", "memory://"])

    assert result.exit_code == 1
    assert f"port {taken_port} on 127.0.0.1 is in use" in result.stderr
    assert "--port " in result.stderr
    assert result.stderr.count("\n") == 1


def test_panel_masks_the_password() -> None:
    """What the demo prints when it is ready shows the broker's URL without its password."""
    command = [sys.executable, "-m", "backplane.cli", "demo", "--port", "0", "--workers", "1"]
    command += ["--url", "memory://user:secret@somewhere"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        printed = ""
        for line in process.stdout:
            printed += line
            if LAST_LINE in line:
                break
        process.send_signal(signal.SIGINT)
        printed += process.stdout.read()

    assert "memory://user:***@somewhere" in printed
    assert "secret" not in printed
    assert process.returncode == 0


def test_missing_server_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Gunicorn the error of the demo names the extra to install."""
    monkeypatch.setitem(sys.modules, "gunicorn", None)

    result = CliRunner().invoke(app, ["demo"])

    assert result.exit_code == 1
    assert "needs gunicorn" in result.stderr
    assert 'pip install "fastapi-backplane[cli]"' in result.stderr


def test_missing_typer_names_the_extra() -> None:
    """Without Typer the error names the extra to install, instead of a traceback."""
    without_typer = "import sys; sys.modules['typer'] = None; from backplane.cli import main; main()"

    result = subprocess.run([sys.executable, "-c", without_typer], capture_output=True, text=True, check=False)

    assert result.returncode == 1
    assert 'needs typer; run: pip install "fastapi-backplane[cli]"' in result.stderr
    assert "Traceback" not in result.stderr


# --- the URL ----------------------------------------------------------------------------------------------------------

WARNING = "the process list shows the password of this URL to every user of the machine"


def run_command(*arguments: str, typed: str = "") -> tuple[int, str, str]:
    """Run the command line; return its status, what it printed and what it wrote to standard error."""
    result = CliRunner().invoke(app, list(arguments), input=typed)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "memory://alice:secret@here", "--messages", "1"],
        ["publish", "memory://alice:secret@here", "room", "x"],
        ["publish", "tls://secret@127.0.0.1:1", "room", "x"],
        ["tail", "memory://alice:secret@here", "$backplane/x"],
        ["run", "no_such_module:app", "--url", "memory://alice:secret@here"],
        ["bench", "--url", "memory://alice:secret@here"],
        ["demo", "--url", "ipc://alice:secret@here?directory=/dev/null", "--port", "0"],
    ],
    ids=lambda arguments: f"{arguments[0]} {arguments[1][:3]}",
)
def test_password_in_the_list_of_processes(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    """A password among the arguments causes a warning with the remedy, and is not printed."""
    for name in ("_check_application", "_uvicorn"):
        monkeypatch.setattr(f"backplane.cli.run.{name}", str)  # which does nothing
    monkeypatch.setenv("BACKPLANE_URL", "")  # restored after `run` sets it
    _, printed, errors = run_command(*arguments)
    assert (
        f"{WARNING}: write `env` in its place and set BACKPLANE_URL, or write `-` and pass it on standard input"
        in errors
    )
    assert "secret" not in printed + errors


@pytest.mark.parametrize("given", ["env", "-"])
def test_password_from_the_environment_or_standard_input(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """A URL from the environment or from standard input is used without a warning, and its password not shown."""
    monkeypatch.setenv("BACKPLANE_URL", "memory://alice:secret@here")
    status, printed, errors = run_command("check", given, "--messages", "1", typed="memory://alice:secret@here\n")
    assert (status, errors) == (0, "")
    assert "memory://alice:***@here" in printed
    assert "secret" not in printed


def test_url_and_data_from_standard_input() -> None:
    """Where both come from standard input, the URL is its first line."""
    status, printed, _ = run_command("publish", "-", "room", "-", typed="memory://\nhello\n")
    assert (status, printed) == (0, "published 6 bytes to 'room': handed to every subscriber\n")


@pytest.mark.parametrize("typed", ["", "localhost:6379\n", "\xff\n"])
def test_no_url_on_standard_input(typed: str) -> None:
    """Input that is not a URL is refused and not printed, as it can be a password."""
    status, _, errors = run_command("check", "-", typed=typed)
    assert (status, errors) == (2, "backplane: the first line of standard input is not a URL\n")


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("check - <&-", 2, "standard input is closed, but `-` reads it"),
        ("publish memory:// a - <&-", 2, "standard input is closed, but `-` reads it"),
        ("check memory:// >/dev/full", 1, "[Errno 28] No space left on device"),
        ("publish memory:// a x >/dev/full", 0, "published, but this could not be printed: [Errno 28] No space left"),
        ("check memory:// >&-", 0, ""),
        ("check memory:// 2>&-", 0, ""),
    ],
)
def test_standard_streams_that_are_closed_or_full(command: str, status: int, words: str) -> None:
    """A stream that cannot be read or written causes one line; a successful publish still ends with 0."""
    line = f'exec "{sys.executable}" -m backplane {command}'
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, words in done.stderr) == (status, True), done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
