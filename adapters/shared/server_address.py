"""How errors write the address of a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backplane.broadcaster import BrokerUrl

__all__ = ["format_address", "format_server"]


def format_address(address: tuple[str, int] | str) -> str:
    """Return host and port, or the path of a Unix socket, as a URL writes them."""
    if isinstance(address, str):
        return address
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def format_server(url: BrokerUrl, server: tuple[str, int]) -> str:
    """Return which server of `url` an error is about: the URL, and the address too where it names several."""
    return f"{url}, server {format_address(server)}," if "," in url.netloc else str(url)
