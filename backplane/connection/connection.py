"""One client as the application sees it: `Connection`. `backplane.connection.driver` is what runs it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

from backplane.close_codes import CloseCode, check_close
from backplane.connection.expiry import moment_of
from backplane.connection.validation import parse
from backplane.errors import ClosedError, InvalidMessageError
from backplane.fanout.codec import to_client_data

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
    from datetime import datetime

    from pydantic import TypeAdapter

    from backplane.connection.close_sequence import ConnectionState
    from backplane.connection.driver import ConnectionDriver
    from backplane.fanout.backlog import FullPolicy
    from backplane.fanout.subscriber_options import Since
    from backplane.message import Message, Position

__all__ = ["Connection"]

_ModelT = TypeVar("_ModelT")
_ResultT = TypeVar("_ResultT")

# After so many sends that did not suspend, the other tasks of the event loop get a turn.
_SENDS_PER_TURN: Final = 32


class Connection:
    """One client, for as long as `Backplane.connect` is entered, which makes it.

    Iterating yields what the client sends, `str` or `bytes`, and ends when either side closes. What is published to its
    channels is sent to it in order per channel, whether the handler iterates or not. One task receives at a time, by
    iterating, `iter` or `receive`: a second one that waits at the same moment raises `LifecycleError`.

    Used from another event loop, thread or process than the one it was made in, each of its methods raises
    `WrongLoopError`; what only reads (`id`, `user`, `channels`, `is_over`, `state`, `context`) is safe anywhere.
    """

    __slots__ = ("_driver", "_sends")

    def __init__(self, driver: ConnectionDriver) -> None:
        self._driver = driver
        self._sends = 0

    def __repr__(self) -> str:
        return f"<Connection {self.id} {self.state} channels={list(self.channels)}>"

    @property
    def id(self) -> str:
        """Random name of it, unique among all workers; `publish(exclude=...)` takes it too."""
        return self._driver.id

    @property
    def kind(self) -> str:
        """`connection`: what it is among the clients that `authorize` is asked about."""
        return self._driver.kind

    @property
    def user(self) -> str | None:
        """The user of it: that of `connect(presence=Who(user=...))`, or of the checked token of an SDK client.

        `None` where none is named, and for an SDK client until it is. A `client_key` is no user.
        """
        return self._driver.user

    @property
    def channels(self) -> Collection[str]:
        """The channels it has joined."""
        return self._driver.channels

    @property
    def patterns(self) -> Collection[str]:
        """The patterns it has joined, which are not among `channels`."""
        return self._driver.patterns

    @property
    def context(self) -> Any:
        """What `connect(context=...)` was given: the application's own, such as the user."""
        return self._driver.context

    @context.setter
    def context(self, context: Any) -> None:
        self._driver.context = context

    @property
    def state(self) -> ConnectionState:
        """Where it is between its handshake and its end: `joining`, `open`, `draining`, `closing`, `closed`."""
        return self._driver.state

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or is about to, and nothing more reaches the client: `closing` or `closed`."""
        return self._driver.is_over

    @property
    def resumed(self) -> bool:
        """Whether the client passed a position, and gets exactly what it missed: in order, once, nothing missing.

        `True` where at least one join was given a position (`since`), by `connect` or `join`, and all that were could
        be resumed. `False` at a first visit, and as soon as one join could not be: then the client should load again
        what it shows, as after a gap. What is given back waits already; a frame that is sent now comes after it.
        """
        return self._driver.resumed

    def position(self, channel: str) -> Position | None:
        """Return the position up to which the client has been sent `channel`; pass it back as `since`.

        A frame that is sent with `send` after this call follows every message up to this position, and precedes every
        message after it that is received after `send` has begun. So a client whose messages have no envelope can be
        sent positions from time to time: what it then gets twice is what came after the last of them. A message that
        the connection's `Backlog` dropped, or that excludes the client, counts as sent.

        Each call delivers at once what this worker has received in this pass of the event loop, to all subscribers:
        call it every few seconds for a client, not for every message.

        `None` where the channel is not joined, has no history, or its position is not known.
        """
        self._driver.affinity.check()
        return self._driver.position(channel)

    async def join(
        self,
        channel: str,
        *,
        since: Since = None,
        rewind: int = 0,
        when_full: FullPolicy | None = None,
        latest_by: Callable[[Message], object] | None = None,
        presence: bool = False,
    ) -> None:
        """Receive what is published to `channel`; once this returns no later publish is missed without a gap.

        Joining again changes nothing but the policy and `presence`. Cancelling leaves the channel unjoined.

        Args:
            channel: What to receive.
            since: The position up to which the client has received the channel, as text, such as it sent: what was
                published after it is sent first, in order and once. Where that is no longer kept, or it is no position
                of this channel, `resumed` becomes `False`, `on_gap` is called if it is a function, and a client with an
                envelope gets a gap; a join closes no client. Or a mapping of such positions by channel. `None` or "" at
                a first visit.
            rewind: How many of the newest messages are sent first where `since` is not given, or cannot be served.
                Defaults to 0.
            when_full: What happens to a message of this channel that does not fit into what may wait for the client.
                Defaults to the policy of the connection's `Backlog`, whose bounds apply to all channels together.
            latest_by: With `latest`, the key of the channel's messages; see `Backlog`.
            presence: Whether the client is sent the users of the channel, once they are known, and then every change,
                in the format of `backplane.presence.frames`; each frame is made once for all clients of this worker.
                Called again, it begins anew. Defaults to `False`, which changes nothing.

        Raises:
            ConfigurationError: `since` or `rewind` is of another type, or no channel has a history to rewind; or
                `presence`, and the channel has no `Presence` rule, or the client is one of an SDK: that subscribes with
                `joinLeave` where it wants to be notified.
            InvalidChannelError: The name is not legal.
            JoinRefusedError: The application's `authorize` refused the channel.
            TooManyChannelsError: It has joined as many as are allowed.
            SubscribeError: The broker refused the channel.
            BrokerUnavailableError: The broker did not confirm in time.
            ClosedError: It has ended.
        """
        policy = self._driver.outbox.policy(when_full, latest_by)
        notified = self._driver.presence_frames(channel) if presence else None
        await self._driver.join(channel, since=since, rewind=rewind)
        self._driver.outbox.set_policy(channel, policy)
        if notified is not None:
            notified.notify(self._driver, channel)

    async def update_presence(self, channel: str, *, info: Any = None) -> None:
        """Replace the `info` that is shown with the user of this connection in `channel`.

        Seen by every worker after 0.1 s and the way over the broker; of several calls in that time only the last one.
        What one worker changes in a channel is sent `workers of the channel / 20` seconds apart: with 100 workers every
        5 s. Of a user with several connections the `info` that was changed last is shown, whichever it is of.
        A call for a channel that is not joined changes nothing.

        Args:
            channel: The channel.
            info: Anything JSON, of at most 256 bytes.

        Raises:
            ConfigurationError: The connection has no user (`connect(presence=Who(...))`), or the channel no presence.
            InvalidDataError: `info` is not JSON, or larger.
            ClosedError: The connection has ended.
        """
        self._driver.affinity.check()
        self._driver.check_attached()
        self._driver.presence(channel).update(self._driver, channel, info)

    async def leave(self, channel: str) -> None:
        """Receive nothing more of `channel`; what waits is still sent. Leaving what was not joined changes nothing."""
        await self._driver.leave(channel)
        self._driver.outbox.set_policy(channel, None)

    async def join_pattern(self, pattern: str) -> None:
        """Receive what is published to every channel that `pattern` matches, as `prices.*`; `join` joins a plain name.

        A client with an envelope is sent the real channel of each message. One that is wanted in several ways is sent
        once. After a loss the client gets a gap under the pattern, or for each channel where these are known: nothing
        is kept for a pattern, so it has no position. Presence does not count it, and it counts as a channel in
        `Limits.max_channels`. Joining twice changes nothing.

        Args:
            pattern: `*` is any run of characters, also none; every other character is itself.

        Raises:
            ConfigurationError: The adapter of the broker has no patterns.
            InvalidChannelError: It is no legal name, or has no `*`.
            JoinRefusedError: The application's `authorize_pattern` refused it, or there is none.
            TooManyChannelsError: It has joined as many as are allowed.
            SubscribeError: The broker refused it.
            BrokerUnavailableError: The broker did not confirm in time.
            ClosedError: It has ended.
        """
        await self._driver.join_pattern(pattern)

    async def leave_pattern(self, pattern: str) -> None:
        """Receive nothing more because of `pattern`; what waits is still sent. Leaving it twice changes nothing."""
        await self._driver.leave_pattern(pattern)

    async def send(self, data: object) -> None:
        """Send `data` to this client alone, after what already waits for it; returns when the server has taken it.

        `str` is sent as text, `bytes` as binary, anything else as JSON text. A client that does not read makes it wait;
        the bounds of its backlog count here too.

        Raises:
            InvalidDataError: `data` is none of these.
            ClosedError: The connection is over: the client is gone or was closed, perhaps while this waited. An
                ordinary end, which goes no further than the `connect` block.
        """
        driver = self._driver
        driver.affinity.check()
        if driver.is_over:
            # A loop that ignores the error would never suspend otherwise: no other task would run, and a cancellation
            # of the loop's own task would never reach it.
            await asyncio.sleep(0)
        driver.check_attached()
        driver.send(to_client_data(data))
        await driver.sender.drained()
        self._sends += 1
        if not self._sends % _SENDS_PER_TURN:
            await asyncio.sleep(0)
        driver.check_attached()

    async def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Close with `code`; iteration ends, what still waits is dropped. Closing again changes nothing.

        Args:
            code: See `CloseCode`. The range of a code of the application's own decides whether the client reconnects by
                itself: after 4000 to 4499 it does, after 4500 to 4999 it does not.
            reason: Why, in words; cut after 123 bytes of UTF-8, as a close frame takes no more. Defaults to the name of
                the code.

        Raises:
            ConfigurationError: A close frame cannot carry `code` (1005, 1006, 5000, no number), or `reason` is no text;
                the connection stays as it is.
        """
        self._driver.affinity.check()
        check_close(code, reason)
        await self._driver.close(code, reason)

    def expire_at(self, moment: float | datetime | None) -> None:
        """Close with code 4001 at `moment`; `None`: never. Call it again when the client has shown a new token.

        Args:
            moment: In seconds since the epoch, as in a token's `exp`, or a `datetime` with a time zone.

        Raises:
            ConfigurationError: It is no such moment (a duration, milliseconds, a `datetime` without a time zone).
        """
        self._driver.affinity.check()
        self._driver.expire_at(moment_of(moment))

    def spawn(self, work: Coroutine[Any, Any, _ResultT], *, name: str | None = None) -> asyncio.Task[_ResultT]:
        """Run `work` beside the handler until it is done or the connection ends; then it is cancelled and awaited.

        Where it swallows that, it is cancelled again, every `handler_grace_seconds`. An error in it closes the
        connection as it would in the handler: with code 1011, and logged, where it is no ordinary end (see
        `Backplane.connect`).
        """
        try:
            self._driver.affinity.check()
            self._driver.check_not_ended()
        except BaseException:
            work.close()
            raise
        return self._driver.tasks.spawn(work, name or f"backplane-connection-{self.id}")

    @overload
    async def receive(self) -> str | bytes | None: ...
    @overload
    async def receive(self, model: type[_ModelT] | TypeAdapter[_ModelT]) -> _ModelT | None: ...
    @overload
    async def receive(self, model: object) -> Any: ...
    async def receive(self, model: Any = None) -> Any:
        """Return the client's next message, as it is or as `model`; `None` when the connection has ended.

        Args:
            model: Anything pydantic can validate, such as a class, `Join | Leave` or a `TypeAdapter`. A type checker
                knows what a class or a `TypeAdapter` returns; anything else is `Any` to it.

        Raises:
            InvalidMessageError: It does not validate; `error.answer` is fit to be sent back. The connection goes on.
            LifecycleError: Another task receives.
        """
        self._driver.affinity.check()
        data = await self._driver.receiver.next()
        if model is None or data is None:
            return data
        try:
            return parse(model, data)
        except InvalidMessageError as error:
            self._driver.count_invalid(error)
            raise

    @overload
    def iter(
        self, model: type[_ModelT] | TypeAdapter[_ModelT], *, on_invalid: Literal["answer", "close"] = "answer"
    ) -> AsyncIterator[_ModelT]: ...
    @overload
    def iter(self, model: object, *, on_invalid: Literal["answer", "close"] = "answer") -> AsyncIterator[Any]: ...
    async def iter(self, model: Any, *, on_invalid: Literal["answer", "close"] = "answer") -> AsyncIterator[Any]:
        """Yield what the client sends as `model`, until either side closes.

        Args:
            model: Anything pydantic can validate, as in `receive`.
            on_invalid: What happens to a message that does not validate: `answer` sends back what is wrong and goes on,
                `close` ends the connection with code 1007.
        """
        while (data := await self.receive()) is not None:
            try:
                parsed = parse(model, data)
            except InvalidMessageError as error:
                self._driver.count_invalid(error)
                if on_invalid == "close":
                    await self.close(CloseCode.INVALID_DATA, "invalid message")
                else:
                    with suppress(ClosedError):  # what the client sent before it left is still yielded
                        await self.send(error.answer)
            else:
                yield parsed

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        return self

    def __anext__(self) -> Awaitable[str | bytes]:
        driver = self._driver
        driver.affinity.check()
        # Not a coroutine of its own: an idle connection would pay for one more that is suspended.
        return driver.receiver.iterate()
