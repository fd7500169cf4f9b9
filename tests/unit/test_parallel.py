"""Tests in parallel: which run together, and what happens when one ends its worker."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# Each starts three or four processes of pytest.
pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]

# Each test is a file in this folder while it runs.
SHARED = """
import os
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

RUNNING = Path(os.environ["RUNNING"])


@contextmanager
def running(name):
    (RUNNING / name).touch()
    yield
    (RUNNING / name).unlink()


def others(name):
    return sorted(path.name for path in RUNNING.iterdir() if path.name != name)
"""

MEETING = """
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.alone("no other test may run")
def test_alone(number):
    with running(f"alone-{number}"):
        until = time.monotonic() + 1
        while time.monotonic() < until:
            assert others(f"alone-{number}") == []


def meet(number):
    with running(f"meeting-{number}"):
        (RUNNING.parent / f"met-{number}").touch()
        while not (RUNNING.parent / f"met-{3 - number}").exists():
            time.sleep(0.01)


def test_meeting_one():
    meet(1)


def test_between():
    pass  # the first worker is given two tests at once


def test_meeting_two():
    meet(2)
"""

WAITING = """
def meet(kind, number):
    (RUNNING.parent / f"{kind}-{number}").touch()
    while not (RUNNING.parent / f"{kind}-{1 - number}").exists():
        time.sleep(0.01)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.alone("no other may delay it", waits=True)
def test_that_waits(number):
    with running(f"waiting-{number}"):
        meet("waiting", number)
        assert set(others(f"waiting-{number}")) <= {"waiting-0", "waiting-1"}


@pytest.mark.alone("no other test may run")
def test_alone():
    assert others("alone") == []


@pytest.mark.parametrize("number", range(4))
def test_another(number):
    with running(f"other-{number}"):
        if number % 2:  # the second test of each worker: both workers have then been given a test that waits
            meet("other", number // 2)
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            assert not [name for name in others(f"other-{number}") if name.startswith("waiting")]
"""

# Six, as each worker is given two tests at once.
COMPUTED = """
@pytest.mark.parametrize("number", range(6))
def test_that_waits(number):
    while not (RUNNING / "computed").exists():
        time.sleep(0.01)
"""
COMPUTING = """
def test_that_computes():
    (RUNNING / "computed").touch()
"""

HANGING = """
@pytest.mark.timeout(0.5)
def test_hanging():
    time.sleep(60)


@pytest.mark.parametrize("number", range(10))
def test_another(number):
    pass


@pytest.mark.alone("it must run after a failure too")
def test_alone():
    pass


@pytest.mark.alone
def test_without_a_reason():
    pass
"""

COMMONS = """
from functools import partial

from tests.brokers.commons import COMMONS
from tests.unit.test_brokers import EchoBroker


def take(request):
    return request.config.stash[COMMONS].take("echo", partial(EchoBroker, RUNNING))


def meet(request, number):
    broker = take(request)
    assert take(request) is broker
    assert broker.answers()
    (RUNNING.parent / f"port-{number}").write_text(str(broker.port))
    while not (RUNNING.parent / f"port-{3 - number}").exists():
        time.sleep(0.01)


def test_one(request):
    meet(request, 1)
    os._exit(1)  # as a crash does


def test_between():
    pass


def test_two(request):
    meet(request, 2)


@pytest.mark.alone("the worker that took the broker first has ended")
def test_after_the_crash(request):
    assert take(request).answers()
"""


def run(folder: Path, code: str, *, workers: int = 2) -> tuple[int, str]:
    """Run these tests on so many workers; return the exit status and the output."""
    (folder / "running").mkdir()
    (folder / "test_it.py").write_text(SHARED + code, encoding="utf-8")
    options = [
        "-n",
        str(workers),
        "-p",
        "xdist",
        "-p",
        "pytest_timeout",
        "-p",
        "tests.parallel",
        "-p",
        "no:cacheprovider",
    ]
    options += ["--timeout", "30", "--timeout-method", "thread"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RUNNING": str(folder / "running")}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # three processes of pytest start sooner
    command = [sys.executable, "-m", "pytest", "--rootdir", str(folder), *options, str(folder)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_all_run_together_but_those_that_run_alone(tmp_path: Path) -> None:
    """Two tests that wait for each other pass; one marked `alone` runs beside no other, alone or not."""
    status, output = run(tmp_path, MEETING)
    assert status == 0, output
    assert "5 passed" in output


def test_those_that_wait_run_together_and_beside_no_other(tmp_path: Path) -> None:
    """Two tests marked `alone(..., waits=True)` that wait for each other pass, and run beside no test that is not."""
    status, output = run(tmp_path, WAITING)
    assert status == 0, output
    assert "7 passed" in output


def test_the_third_worker_begins_with_the_unit_tests(tmp_path: Path) -> None:
    """While two workers wait, the third one runs what is in `tests/unit`, and then helps them."""
    (tmp_path / "tests" / "unit").mkdir(parents=True)
    (tmp_path / "tests" / "unit" / "test_computing.py").write_text(SHARED + COMPUTING, encoding="utf-8")
    status, output = run(tmp_path, COMPUTED, workers=3)
    assert status == 0, output
    assert "7 passed" in output


def test_timeout_of_one_test_ends_only_that_test(tmp_path: Path) -> None:
    """A test over its time fails with its stack, and the others run; `alone` without a reason is an error."""
    status, output = run(tmp_path, HANGING)
    assert status == 1, output
    assert "1 failed, 11 passed, 1 error" in output
    assert "alone needs its reason" in output
    assert "time.sleep(60)" in output


def test_brokers_of_all_workers_are_run_once_and_end_with_the_run(tmp_path: Path) -> None:
    """Two workers get the same broker, which survives the crash of one of them and ends with the run."""
    status, output = run(tmp_path, COMMONS)
    assert status == 1, output
    assert "1 failed, 3 passed" in output
    one, two = ((tmp_path / f"port-{number}").read_text() for number in (1, 2))
    assert one == two
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(one)))
