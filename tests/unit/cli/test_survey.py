"""`backplane survey`: the question, the answers, and the exit status."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from backplane.cli import app
from tests.cluster_app import WAIT, serving_in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def broker(ipc_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two workers at the broker of BACKPLANE_URL."""
    monkeypatch.setenv("BACKPLANE_URL", ipc_url)
    with serving_in_thread(ipc_url), serving_in_thread(ipc_url):
        yield


def survey(*arguments: str) -> tuple[int, str, str]:
    """Run the command; return status, standard output and standard error."""
    result = CliRunner().invoke(app, ["survey", *WAIT, *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_table() -> None:
    """Each worker has a line with its answer as JSON, without control characters; how many answered is a note."""
    status, printed, errors = survey("load", r'{"of": "\u001b\u2028ü"}')
    header, *lines = printed.splitlines()
    assert (status, errors) == (0, "2 of 2 answered\n")
    assert header.split() == ["host", "pid", "id", "answer"]
    shown = f'{{"pid": {os.getpid()}, "question": {{"of": "\\u001b\\u2028ü"}}}}'
    assert [line.split(maxsplit=3)[3] for line in lines] == [shown] * 2


@pytest.mark.parametrize(("given", "question"), [([], None), (["null"], None), (["[1]"], [1]), (["--", "-1"], -1)])
def test_json(given: list[str], question: object) -> None:
    """With --json the output is one object, in which each worker's answer is JSON as it was given; the question too."""
    status, printed, errors = survey("--json", "load", *given)
    report = json.loads(printed)
    assert (status, errors) == (0, "")
    assert report.keys() == {"ok", "problem", "url", "name", "answers", "errors", "missing"}
    assert (report["ok"], report["name"], report["errors"], report["missing"]) == (True, "load", [], [])
    assert [answer["answer"] for answer in report["answers"]] == [{"pid": os.getpid(), "question": question}] * 2
    assert all(answer["worker"].keys() == {"id", "host", "pid"} for answer in report["answers"])


@pytest.mark.parametrize(
    ("name", "words"), [("fails", "the handler raised ValueError"), ("other", "this worker has no handler of survey")]
)
def test_errors(name: str, words: str) -> None:
    """A worker that answers with an error is listed with it, and the status is 3."""
    status, printed, errors = survey(name)
    assert (status, printed.count(f"error: {words}")) == (3, 2)
    assert "backplane: an error of 2 workers: " in errors

    status, printed, _ = survey(name, "--json")
    report = json.loads(printed)
    assert (status, report["ok"], len(report["errors"])) == (3, False, 2)
    assert report["problem"].startswith("an error of 2 workers: ")


def test_handlers_that_do_not_answer_in_time() -> None:
    """A handler that takes longer than --timeout leaves its worker without an answer, or with an error of that name."""
    status, printed, errors = survey("never", "--timeout", "0.2")
    assert status == 3
    assert printed.count("no answer") + printed.count("error: the handler took longer than") == 2
    assert "backplane: " in errors


@pytest.mark.parametrize("question", ["{", "", "NaN", "{'a': 1}"])
def test_wrong_question(question: str) -> None:
    """A question that is not JSON ends it with 2, before a worker is asked; also with the reason in the object."""
    status, printed, errors = survey("load", question)
    assert (status, printed) == (2, "")
    assert "the question is not JSON" in errors
    status, printed, _ = survey("load", question, "--json")
    assert (status, "the question is not JSON" in json.loads(printed)["problem"]) == (2, True)
