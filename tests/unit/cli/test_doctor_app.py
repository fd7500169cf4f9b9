"""`backplane.cli.doctor_app`: what an application answers over HTTP."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from backplane.cli.doctor_app import inspect_app
from tests.brokers.process import free_port

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from backplane.findings import Finding

READY = json.dumps({"state": "live", "draining": False})
DRAINING = json.dumps({"state": "degraded", "draining": True})
SCRAPE = 'backplane_link_up{worker="1"} 1\nbackplane_link_up{worker="2"} 1\n# HELP backplane_link_up x\n'


@contextmanager
def serving(answers: Mapping[str, tuple[int, str]]) -> Generator[str]:
    """Serve answers by path, as status and body; anything else is 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.get(self.path, (404, "not found"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def found(answers: Mapping[str, tuple[int, str]]) -> dict[str, Finding]:
    """Return the findings of an application that answers so."""
    with serving(answers) as url:
        return {finding.check: finding for finding in inspect_app(f"{url}/")}


def test_all_is_well() -> None:
    """It is ready, and all its workers are in one scrape."""
    findings = found({"/health/ready": (200, READY), "/metrics": (200, SCRAPE)})
    assert [finding.level for finding in findings.values()] == ["ok", "ok"]
    assert findings["app_health"].text.endswith("/health/ready: ready, the link is live")
    assert findings["app_metrics"].text.endswith("/metrics: 2 workers in one scrape")


@pytest.mark.parametrize(
    ("answer", "level", "words"),
    [
        ((503, DRAINING), "error", "not ready, the link is degraded, draining"),
        ((503, "a proxy's page"), "warning", "answers with 503"),
        ((200, "[]"), "warning", "answers with 200"),
        ((200, "<html>"), "warning", "answers with 200"),
        ((404, ""), "warning", "answers with 404"),
    ],
)
def test_health(answer: tuple[int, str], level: str, words: str) -> None:
    """A worker without a broker is an error; an answer of something else is a warning with what to mount."""
    finding = found({"/health/ready": answer})["app_health"]
    assert (finding.level, finding.text.endswith(words)) == (level, True), finding
    assert finding.cure


@pytest.mark.parametrize("answer", [(200, "process_cpu_seconds_total 1"), (403, ""), (200, "")])
def test_metrics(answer: tuple[int, str]) -> None:
    """Metrics that are not there, or not of this package, are a warning."""
    assert found({"/metrics": answer})["app_metrics"].level == "warning"


def test_no_answer() -> None:
    """An application that is not there is an error."""
    findings = inspect_app(f"http://127.0.0.1:{free_port()}")
    assert [finding.level for finding in findings] == ["error", "error"]
    assert "does not answer: " in findings[0].text


@pytest.mark.parametrize("url", ["", "localhost:8000", "file:///etc/passwd", "http://", "http://[", "http://a b"])
def test_what_is_no_website(url: str) -> None:
    """Nothing but HTTP is asked, and nothing raises."""
    assert {finding.level for finding in inspect_app(url)} == {"error"}
