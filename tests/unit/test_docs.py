"""docs/: code stands there as it stands in its file, examples run, commands and options exist, no link is dead."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from backplane import CloseCode, broadcaster
from backplane.broadcaster import Broadcaster, Sink
from backplane.cli import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^<!-- (excerpt|run|script)(?:: (.*?))? -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# The tests run against an installed wheel too, with the sources away.
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documents are away")

PAGES = sorted(DOCS.glob("*.md"))


def read(name: str) -> str:
    """Return the text of a page."""
    return (DOCS / name).read_text(encoding="utf-8")


def snippets(kind: str) -> list[tuple[str, str]]:
    """Return the Python of all pages that is marked as `kind`, each with what the mark says."""
    found = (match for page in PAGES for match in FENCE.finditer(page.read_text(encoding="utf-8")))
    return [(match[2], match[3]) for match in found if match[1] == kind]


def options_of_commands() -> dict[str, set[str]]:
    """Return the long options of each command of `backplane`."""
    group: Any = get_command(app)  # of click's, or of the one that Typer brings along
    return {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        for name, command in group.commands.items()
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_is_marked(page: Path) -> None:
    """No Python stands in a page unproven."""
    text = page.read_text(encoding="utf-8")
    assert text.count("```python") == len(FENCE.findall(text))


@pytest.mark.parametrize(("path", "code"), snippets("excerpt"))
def test_excerpt_is_in_its_file(path: str, code: str) -> None:
    """An excerpt stands word for word in the file it is from."""
    assert code in (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("code", [code for _, code in snippets("run")])
def test_suite_runs_in_another_project(code: str, tmp_path: Path) -> None:
    """The suite runs from a test file as the page has it, with no configuration, once."""
    (tmp_path / "test_mine.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-k", "bytes_are_intact"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("code", [code for _, code in snippets("script")])
def test_script_runs(code: str, tmp_path: Path) -> None:
    """A script runs to its end as the page has it, without a complaint."""
    script = tmp_path / "script.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env=os.environ | {"BACKPLANE_URL": "memory://"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_adapter_page_names_the_whole_contract() -> None:
    """Every method an adapter must write or may call, and every optional ability, has its place in the page."""
    page = read("write-an-adapter.md")
    for name in Broadcaster.__abstractmethods__ | {"options_class"}:
        assert re.search(rf"^\| `{name}\b", page, re.MULTILINE), name
    for name in (name for name in vars(Sink) if not name.startswith("_")):
        assert f"| `sink.{name}(" in page
    no_abilities = {"Broadcaster", "BrokerUrl", "Capabilities", "Options", "Sink", "WireFormat", "malformed_address"}
    for name in set(broadcaster.__all__) - no_abilities:
        assert f"\n- `{name}`: " in page


def test_command_page_names_every_command_and_option() -> None:
    """Each command has its section, and each of its options is named there; no option is named that does not exist."""
    section = re.compile(r"^## `backplane (\w+).*?\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    named = {
        name: set(re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", text))
        for name, text in section.findall(read("command-line.md"))
    }
    assert named == options_of_commands()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_link_is_not_dead(page: Path) -> None:
    """What a page links to within the repository is there."""
    targets = re.findall(r"\]\((?![a-z]+:|#)([^)\s#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_close_code_page_names_every_code() -> None:
    """Each code has its row, with its name and whether the client comes back."""
    rows = re.findall(
        r"^\| (\d{4}) \| `(\w+)`.*\| (stays away|comes back|gets a new one, and comes back)",
        read("close-codes.md"),
        re.M,
    )
    assert [(int(code), name, "back" in answer) for code, name, answer in rows] == [
        (code.value, code.name, code.reconnect) for code in sorted(CloseCode)
    ]
