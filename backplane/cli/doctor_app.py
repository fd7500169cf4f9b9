"""What `backplane doctor --app URL` checks: the health and the metrics that an application serves."""

from __future__ import annotations

import json
from http.client import HTTPException
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from backplane.findings import Finding

__all__ = ["inspect_app"]

_SECONDS: Final = 5.0
_MOST_BYTES: Final = 16 * 1024 * 1024


def inspect_app(url: str) -> list[Finding]:
    """Ask an application over HTTP; it blocks for some seconds at most."""
    base = url.rstrip("/")
    if not base.startswith(("http://", "https://")):
        text = f"{url} is no URL of a website"
        return [Finding(check="app", level="error", text=text, cure="--app http://127.0.0.1:8000")]
    return [_health(base), _metrics(base)]


def _health(base: str) -> Finding:
    check, url = "app_health", f"{base}/health/ready"
    try:
        status, body = _get(url)
    except OSError as error:
        return _unreachable(check, url, error)
    if status == 200 and isinstance(state := _fields(body).get("state"), str):
        return Finding(check=check, level="ok", text=f"{url}: ready, the link is {state}")
    if status == 503 and (fields := _fields(body)):
        text = f"{url}: not ready, the link is {fields.get('state')}" + ", draining" * bool(fields.get("draining"))
        return Finding(check=check, level="error", text=text, cure="look at the log of that worker, and at the broker")
    cure = 'app.mount("/health", health_routes(backplane)): a load balancer then leaves out workers without a broker'
    return Finding(check=check, level="warning", text=f"{url} answers with {status}", cure=cure)


def _metrics(base: str) -> Finding:
    check, url = "app_metrics", f"{base}/metrics"
    try:
        status, body = _get(url)
    except OSError as error:
        return _unreachable(check, url, error)
    lines = body.decode(errors="replace").splitlines()
    up = sum(line.startswith(("backplane_link_up{", "backplane_link_up ")) for line in lines)
    if status == 200 and up:
        return Finding(check=check, level="ok", text=f"{url}: {up} worker{'s' * (up > 1)} in one scrape")
    text = f"{url} answers with {status}" if status != 200 else f"{url} has no metrics of this package"
    cure = "serve them to Prometheus, with the extra `prometheus`: docs/operations/health-and-metrics.md"
    return Finding(check=check, level="warning", text=text, cure=cure)


def _get(url: str) -> tuple[int, bytes]:
    """Return status and body.

    Raises:
        OSError: There is no answer.
    """
    try:
        with urlopen(Request(url, headers={"Accept": "*/*"}), timeout=_SECONDS) as answer:  # noqa: S310  # http alone
            return answer.status, answer.read(_MOST_BYTES)
    except HTTPError as error:
        return error.code, error.read(_MOST_BYTES)
    except URLError as error:
        raise OSError(str(error.reason)) from error
    except (HTTPException, ValueError) as error:
        raise OSError(str(error)) from error


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields: Any = json.loads(body)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def _unreachable(check: str, url: str, error: OSError) -> Finding:
    return Finding(check=check, level="error", text=f"{url} does not answer: {error}", cure="is it the right address?")
