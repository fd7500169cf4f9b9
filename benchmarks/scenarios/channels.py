"""Many channels with a few sockets each, at a fixed rate over all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.harness.run import Load

if TYPE_CHECKING:
    from benchmarks.harness.run import Options, Run
    from benchmarks.harness.server import Server

__all__ = ["run"]


def run(server: Server, options: Options) -> Run:
    """Spread `connections` sockets over `channels`, and publish to these in turn."""
    with Load(server, options) as load:
        load.connect()
        load.ready()
        found = load.publish(rate=options.rate)[0]
        found.figures["server_mib"] = server.resident_bytes() / 2**20
        return found
