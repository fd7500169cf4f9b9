"""One client of the Centrifugal client protocol: its commands, its pushes, its end.

Commands that wait run side by side, each for 4 s at most, since an SDK waits 5 s for a reply. Of one connection the
publishes keep their order, and so do the subscribes and unsubscribes of one channel. A large reply waits until the
client has read what was sent before. Its channels are in `backplane.centrifugal.client_channels`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, ClassVar, Final

from backplane.centrifugal.asked_channels import AskedChannels
from backplane.centrifugal.client_channels import ClientChannels
from backplane.centrifugal.codes import (
    ALREADY_SUBSCRIBED,
    BAD_REQUEST,
    INTERNAL,
    PERMISSION_DENIED,
    TOO_MANY_REQUESTS,
    UNAVAILABLE,
    UNRECOVERABLE_POSITION,
    Disconnect,
    close_frame,
    close_of,
    error_of,
)
from backplane.centrifugal.command_flow import CommandFlow
from backplane.centrifugal.encoding import MAX_COMMAND_BYTES, BadFrameError
from backplane.centrifugal.expiry import expiry_fields, latest_end
from backplane.centrifugal.subscriptions import SdkSubscription
from backplane.centrifugal.values import as_json
from backplane.connection.ending import what_was_refused
from backplane.connection.receiver import bucket_of
from backplane.errors import PermissionExpiredError
from backplane.journal.events import CLIENT_CLOSED, CLIENT_REFUSED, HOOK_FAILED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from backplane.centrifugal.encoding import Command, Encoding
    from backplane.centrifugal.service import Service
    from backplane.connection.connection import Connection
    from backplane.connection.driver import ConnectionDriver
    from backplane.connection.envelope import EnvelopeFunction
    from backplane.connection.rate import TokenBucket
    from backplane.fanout.batch import Batch
    from backplane.message import Gap, Joined
    from backplane.presence_types import Who

    Handler = Callable[[Any, Command], Awaitable[Mapping[str, Any] | None]]

__all__ = ["SdkClient"]

logger: Final = logging.getLogger("backplane.centrifugal.client")

# An SDK waits 5 s for a reply, and then drops the connection.
_COMMAND_SECONDS: Final = 4.0
# So long a client may take to its connect command.
_STALE_SECONDS: Final = 15.0
_OVERSIZED: Final = f"it is longer than {MAX_COMMAND_BYTES:,} bytes"
# A reply of more bytes waits until nothing else waits for the client.
_LARGE_BYTES: Final = 16 * 1024
# So many commands of a frame begin in one pass of the event loop, some 50 µs each.
_SLICE: Final = 100


class SdkClient:
    """One client. It is the `ClientProtocol` of its connection.

    Args:
        service: What the application has configured, and what commands do.
        encoding: In which the client speaks.
        who: Its user, where the handler of the endpoint knows it.
        native_pings: The client wants pings of WebSocket in place of the protocol's.

    Attributes:
        connection: The connection, once it is accepted.
        encoding: As above.
        identify: Takes the user of the client, where its token or a hook names it.
        pong_seconds: As the service has it.
        who: Its user: the one that a token or a hook names, else the one above.
    """

    __slots__ = (
        "_asked",
        "_awaits_pong",
        "_bucket",
        "_channels",
        "_driver",
        "_flow",
        "_large_replies",
        "_native_pings",
        "_permits",
        "_service",
        "_stale",
        "_state",
        "connection",
        "encoding",
        "identify",
        "who",
    )

    # Each from a moment on: `begin`, `opened`, `serve` of the endpoint.
    _driver: ConnectionDriver
    connection: Connection
    _asked: AskedChannels
    _flow: CommandFlow
    _stale: asyncio.TimerHandle
    identify: Callable[[Who], Awaitable[None]]

    def __init__(
        self, service: Service, encoding: Encoding, *, who: Who | None = None, native_pings: bool = False
    ) -> None:
        self._service = service
        self.encoding: Encoding = encoding
        self.who: Who | None = who
        self._native_pings = native_pings
        self._state = "new"  # then "refused" or "connected"
        self._channels = ClientChannels(self, service.audiences)
        self._permits: asyncio.Lock | None = None
        self._large_replies: asyncio.Lock | None = None
        self._awaits_pong = False
        self._bucket: TokenBucket | None = None

    # --- the connection: backplane.connection.client_protocol ---

    @property
    def pong_seconds(self) -> float:
        """How long the client may take to answer a ping."""
        return self._service.pong_seconds

    @property
    def envelope(self) -> EnvelopeFunction:
        """Returns the push of a message."""
        return self._service.envelopes[self.encoding.name]

    @property
    def held(self) -> Mapping[str, list[Batch] | None]:
        """The channels whose messages are not sent at present."""
        return self._channels.held

    @property
    def pings(self) -> bool:
        """Whether the client is pinged by messages of this protocol."""
        return not self._native_pings

    def begin(self, driver: ConnectionDriver) -> None:
        """Take the connection."""
        self._driver = self._channels.driver = driver

    def joined(self, joined: Joined) -> None:
        """Take the notice of a join."""
        self._channels.joined(joined)

    def missed(self, batch: Batch) -> None:
        """Take what is given back of a channel that is held."""
        self._channels.missed(batch)

    def left(self, channel: str) -> None:
        """Notify the client that the application let it leave a channel."""
        self._channels.left(channel)

    def gap(self, gap: Gap) -> None:
        """Notify the client, in its turn, that messages may be missing."""
        self._channels.gap(gap)

    def message(self, data: str | bytes) -> str | bytes | None:
        """Return the push of what the application sends to this client alone; before the reply to its connect, none.

        SDKs ignore a push that comes before that reply.
        """
        if not self.is_connected:
            return None
        return self.encoding.push("", "message", {"data": self.encoding.embed(data, is_json=False)})

    def ping(self) -> str | bytes:
        """Return a ping, whose answer is expected."""
        self._awaits_pong = True
        return self.encoding.ping

    def close_frame(self, code: int, reason: str) -> tuple[int, str]:
        """Return the close code of this protocol."""
        return close_frame(code, reason)

    # --- callbacks ---

    def opened(self, connection: Connection) -> None:
        """Wait for the connect command."""
        self.connection = connection
        limits = self._driver.policy.limits
        self._bucket = bucket_of(limits)
        self._asked = AskedChannels(limits.max_channels)
        self._flow = CommandFlow(limits.max_running_commands)
        self._stale = asyncio.get_running_loop().call_later(_STALE_SECONDS, self._give_up)

    def closed(self, _: Connection) -> None:
        """End: drop what refers to this. No command runs any more, and no timer is left that calls this."""
        self._stale.cancel()
        self._channels.clear()
        del self._driver

    async def received(self, connection: Connection, frame: str | bytes) -> None:
        """Take one frame: its commands, in their order."""
        try:
            for number, command in enumerate(self.encoding.decode(frame), 1):
                if connection.is_over:
                    return
                await self._take(command)
                if not number % _SLICE:
                    await asyncio.sleep(0)
        except BadFrameError as error:
            words = "closing connection %(connection)s, a bad request: %(reason)s"
            self._driver.log(logger, CLIENT_CLOSED, words, code=int(Disconnect.BAD_REQUEST), reason=error)
            await connection.close(Disconnect.BAD_REQUEST, "bad request")

    async def _take(self, command: Command) -> None:
        """Carry out a command, or begin to.

        Raises:
            BadFrameError: It is not legal at this point.
        """
        if self._state == "refused":
            return
        if not command.name:
            awaited, self._awaits_pong = self._awaits_pong, False
            if not awaited:
                raise BadFrameError("a pong that was not asked for")
            return
        if self._state == "new":
            if command.name != "connect":
                raise BadFrameError("a command before the connect")
            if command.oversized:
                self._state = "refused"
                self._refuse(command, BAD_REQUEST.error(), _OVERSIZED)
            else:
                await self._answer_connect(command)
            return
        handler = self._HANDLERS.get(command.name)
        if handler is None:
            raise BadFrameError("a second connect")
        if command.oversized:
            return self._refuse(command, BAD_REQUEST.error(), _OVERSIZED)
        if self._bucket is not None and not self._bucket.take(asyncio.get_running_loop().time()):
            return self._refuse(command, TOO_MANY_REQUESTS.error())
        await self._flow.enter()
        self.connection.spawn(self._run(command, handler))

    @property
    def is_connected(self) -> bool:
        """Whether its connect was answered: before that reply SDKs ignore pushes."""
        return self._state == "connected"

    @property
    def user(self) -> str | None:
        """The name of its user."""
        return None if self.who is None else self.who.user

    async def name_user(self, who: Who) -> None:
        """Take the user of the client, which its token or a hook names.

        Raises:
            TooManyConnectionsError: The user has as many connections as are allowed.
        """
        self.who = who
        await self.identify(who)

    async def _run(self, command: Command, handler: Handler) -> None:
        try:
            async with asyncio.timeout(_COMMAND_SECONDS), self._flow.turn(command):
                await self._carry_out(command, handler)
        except Exception as error:
            self._refuse(command, error)
        finally:
            self._flow.leave()

    async def _carry_out(self, command: Command, handler: Handler) -> None:
        """Carry out a command and reply."""
        result = await handler(self, command)
        if result is None:
            return
        channel: str = command.body.get("channel", "")
        reply = self.encoding.reply(command.id, command.name, result)
        is_of_join, is_large = command.name in ("connect", "subscribe"), len(reply) > _LARGE_BYTES
        if is_large and command.name != "connect":
            await self._until_read(channel if is_of_join else None)
        if is_of_join or is_large:
            self._push_at_join(reply, channel)
        else:
            self.push(reply)
        self._replied(command)

    async def _until_read(self, joined: str | None) -> None:
        """Wait until nothing waits for the client, one reply after the other.

        Args:
            joined: The channel that has been joined, and must be left if the client does not read.
        """
        self._large_replies = self._large_replies or asyncio.Lock()
        try:
            async with self._large_replies:
                await self._driver.sender.drained()
        except BaseException:
            if joined is not None:
                self._channels.leave(joined)
            raise
        if joined is not None and joined not in self._channels:  # it has ended meanwhile
            raise UNAVAILABLE.error()

    def _refuse(self, command: Command, error: Exception, reason: str = "") -> None:
        """Answer a command that failed by an error, or close the client, and log why."""
        driver = self._driver
        if driver.is_over:
            return
        answer, reason = error_of(error), reason or str(error) or type(error).__name__
        if answer is None:
            answer = INTERNAL
            words = "%(command)s of connection %(connection)s failed"
            driver.log(logger, HOOK_FAILED, words, command=command.name, hook=command.name, exc_info=error)
        elif command.name == "connect":
            level = logging.INFO if isinstance(error, PermissionExpiredError) else None
            what = what_was_refused(error)
            words = "refused the connect of connection %(connection)s: %(reason)s"
            driver.log(logger, CLIENT_REFUSED, words, level=level, what=what, command="connect", reason=reason)
        else:
            words = "refused a %(command)s of connection %(connection)s: %(reason)s"
            info = logging.INFO
            driver.log(logger, CLIENT_REFUSED, words, level=info, what="command", command=command.name, reason=reason)
        if (end := close_of(command.name, error)) is not None:
            driver.closing.close(*end)
        elif command.id:
            self.push(self.encoding.error(command.id, answer.code, answer.message, answer.temporary))

    def _replied(self, command: Command) -> None:
        """Send what was held for the reply."""
        if command.name == "connect":
            for subscription in self._channels:
                self._channels.release(subscription)
        elif command.name == "subscribe" and (found := self._channels.get(command.body["channel"])) is not None:
            if found.shows_presence:
                self._service.audiences.begin(found.channel, self)
            self._channels.release(found)

    # --- commands ---

    async def _answer_connect(self, command: Command) -> None:
        try:
            async with asyncio.timeout(_COMMAND_SECONDS):
                await self._carry_out(command, SdkClient._connect)
        except Exception as error:
            self._refuse(command, error)

    async def _connect(self, command: Command) -> Mapping[str, Any] | None:
        body = command.body
        self._state = "refused"  # until it is accepted, for whatever reason it is not
        accepted = await self._service.accept(self, body)
        result: dict[str, Any] = {"client": self.connection.id, "version": self._service.version}
        if accepted.data is not None:
            result["data"] = as_json(self.encoding, accepted.data)
        if accepted.expires_at is not None and not self._service.has_tokens:  # there is none that could be renewed
            self.connection.expire_at(accepted.expires_at)
        elif accepted.expires_at is not None:
            self.connection.expire_at(latest_end(accepted.expires_at))
            result |= expiry_fields(accepted.expires_at)
        if self.pings:
            result |= {"ping": self._service.ping_seconds, "pong": True}
        await self._join_all(accepted.channels, body.get("subs") or {})
        # Of these, and of commands of the application meanwhile.
        if subscriptions := {each.channel: each.result(self.encoding) for each in self._channels}:
            result["subs"] = subscriptions
        self._stale.cancel()
        self._state = "connected"
        return result

    async def _join_all(self, channels: Sequence[str], requests: Mapping[str, Any]) -> None:
        """Join the channels that the server subscribes the client to."""
        await self._channels.join_all(
            [
                SdkSubscription(
                    channel, await self._service.recovery(channel, requests.get(channel) or {}), is_server_side=True
                )
                for channel in dict.fromkeys(channels)
                if channel not in self._channels
            ]
        )

    async def _subscribe(self, command: Command) -> Mapping[str, Any]:
        body = command.body
        channel = body["channel"]
        if channel in self._channels:
            raise ALREADY_SUBSCRIBED.error()
        if body.get("type") or body.get("tf") or body.get("delta"):
            raise BAD_REQUEST.error()
        try:
            permission = await self._service.may_subscribe(self, channel, body.get("token", ""))
        except Exception as error:
            self._driver.policy.join_failed(channel, error, self._driver)
            raise
        granted: dict[str, Any] = {}
        if permission is not None:
            granted = expiry_fields(permission.expires_at)
            if permission.data is not None:
                granted["data"] = as_json(self.encoding, permission.data)
        subscription = SdkSubscription(channel, await self._service.recovery(channel, body))
        subscription.is_permitted = permission is not None
        if body.get("join_leave"):
            subscription.shows_presence = await self._service.shows_presence(self.connection, channel)
        await self._channels.join(subscription)
        if subscription.recovery.rejects and subscription.keeps_history and subscription.is_lost:
            self._channels.leave(channel)
            raise UNRECOVERABLE_POSITION.error()
        if permission is not None:
            self._channels.expire(subscription, permission.expires_at)
        return subscription.result(self.encoding) | granted

    async def _unsubscribe(self, command: Command) -> Mapping[str, Any]:
        channel = command.body["channel"]
        subscription = self._channels.get(channel)
        if subscription is not None and not subscription.is_server_side:
            self._channels.leave(channel)
        return {}

    async def _publish(self, command: Command) -> Mapping[str, Any]:
        channel, data = command.body["channel"], command.body.get("data", b"")
        if command.body.get("type"):
            raise BAD_REQUEST.error()
        if self._permits is None:
            self._permits = asyncio.Lock()
        async with self._permits:
            await self._service.check(self.connection, "publish", channel)
        await self._service.publish(channel, self.encoding, data)
        return {}

    async def _presence(self, command: Command) -> Mapping[str, Any]:
        channel = await self._seen_channel(command)
        return {"presence": await self._service.presence(channel, self.encoding)}

    async def _presence_stats(self, command: Command) -> Mapping[str, Any]:
        return await self._service.presence_stats(await self._seen_channel(command))

    async def _seen_channel(self, command: Command) -> str:
        """Return the channel of a request for presence, which the client may see, and one more of which it may ask."""
        channel: str = command.body["channel"]
        await self._service.check(self.connection, "presence", channel)
        self._asked.note(channel, asyncio.get_running_loop().time())
        return channel

    async def _history(self, command: Command) -> Mapping[str, Any]:
        channel = command.body["channel"]
        await self._service.check(self.connection, "history", channel)
        return await self._service.history(channel, command.body, self.encoding)

    async def _rpc(self, command: Command) -> Mapping[str, Any]:
        body = command.body
        data = await self._service.rpcs.call(
            body.get("method", ""), self.connection, body.get("data", b""), self._driver.policy.journal
        )
        return {"data": self.encoding.embed(data, is_json=True)}

    async def _send(self, command: Command) -> None:
        await self._service.message(self.connection, command.body.get("data", b""))

    async def _refresh(self, command: Command) -> Mapping[str, Any] | None:
        expires_at = await self._service.refresh(self, command.body.get("token", ""))
        self.connection.expire_at(latest_end(expires_at))
        return {"client": self.connection.id, "version": self._service.version} | expiry_fields(expires_at)

    async def _sub_refresh(self, command: Command) -> Mapping[str, Any]:
        channel, token = command.body.get("channel"), command.body.get("token", "")
        if not channel or command.body.get("type"):  # centrifuge-python 0.5 sends no channel
            raise BAD_REQUEST.error()
        subscription = self._channels.get(channel)
        if subscription is None:
            raise PERMISSION_DENIED.error()
        if not token:  # it would permit the subscription for ever
            raise BAD_REQUEST.error()
        try:
            permission = await self._service.may_subscribe(self, channel, token)
        except PermissionExpiredError:
            # After an error SDKs stay unsubscribed. After this they subscribe again, and get a new token; a reply that
            # states no expiry is ignored.
            self._channels.end_expired(subscription)
            return {}
        expires_at = None if permission is None else permission.expires_at
        if self._channels.get(channel) is subscription:
            self._channels.expire(subscription, expires_at)
        return expiry_fields(expires_at)

    _HANDLERS: ClassVar[Mapping[str, Handler]] = {
        "subscribe": _subscribe,
        "unsubscribe": _unsubscribe,
        "publish": _publish,
        "presence": _presence,
        "presence_stats": _presence_stats,
        "history": _history,
        "rpc": _rpc,
        "send": _send,
        "refresh": _refresh,
        "sub_refresh": _sub_refresh,
    }

    # --- sending ---

    def push(self, data: str | bytes) -> None:
        """Send a push or a reply, unless the connection is over."""
        if not self._driver.is_over:
            self._driver.transmit(data)

    def _push_at_join(self, data: str | bytes, channel: str) -> None:
        """Send a reply that makes no client too slow: of a join, or a large one."""
        outbox = self._driver.outbox
        outbox.allow(channel, 1, len(data))
        self.push(data)
        outbox.settle()

    def _give_up(self) -> None:
        words = "closing connection %(connection)s: no connect within %(seconds)g s"
        self._driver.log(logger, CLIENT_CLOSED, words, code=int(Disconnect.STALE), seconds=_STALE_SECONDS)
        self._driver.closing.close(Disconnect.STALE, "stale")
