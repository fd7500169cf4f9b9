"""`backplane.cli.doctor_host`: what is found of this host and the URL, with planted faults."""

from __future__ import annotations

import resource
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING

import pytest

from backplane.cli import doctor_host as module
from backplane.cli.doctor_host import inspect_host

if TYPE_CHECKING:
    from backplane.findings import Finding


def found(url: str = "redis://localhost") -> dict[str, Finding]:
    """Return the findings by their check."""
    return {finding.check: finding for finding in inspect_host(url)}


@pytest.mark.parametrize(
    ("url", "package"), [("redis://h", "hiredis "), ("nats://h", "nats-py "), ("kafka://h", "aiokafka ")]
)
def test_versions(url: str, package: str) -> None:
    """What the adapter uses is among them."""
    assert package in found(url)["versions"].text


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left out."""

    def missing(_: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(module, "version", missing)
    assert found()["versions"].text.count(",") == 1


def test_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it deliveries take more time."""
    assert found()["uvloop"].level == "ok"
    no_modules: dict[str, object] = {}
    monkeypatch.setattr(module, "find_spec", no_modules.get)
    assert (found()["uvloop"].level, found()["uvloop"].text) == ("warning", "uvloop is not installed here")


@pytest.mark.parametrize(("files", "level"), [(1_024, "warning"), (65_536, "ok"), (resource.RLIM_INFINITY, "ok")])
def test_files(monkeypatch: pytest.MonkeyPatch, files: int, level: str) -> None:
    """The usual 1,024 are too few for many clients."""

    def limits(_: int) -> tuple[int, int]:
        return files, 1_048_576

    monkeypatch.setattr(resource, "getrlimit", limits)
    assert found()["files"].level == level


@pytest.mark.parametrize(
    ("url", "in_kubernetes", "level"),
    [
        ("memory://", False, "error"),
        ("ipc://a", False, "ok"),
        ("ipc://a", True, "error"),
        ("redis://h", True, "ok"),
    ],
)
def test_reach(monkeypatch: pytest.MonkeyPatch, url: str, in_kubernetes: bool, level: str) -> None:
    """A broker must reach all workers."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if in_kubernetes:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert found(url)["reach"].level == level


@pytest.mark.parametrize(
    ("url", "level"),
    [
        ("redis://localhost", "ok"),
        ("redis://127.0.0.5", "ok"),
        ("redis://[::1]:6379", "ok"),
        ("redis://redis.internal", "warning"),
        ("redis://:secret@10.1.2.3", "warning"),
        ("rediss://redis.internal", "ok"),
        ("tls://nats.internal", "ok"),
        ("nats://nats.internal", "warning"),
        ("kafka://kafka.internal", "warning"),
        ("kafka://kafka.internal?tls=true", "ok"),
        ("ipc://a", "ok"),
    ],
)
def test_encryption(url: str, level: str) -> None:
    """A way over a network without it is named, and no secret is."""
    finding = found(url)["encryption"]
    assert finding.level == level
    assert "secret@" not in finding.text
    assert ("password" in finding.text) == (":secret@" in url)
