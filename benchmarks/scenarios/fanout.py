"""Latency of one channel at a fixed rate, whether the server keeps up or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.harness.run import Load

if TYPE_CHECKING:
    from benchmarks.harness.run import Options, Run
    from benchmarks.harness.server import Server

__all__ = ["run"]


def run(server: Server, options: Options) -> Run:
    """Send `rate` messages per second to `connections` sockets."""
    with Load(server, options) as load:
        load.connect()
        load.ready()
        return load.publish(rate=options.rate)[0]
