"""What the commands share that ask the workers: the secret, the wait, the output, how they end."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from backplane.cli import app
from backplane.cli.observer import answers_problem, answers_rows, format_seconds, print_rows
from backplane.cluster_types import Answers, Worker
from tests.brokers.process import free_port
from tests.cluster_app import WAIT, serving_in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SECRET = "0123456789abcdef-right"
COMMANDS: list[list[str]] = [
    ["workers"],
    ["present", "room:1"],
    ["survey", "load", "--url"],
    ["disconnect", "--user", "ada", "--confirm", "1"],
]


def run(*arguments: str, secret: str = "") -> tuple[int, str, str]:
    """Run a command; return status, standard output and standard error."""
    result = CliRunner().invoke(app, arguments, env={"BACKPLANE_CONTROL_SECRET": secret})
    return result.exit_code, result.stdout, result.stderr


def with_url(command: Sequence[str], url: str) -> list[str]:
    """Return a command with a URL."""
    return [*command, url, *WAIT]


@pytest.fixture
def url(ipc_url: str) -> Iterator[str]:
    """The URL of one worker without a secret."""
    with serving_in_thread(ipc_url):
        yield ipc_url


@pytest.fixture
def signed_url(ipc_url: str) -> Iterator[str]:
    """The URL of one worker with a secret."""
    with serving_in_thread(ipc_url, SECRET):
        yield ipc_url


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_no_worker(ipc_url: str, command: list[str]) -> None:
    """Without a worker a command ends with 1 and the reason, also in the object."""
    status, printed, errors = run(*with_url(command, ipc_url))
    assert (status, printed) == (1, "")
    assert f"no worker was seen at {ipc_url.partition('?')[0]} within 0.5 s: do they run with cluster=True" in errors

    status, printed, _ = run(*with_url(command, ipc_url), "--json")
    report = json.loads(printed)
    assert (status, report["ok"]) == (1, False)
    assert report["problem"].startswith("no worker was seen")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_absent_broker(command: list[str]) -> None:
    """Without a broker a command ends with 1 and one line, also in the object."""
    url = f"redis://127.0.0.1:{free_port()}"
    status, printed, errors = run(*with_url(command, url))
    assert (status, printed) == (1, "")
    assert f"cannot reach {url}" in errors
    assert errors.count("\n") == 1

    status, printed, errors = run(*with_url(command, url), "--json")
    report = json.loads(printed)
    assert (status, report["ok"], url in report["problem"]) == (1, False, True)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_broker_of_this_process_alone(command: list[str]) -> None:
    """A broker that no other process reaches is refused with 2: no worker can be there."""
    status, printed, errors = run(*with_url(command, "memory://"))
    assert (status, printed) == (2, "")
    assert errors == (
        "backplane: memory:// reaches this process only, which has no worker: look at the workers from inside, with "
        "backplane.overviews() or the live page\n"
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_no_url(command: list[str]) -> None:
    """Without a URL, and without BACKPLANE_URL, a command ends with 2, also with the reason in the object."""
    arguments = [argument for argument in command if argument != "--url"]
    assert run(*arguments)[:2] == (2, "")
    status, printed, _ = run(*arguments, "--json")
    assert (status, "BACKPLANE_URL" in json.loads(printed)["problem"]) == (2, True)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_secret_of_the_workers(signed_url: str, command: list[str]) -> None:
    """With the secret of the workers, from the environment, a command reaches them; it is never printed."""
    status, printed, errors = run(*with_url(command, signed_url), "--json", secret=SECRET)
    assert (status, errors) == (0, "")
    assert SECRET not in printed


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("secret", "words"),
    [
        ("", "not understood: if the workers have a control_secret, set BACKPLANE_CONTROL_SECRET"),
        ("0123456789abcdef-wrong", "not signed with this secret: is BACKPLANE_CONTROL_SECRET the control_secret of"),
    ],
)
def test_wrong_secret(signed_url: str, command: list[str], secret: str, words: str) -> None:
    """Without the secret, or with another one, no worker is seen: the error names the variable, not the secret."""
    status, printed, errors = run(*with_url(command, signed_url), secret=secret)
    assert (status, printed) == (1, "")
    assert words in errors
    assert "wrong" not in errors


def test_secret_where_the_workers_have_none(url: str) -> None:
    """A secret that the workers do not have is reported."""
    status, _, errors = run(*with_url(["workers"], url), secret=SECRET)
    assert (status, "not signed with this secret" in errors) == (1, True)


def test_secret_among_the_arguments(signed_url: str) -> None:
    """A secret in the list of processes causes a warning that names the variable, and is not printed."""
    status, printed, errors = run(*with_url(["workers"], signed_url), "--control-secret", SECRET)
    assert status == 0
    assert (
        "the process list shows --control-secret to every user of the machine: set BACKPLANE_CONTROL_SECRET" in errors
    )
    assert SECRET not in printed + errors


def test_short_secret_is_refused(url: str) -> None:
    """A secret that is too short ends a command with 2, and is not printed."""
    status, printed, errors = run(*with_url(["workers"], url), secret="tooshort")
    assert (status, printed) == (2, "")
    assert "at least 16 bytes" in errors
    assert "tooshort" not in errors


@pytest.mark.parametrize("command", [["workers"], ["disconnect", "--user", "ada"]], ids=lambda command: command[0])
def test_output_that_is_closed_or_full(url: str, command: list[str]) -> None:
    """An output that cannot be written does not change the status: what was done is done."""
    line = f'exec "{sys.executable}" -m backplane {" ".join(command)} "{url}" {" ".join(WAIT)}'
    for output, words in ((">/dev/full", "could not be printed: [Errno 28]"), ("| true", ""), (">&-", "")):
        script = f"set -o pipefail; ({line}) {output}"
        done = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, words in done.stderr) == (0, True), (output, done.stderr)
        assert "Traceback" not in done.stderr
        assert "Exception" not in done.stderr


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["workers"], "interrupted"),
        (["disconnect", "--user", "ada", "--confirm", "60"], "the outcome is unknown: the broker may have the command"),
    ],
    ids=["workers", "disconnect"],
)
def test_interrupted(url: str, command: list[str], words: str, ending: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end a command that waits with 130 and one line; the progress is on standard error."""
    terminal, end_of_process = pty.openpty()
    arguments = [sys.executable, "-m", "backplane", *command, url, "--seconds", "60"]
    environment = os.environ | {"TERM": "xterm"}
    with (
        os.fdopen(terminal, "rb", buffering=0) as shown,
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=end_of_process, env=environment) as process,
    ):
        read = b""
        while b"waiting for heartbeats: 1 worker, " not in read:
            read += shown.read(100_000)
        process.send_signal(ending)
        printed, _ = process.communicate(timeout=120)
        read += shown.read(100_000)
        os.close(end_of_process)
    assert (process.returncode, printed) == (130, b"")
    assert f"backplane: {words}".encode() in read
    assert b"Traceback" not in read


def worker(number: int) -> Worker:
    """Return a worker."""
    return Worker(id=f"{number:016x}", host=f"host\x1b[31m\n{number}", pid=number)


def test_rows_of_many_workers(capsys: pytest.CaptureFixture[str]) -> None:
    """Each worker has one line with its columns under their names, whatever a name holds and however wide it is."""
    rows = [(f"\x1b]0;{number}\n{'x' * number}", str(number), "é") for number in range(300)]
    print_rows(("name", "number", "text"), rows, right=(1,))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 301
    assert not any("\x1b" in line for line in lines)
    assert {line.rindex("é") for line in lines[1:]} == {lines[0].index("text")}
    assert lines[300].startswith("\\x1b]0;299\\nxxx")


def test_answers_are_shown_for_each_worker() -> None:
    """Answers, errors and the workers that did not answer have a row each; a worker that is not known has its id."""
    unknown = Worker(id="f" * 16)
    answers = Answers(by_worker={worker(2): 5}, errors={worker(1): "it raised"}, missing=[unknown])
    rows = answers_rows(answers, str)
    assert [row[3] for row in rows] == ["no answer", "error: it raised", "5"]
    assert rows[0][:3] == ("?", "?", "f" * 16)
    assert answers_problem(Answers(by_worker={worker(1): 1})) is None
    problem = answers_problem(answers)
    assert problem == f"no answer of 1 worker: worker {'f' * 16}; an error of 1 worker: host\x1b[31m\n1 1"


def test_many_missing_workers_are_counted() -> None:
    """Of many workers that did not answer five are named, and the others counted."""
    problem = answers_problem(Answers(missing=[Worker(id="x", host="h", pid=pid) for pid in range(1, 301)]))
    assert problem == "no answer of 300 workers: h 1, h 2, h 3, h 4, h 5 and 295 more"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (3.4, "3 s"),
        (242, "4 min 2 s"),
        (7200, "2 h"),
        (7805, "2 h 10 min"),
        (1e6, "11 d 13 h"),
    ],
)
def test_times(seconds: float, expected: str) -> None:
    """A time has its two largest units; one in the future, by another clock, is none."""
    assert format_seconds(seconds) == expected
