"""Which NATS servers a worker knows: those of its URL, and those of which their cluster has told it since."""

from __future__ import annotations

import random
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import count, zip_longest
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Server", "Servers"]

_DEFAULT_PORT: Final = 4222
# Of a cluster whose servers get a new address with each start, the last ones are enough.
_MAX_LEARNED: Final = 32


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is.

    Attributes:
        host: Name or address.
        port: Its port for clients.
        tls_name: What its certificate has to be issued for.
    """

    host: str
    port: int
    tls_name: str

    @classmethod
    def parse(cls, address: str) -> Server:
        """Return the server at `host:port`; both have a default.

        Raises:
            ValueError: This is no address.
        """
        parts = urlsplit(f"//{address}")
        host = parts.hostname or "localhost"
        return cls(host, parts.port or _DEFAULT_PORT, host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Servers:
    """Every known server, in the order in which they are tried.

    One of the URL comes first, then one of the cluster, and so on in turn: neither names that lead nowhere any more nor
    addresses that only the cluster itself can reach keep from the others. Each kind is tried at random, and of its kind
    one that failed comes last.

    Args:
        of_url: The servers of the URL. They are never forgotten.
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
        """Try `server` last of its kind: it was not reached, or is about to close."""
        self._failed[str(server)] = next(self._failures)

    def reached(self, server: Server) -> None:
        """Try `server` in its turn again."""
        self._failed.pop(str(server), None)

    def learn(self, addresses: Iterable[str], by: Server, *, verified: bool) -> None:
        """Remember the servers of a cluster; earlier ones are kept, for a server cut off from its cluster names itself.

        Args:
            addresses: Each as `host:port`; what is none is left out.
            by: The server that named them.
            verified: Whether its words came over TLS, or nobody has asked for TLS. If not, anybody on the way may have
                written them: then only who has a certificate for the name of `by` is believed.
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
