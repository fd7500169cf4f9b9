"""Which web pages may connect: the defence against cross-site WebSocket hijacking (RFC 6455 section 10.2).

A browser opens a WebSocket to any site from any page and sends that site's cookies (CORS does not apply). All it offers
is the `Origin` header, which a page cannot forge. Other programs can forge it, or leave it out, but they do not have
the cookies of a user.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from ipaddress import IPv6Address
from typing import Final, Literal, NamedTuple

from backplane.errors import ConfigurationError

__all__ = ["AllowedOrigins", "OriginRule"]

AllowedOrigins = Literal["*"] | Collection[str] | None
"""Which pages may connect.

- `None`: those of this host: the page was loaded from the host and port that it connects to. All names of the
  loopback interface on one port (`localhost`, `127.0.0.1`, `[::1]`) are one host. This compares two headers of the
  client, so by itself it does not stop DNS rebinding, a foreign name that leads to this server: name the hosts
  (`allowed_hosts`), or list the origins.
- a collection: exactly those, and this host only if it is listed. An entry is `scheme://host[:port]`; `*.` before the
  host stands for one label. Applications: `app://.` (Electron), `capacitor://localhost`, `file://` for pages opened
  from a disk. `null` is for pages without an origin, which any site can make (a sandboxed frame).
- `"*"`: all. Right only where no cookie, client certificate or private network lets a client in.
"""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

# Electron's pages have a host of one dot.
_AUTHORITY: Final = r"(?P<host>\[[0-9a-f:.]+\]|\.|[a-z0-9_~%-][a-z0-9._~%-]*)(?::(?P<port>[0-9]{1,5}))?"
_HOST: Final = re.compile(_AUTHORITY)
_ORIGIN: Final = re.compile(rf"(?P<scheme>[a-z][a-z0-9+.-]*)://{_AUTHORITY}")

# Origins without a host, which are listed as they are.
_WITHOUT_HOST: Final = frozenset({"null", "file://"})
_LOOPBACK: Final = re.compile(r"localhost|127\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}|::1")

# What a client sent is repeated in logs and answers without the characters that a terminal, a log or a page interprets.
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9:/.\[\]_~%+*-]")
_MOST_SHOWN: Final = 100


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int | None


class OriginRule:
    """Decides which pages may connect; see `AllowedOrigins`.

    Args:
        allowed: Their origins.
        hosts: Where `allowed` is `None`, the names of this host, without scheme and port; `*.` stands for one label.
            Defaults to any name.

    Raises:
        ConfigurationError: An entry is not an origin or not a host, and the message states why; or both are given.
    """

    __slots__ = ("_any", "_exact", "_hosts", "_own", "_wildcards", "_without_host")

    def __init__(self, allowed: AllowedOrigins = None, hosts: Collection[str] | None = None) -> None:
        if hosts is not None and allowed is not None:
            raise ConfigurationError("allowed_hosts has no effect beside allowed_origins: give one of both")
        self._hosts = (
            None if hosts is None else frozenset(map(_parse_host, _checked_collection(hosts, "allowed_hosts")))
        )
        self._own = allowed is None
        self._any = allowed == "*"
        entries = () if allowed is None or self._any else _checked_collection(allowed, "allowed_origins")
        self._without_host = frozenset(name for name in _WITHOUT_HOST if name in entries)
        parsed = [_parse_entry(entry) for entry in entries if entry not in self._without_host]
        self._exact = frozenset(origin for origin, wildcard in parsed if not wildcard)
        self._wildcards = frozenset(origin for origin, wildcard in parsed if wildcard)

    def refusal(self, origin: str | None, host: str | None) -> str | None:
        """Return why a client may not connect, as text for the developer, or `None` where it may.

        The text repeats of what the client sent only letters, digits and plain punctuation, up to a length.

        Args:
            origin: The header `Origin`; a client that sends none is not a browser, and may.
            host: The header `Host`. Where TLS ends before this server the schemes differ, so they are not compared.
        """
        if origin is None or self._any:
            return None
        parsed = _parse(origin)
        if parsed is None:
            return None if origin in self._without_host else _reason(origin, None, allowable=origin in _WITHOUT_HOST)
        if self._own and _is_own(parsed, host):
            return None if self._is_known(parsed) else _reason(origin, None, hint="this host is none of allowed_hosts")
        if self._own:
            return _reason(origin, host or "", allowable=True)
        if parsed in self._exact or _parent(parsed) in self._wildcards:
            return None
        return _reason(origin, None, allowable=True)

    def host_refusal(self, host: str | None) -> str | None:
        """Return why a request to `host` is refused, or `None` where it is not: by `allowed_hosts` alone.

        For requests without an `Origin`: a browser sends none with a GET request of a page to the page's own host, and
        it takes a foreign name that leads to this server for that (DNS rebinding).

        Args:
            host: The header `Host`; a client that sends none is not a browser, and passes.
        """
        if host is None or self._hosts is None:
            return None
        match = _HOST.fullmatch(host.lower())
        endpoint = None if match is None else _endpoint("http", match)
        if endpoint is not None and self._is_known(endpoint):
            return None
        return f"this host is none of allowed_hosts: {_safe(host)}"

    def _is_known(self, origin: _Origin) -> bool:
        host = _one_loopback(origin).host
        return self._hosts is None or not self._hosts.isdisjoint((host, f"*.{host.partition('.')[2]}"))


def _is_own(origin: _Origin, host: str | None) -> bool:
    match = _HOST.fullmatch((host or "").lower())
    own = None if match is None else _endpoint(origin.scheme, match)
    return own is not None and _one_loopback(own) == _one_loopback(origin)


def _one_loopback(endpoint: _Origin) -> _Origin:
    """Return the endpoint with one name for the loopback interface: a server there prints one, a page names another."""
    return endpoint._replace(host="localhost") if _LOOPBACK.fullmatch(endpoint.host) else endpoint


def _parent(origin: _Origin) -> _Origin:
    """Return the origin without its first label."""
    return origin._replace(host=origin.host.partition(".")[2])


def _parse(origin: str) -> _Origin | None:
    match = _ORIGIN.fullmatch(origin.lower())
    return _endpoint(match["scheme"], match) if match else None


def _endpoint(scheme: str, match: re.Match[str]) -> _Origin | None:
    host, port = match["host"], match["port"]
    if host.startswith("["):
        try:
            host = IPv6Address(host[1:-1]).compressed
        except ValueError:
            return None
    if port is not None and int(port) > 65535:
        return None
    host = host.removesuffix(".") or host  # a full name, as in `shop.example.`, is the same host; Electron's is a dot
    return _Origin(scheme, host, int(port) if port else _DEFAULT_PORTS.get(scheme))


def _reason(origin: str, host: str | None, *, allowable: bool = False, hint: str = "") -> str:
    shown = _safe(origin)
    reason = f"pages of {shown} may not connect here" + (hint and f": {hint}")
    if host is not None:
        reason += f": the host they connect to is {_safe(host)}"
        reason += " (the Host header; a proxy in front that replaces it must pass it on)"
    if allowable and shown == origin:
        reason += f'; if it is yours, allow it: Backplane(allowed_origins=["{origin}"])'
    return reason


def _safe(text: str) -> str:
    return (_UNSAFE.sub("?", text[:_MOST_SHOWN]) + ("..." if len(text) > _MOST_SHOWN else "")) or "(empty)"


def _checked_collection(allowed: Collection[str] | str, name: str) -> Collection[str]:
    if isinstance(allowed, str | bytes) or not isinstance(allowed, Collection):  # pyright: ignore[reportUnnecessaryIsInstance]
        known = 'None, "*" or a list of origins' if name == "allowed_origins" else "None or a list of host names"
        raise ConfigurationError(f"{name} is {known}, not {allowed!r}")
    return allowed


def _parse_host(entry: str) -> str:
    """Return a host as an origin has it, with the wildcard of its entry."""
    if isinstance(entry, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without type checks
        name = entry.lower()
        match = _HOST.fullmatch(name.removeprefix("*."))
        endpoint = None if match is None or match["port"] else _endpoint("http", match)
        if endpoint is not None:
            return ("*." if name.startswith("*.") else "") + _one_loopback(endpoint).host
    raise ConfigurationError(
        f"allowed_hosts holds {entry!r}: a host is a name or an address without scheme and port, as in shop.example, "
        "*.shop.example or [::1]"
    )


def _parse_entry(entry: str) -> tuple[_Origin, bool]:
    """Return an entry, without its wildcard, and whether it had one."""
    if not isinstance(entry, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without type checks
        raise _wrong(entry, "an origin is a str")
    if entry == "*":
        raise _wrong(entry, 'to allow every origin, write allowed_origins="*"')
    scheme, separator, authority = entry.partition("://")
    if not separator:
        raise _wrong(entry, "it has no scheme: https://shop.example")
    if any(character in authority for character in "/?#@"):
        raise _wrong(entry, "an origin ends after host and port, without a slash: https://shop.example")
    if not authority.isascii():
        raise _wrong(entry, "browsers send such a name in its ASCII form: https://xn--...")
    wildcard = authority.startswith("*.")
    if "*" in authority.removeprefix("*."):
        raise _wrong(entry, "a wildcard stands only for the first label: https://*.shop.example")
    origin = _parse(f"{scheme}://{authority.removeprefix('*.')}")
    if origin is None:
        raise _wrong(entry, "it must be scheme://host or scheme://host:port")
    return origin, wildcard


def _wrong(entry: object, reason: str) -> ConfigurationError:
    return ConfigurationError(f"allowed_origins holds {entry!r}: {reason}")
