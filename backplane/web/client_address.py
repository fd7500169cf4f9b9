"""The key of a client for which the application gives none: its address, if the server knows it.

Clients whose address is unknown are not one client, so they have no key. Behind a proxy the address is known where the
server trusts the proxy's headers (Uvicorn: `--forwarded-allow-ips`); over a Unix socket it is unknown without them.
"""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["address_key"]

# IPv4 addresses as a translator writes them (RFC 6052, 8215), or a host (`::ffff:0:192.0.2.1`): each is one client.
_TRANSLATED: Final = tuple(IPv6Network(network) for network in ("64:ff9b::/96", "64:ff9b:1::/48", "::/64"))


def address_key(scope: Mapping[str, Any]) -> bytes | None:
    """Return the key of the client of an ASGI `scope`; `None` where the server does not know its address.

    An IPv4 address is one client. So is an IPv6 network of 64 bits, the smallest that a customer of a provider gets
    (RFC 6177): counted by address, one client could be 2^64. Addresses that are not global, such as those of a private
    network, are counted one by one. Bytes, so that no `client_key` of the application, a `str`, is equal to an address.
    """
    client = scope.get("client")
    host = str(client[0] or "").strip() if client else ""
    if host.startswith("unix:"):
        return None
    host = _without_port(host)
    # A proxy that does not know or hides the address writes `unknown` (RFC 7239, section 6).
    if not host or host.lower() == "unknown":
        return None
    try:
        address = ip_address(host)
    except ValueError:
        return f"name {host}".encode()
    if not isinstance(address, IPv6Address):
        return address.packed
    if address.ipv4_mapped is not None:  # an IPv6 socket reports IPv4 clients like this
        return address.ipv4_mapped.packed
    is_of_one_network = address.is_global and not any(address in network for network in _TRANSLATED)
    return address.packed[:8] if is_of_one_network else address.packed


def _without_port(host: str) -> str:
    """Return `host` without the port that some proxies append, a new one for each connection."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host
