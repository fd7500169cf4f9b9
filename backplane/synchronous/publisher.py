"""The publishers of synchronous code, such as `Backplane.sync`, and their typed channels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

from backplane.close_codes import CloseCode
from backplane.concurrency.affinity import refuse_in_event_loop
from backplane.synchronous.publisher_thread import GRACE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from pydantic import TypeAdapter

    from backplane.cluster_types import Answers
    from backplane.concurrency.call_queue import CallQueue
    from backplane.connection.connection import Connection
    from backplane.message import Receipt
    from backplane.synchronous.publisher_thread import PublisherThreads
    from backplane.typed_channel import TypedChannel
    from backplane.worker.transaction_publisher import TransactionPublisher

__all__ = ["AsyncPublisher", "SyncPublisher", "SyncTypedChannel", "WorkerPublisher"]

ModelT = TypeVar("ModelT")
_T = TypeVar("_T")


class AsyncPublisher(Protocol):
    """An object that publishes and sends commands in an event loop, and makes typed channels: a `Backplane`."""

    async def publish(
        self,
        channel: str,
        data: object,
        *,
        exclude: Connection | str | None = None,
        idempotency_key: str | bytes | None = None,
    ) -> Receipt:
        """Publish `data`."""
        ...

    def channel(self, template: str, model: object) -> TypedChannel[Any]:
        """Return the channels of `template`."""
        ...

    @property
    def disconnect(self) -> Callable[..., Coroutine[Any, Any, Answers | None]]:
        """Close all connections of a user."""
        ...

    @property
    def leave(self) -> Callable[..., Coroutine[Any, Any, Answers | None]]:
        """Let all connections of a user leave a channel."""
        ...

    @property
    def join(self) -> Callable[..., Coroutine[Any, Any, Answers | None]]:
        """Let all connections of a user join a channel."""
        ...

    @property
    def send_to(self) -> Callable[..., Coroutine[Any, Any, Answers | None]]:
        """Send to all connections of a user."""
        ...


class SyncPublisher(ABC):
    """Publishes and sends commands from any thread, and waits.

    `backplane.sync` of a `Backplane`, or a `backplane.sync.SyncBackplane`.

    Args:
        backplane: Makes the typed channels.
        transactions: Publishes inside transactions.
    """

    def __init__(self, backplane: AsyncPublisher, transactions: TransactionPublisher) -> None:
        self._backplane = backplane
        self._transactions = transactions

    def publish(
        self,
        channel: str,
        data: object,
        *,
        exclude: Connection | str | None = None,
        idempotency_key: str | bytes | None = None,
    ) -> Receipt:
        """Publish `data` to every subscriber of `channel`; returns and raises as `Backplane.publish` does.

        Safe from any thread; the publishes of one thread keep their order. A publish runs in the context of its caller
        (`contextvars`). After an exception that interrupts the wait, such as `KeyboardInterrupt` or the time limit of a
        task queue, it is unknown whether the message was published.

        Args:
            channel: Where to.
            data: `str` is received as text, `bytes` as binary, anything else as JSON text.
            exclude: A connection, or its id, that does not receive it.
            idempotency_key: Publishes one message for all calls with this key: the way for a task that is run again.

        Raises:
            BackplaneError: As `Backplane.publish`; where this call has to connect first, as `Backplane.start` too.
            WrongLoopError: An event loop runs in this thread, which the call would block: `await` the other one.
        """
        return self._run(
            lambda backplane: backplane.publish(channel, data, exclude=exclude, idempotency_key=idempotency_key)
        )

    def publish_in(
        self,
        session: object,
        channel: str,
        data: object,
        *,
        exclude: Connection | str | None = None,
        idempotency_key: str | bytes | None = None,
    ) -> None:
        """Publish `data` when, and only when, the transaction of `session` commits: on `postgres://`.

            with sessions.begin() as session:
                session.add(order)
                backplane.publish_in(session, "orders", order)

        As `Backplane.publish_in`, for a session or connection of SQLAlchemy, or a connection or cursor of psycopg, that
        are not asynchronous. The statement is executed in this thread; it needs no thread and no link of its own.

        Raises:
            BackplaneError: As `Backplane.publish_in`; `ConfigurationError` also where the object is asynchronous.
            Exception: What the library of the session raises where the server refuses the statement, and later the
                commit.
        """
        self._transactions.publish_sync(session, channel, data, exclude, idempotency_key)

    @abstractmethod
    def _run(self, verb: Callable[[AsyncPublisher], Coroutine[Any, Any, _T]]) -> _T:
        """Call a verb of a backplane in its event loop, and wait for its end."""

    def disconnect(
        self,
        *,
        user: str | None = None,
        connection: Connection | str | None = None,
        channel: str | None = None,
        exclude: Connection | str | None = None,
        code: int = CloseCode.FORBIDDEN,
        reason: str = "",
    ) -> None:
        """Close all connections and event streams of a user, on every web worker; see `Backplane.disconnect`.

        For a `def` endpoint, a task queue or a script that bans a user: `backplane.sync.disconnect(user="u42")`.
        Returns when the broker has the command, without a confirmation of the workers; each must run with
        `cluster=True` or `presence`. As with `publish`, after an exception that interrupts the wait it is unknown
        whether it was sent.

        Raises:
            BackplaneError: As `Backplane.disconnect`; where this call has to connect first, as `Backplane.start` too.
            WrongLoopError: An event loop runs in this thread, which the call would block.
        """
        self._run(
            lambda backplane: backplane.disconnect(
                user=user, connection=connection, channel=channel, exclude=exclude, code=code, reason=reason
            )
        )

    def leave(self, *, channel: str, user: str | None = None, connection: Connection | str | None = None) -> None:
        """Let all connections of a user leave `channel`, on every web worker; see `Backplane.leave`.

        Returns and raises as `disconnect`.
        """
        self._run(lambda backplane: backplane.leave(channel=channel, user=user, connection=connection))

    def join(self, *, channel: str, user: str | None = None, connection: Connection | str | None = None) -> None:
        """Let all connections of a user join `channel`, on every web worker; see `Backplane.join`.

        Returns and raises as `disconnect`.
        """
        self._run(lambda backplane: backplane.join(channel=channel, user=user, connection=connection))

    def send_to(
        self,
        *,
        data: object,
        user: str | None = None,
        connection: Connection | str | None = None,
        exclude: Connection | str | None = None,
    ) -> None:
        """Send `data` to all connections of a user, on every web worker; see `Backplane.send_to`.

        Returns and raises as `disconnect`.
        """
        self._run(lambda backplane: backplane.send_to(data=data, user=user, connection=connection, exclude=exclude))

    @overload
    def channel(self, template: str, model: type[ModelT] | TypeAdapter[ModelT]) -> SyncTypedChannel[ModelT]: ...
    @overload
    def channel(self, template: str, model: object) -> SyncTypedChannel[Any]: ...
    def channel(self, template: str, model: object) -> SyncTypedChannel[Any]:
        """Return the channels of `template` as ones whose messages are checked by `model`, to publish to.

            orders = backplane.sync.channel("orders:{id}", Order)
            orders.publish(Order(...), id=42)

        Raises:
            ConfigurationError: The template or the type cannot be used.
            InvalidChannelError: The template has no placeholders and is no legal channel.
        """
        return SyncTypedChannel(self, self._backplane.channel(template, model))


class WorkerPublisher(SyncPublisher):
    """`Backplane.sync`: through the event loop in which the backplane is started, else through a thread of its own.

    Args:
        backplane: The backplane that publishes where it is started.
        transactions: Publishes inside transactions.
        calls: Returns the queue of calls into its event loop; `None` where it was never started in this process.
        threads: Publish where it is not started.
        publish_timeout_seconds: The longest time that a publish takes.
    """

    def __init__(
        self,
        backplane: AsyncPublisher,
        transactions: TransactionPublisher,
        calls: Callable[[], CallQueue | None],
        threads: PublisherThreads,
        publish_timeout_seconds: float,
    ) -> None:
        super().__init__(backplane, transactions)
        self._calls = calls
        self._threads = threads
        self._seconds = publish_timeout_seconds + GRACE_SECONDS

    def _run(self, verb: Callable[[AsyncPublisher], Coroutine[Any, Any, _T]]) -> _T:
        refuse_in_event_loop()
        calls = self._calls()
        if calls is None:
            return self._threads.run(verb)
        return calls.run(lambda: verb(self._backplane), seconds=self._seconds)


class SyncTypedChannel(Generic[ModelT]):
    """Channels whose messages are all of one type, as `SyncPublisher.channel` makes them."""

    def __init__(self, publisher: SyncPublisher, typed: TypedChannel[ModelT]) -> None:
        self._publisher = publisher
        self._typed = typed

    def __repr__(self) -> str:
        return f"<Sync{repr(self._typed)[1:]}"

    def name(self, **placeholders: object) -> str:
        """Return the channel's name; raises as `TypedChannel.name`."""
        return self._typed.name(**placeholders)

    def publish(
        self,
        message: ModelT | Mapping[str, Any],
        /,
        *,
        exclude: Connection | str | None = None,
        idempotency_key: str | bytes | None = None,
        **placeholders: object,
    ) -> Receipt:
        """Publish `message` as JSON text; raises as `TypedChannel.publish` and `SyncPublisher.publish`."""
        channel = self.name(**placeholders)
        data = self._typed.encode(message)
        return self._publisher.publish(channel, data, exclude=exclude, idempotency_key=idempotency_key)

    def publish_in(
        self,
        session: object,
        message: ModelT | Mapping[str, Any],
        /,
        *,
        exclude: Connection | str | None = None,
        idempotency_key: str | bytes | None = None,
        **placeholders: object,
    ) -> None:
        """Publish `message` at the commit; raises as `TypedChannel.publish_in` and `SyncPublisher.publish_in`."""
        channel = self.name(**placeholders)
        data = self._typed.encode(message)
        self._publisher.publish_in(session, channel, data, exclude=exclude, idempotency_key=idempotency_key)
