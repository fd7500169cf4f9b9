"""`backplane.admin.page_files`: what is served, and that the files of others are those of their packages."""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files

import pytest

from backplane import Backplane
from tests.unit.admin.kit import browsing

pytestmark = pytest.mark.anyio

PAGE = files("backplane.admin").joinpath("page")
VENDORED = PAGE.joinpath("VENDORED.md").read_text(encoding="utf-8")
OURS = sorted(file.name for file in PAGE.iterdir() if file.name.endswith((".js", ".css", ".html")))


@pytest.mark.parametrize("name", OURS)
async def test_files_are_served(name: str) -> None:
    """Each file of the page has its media type, and the page itself is at the mount."""
    async with browsing(Backplane("memory://")) as client:
        response = await client.get("" if name == "index.html" else name)
        assert response.content == PAGE.joinpath(name).read_bytes()
        types = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
        assert response.headers["content-type"] == f"{types[name.rpartition('.')[2]]}; charset=utf-8"


@pytest.mark.parametrize("name", ["VENDORED.md", "htm.LICENSE", "../__init__.py", "..%2f__init__.py", "index.html/"])
async def test_nothing_else_is_served(name: str) -> None:
    """Neither the licences nor what is beside the page is served."""
    async with browsing(Backplane("memory://")) as client:
        assert (await client.get(name)).status_code == 404


def test_vendored_files_are_unchanged() -> None:
    """Each file of others has the digest of its row, a version and a licence that is in the package."""
    rows = re.findall(r"^\| (\S+) \| (\S+) \| ([\d.]+) \| \S+ \| (.+) \| ([0-9a-f]{64}) \|$", VENDORED, re.MULTILINE)
    assert [row[0] for row in rows] == ["preact.js", "uplot.js", "uplot.css"]
    for name, package, version, licence, digest in rows:
        body = PAGE.joinpath(name).read_bytes()
        assert hashlib.sha256(body).hexdigest() == digest, name
        assert version in body.decode() or package == "htm" or name.endswith(".css")
        for file in re.findall(r"\w+\.LICENSE", licence):
            assert PAGE.joinpath(file).is_file()


@pytest.mark.parametrize("name", OURS)
def test_page_needs_nothing_from_elsewhere(name: str) -> None:
    """No file loads, or has in it, what the policy forbids: other hosts, styles or handlers in attributes, `eval`."""
    text = PAGE.joinpath(name).read_text(encoding="utf-8")
    if name in ("preact.js", "uplot.js", "uplot.css"):
        return
    addresses = set(re.findall(r"https?://[^\s'\"`)]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert not re.search(
        r"innerHTML|dangerouslySetInnerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text
    )
    assert not re.search(r"\sstyle=|\son\w+=[\"']", text)
