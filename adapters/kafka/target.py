"""The cluster and topic that a link leads to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["KnownBrokers", "Target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The cluster and topic of a link.

    Attributes:
        url: The URL, for errors; its password is masked.
        servers: Host and port of the brokers to try first.
        topic: Name of the topic.
        partitions: Number of partitions if the topic has to be created; `None` to refuse instead.
        replicas: Number of brokers that store the created topic; -1 for the default of the adapter.
        connect_timeout_seconds: How long connecting to one broker may take, including the login.
        request_timeout_seconds: How long an answer may take.
    """

    url: str
    servers: Sequence[tuple[str, int]]
    topic: str
    partitions: int | None
    replicas: int
    connect_timeout_seconds: float
    request_timeout_seconds: float


@dataclass(slots=True)
class KnownBrokers:
    """Brokers that earlier links have found, for later links to try.

    Attributes:
        cluster: Id of their cluster.
        addresses: Host and port of each.
    """

    cluster: str | None = None
    addresses: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
