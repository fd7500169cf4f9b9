"""The verbs of a `Backplane` that concern connections on every worker."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, overload

from backplane.channels import validate_channel
from backplane.close_codes import CloseCode, check_close, close_reason
from backplane.connection.connection import Connection
from backplane.control.commands import data_arguments
from backplane.control.messages import Selector
from backplane.errors import ConfigurationError, InvalidDataError
from backplane.fanout.codec import to_client_data
from backplane.option_checks import check_number
from backplane.presence_types import check_user

if TYPE_CHECKING:
    from backplane.cluster_types import Answers
    from backplane.worker.lifecycle import Lifecycle

__all__ = ["CommandVerbs"]

_ID: Final = re.compile("[0-9a-f]{16}")


class CommandVerbs:
    """Commands to connections of a user or a channel. Each states whether it needs `Backplane(cluster=True)`."""

    _lifecycle: Lifecycle

    @overload
    async def disconnect(
        self,
        *,
        user: str | None = None,
        connection: Connection | str | None = None,
        channel: str | None = None,
        exclude: Connection | str | None = None,
        older_than: Connection | str | None = None,
        code: int = CloseCode.FORBIDDEN,
        reason: str = "",
    ) -> None: ...
    @overload
    async def disconnect(
        self,
        *,
        user: str | None = None,
        connection: Connection | str | None = None,
        channel: str | None = None,
        exclude: Connection | str | None = None,
        older_than: Connection | str | None = None,
        code: int = CloseCode.FORBIDDEN,
        reason: str = "",
        confirm_seconds: float,
    ) -> Answers: ...
    async def disconnect(
        self,
        *,
        user: str | None = None,
        connection: Connection | str | None = None,
        channel: str | None = None,
        exclude: Connection | str | None = None,
        older_than: Connection | str | None = None,
        code: int = CloseCode.FORBIDDEN,
        reason: str = "",
        confirm_seconds: float | None = None,
    ) -> Answers | None:
        """Close all connections and event streams of a user, on every worker.

        Returns when the broker has the command. A worker that is cut off from the broker at this moment does not
        receive it: `confirm_seconds` names it. So a ban belongs into `authorize` and into the login; this only hastens
        it. Connections in their handshake are closed too. What waits for a client is dropped: what it should be
        notified of belongs into `reason`. Workers without `cluster` (or `presence`) apply no command.
        Commands of one worker are applied in their order, and each once.

        Args:
            user: The user: that of `presence=Who(user=...)`, else the `client_key` of `connect`.
            connection: A connection, or its id. One of user, connection and channel must be given; where several are,
                all must apply.
            channel: Only connections that have joined it.
            exclude: A connection, or its id, that stays.
            older_than: A connection of this worker, or its id: only those that were opened before it are closed, by the
                clocks of their workers. For one session per user, called with the connection that the user has just
                opened: of two that are opened at the same moment exactly one stays. Needs `cluster`.
            code: The close code; event streams just end. Defaults to 4503, after which a client stays away.
            reason: Why, in words, for the close frame.
            confirm_seconds: Wait so long for the workers to confirm, and return how many connections each has begun to
                close. Needs `cluster`. Defaults to not waiting.

        Raises:
            ConfigurationError: Nothing is selected, `code`, `reason` or `confirm_seconds` cannot be used, or
                `confirm_seconds` or `older_than` without `cluster`.
            InvalidDataError: `user`, `connection`, `exclude` or `older_than` is not one.
            InvalidChannelError: The name of the channel is not legal.
            BrokerUnavailableError, PublishError: Not published.
            PublishOutcomeUnknownError: The link ended, or time ran out, before the broker's answer.
            NotStartedError, ClosedError: The backplane is not running, or the connection of `older_than` has ended.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        check_close(code, reason)
        selector = _selector(user, connection, channel, exclude)
        if older_than is not None:
            if exclude is not None:
                raise ConfigurationError("older_than leaves out the connection itself: do not pass exclude with it")
            newest = _id_of("older_than", older_than)
            opened_at = self._lifecycle.running().members().opened_at(newest)
            selector = replace(selector, exclude=newest, opened_before=opened_at)
        arguments = {"code": int(code), "reason": close_reason(code, reason)}
        return await self._command("disconnect", selector, arguments, confirm_seconds)

    async def leave(
        self,
        *,
        channel: str,
        user: str | None = None,
        connection: Connection | str | None = None,
        confirm_seconds: float | None = None,
    ) -> Answers | None:
        """Let all connections of a user leave `channel`, on every worker; see `disconnect` for what is returned.

        Args:
            channel: The channel.
            user: The user.
            connection: A connection, or its id. Without a user and a connection, all leave.
            confirm_seconds: As in `disconnect`.

        Raises:
            ConfigurationError, InvalidDataError, InvalidChannelError, BrokerError, NotStartedError, ClosedError,
                WrongLoopError: As in `disconnect`.
        """
        selector = _selector(user, connection, validate_channel(channel), None)
        return await self._command("leave", selector, {"channel": channel}, confirm_seconds)

    async def join(
        self,
        *,
        channel: str,
        user: str | None = None,
        connection: Connection | str | None = None,
        confirm_seconds: float | None = None,
    ) -> Answers | None:
        """Let all connections of a user join `channel`, on every worker. `authorize` is asked as at any join.

        Args:
            channel: The channel.
            user: The user.
            connection: A connection, or its id.
            confirm_seconds: As in `disconnect`; a worker answers how many have joined.

        Raises:
            ConfigurationError, InvalidDataError, InvalidChannelError, BrokerError, NotStartedError, ClosedError,
                WrongLoopError: As in `disconnect`.
        """
        selector = _selector(user, connection, None, None)
        return await self._command("join", selector, {"channel": validate_channel(channel)}, confirm_seconds)

    async def send_to(
        self,
        *,
        data: object,
        user: str | None = None,
        connection: Connection | str | None = None,
        exclude: Connection | str | None = None,
        confirm_seconds: float | None = None,
    ) -> Answers | None:
        """Send `data` to all connections of a user, on every worker, without an envelope.

        What one worker sends arrives in the order of the calls, and waits in the backlog of a client as a message of a
        channel does: one that is too slow for it is closed. Every worker receives each command: for frequent messages a
        channel for each user is cheaper. Nothing of it is kept: a connection that is away does not get it.

        Args:
            data: `str` is sent as text, `bytes` as binary, anything else as JSON text.
            user: The user.
            connection: A connection, or its id.
            exclude: A connection, or its id, that does not get it.
            confirm_seconds: As in `disconnect`; a worker answers to how many connections it has handed it.

        Raises:
            ConfigurationError, InvalidDataError, BrokerError, NotStartedError, ClosedError, WrongLoopError: As in
                `disconnect`.
            PayloadTooLargeError: It is over the adapter's limit.
        """
        selector = _selector(user, connection, None, exclude)
        return await self._command("send", selector, data_arguments(to_client_data(data)), confirm_seconds)

    async def count_connections(
        self, *, user: str, exclude: Connection | str | None = None, timeout_seconds: float = 2.0
    ) -> Answers:
        """Ask every worker how many connections a user has: `sum(answers.by_worker.values())` in all.

        It counts those that are in their handshake too, and none that is being closed. For a limit across workers there
        is `Limits(max_connections_per_user=...)`: two handlers that ask here at the same moment both count each other.

        Args:
            user: The user.
            exclude: A connection, or its id, that does not count.
            timeout_seconds: How long to wait for the workers. Defaults to 2.

        Raises:
            ConfigurationError: Without `cluster`, or `timeout_seconds` is not a number more than 0.
            InvalidDataError, BrokerError, NotStartedError, ClosedError, WrongLoopError: As in `disconnect`.
        """
        check_number("timeout_seconds", timeout_seconds)
        selector = _selector(user, None, None, exclude)
        return await self._lifecycle.running().members().requests.ask("count", selector, {}, timeout_seconds)

    async def _command(
        self, kind: str, selector: Selector, arguments: dict[str, Any], confirm_seconds: float | None
    ) -> Answers | None:
        runtime = self._lifecycle.running()
        if confirm_seconds is None:
            await runtime.requests().command(kind, selector, arguments)
            return None
        check_number("confirm_seconds", confirm_seconds)
        return await runtime.members().requests.ask(kind, selector, arguments, confirm_seconds)


def _selector(
    user: str | None,
    connection: Connection | str | None,
    channel: str | None,
    exclude: Connection | str | None,
) -> Selector:
    """Return which connections are meant.

    Raises:
        ConfigurationError: None are.
        InvalidDataError, InvalidChannelError: A name is none.
    """
    if user is None and connection is None and channel is None:
        raise ConfigurationError("name the connections that are meant: user=..., connection=... or channel=...")
    if user is not None:
        check_user(user)
    if channel is not None:
        validate_channel(channel)
    return Selector(
        user=user,
        connection=None if connection is None else _id_of("connection", connection),
        channel=channel,
        exclude=None if exclude is None else _id_of("exclude", exclude),
    )


def _id_of(name: str, connection: object) -> str:
    """Return the id of a connection or event stream that was passed as `name`.

    Raises:
        InvalidDataError: It is none. A wrong one would select nothing, without an error.
    """
    if isinstance(connection, Connection):
        return connection.id
    if isinstance(connection, str) and _ID.fullmatch(connection):
        return connection
    raise InvalidDataError(f"{name} takes a Connection, or its id, not {connection!r:.100}")
