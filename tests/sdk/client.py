"""A client on centrifuge-python that a test drives: JSON commands, one on a line of stdin, and events on stdout.

sdk.py describes both; client.mjs and client/main.go are the same program on the other SDKs.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import centrifuge  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_SHORT_DELAY: Final = 0.02
_MAX_LINE_BYTES: Final = 2**24

sdk: Any = centrifuge  # it has no types


def emit(event: str, **fields: Any) -> None:
    """Write an event."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


class Program:
    """The client and its commands."""

    def __init__(self, *, protobuf: bool) -> None:
        self._protobuf = protobuf
        self._client: Any = None
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Run the commands until stdin ends."""
        lines = asyncio.StreamReader(limit=_MAX_LINE_BYTES)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while line := await lines.readline():
            command = json.loads(line)
            if command["command"] == "quit":
                break
            task = asyncio.create_task(self._run(command))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, command: dict[str, Any]) -> None:
        method: Callable[[dict[str, Any]], Awaitable[Any]] = getattr(self, command["command"])
        try:
            result = await method(command)
        except sdk.CentrifugeError as error:
            emit("done", id=command["id"], error=_failure(error))
        else:
            emit("done", id=command["id"], result={} if result is None else result)

    async def connect(self, command: dict[str, Any]) -> None:
        """Connect, the first time with the options of `command`."""
        if self._client is None:
            self._client = self._create(command)
        await self._client.connect()

    async def disconnect(self, _: dict[str, Any]) -> None:
        """Disconnect."""
        await self._client.disconnect()

    async def subscribe(self, command: dict[str, Any]) -> None:
        """Subscribe to a channel, the first time with the options of `command`."""
        await self._subscription(command).subscribe()

    async def unsubscribe(self, command: dict[str, Any]) -> None:
        """Unsubscribe from a channel."""
        await self._subscription(command).unsubscribe()

    async def publish(self, command: dict[str, Any]) -> None:
        """Publish to a channel."""
        await self._client.publish(command["channel"], self._payload(command))

    async def rpc(self, command: dict[str, Any]) -> Any:
        """Call a method of the server."""
        return self._data((await self._client.rpc(command["method"], self._payload(command))).data)

    async def presence(self, command: dict[str, Any]) -> dict[str, Any]:
        """Return the clients in a channel, by their ids."""
        found = await self._client.presence(command["channel"])
        return {client: self._info(info) for client, info in found.clients.items()}

    async def presence_stats(self, command: dict[str, Any]) -> dict[str, int]:
        """Return how many clients and users are in a channel."""
        found = await self._client.presence_stats(command["channel"])
        return {"clients": found.num_clients, "users": found.num_users}

    async def history(self, command: dict[str, Any]) -> dict[str, Any]:
        """Return publications of a channel."""
        since = command.get("since")
        found = await self._client.history(
            command["channel"],
            limit=command.get("limit", 0),
            since=sdk.StreamPosition(**since) if since else None,
            reverse=command.get("reverse", False),
        )
        publications = [self._publication(publication) for publication in found.publications]
        return {"publications": publications, "offset": found.offset, "epoch": found.epoch}

    def _create(self, command: dict[str, Any]) -> Any:
        options: dict[str, Any] = {}
        if not command.get("default_delays"):
            options |= {"min_reconnect_delay": _SHORT_DELAY, "max_reconnect_delay": 5 * _SHORT_DELAY}
        if "max_ping_delay" in command:
            options["max_server_ping_delay"] = command["max_ping_delay"]
        if "tokens" in command:
            options["get_token"] = _in_turn(command["tokens"], lambda: emit("get_token"))
        events = SimpleNamespace(
            on_connecting=_on("connecting", _change),
            on_connected=_on("connected", lambda e: {"client": e.client, "data": self._data(e.data)}),
            on_disconnected=_on("disconnected", _change),
            on_error=_on("error", lambda e: _failure(e.error)),
            on_subscribing=_on("server_subscribing", lambda e: {"channel": e.channel}),
            on_subscribed=_on("server_subscribed", self._subscribed),
            on_unsubscribed=_on("server_unsubscribed", lambda e: {"channel": e.channel}),
            on_publication=_on("server_publication", lambda e: {"channel": e.channel, **self._publication(e.pub)}),
            on_join=_on("server_join", lambda e: {"channel": e.channel, "info": self._info(e.info)}),
            on_leave=_on("server_leave", lambda e: {"channel": e.channel, "info": self._info(e.info)}),
        )
        return sdk.Client(
            command["url"],
            events=events,
            token=command.get("token", ""),
            use_protobuf=self._protobuf,
            data=self._payload(command),
            proxy=None,
            **options,
        )

    def _subscription(self, command: dict[str, Any]) -> Any:
        channel: str = command["channel"]
        if (found := self._client.get_subscription(channel)) is not None:
            return found

        on = partial(_on, channel=channel)
        options: dict[str, Any] = {}
        if not command.get("default_delays"):
            options |= {"min_resubscribe_delay": _SHORT_DELAY, "max_resubscribe_delay": 5 * _SHORT_DELAY}
        if "tokens" in command:
            options["get_token"] = _in_turn(command["tokens"], lambda: emit("get_subscription_token", channel=channel))
        if "states" in command:
            states = [sdk.StreamPosition(**state) for state in command["states"]]
            options["get_state"] = _in_turn(states, lambda: emit("get_state", channel=channel))
        events = SimpleNamespace(
            on_subscribing=on("subscribing", _change),
            on_subscribed=on("subscribed", self._subscribed),
            on_unsubscribed=on("unsubscribed", _change),
            on_publication=on("publication", lambda e: self._publication(e.pub)),
            on_join=on("join", lambda e: {"info": self._info(e.info)}),
            on_leave=on("leave", lambda e: {"info": self._info(e.info)}),
            on_error=on("subscription_error", lambda e: _failure(e.error)),
        )
        return self._client.new_subscription(
            channel,
            events=events,
            token=command.get("token", ""),
            data=self._payload(command),
            recoverable=command.get("recoverable", False),
            positioned=command.get("positioned", False),
            join_leave=command.get("join_leave", False),
            **options,
        )

    def _payload(self, command: dict[str, Any]) -> Any:
        """Return what is sent for the arguments `data`, a JSON value, or `base64`, bytes."""
        if "base64" in command:
            return base64.b64decode(command["base64"])
        if "data" not in command:
            return None
        return json.dumps(command["data"], separators=(",", ":")).encode() if self._protobuf else command["data"]

    def _data(self, payload: Any) -> Any:
        """Return a payload as JSON where it is JSON, otherwise as `{"base64": ...}`."""
        if not self._protobuf or not payload:
            return None if payload == b"" else payload
        try:
            return json.loads(payload)
        except ValueError:
            return {"base64": base64.b64encode(payload).decode()}

    def _info(self, info: Any) -> dict[str, Any] | None:
        if info is None:
            return None
        return {
            "user": info.user,
            "client": info.client,
            "conn_info": self._data(info.conn_info),
            "chan_info": self._data(info.chan_info),
        }

    def _publication(self, publication: Any) -> dict[str, Any]:
        return {
            "offset": publication.offset,
            "data": self._data(publication.data),
            "tags": publication.tags or {},
            "info": self._info(publication.info),
        }

    def _subscribed(self, context: Any) -> dict[str, Any]:
        position = context.stream_position
        return {
            "channel": context.channel,
            "recoverable": context.recoverable,
            "positioned": context.positioned,
            "was_recovering": context.was_recovering,
            "recovered": context.recovered,
            "position": position and {"offset": position.offset, "epoch": position.epoch},
            "data": self._data(context.data),
        }


def _on(event: str, shape: Callable[[Any], dict[str, Any]], **fields: Any) -> Callable[[Any], Awaitable[None]]:
    """Return a handler that writes an event, of what `shape` returns and `fields`."""

    async def handle(context: Any) -> None:
        emit(event, **{**shape(context), **fields})

    return handle


def _change(context: Any) -> dict[str, Any]:
    return {"code": context.code, "reason": context.reason}


def _failure(error: Exception) -> dict[str, Any]:
    """Return an error as the fields `code`, 0 for one that is not the server's, and `message`."""
    if isinstance(error, sdk.ReplyError):
        reply: Any = error
        return {"code": reply.code, "message": reply.message}
    return {"code": 0, "message": str(error)}


def _in_turn(items: list[Any], asked: Callable[[], None]) -> Callable[..., Awaitable[Any]]:
    """Return what the SDK calls for a token or a state: the items in turn, the last one from then on; null refuses."""
    left = list(items)

    async def take(*_: Any) -> Any:
        asked()
        item = left.pop(0) if len(left) > 1 else left[0]
        if item is None:
            raise sdk.UnauthorizedError
        return item

    return take


if __name__ == "__main__":
    asyncio.run(Program(protobuf=sys.argv[1] == "protobuf").run())
