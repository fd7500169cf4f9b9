"""What a client reported, as short lines that do not differ between SDKs, encodings, servers and runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.sdk.sdk import Event

__all__ = ["story"]

_LOST: Final = 1  # the code of a lost connection; each SDK has its own words for it
_FIRST_OF_SERVER: Final = 100  # an error below is the SDK's own


def story(events: Sequence[Event], own: str) -> dict[str, list[str]]:
    """Return the lines of the client, as `""`, and of each channel, in their order.

    What may differ is left out: the order between client and channel, the reason of a lost connection, the errors that
    an SDK makes, those of a subscription, which Go alone reports beside the change of its state, ids, tags, and the
    publisher. What an SDK asks its application for is in lists of its own, as `"asks"` and `"<channel> asks"`: Go asks
    in a goroutine of its own. Epochs are numbered as they come, and offsets by their size in channel and epoch.

    Args:
        events: What the client reported.
        own: What made the names of this run unique; it is removed from them.
    """
    positions = _Positions(events)
    lines: dict[str, list[str]] = {}
    for event in events:
        if line := _line(event, positions):
            place = event.get("channel", "").replace(own, "")
            place = f"{place} asks".strip() if line.startswith("get_") else place
            lines.setdefault(place, []).append(line.replace(own, ""))
    return lines


class _Positions:
    """The offsets and epochs of each channel, in their order."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._epochs: dict[str, list[str]] = {}
        self._offsets: dict[tuple[str, int], set[int]] = {}
        for event in events:
            if position := event.get("position"):
                self.epoch(event["channel"], position["epoch"])
            if offset := (position or event).get("offset"):
                self._offsets_of(event).add(offset)
        self._epochs.clear()

    def epoch(self, channel: str, epoch: str) -> int:
        """Return the number of an epoch, which is the channel's from now on."""
        epochs = self._epochs.setdefault(channel, [])
        if epoch not in epochs:
            epochs.append(epoch)
        return len(epochs)

    def offset(self, event: Event, offset: int) -> int:
        """Return the place of an offset among those of its epoch, from 1; 0 is that of an empty channel, or none."""
        return sorted(self._offsets_of(event) | {0}).index(offset)

    def _offsets_of(self, event: Event) -> set[int]:
        channel: str = event["channel"]
        return self._offsets.setdefault((channel, len(self._epochs.get(channel, ()))), set())


def _line(event: Event, positions: _Positions) -> str:
    match event:
        case {"event": "subscription_error"}:
            return ""
        case {"event": "error", "code": code, "message": message}:
            return f"error {code} {message}" if code >= _FIRST_OF_SERVER else ""
        case {"event": name, "code": code, "reason": reason}:
            return f"{name} {code}" if code == _LOST else f"{name} {code} {reason}"
        case {"event": name, "recoverable": _}:
            return f"{name}{_subscribed(event, positions)}"
        case {"event": name, "offset": offset, "data": data}:
            return f"{name} {positions.offset(event, offset)}: {data}"
        case {"event": name, "info": info}:
            return f"{name} {info['user']} {info['conn_info']}"
        case {"event": name, "data": data}:
            return f"{name} {data}"
        case _:
            return str(event["event"])


def _subscribed(event: Event, positions: _Positions) -> str:
    recovered = "" if not event["was_recovering"] else " recovered" if event["recovered"] else " not recovered"
    at = ""
    if position := event["position"]:
        epoch = positions.epoch(event["channel"], position["epoch"])
        at = f" at {positions.offset(event, position['offset'])} of epoch {epoch}"
    kinds = "".join(f" {kind}" for kind in ("recoverable", "positioned") if event[kind])
    data = "" if event["data"] is None else f" {event['data']}"
    return f"{recovered}{at},{kinds}{data}"
