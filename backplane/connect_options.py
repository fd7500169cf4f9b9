"""The options of `Backplane.connect`, for the calls that pass them on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from backplane.connection.envelope import Envelope
    from backplane.connection.limits import Limits
    from backplane.connection.policy import OnGap
    from backplane.fanout.backlog import Backlog
    from backplane.fanout.subscriber_options import Since
    from backplane.presence_types import Who

__all__ = ["ConnectOptions"]


class ConnectOptions(TypedDict, total=False):
    """Keyword arguments of `Backplane.connect`, which documents each of them."""

    subprotocol: str | None
    headers: Iterable[tuple[bytes, bytes]] | None
    context: Any
    client_key: str | None
    expires_at: float | datetime | None
    refuse_after_accept: bool | None
    limits: Limits | None
    on_gap: OnGap | None
    backlog: Backlog | None
    since: Since
    rewind: int
    previous_id: str | None
    envelope: Envelope
    presence: Who | None
