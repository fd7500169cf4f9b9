"""The NATS servers that a worker knows: those of its URL, and those that their cluster has announced since."""

from __future__ import annotations

import random
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import count, zip_longest
from typing import TYPE_CHECKING, Final

from backplane.adapters.shared.server_address import format_address
from backplane.broadcaster import split_address

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["DEFAULT_PORT", "Server", "Servers"]

DEFAULT_PORT: Final = 4222
"""The port of a server whose address names none."""

# Where servers get a new address at each start, the ones announced last are enough.
_MAX_LEARNED: Final = 32


@dataclass(frozen=True, slots=True)
class Server:
    """The address of a server.

    Attributes:
        host: Name or IP address.
        port: Its port for clients.
        tls_name: The name that its certificate must hold.
    """

    host: str
    port: int
    tls_name: str

    @classmethod
    def parse(cls, address: str) -> Server:
        """Return the server at `host:port`; both have a default.

        Raises:
            ValueError: It is not an address.
        """
        host, port = split_address(address, DEFAULT_PORT)
        return cls(host, port, host)

    def __str__(self) -> str:
        return format_address((self.host, self.port))


class Servers:
    """Every known server, in the order in which they are tried.

    One of the URL is first, then one of the cluster, and so on in turn: names of the URL may be outdated, and addresses
    of the cluster may be reachable inside its own network only, so neither kind must delay the other. Each kind is in
    random order, with those that failed last.

    Args:
        of_url: The servers of the URL. They are never dropped.
    """

    def __init__(self, of_url: Iterable[Server]) -> None:
        self._of_url = {str(server): server for server in of_url}
        self._learned: dict[str, Server] = {}
        self._failed: dict[str, int] = {}
        self._failures = count(1)

    def in_order(self) -> Sequence[Server]:
        """Return all of them, in the order in which to try them."""

        def rank(item: tuple[str, Server]) -> tuple[int, float]:
            return self._failed.get(item[0], 0), random.random()  # noqa: S311  # spreads, hides nothing

        kinds = [[server for _, server in sorted(kind.items(), key=rank)] for kind in (self._of_url, self._learned)]
        return [server for turn in zip_longest(*kinds) for server in turn if server is not None]

    def failed(self, server: Server) -> None:
        """Try `server` last of its kind: it could not be reached, or is about to close."""
        self._failed[str(server)] = next(self._failures)

    def reached(self, server: Server) -> None:
        """Try `server` in random order again."""
        self._failed.pop(str(server), None)

    def learn(self, addresses: Iterable[str], by: Server, *, verified: bool) -> None:
        """Remember the servers that a cluster announces.

        Earlier ones are kept, because a server that is partitioned from its cluster announces itself only.

        Args:
            addresses: Each as `host:port`; what is not an address is ignored.
            by: The server that announced them.
            verified: Whether the announcement was received over TLS, or TLS is not required. Otherwise an attacker
                between client and server may have written it, so only a certificate for the name of `by` is accepted.
        """
        found: dict[str, Server] = {}
        for address in addresses:
            try:
                server = Server.parse(address)
            except ValueError:
                continue
            name = server.host if verified and not _is_ip(server.host) else by.tls_name
            if str(server) not in self._of_url:
                found[str(server)] = Server(server.host, server.port, name)
        kept = [*(found | {name: known for name, known in self._learned.items() if name not in found}).items()]
        self._learned = dict(kept[:_MAX_LEARNED])
        self._failed = {name: when for name, when in self._failed.items() if name in self._of_url | self._learned}


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
