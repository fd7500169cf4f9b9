"""The events that this package logs: names that stay, for filters and alerts, with what each of them has as fields.

A name states what has happened, to which part; the sentence of a line can change, its name does not.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from backplane.journal.ring import Kept

__all__ = ["EVENTS", "Event"]


@dataclass(frozen=True, slots=True)
class Event:
    """A kind of event.

    Attributes:
        name: Its name, in `backplane.event`.
        level: The level of its lines, where none has another one.
        fields: The names of its fields, without `backplane.` in front of them; a line may lack some.
        meaning: What has happened, and what it needs, in words.
        kept: Among which events a worker keeps it in memory; `None` for not at all.
    """

    name: str
    level: int
    fields: tuple[str, ...]
    meaning: str
    kept: Kept | None = None


EVENTS: Final[list[Event]] = []
"""All events, in the order of the documentation."""


def _event(name: str, level: int, fields: str, meaning: str, kept: Kept | None = None) -> Event:
    event = Event(name, level, tuple(fields.split()), meaning, kept)
    EVENTS.append(event)
    return event


_DEBUG, _INFO, _WARNING, _ERROR, _CRITICAL = (
    logging.DEBUG,
    logging.INFO,
    logging.WARNING,
    logging.ERROR,
    logging.CRITICAL,
)
_CLIENT: Final = "kind connection client_key"
_REFUSED: Final = f"what {_CLIENT} channel command seconds reason"

# --- the link to the broker ---

_LINK: Final = "old state generation reason"
LINK_LIVE: Final = _event("link.live", _INFO, _LINK, "The first link to the broker is up.", "states")
LINK_LOST: Final = _event(
    "link.lost", _WARNING, _LINK, "The link is lost, or could not be opened at the start; it is rebuilt.", "states"
)
LINK_RECOVERED: Final = _event("link.recovered", _WARNING, _LINK, "The link is up again.", "states")
LINK_CLOSED: Final = _event("link.closed", _INFO, _LINK, "The backplane was stopped.", "states")
LINK_RETRY: Final = _event(
    "link.retry",
    _WARNING,
    "url seconds tries reason",
    "There is still no link: a new kind of error, or one that is known, in intervals that double. Each try at DEBUG.",
    "details",
)
LINK_SUPERVISOR_FAILED: Final = _event(
    "link.supervisor_failed", _CRITICAL, "", "What rebuilds the link has failed: restart the worker.", "states"
)
PROBE_DENIED: Final = _event(
    "probe.denied",
    _WARNING,
    "channel reason",
    "The broker refuses the delivery probe: a silent link goes unnoticed.",
    "broker",
)
ADAPTER_FAULT: Final = _event(
    "adapter.fault",
    _ERROR,
    "url channel",
    "An adapter raised what it should not: report it, with the traceback.",
    "faults",
)
BROKER_MISFIT: Final = _event(
    "broker.misfit",
    _WARNING,
    "url database username topic reason",
    "The broker is set up in a way that loses messages or clients.",
    "broker",
)
BROKER_CHANGED: Final = _event(
    "broker.changed",
    _WARNING,
    "url reason",
    "The broker is another one, or has another role: the link moves.",
    "broker",
)
BROKER_READ_ONLY: Final = _event(
    "broker.read_only", _WARNING, "url reason", "The broker lets this process subscribe, and not publish.", "broker"
)
BROKER_DETAIL: Final = _event(
    "broker.detail", _DEBUG, "url node reason", "What an adapter does that needs no action.", "details"
)

# --- channels, messages, gaps ---

CHANNEL_REFUSED: Final = _event(
    "channel.refused",
    _ERROR,
    "channel channels reason",
    "The broker refuses channels: their subscribers receive nothing. Correct its rules.",
    "refusals",
)
CHANNEL_UNCONFIRMED: Final = _event(
    "channel.unconfirmed",
    _ERROR,
    "channel channels reason",
    "The broker does not confirm channels again: their subscribers receive nothing until it does.",
    "refusals",
)
CHANNEL_REVOKED: Final = _event(
    "channel.revoked",
    _WARNING,
    "channels count reason",
    "The broker ended subscriptions, which are made again.",
    "broker",
)
CHANNEL_PATTERN: Final = _event(
    "channel.pattern", _WARNING, "channel", "A channel name looks like a pattern, and is joined as a plain name."
)
GAP_REPORTED: Final = _event(
    "gap.reported",
    _WARNING,
    "cause channel channels subscribers reason",
    "Messages may be missing, and the subscribers are notified: one line for all that are notified together.",
    "gaps",
)
PAYLOAD_MALFORMED: Final = _event(
    "payload.malformed",
    _WARNING,
    "channel count reason",
    "A payload is no message: another program publishes there.",
    "gaps",
)
PAYLOAD_UNSUPPORTED: Final = _event(
    "payload.unsupported", _WARNING, "channel count", "Only a newer release reads a message: upgrade.", "gaps"
)
MESSAGE_INVALID: Final = _event(
    "message.invalid",
    _WARNING,
    f"channel {_CLIENT} reason",
    "A published message is not of the type of its channel; at INFO one that a client sent.",
    "gaps",
)
DELIVERY_FAILED: Final = _event(
    "delivery.failed", _ERROR, "channel error", "A subscriber raised; the others get the message.", "faults"
)
PUBLISH_REFUSED: Final = _event(
    "publish.refused", _WARNING, "channel reason", "The broker refused a message; `publish` raised.", "refusals"
)
PUBLISH_LOST: Final = _event(
    "publish.lost", _ERROR, "channel count reason", "Messages that were kept for the broker are lost.", "gaps"
)
PUBLISH_KEPT: Final = _event(
    "publish.kept", _DEBUG, "channel reason", "A message is kept until the broker is back (`outage='buffer'`)."
)
HISTORY_FAILED: Final = _event(
    "history.failed", _ERROR, "channel reason", "A history cannot be read, which is a gap.", "gaps"
)
HISTORY_MISFIT: Final = _event(
    "history.misfit",
    _WARNING,
    "channel stream topic partition bytes url reason",
    "A history cannot be kept, or not as its rule asks.",
    "broker",
)
HISTORY_LOST: Final = _event(
    "history.lost",
    _WARNING,
    "channel stream last reason",
    "The broker has lost messages of a history, or all of it.",
    "gaps",
)
HISTORY_RETRY: Final = _event(
    "history.retry",
    _WARNING,
    "stream reason",
    "A history cannot be read or written at present; it is tried again.",
    "details",
)
HISTORY_CREATED: Final = _event(
    "history.created",
    _INFO,
    "channel stream topic partitions replicas brokers",
    "A stream or a topic was created, as the options ask for.",
    "broker",
)

# --- clients ---

CLIENT_ACCEPTED: Final = _event("client.accepted", _DEBUG, _CLIENT, "A client is connected.")
CLIENT_REFUSED: Final = _event(
    "client.refused",
    _WARNING,
    _REFUSED,
    "A client was refused, or something that it asked for. `what`: `origin`, `connection`, `join`, `channel`, "
    "`draining`, `token`, `command`. At INFO what needs no action.",
    "refusals",
)
CLIENT_SLOW: Final = _event(
    "client.slow",
    _WARNING,
    f"{_CLIENT} channel action messages bytes",
    "More waits for a client than its backlog allows. `action`: `closed`, or what was dropped, at DEBUG.",
    "gaps",
)
CLIENT_CLOSED: Final = _event(
    "client.closed",
    _INFO,
    f"{_CLIENT} code channel seconds reason",
    "A client is closed by this worker: a limit, a gap, the end of a handler. At WARNING where the broker failed.",
)
CLIENT_ENDED: Final = _event(
    "client.ended", _DEBUG, f"{_CLIENT} code reason by seconds channels", "A client is gone.", "ended"
)
CLIENT_FAILED: Final = _event(
    "client.failed", _ERROR, _CLIENT, "A handler, a task or the server raised; the client is closed.", "faults"
)
CLIENT_UNREAD: Final = _event("client.unread", _DEBUG, _CLIENT, "A client does not read what it is sent.")
CLIENT_UNKNOWN_ADDRESS: Final = _event(
    "client.unknown_address", _WARNING, "reason", "Clients have no address by which they could be counted."
)
HANDLER_OVERSTAYED: Final = _event(
    "handler.overstayed",
    _WARNING,
    f"{_CLIENT} seconds",
    "A handler did not end with its connection. At INFO where it was cancelled.",
)
HANDLER_BYPASS: Final = _event(
    "handler.bypass", _WARNING, "", "A handler receives from its WebSocket, and not from its connection."
)
HOOK_FAILED: Final = _event(
    "hook.failed",
    _ERROR,
    f"hook command {_CLIENT} channel seconds reason error",
    "A function of the application raised: `on_gap`, `on_slow`, `on_state`, `on_close`, `latest_by`, an RPC ...",
    "faults",
)
TOKEN_KEYS: Final = _event(
    "token.keys",
    _WARNING,
    "host reason",
    "The keys of an issuer cannot be fetched; at INFO that they are again.",
    "faults",
)

# --- the worker ---

DRAIN_STARTED: Final = _event(
    "drain.started", _INFO, "connections seconds", "The worker accepts no client, and closes those it has.", "states"
)
DRAIN_HANDLERS_LEFT: Final = _event(
    "drain.handlers_left", _WARNING, "handlers", "Handlers did not end with their connection.", "states"
)
DRAIN_FAILED: Final = _event("drain.failed", _ERROR, "", "The drain failed; the server ends all the same.", "faults")
DEPLOYMENT_ISOLATED: Final = _event(
    "deployment.isolated", _WARNING, "url workers", "Workers do not reach each other, as they are set up.", "broker"
)
DEPLOYMENT_UNSTOPPED: Final = _event(
    "deployment.unstopped", _WARNING, "url", "An event loop has ended before its backplane was stopped."
)
SERVER_MISFIT: Final = _event(
    "server.misfit",
    _WARNING,
    "limit allowed version reason",
    "The server's limits, or its version, do not fit the application.",
)
SERVER_CLIENT: Final = _event("server.client", _WARNING, "reason", "Uvicorn's own warning about what a client sent.")
THREAD_FAILED: Final = _event(
    "thread.failed", _ERROR, "seconds", "The thread of `SyncBackplane` failed; at WARNING one that did not end."
)
ADMIN_ACTION: Final = _event(
    "admin.action", _INFO, "action by target reason", "Someone changed something on the live page.", "actions"
)

# --- workers among each other ---

SCRAPE_FAILED: Final = _event(
    "scrape.failed",
    _WARNING,
    "sibling reason",
    "The metrics of a worker are missing in a scrape of its siblings.",
    "faults",
)
CLUSTER_FAILED: Final = _event(
    "cluster.failed",
    _WARNING,
    "channel workers reason",
    "What workers send each other could not be sent or received.",
    "faults",
)
COMMAND_REJECTED: Final = _event(
    "command.rejected",
    _WARNING,
    "channel reason",
    "A message on the control channel is none, or not signed.",
    "refusals",
)
COMMAND_FAILED: Final = _event(
    "command.failed", _ERROR, f"error {_CLIENT} channel", "A command could not be applied.", "faults"
)
PEER_REFUSED: Final = _event(
    "peer.refused",
    _WARNING,
    "peer user reason",
    "ipc: a process is no worker of ours, or does not speak the protocol.",
    "refusals",
)
PEER_LOST: Final = _event(
    "peer.lost",
    _WARNING,
    "peer bytes reason",
    "ipc: another worker does not answer, or could not be reached.",
    "broker",
)
