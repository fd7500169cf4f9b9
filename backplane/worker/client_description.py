"""What a worker states of a client, in lists and in explanations alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backplane.connection.callback_handler import CallbackHandler
from backplane.connection.driver import ConnectionDriver

if TYPE_CHECKING:
    from backplane.fanout.subscription import Subscription
    from backplane.worker.clients import LocalClient

__all__ = ["describe_client", "name_of"]


def name_of(client: LocalClient | Subscription) -> str | None:
    """Return whose it is: the user or `client_key`, or the name of a subscription; `None` where it has none."""
    name = client.named["client_key"]
    return None if name is None else str(name)


def describe_client(client: LocalClient | Subscription, now: float) -> dict[str, Any]:
    """Return what `ClientEvidence` and `ConnectionRow` have in common, under the names of both.

    Args:
        client: A client, or a subscription of the application.
        now: The time of the event loop's clock.
    """
    outbox = client.outbox
    described: dict[str, Any] = {
        "id": client.id,
        "user": name_of(client),
        "kind": client.kind,
        "transport": "sse" if client.kind == "event stream" else "",
        "state": "closed" if client.is_over else "open",
        "dropped": outbox.dropped,
        "waiting_messages": len(outbox),
        "waiting_bytes": outbox.size_bytes,
        "transport_bytes": None,
        "received_seconds_ago": None,
    }
    if isinstance(client, ConnectionDriver):
        lane = client.socket.lane
        last_received_at = client.timers.last_received_at if lane is None else lane.last_received_at
        described |= {
            "transport": "asgi" if lane is None else _of_lane(client),
            "state": client.state,
            "transport_bytes": None if lane is None else lane.buffered_bytes,
            "received_seconds_ago": round(now - last_received_at, 1),
        }
    return described


def _of_lane(client: ConnectionDriver) -> str:
    return "handed over" if isinstance(client.receiver, CallbackHandler) else "lane"
