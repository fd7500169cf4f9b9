"""README.md: its example runs, its table is what the adapters declare, its links work anywhere, and it is short."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from backplane import MissingDependencyError
from tests.readme_table import table, written_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SITE = "https://fastapi-backplane.readthedocs.io/en/stable/"
SOURCES = "https://github.com/fastapi-backplane/backplane/"

MAX_LINES = 199
TESTED = {"room", "history"}


def examples(text: str) -> list[tuple[str | None, str]]:
    """Return every fenced python block with the name that stands before it."""
    fence = re.compile(r"(?:^<!-- example: ([\w-]+) -->\n)?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [(found[1], found[2]) for found in fence.finditer(text)]


def run(name: str) -> dict[str, Any]:
    """Execute an example, and return its names."""
    (code,) = [code for found, code in examples(README) if found == name]
    names: dict[str, Any] = {"__name__": f"readme_{name}"}
    exec(compile(code, f"README.md, example {name}", "exec", dont_inherit=True), names)
    return names


# --- examples ------------------------------------------------------------------------------------------------------


def test_every_python_block_has_a_name_and_a_test() -> None:
    """No python in the README goes unproven, and none of the tests below has lost its example."""
    names = [name for name, _ in examples(README)]
    assert README.count("```python") == len(names)
    assert sorted(map(str, names)) == sorted(TESTED)


def test_finding_examples() -> None:
    """A block without a name is found as one without a name, and only python counts."""
    text = "<!-- example: one -->\n```python\na\n```\nwords\n```python\nb\n```\n```bash\nc\n```\n"
    assert examples(text) == [("one", "a\n"), (None, "b\n")]


def test_example_room() -> None:
    """Two clients of a room receive each other and the POST route; a client of another room does not."""
    names = run("room")
    with (
        TestClient(names["app"]) as client,
        client.websocket_connect("/rooms/kitchen") as one,
        client.websocket_connect("/rooms/kitchen") as other,
        client.websocket_connect("/rooms/cellar") as elsewhere,
    ):
        one.send_text("hello")
        assert [one.receive_text(), other.receive_text()] == ["hello", "hello"]
        assert client.post("/rooms/kitchen", params={"text": "dinner"}).status_code == 200
        assert [one.receive_text(), other.receive_text()] == ["dinner", "dinner"]
        client.post("/rooms/cellar", params={"text": "dark"})
        assert elsewhere.receive_text() == "dark"
        other.send_bytes(b"\x00")
        assert [one.receive_bytes(), other.receive_bytes()] == [b"\x00", b"\x00"]


def test_example_history() -> None:
    """The lines continue the room, and a client that comes back receives what it missed."""
    names = run("room")
    (code,) = [code for found, code in examples(README) if found == "history"]
    names["app"] = FastAPI()
    rest = code.replace("        ...\n", "        async for _ in connection: pass\n")
    exec(compile(rest, "README.md, example history", "exec", dont_inherit=True), names)
    names["app"].router.lifespan_context = names["backplane"].lifespan
    publish = names["backplane"].sync.publish
    with TestClient(names["app"]) as client:
        with client.websocket_connect("/rooms/kitchen?user=ada") as one:
            position = one.receive_json()["position"]
            assert list(_presence(one)["users"]) == ["ada"]
        publish("room:kitchen", "missed")
        with client.websocket_connect(f"/rooms/kitchen?user=ada&since={position}") as one:
            assert one.receive_json()["resumed"] is True
            assert one.receive_json()["text"] == "missed"


def _presence(client: Any) -> Any:
    while "presence" not in (frame := client.receive_json()):
        pass
    return frame["presence"]


# --- the table of adapters -----------------------------------------------------------------------------------------


def test_table_is_what_the_adapters_declare() -> None:
    """The table stands there as `python -m tests.readme_table` makes it from the capabilities."""
    try:
        declared = table()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    assert written_table() == declared, "run: python -m tests.readme_table"


# --- links ---------------------------------------------------------------------------------------------------------


def links() -> list[str]:
    """Return the targets of the README's links."""
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    return sorted(set(re.findall(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)", prose)))


def source_of(link: str) -> list[Path]:
    """Return the files of this repository that a link may lead to."""
    if link.startswith(SITE):
        page = ROOT / "docs" / link.removeprefix(SITE).partition("#")[0].rstrip("/")
        return [page.with_name(f"{page.name}.md"), page / "index.md"]
    path = re.fullmatch(rf"{SOURCES}(?:blob|tree|raw)/main/([^#]+)(?:#.*)?", link)
    assert path, f"neither a page of the documentation nor a file of the repository: {link}"
    return [ROOT / path[1]]


def test_there_are_links_to_both() -> None:
    """The search finds links to the documentation and to the sources."""
    for target in (SITE, SOURCES):
        assert [link for link in links() if link.startswith(target)]


def test_links_work_from_the_package_index() -> None:
    """No link is relative, as the package index shows the README without the repository around it."""
    assert [link for link in links() if not link.startswith(("https://", "#"))] == []


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="an installed wheel is tested, what is linked to is away")
@pytest.mark.parametrize("link", links())
def test_link_is_not_dead(link: str) -> None:
    """The README links to what exists in this repository."""
    assert any(path.exists() for path in source_of(link))


# --- length --------------------------------------------------------------------------------------------------------


def test_readme_is_short() -> None:
    """The README has less than 200 lines; the rest stands in docs/."""
    assert len(README.splitlines()) <= MAX_LINES
