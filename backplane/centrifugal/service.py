"""What the commands of all clients of one endpoint do: the application's hooks, and the verbs of its backplane."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

from pydantic_core import from_json

from backplane.centrifugal.audience import Audiences, info_of
from backplane.centrifugal.codes import (
    LIMIT_EXCEEDED,
    NOT_AVAILABLE,
    PERMISSION_DENIED,
    UNRECOVERABLE_POSITION,
)
from backplane.centrifugal.encoding import JSON, PROTOBUF
from backplane.centrifugal.rpc import RpcRegistry
from backplane.centrifugal.subscriptions import Recovery, epoch_text, position_of, publications
from backplane.errors import ConfigurationError, InvalidTokenError
from backplane.fanout.codec import JsonText
from backplane.message import Gap, Joined, Message, Position
from backplane.presence_types import Who, check_user

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from backplane.centrifugal.client import SdkClient
    from backplane.centrifugal.encoding import Encoding
    from backplane.centrifugal.tokens import SubscribeClaims, Tokens
    from backplane.connection.connection import Connection
    from backplane.connection.envelope import EnvelopeFunction
    from backplane.core import Backplane
    from backplane.presence_types import PresenceView

__all__ = ["Accepted", "Action", "ConnectRequest", "Service"]

Action = Literal["publish", "presence", "history"]
"""What a client asks to do with a channel, beside a subscribe, about which `Backplane.authorize` is asked."""

_ResultT = TypeVar("_ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectRequest:
    """What a client sends when it connects. All of it is the client's own word.

    Attributes:
        token: Its token; empty where it has none.
        data: What its application passes, JSON or bytes; empty where it passes nothing.
        name: The name of the SDK, such as `js`.
        version: A version that its application states.
        headers: What a browser's page cannot set in a handshake, by SDKs that emulate it.
    """

    token: str = ""
    data: bytes = b""
    name: str = ""
    version: str = ""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """How a client is accepted.

    Attributes:
        user: Its user, for presence and for commands such as `disconnect(user=...)`; `None` where it has none.
        info: What is shown with the user, anything JSON.
        data: What the client gets with the reply, anything JSON. Defaults to none.
        channels: The channels that the server subscribes it to.
        expires_at: When its permission runs out, in seconds since the epoch; `None`: never. The SDK renews it by a new
            token. An endpoint without `tokens` closes the client then with 3005, after which it comes back.
    """

    user: str | None = None
    info: Any = None
    data: Any = None
    channels: Sequence[str] = ()
    expires_at: float | None = None

    def over(self, other: Accepted) -> Accepted:
        """Return this, with what `other` states where this states nothing."""
        return Accepted(
            user=self.user if self.user is not None else other.user,
            info=self.info if self.info is not None else other.info,
            data=self.data if self.data is not None else other.data,
            channels=self.channels or other.channels,
            expires_at=self.expires_at if self.expires_at is not None else other.expires_at,
        )


class Service:
    """What one endpoint offers.

    Args:
        backplane: The backplane.
        tokens: Reads tokens; with `None` there are none.
        ping_seconds: Between two pings.
        pong_seconds: How long a client may take to answer one.
        version: What clients receive as the version of the server.

    Attributes:
        rpcs: The registered RPCs.
        audiences: The clients that are notified of joins and leaves.
        envelopes: By the name of an encoding, what makes the push of a message: once for all clients of a worker.
        on_connect, permit, on_message: The hooks of the application.
        ping_seconds, pong_seconds, version: As above.
    """

    def __init__(
        self, backplane: Backplane, tokens: Tokens | None, *, ping_seconds: int, pong_seconds: float, version: str
    ) -> None:
        self._backplane = backplane
        self._tokens = tokens
        self.ping_seconds: int = ping_seconds
        self.pong_seconds: float = pong_seconds
        self.version: str = version
        self.rpcs: RpcRegistry = RpcRegistry()
        self.audiences: Audiences = Audiences(backplane)
        self.envelopes: dict[str, EnvelopeFunction] = {
            encoding.name: _envelope_of(encoding) for encoding in (JSON, PROTOBUF)
        }
        self.on_connect: Callable[..., Any] | None = None
        self.permit: Callable[..., Any] | None = None
        self.on_message: Callable[..., Any] | None = None

    # --- connect and its permission ---

    @property
    def has_tokens(self) -> bool:
        """Whether clients have tokens, which they can renew."""
        return self._tokens is not None

    async def accept(self, client: SdkClient, body: Mapping[str, Any]) -> Accepted:
        """Decide about a client.

        Raises:
            CommandError, InvalidTokenError, TokenExpiredError, TokenCheckUnavailableError: It is refused.
            InvalidDataError: What is to be shown of its user is too large, or no JSON.
            TooManyConnectionsError: Its user has as many connections as are allowed.
        """
        request = ConnectRequest(
            token=body.get("token", ""),
            data=body.get("data", b""),
            name=body.get("name", "")[:16],
            version=body.get("version", "")[:64],
            headers=body.get("headers") or {},
        )
        accepted = Accepted()
        if self._tokens is not None and (request.token or client.user is None):
            claims = await _result(self._tokens.connect(request.token))
            accepted = Accepted(
                user=claims.user or None,
                info=claims.info,
                data=claims.data,
                channels=claims.channels,
                expires_at=claims.expires_at,
            )
        if self.on_connect is not None:
            decided: Accepted | None = await _result(self.on_connect(client.connection, request))
            if decided is not None:
                accepted = decided.over(accepted)
        if accepted.user is not None:
            check_user(accepted.user)
            await client.name_user(Who(user=accepted.user, info=accepted.info))
        return accepted

    async def refresh(self, client: SdkClient, token: str) -> float | None:
        """Return until when a new token permits the connection; `None`: it does not run out.

        Raises:
            CommandError: There are no tokens.
            InvalidTokenError, TokenExpiredError, TokenCheckUnavailableError: The token does not permit it.
        """
        if self._tokens is None:
            raise NOT_AVAILABLE.error()
        claims = await _result(self._tokens.connect(token))
        if client.user != (claims.user or None):
            raise InvalidTokenError("the token is for another user")
        return claims.expires_at

    async def may_subscribe(self, client: SdkClient, channel: str, token: str) -> SubscribeClaims | None:
        """Read the token of a subscribe, which permits it; `None` without one: then `Backplane.authorize` decides.

        Raises:
            InvalidTokenError, TokenExpiredError, TokenCheckUnavailableError: The token does not permit it.
        """
        if self._tokens is None or not token:
            return None
        return await _result(
            self._tokens.subscribe(token, user=client.user or "", channel=channel, client=client.connection.id)
        )

    async def check(self, connection: Connection, action: Action, channel: str) -> None:
        """Check that a client may do this.

        Raises:
            CommandError: It may not: without a hook, no client may.
        """
        if self.permit is None or not await _result(self.permit(connection, action, channel)):
            raise PERMISSION_DENIED.error()

    async def shows_presence(self, connection: Connection, channel: str) -> bool:
        """Return whether a client is notified of joins and leaves of a channel."""
        if not self._backplane.has_presence(channel) or self.permit is None:
            return False
        return bool(await _result(self.permit(connection, "presence", channel)))

    # --- channels ---

    async def recovery(self, channel: str, request: Mapping[str, Any]) -> Recovery:
        """Return what a client that subscribes asks for."""
        newest = None
        if request.get("recover") and not request.get("epoch") and self._backplane.keeps(channel):
            newest = (await self._backplane.history(channel, limit=1)).position
        return Recovery(request, newest)

    async def publish(self, channel: str, encoding: Encoding, data: bytes) -> None:
        """Publish what a client sent, as `_published` has it."""
        await self._backplane.publish(channel, _published(data, is_json=encoding is JSON))

    async def presence(self, channel: str, encoding: Encoding) -> Mapping[str, Any]:
        """Return the users of a channel: one entry for each, by its name."""
        view = await self._view(channel)
        return {name: info_of(name, present.info, encoding) for name, present in view.users.items()}

    async def presence_stats(self, channel: str) -> Mapping[str, Any]:
        """Return how many connections and users a channel has."""
        view = await self._view(channel)
        if view.counts_only:
            raise LIMIT_EXCEEDED.error()
        return {"num_clients": view.connections, "num_users": len(view.users)}

    async def history(self, channel: str, request: Mapping[str, Any], encoding: Encoding) -> Mapping[str, Any]:
        """Return a part of the history of a channel.

        Raises:
            CommandError: It has none, or the position is of another history.
        """
        if not self._backplane.keeps(channel):
            raise NOT_AVAILABLE.error()
        limit, reverse = request.get("limit", 0), request.get("reverse") is True
        top = (await self._backplane.history(channel, limit=1)).position
        result: dict[str, Any] = {"epoch": epoch_text(top), "offset": top.compact or 0, "publications": []}
        if limit == 0:
            return result
        most = _MOST_LISTED if limit < 0 else min(limit, _MOST_LISTED)
        since = request.get("since")
        position = None
        if since is not None:
            position = position_of(since.get("epoch", ""), since.get("offset", 0), top)
            if position is None or position.epoch != top.epoch:
                raise UNRECOVERABLE_POSITION.error()
        messages = await self._messages(channel, position, most, reverse=reverse)
        return result | {"publications": publications(messages, encoding)}

    async def _messages(self, channel: str, since: Position | None, most: int, *, reverse: bool) -> list[Message]:
        """Return messages in the order in which they are asked for; a position is not among them."""
        history = self._backplane.history
        if reverse:
            page = await history(channel, limit=most if since is None else _MOST_LISTED)
            found = [message for message in reversed(page.messages) if since is None or _offset(message) < since.offset]
        elif since is None:
            found = (await history(channel, limit=_MOST_LISTED)).messages
        else:
            page = await history(channel, since=since, limit=most)
            found = page.messages if page.complete else (await history(channel, limit=_MOST_LISTED)).messages
            found = [message for message in found if _offset(message) > since.offset]
        return found[:most]

    async def message(self, connection: Connection, data: bytes) -> None:
        """Take what a client sends to the application; without a hook it is dropped."""
        if self.on_message is not None:
            await _result(self.on_message(connection, data))

    async def _view(self, channel: str) -> PresenceView:
        try:
            return await self._backplane.present(channel)
        except ConfigurationError:
            raise NOT_AVAILABLE.error() from None


_MOST_LISTED: Final = 1_000


def _offset(message: Message) -> int:
    return 0 if message.position is None else message.position.offset


async def _result(answer: Awaitable[_ResultT] | _ResultT) -> _ResultT:
    """Return what a function or a coroutine function of the application returns."""
    return cast("_ResultT", await answer if inspect.isawaitable(answer) else answer)


def _envelope_of(encoding: Encoding) -> EnvelopeFunction:
    def envelope(item: Message | Gap | Joined) -> str | bytes | None:
        assert isinstance(item, Message), "of gaps and joins the client notifies by itself"
        position = item.position
        offset = None if position is None else position.compact
        return encoding.publication(item.channel, item.data, is_json=item.is_json, offset=offset)

    return envelope


def _published(data: bytes, *, is_json: bool) -> str | bytes:
    """Return what is published for what a client sent: JSON as JSON, other text as text, and anything else as bytes."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data
    try:
        if not is_json:
            from_json(text, allow_inf_nan=False, cache_strings=False)
    except ValueError:
        return text
    return JsonText(text or "null") if is_json else JsonText(text)
