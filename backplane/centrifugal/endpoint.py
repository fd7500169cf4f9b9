"""`Centrifugal`: the endpoint for official SDKs, over the channels of a `Backplane`.

centrifugal = Centrifugal(backplane, tokens=JwtTokens(SECRET))

@app.websocket("/connection/websocket")
async def connection(websocket: WebSocket) -> None:
    await centrifugal.serve(websocket)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack, cast

from backplane.centrifugal.client import SdkClient
from backplane.centrifugal.encoding import JSON, PROTOBUF
from backplane.centrifugal.service import Accepted, ConnectRequest, Service
from backplane.errors import ConfigurationError
from backplane.option_checks import check_number

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.websockets import WebSocket

    from backplane.centrifugal.encoding import Encoding
    from backplane.centrifugal.tokens import Tokens
    from backplane.connect_options import ConnectOptions
    from backplane.connection.limits import Limits
    from backplane.core import Backplane
    from backplane.web.handshake import ConnectionScope

__all__ = ["Accepted", "Centrifugal", "ConnectRequest"]

_FunctionT = TypeVar("_FunctionT", bound="Callable[..., Any]")

_MAX_FRAME_BYTES: Final = 1024 * 1024
_PROTOBUF_SUBPROTOCOL: Final = "centrifuge-protobuf"
_JSON_SUBPROTOCOL: Final = "centrifuge-json"


class Centrifugal:
    """Speaks the Centrifugal client protocol, for the official SDKs of seven languages.

    Its clients are in the same channels as those of `Backplane.connect` and `sse`. `Backplane.authorize` is asked at
    each subscribe. To publish, to list who is present, and to read a history a client needs a `permit`.

    Args:
        backplane: The backplane, started or not.
        tokens: Reads the tokens of clients, such as `JwtTokens`. Defaults to none: the handler authenticates the client
            before it calls `serve`, or `on_connect` does.
        ping_seconds: Whole seconds between two pings. Defaults to 25.
        pong_seconds: How long a client may take to answer one; less than `ping_seconds`. Defaults to 10.
        version: What clients receive as the version of the server. Defaults to none.

    Raises:
        ConfigurationError: An option cannot be used.
    """

    def __init__(
        self,
        backplane: Backplane,
        *,
        tokens: Tokens | None = None,
        ping_seconds: int = 25,
        pong_seconds: float = 10.0,
        version: str = "",
    ) -> None:
        check_number("ping_seconds", ping_seconds, whole=True)
        check_number("pong_seconds", pong_seconds)
        if pong_seconds >= ping_seconds:
            raise ConfigurationError(f"pong_seconds must be less than ping_seconds, not {pong_seconds:g}")
        self._backplane = backplane
        self._last_limits: tuple[Limits, bool, Limits] | None = None
        self._service = Service(
            backplane, tokens, ping_seconds=ping_seconds, pong_seconds=pong_seconds, version=version
        )

    def on_connect(self, callback: _FunctionT) -> _FunctionT:
        """Call `callback(connection, request)` when a client connects: it returns `Accepted`, or raises `CommandError`.

        It may also raise what `Tokens.connect` may, with the same effect.
        A function or a coroutine function, called after the token was read. With `None` for an answer what the token
        states is used. It has 4 s, with the joins of the channels that it names.
        """
        self._service.on_connect = callback
        return callback

    def permit(self, callback: _FunctionT) -> _FunctionT:
        """Ask `callback(connection, action, channel)` whether a client may `publish`, or see `presence` or `history`.

        A function or a coroutine function. Without one no client may.
        """
        self._service.permit = callback
        return callback

    def on_message(self, callback: _FunctionT) -> _FunctionT:
        """Call `callback(connection, data)` with what a client sends by `send`; without one it is dropped."""
        self._service.on_message = callback
        return callback

    def rpc(self, method: str) -> Callable[[_FunctionT], _FunctionT]:
        """Register a function that clients can call: `@centrifugal.rpc("orders.get")`.

        Raises:
            ConfigurationError: The method is registered, or the function cannot be used.
        """

        def register(function: _FunctionT) -> _FunctionT:
            self._service.rpcs.register(method, function)
            return function

        return register

    async def serve(self, websocket: WebSocket, **options: Unpack[ConnectOptions]) -> None:
        """Serve one client, until it ends or is handed over as by `Backplane.hand_over`.

        The handshake is that of `connect`: the origin, limits and permission are checked before it is answered. A user
        that the handler knows is passed as `presence=Who(user=...)`; then no token is needed.

        Args:
            websocket: As the framework passed it, not accepted yet.
            **options: Those of `connect`, without `subprotocol`, `envelope`, `on_gap`, `since` and `rewind`: the
                protocol has its own. A client may send frames of 1 MiB, and commands of 64 KiB.

        Raises:
            ConfigurationError: An option is one of the protocol's own, or as `connect`.
            WebSocketException, LifecycleError, ClosedError, NotStartedError, WrongLoopError: As `connect`.
        """
        reserved = {"subprotocol", "envelope", "on_gap", "since", "rewind"} & options.keys()
        if reserved:
            raise ConfigurationError(f"the protocol has its own {', '.join(sorted(reserved))}: leave out the option")
        encoding, subprotocol = _encoding(websocket.scope["subprotocols"], websocket.query_params)
        native_pings = websocket.query_params.get("cf_ws_frame_ping_pong") == "true"
        options["limits"] = self._limits(options.get("limits") or self._backplane.limits, native_pings)
        client = SdkClient(self._service, encoding, who=options.get("presence"), native_pings=native_pings)
        options["subprotocol"] = subprotocol
        scope = cast("ConnectionScope", self._backplane.connect(websocket, **options))
        scope.speak(client)
        client.identify = scope.identify
        await scope.serve(on_open=client.opened, on_message=client.received, on_close=client.closed)

    def _limits(self, limits: Limits, native_pings: bool) -> Limits:
        """Return the limits of a client; those that have the same share them."""
        last = self._last_limits
        if last is None or last[:2] != (limits, native_pings):
            heartbeat = limits.heartbeat_seconds if native_pings else float(self._service.ping_seconds)
            made = replace(limits, heartbeat_seconds=heartbeat, max_message_bytes=_MAX_FRAME_BYTES)
            last = self._last_limits = limits, native_pings, made
        return last[2]


def _encoding(offered: list[str], query: Mapping[str, str]) -> tuple[Encoding, str | None]:
    """Return the encoding of a client, and the subprotocol to accept it with."""
    if _PROTOBUF_SUBPROTOCOL in offered:
        return PROTOBUF, _PROTOBUF_SUBPROTOCOL
    if query.get("cf_protocol") == "protobuf" or query.get("format") == "protobuf":
        return PROTOBUF, None
    return JSON, _JSON_SUBPROTOCOL if _JSON_SUBPROTOCOL in offered else None
