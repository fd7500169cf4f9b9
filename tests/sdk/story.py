"""What a client reported, as short lines that do not differ between SDKs, encodings and runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.sdk.sdk import Event

__all__ = ["story"]

_LOST: Final = 1  # the code of a lost connection; each SDK has its own words for it
_FIRST_OF_SERVER: Final = 100  # an error below is the SDK's own


def story(events: Iterable[Event], own: str) -> dict[str, list[str]]:
    """Return the lines of the client, as `""`, and of each channel, in their order.

    What differs between SDKs is left out: the order between client and channel, the reason of a lost connection, the
    errors that an SDK makes, and those of a subscription, which Go alone reports beside the change of its state.

    Args:
        events: What the client reported.
        own: What made the names of this run unique; it is removed from them.
    """
    names = _Names()
    lines: dict[str, list[str]] = {}
    for event in events:
        if line := _line(event, names):
            lines.setdefault(event.get("channel", "").replace(own, ""), []).append(line.replace(own, ""))
    return lines


class _Names:
    """Numbers the ids of clients, and the epochs of each channel, as they appear."""

    def __init__(self) -> None:
        self._clients: list[str] = []
        self._epochs: dict[str, list[str]] = {}

    def client(self, client: str) -> str:
        return f"client {_number(self._clients, client)}"

    def epoch(self, channel: str, epoch: str) -> str:
        return f"epoch {_number(self._epochs.setdefault(channel, []), epoch)}"

    def info(self, info: dict[str, Any]) -> str:
        data = "".join(f" {info[name]}" for name in ("conn_info", "chan_info") if info[name] is not None)
        return f"{info['user']}, {self.client(info['client'])},{data}"


def _number(known: list[str], name: str) -> int:
    if name not in known:
        known.append(name)
    return known.index(name) + 1


def _line(event: Event, names: _Names) -> str:
    match event:
        case {"event": "subscription_error"}:
            return ""
        case {"event": "error", "code": code, "message": message}:
            return f"error {code} {message}" if code >= _FIRST_OF_SERVER else ""
        case {"event": name, "code": code, "reason": reason}:
            return f"{name} {code}" if code == _LOST else f"{name} {code} {reason}"
        case {"event": "connected", "client": client, "data": data}:
            return f"connected as {names.client(client)} {data}"
        case {"event": name, "recoverable": _}:
            return f"{name}{_subscribed(event, names)}"
        case {"event": name, "offset": offset}:
            by = f" by {names.info(event['info'])}" if event["info"] else ""
            tags = f" {event['tags']}" if event["tags"] else ""
            return f"{name} {offset} {event['data']}{tags}{by}"
        case {"event": name, "info": info}:
            return f"{name} {names.info(info)}"
        case {"event": name, "data": data}:
            return f"{name} {data}"
        case _:
            return str(event["event"])


def _subscribed(event: Event, names: _Names) -> str:
    recovered = "" if not event["was_recovering"] else " recovered" if event["recovered"] else " not recovered"
    position = event["position"]
    at = f" at {position['offset']} of {names.epoch(event['channel'], position['epoch'])}" if position else ""
    kinds = "".join(f" {kind}" for kind in ("recoverable", "positioned") if event[kind])
    data = "" if event["data"] is None else f" {event['data']}"
    return f"{recovered}{at},{kinds}{data}"
