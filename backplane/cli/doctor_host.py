"""What `backplane doctor` checks of this host and of the URL."""

from __future__ import annotations

import os
import platform
import resource
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from backplane.broker.registry import broadcaster_from_url
from backplane.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backplane.broadcaster import Broadcaster

__all__ = ["inspect_host"]

_LEAST_FILES: Final = 8_192
_CLIENTS: Final = {
    "redis": ("redis", "hiredis"),
    "nats": ("nats-py",),
    "kafka": ("aiokafka",),
    "postgres": ("asyncpg",),
    "amqp": ("pamqp",),
}
"""What each adapter uses, by the begin of its scheme."""

_SSL_MODES: Final = ("require", "verify-ca", "verify-full")
_ENCRYPTED: Final = ("rediss", "valkeys", "tls", "amqps", "unix", "ipc", "memory")


def inspect_host(url: str) -> Iterator[Finding]:
    """Yield what is found on this host, and in the URL, without a connection."""
    broadcaster = broadcaster_from_url(url)
    yield _versions(broadcaster.url.scheme)
    yield _event_loop()
    yield _files()
    yield _reach(broadcaster)
    yield _encryption(broadcaster)


def _versions(scheme: str) -> Finding:
    names = ["fastapi-backplane", "starlette", "uvicorn"]
    names += next((clients for begin, clients in _CLIENTS.items() if scheme.startswith((begin, "valkey"))), ())
    found = [f"{name} {installed}" for name in names if (installed := _installed(name))]
    return Finding(check="versions", level="ok", text=f"Python {platform.python_version()}, {', '.join(found)}")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _event_loop() -> Finding:
    if find_spec("uvloop") is None:
        cure = 'pip install "uvicorn[standard]", if the workers have this environment: deliveries take less CPU time'
        return Finding(check="uvloop", level="warning", text="uvloop is not installed here", cure=cure)
    return Finding(check="uvloop", level="ok", text=f"uvloop {_installed('uvloop')}")


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _LEAST_FILES:
        cure = f"each client takes one: ulimit -n 65536 (the most is {hard:,} here), LimitNOFILE= of systemd"
        return Finding(check="files", level="warning", text=f"a process may open {soft:,} files here", cure=cure)
    return Finding(check="files", level="ok", text=f"a process may open {soft:,} files here")


def _reach(broadcaster: Broadcaster) -> Finding:
    check, reach, url = "reach", broadcaster.capabilities.reach, broadcaster.url
    if reach == "process":
        cure = "ipc://myapp joins the workers of one host, redis://... those of several"
        text = f"{url} reaches one process only: each worker is alone, and nothing can be seen from here"
        return Finding(check=check, level="error", text=text, cure=cure)
    if reach == "host" and "KUBERNETES_SERVICE_HOST" in os.environ:
        cure = "with more than one replica take redis://..., nats://... or kafka://..."
        return Finding(check=check, level="error", text=f"{url} reaches this pod only", cure=cure)
    where = "the processes of this host" if reach == "host" else "every host"
    return Finding(check=check, level="ok", text=f"{url} reaches {where}")


def _encryption(broadcaster: Broadcaster) -> Finding:
    check, url = "encryption", broadcaster.url
    options = broadcaster.options
    is_verified = getattr(options, "sslrootcert", None) or getattr(options, "sslmode", None) in _SSL_MODES
    if url.scheme.startswith(_ENCRYPTED) or getattr(options, "tls", False) or is_verified:
        return Finding(check=check, level="ok", text="the way to the broker is encrypted, or within this host")
    hosts = [urlsplit(f"//{address}").hostname or "localhost" for address in url.netloc.split(",")]
    if all(map(_is_local, hosts)):
        return Finding(check=check, level="ok", text="the broker is on this host")
    secret = "the password and the messages go" if url.password is not None else "messages go"
    cure = (
        "where others can read that network: rediss://, tls://, amqps://, kafka://...?tls=true, or "
        "postgres://...?sslmode=verify-full"
    )
    return Finding(check=check, level="warning", text=f"{secret} to {hosts[0]} without encryption", cure=cure)


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
