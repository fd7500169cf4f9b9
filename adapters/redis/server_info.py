"""What a Redis server reports about itself: the replies to `ROLE` and `INFO`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backplane.adapters.shared.server_address import format_address

__all__ = ["Address", "ServerInfo", "info_fields", "primary_of", "server_info"]

Address = tuple[str, int] | str
"""An IP address with a port, or the path of a Unix socket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What a server reports about itself when a connection opens.

    Attributes:
        role: The first element of the reply to `ROLE`: `master`, `slave`, `sentinel`; empty where an ACL denies it.
        primary: The address of its primary, where it is a replica.
        run_id: The random id of its process; empty where an ACL denies `INFO`.
        is_cluster: It is a node of a Redis Cluster, which forwards a publish to all nodes.
    """

    role: str = ""
    primary: str = ""
    run_id: str = ""
    is_cluster: bool = False


def server_info(role: Any, info: Any) -> ServerInfo:
    """Return what the replies to `ROLE` and `INFO server` contain; either is `None` where it was denied."""
    fields = info_fields(info)
    return ServerInfo(
        role=role[0].decode() if role.__class__ is list else "",
        primary=primary_of(role),
        run_id=fields.get("run_id", ""),
        is_cluster=fields.get("redis_mode", fields.get("server_mode")) == "cluster",
    )


def primary_of(role: Any) -> str:
    """Return the address of the primary from a replica's reply to `ROLE`; empty for every other reply."""
    is_replica = role.__class__ is list and role[0] == b"slave"
    return format_address((role[1].decode(), role[2])) if is_replica else ""


def info_fields(info: Any) -> dict[str, str]:
    """Return the fields of a reply to `INFO`; empty where it was denied."""
    lines = info.decode(errors="replace").splitlines() if isinstance(info, bytes) else []
    return dict(line.split(":", 1) for line in lines if ":" in line)
