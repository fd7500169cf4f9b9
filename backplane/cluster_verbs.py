"""What `Backplane` has for all workers together: presence, commands, surveys, the list of workers."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from backplane.channels import validate_channel
from backplane.close_codes import CloseCode, check_close, close_reason
from backplane.connection.connection import Connection
from backplane.control.commands import data_arguments
from backplane.control.messages import Selector
from backplane.errors import ConfigurationError, InvalidDataError
from backplane.explain.evidence import Question, is_client_name
from backplane.fanout.codec import to_client_data
from backplane.journal.ring import KINDS
from backplane.option_checks import check_number
from backplane.presence_types import check_user
from backplane.stats.queries import ChannelQuery, ConnectionQuery
from backplane.worker.recent_events import MOST, ask_events
from backplane.worker.why import ask_why

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection

    from backplane.cluster_types import Answers, Worker
    from backplane.control.surveys import SurveyHandler, Surveys
    from backplane.explain.explanation import Explanation
    from backplane.presence.watch import PresenceWatch
    from backplane.presence_types import PresenceView
    from backplane.stats.lists import ChannelList, ConnectionList
    from backplane.stats.overviews import Overviews
    from backplane.stats.queries import ChannelOrder, ConnectionOrder
    from backplane.worker.lifecycle import Lifecycle

__all__ = ["ClusterVerbs"]

_ID: Final = re.compile("[0-9a-f]{16}")

_HandlerT = TypeVar("_HandlerT", bound="SurveyHandler")


class ClusterVerbs:
    """The verbs of a `Backplane` that concern all workers. Each states whether it needs `Backplane(cluster=True)`."""

    _lifecycle: Lifecycle
    _surveys: Surveys

    # --- presence ---

    async def present(self, channel: str) -> PresenceView:
        """Return the users of `channel`, on all workers.

        A channel that this worker does not watch yet takes one way over the broker and back where another worker that
        has a client in it watches it; otherwise 1.3 seconds, the time in which every worker can answer; and 2 seconds
        at most, after which the view is `stale`. It is kept for 30 seconds for the next call. What the clients of
        this worker did before the call is in it. While the link to the broker is lost it returns at once what was known
        last, as `stale`.

        Args:
            channel: The channel, which must have a `Presence` rule.

        Raises:
            InvalidChannelError: The name is not legal.
            ConfigurationError: The channel has no rule.
            NotStartedError, ClosedError: The backplane is not running.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        return await self._lifecycle.running().members().present(validate_channel(channel))

    @asynccontextmanager
    async def watch(self, channel: str) -> AsyncGenerator[PresenceWatch]:
        """Watch the users of `channel`: `async with backplane.watch("room:1") as presence: async for item in presence`.

        The first item is a `PresenceSnapshot`, as soon as the other workers have answered; then each change is a
        `PresenceChange` with the next version. Every worker that watches counts versions of its own: a change can be
        one item at one worker and two at another, and a user who was there for less than 0.1 s may be in none.

        Args:
            channel: The channel, which must have a `Presence` rule.

        Raises:
            InvalidChannelError: The name is not legal.
            ConfigurationError: The channel has no rule.
            NotStartedError, ClosedError: The backplane is not running.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        cluster = self._lifecycle.running().members()
        watch = cluster.watch(validate_channel(channel))
        try:
            yield watch
        finally:
            cluster.end_watch(watch)

    # --- figures of all workers ---

    @asynccontextmanager
    async def overviews(self, *, interval_seconds: float = 2.0, with_rates: bool = False) -> AsyncGenerator[Overviews]:
        """Watch the figures of all workers: `async with backplane.overviews() as overviews: async for overview in ...`.

        Workers send their figures only while a process watches: each sends some 4 KB every 2 seconds to all that watch,
        however many these are; above 50 workers less often, so that those that watch receive no more than 25 of them a
        second.

        Args:
            interval_seconds: The time between two items, which is at least the one in which the workers send. Defaults
                to 2.
            with_rates: Wait with the first item until it has the rates of all workers, some 2 seconds.

        Raises:
            ConfigurationError: Without `cluster`, or `interval_seconds` is not a number more than 0.
            NotStartedError, ClosedError: The backplane is not running.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        check_number("interval_seconds", interval_seconds)
        cluster = self._lifecycle.running().members()
        overviews = cluster.overviews(interval_seconds=interval_seconds, with_rates=with_rates)
        try:
            yield overviews
        finally:
            cluster.end_watch(overviews)

    async def list_channels(
        self,
        *,
        sort: ChannelOrder = "subscribers",
        prefix: str = "",
        limit: int = 50,
        after: str | None = None,
        timeout_seconds: float = 2.0,
    ) -> ChannelList:
        """Ask all workers for their channels, one page at a time; `missing` names those that did not answer.

        Where there are more channels than `limit`, workers are asked twice.

        Args:
            sort: `subscribers`: those with the most first. `name`: by name, and then `after` gives the next page.
            prefix: Only channels that start with it.
            limit: Most rows, at most 200. Defaults to 50.
            after: The name of the last row of the page before.
            timeout_seconds: How long to wait for answers, each time. Defaults to 2.

        Raises:
            ConfigurationError: Without `cluster`, or an argument cannot be used.
            BrokerError, NotStartedError, ClosedError, WrongLoopError: As in `survey`.
        """
        check_number("timeout_seconds", timeout_seconds)
        query = ChannelQuery(sort=sort, prefix=prefix, limit=limit, after=after)
        return await self._lifecycle.running().members().lists.channels(query, timeout_seconds)

    async def list_connections(
        self,
        *,
        worker: str | None = None,
        channel: str | None = None,
        client: str | None = None,
        sort: ConnectionOrder = "waiting",
        limit: int = 50,
        after: str | None = None,
        timeout_seconds: float = 2.0,
    ) -> ConnectionList:
        """Ask all workers for their clients, one page at a time; `missing` names those that did not answer.

        Args:
            worker: The id of a worker (`Worker.id`): only its clients.
            channel: Only clients that have joined it.
            client: Only the one with this id, or those of this user.
            sort: Those with the most first: bytes that are `waiting`, `dropped` messages, `channels`; or the newest
                (`opened`).
            limit: Most rows, at most 200. Defaults to 50.
            after: The `position` of the last row of the page before.
            timeout_seconds: How long to wait for answers. Defaults to 2.

        Raises:
            ConfigurationError: Without `cluster`, or an argument cannot be used.
            BrokerError, NotStartedError, ClosedError, WrongLoopError: As in `survey`.
        """
        check_number("timeout_seconds", timeout_seconds)
        query = ConnectionQuery(channel=channel, client=client, sort=sort, limit=limit, after=after)
        return await self._lifecycle.running().members().lists.connections(query, worker, timeout_seconds)

    async def recent_events(
        self, *, kinds: Collection[str] = (), limit: int = 100, timeout_seconds: float = 2.0
    ) -> Answers:
        """Ask all workers for their last notable events: gaps, slow clients, refusals, ends, changes of links, faults.

        Each worker keeps the last of each kind in memory, and answers with a list, the oldest first. An event is a
        `dict` with `number`, `at` (seconds since the epoch, by the clock of the worker), `event`, `level`, `text` and
        `fields`, as in [the log](../operations/logs.md). Names of channels and clients are in it as they are.

        Args:
            kinds: Only events of these kinds: 200 each are kept of `gaps` (with slow clients), `ended` (clients) and
                `refusals`; 100 each of `states` (of the link, of the drain), `actions` (on the live page), `faults` and
                `broker` (what the adapter found there); 50 `details` of it. Defaults to all.
            limit: Most events of one worker, at most 200; the newest. Defaults to 100.
            timeout_seconds: How long to wait for answers. Defaults to 2.

        Raises:
            ConfigurationError: Without `cluster`, an argument is not a number in its bounds, or a kind is not known.
            BrokerError, NotStartedError, ClosedError, WrongLoopError: As in `survey`.
        """
        check_number("timeout_seconds", timeout_seconds)
        check_number("limit", limit, whole=True)
        if limit > MOST:
            raise ConfigurationError(f"limit must be at most {MOST}, not {limit}")
        if not set(kinds) <= set(KINDS):
            raise ConfigurationError(f"kinds are some of {', '.join(KINDS)}, not {kinds!r:.100}")
        return await ask_events(self._lifecycle.running().members(), kinds, limit, timeout_seconds)

    # --- one client ---

    async def explain(
        self,
        *,
        channel: str,
        client: Connection | str | None = None,
        test: bool = True,
        timeout_seconds: float = 2.0,
    ) -> Explanation:
        """Find out why a client does not receive a channel: ask every worker, and follow a message on its way.

        A test message is published on the channel. It takes the way of any other; no client, stream, subscription or
        history gets it. Each worker with a subscriber waits for it, half of the time at most, and states what it knows
        of the client and the channel. The first fault on the way is the verdict, with what to do about it.

        It sees as far as the server's socket: what a proxy or the client itself does with a message is not known. Of
        clients that have ended and of joins that were refused a worker remembers the last 200. Each worker answers five
        questions a second.

        Args:
            channel: The channel.
            client: A connection, its id or at least the first four digits of it; the id of an event stream or of a
                subscription; or a user, a `client_key` or the name of a subscription. Defaults to any client: then the
                channel alone is looked at.
            test: Whether a test message is published. Defaults to `True`; `Settings(path_test=False)` prevents it.
            timeout_seconds: How long to wait for the workers. Defaults to 2.

        Raises:
            InvalidChannelError: The name is not legal.
            InvalidDataError: `client` is empty, or longer than 512 characters.
            ConfigurationError: Without `cluster`, or `timeout_seconds` is not a number more than 0.
            BrokerUnavailableError, PublishOutcomeUnknownError: The question could not be published, from a process that
                is no worker. A worker answers from what it knows itself then.
            PublishError: The broker refused the question. A test message that it refused is stated in the explanation.
            NotStartedError, ClosedError: The backplane is not running.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        check_number("timeout_seconds", timeout_seconds)
        asked = client.id if isinstance(client, Connection) else client
        if asked is not None and not is_client_name(asked):
            raise InvalidDataError(f"client is a connection, an id, a user or a client_key, not {asked!r:.100}")
        question = Question(channel=validate_channel(channel), client=asked)
        return await ask_why(self._lifecycle.running(), question, test=test, seconds=timeout_seconds)

    # --- workers and surveys ---

    async def workers(self) -> list[Worker]:
        """Return the workers of the cluster that are known, this one first.

        Those that have ended are among them for two minutes more, with `is_alive=False`. After the start it takes a
        heartbeat (3 seconds) until all others are known.

        Raises:
            ConfigurationError: Without `cluster=True`.
            NotStartedError, ClosedError: The backplane is not running.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        return self._lifecycle.running().members().workers()

    def on_survey(self, name: str) -> Callable[[_HandlerT], _HandlerT]:
        """Answer surveys named `name` by a function of the question, on this worker: `@backplane.on_survey("load")`.

        A function or a coroutine function, which returns anything JSON (what `publish` takes, except bytes that are not
        UTF-8). It may take nine tenths of the time that the survey waits, and 60 seconds at most; then it is cancelled.
        What it raises is logged here, and the caller of `survey` is given the name of the error's class.

        Raises:
            ConfigurationError: The name is no text, or has a handler already.
        """

        def register(handler: _HandlerT) -> _HandlerT:
            self._surveys.set(name, handler)
            return handler

        return register

    async def survey(self, name: str, question: object = None, *, timeout_seconds: float = 2.0) -> Answers:
        """Ask every worker, and return what those answered that did, and which did not.

        Returns as soon as all workers that are alive have answered, at the latest after `timeout_seconds`. A worker
        that ends in order meanwhile is missing at once; one that was killed counts as alive, and is waited for, until
        `worker_down_seconds` after its last heartbeat. No answer raises.

        Args:
            name: Which handler (`on_survey`) is to answer.
            question: Anything JSON, which the handler is passed.
            timeout_seconds: How long to wait, sending included. Defaults to 2; handlers may take nine tenths of it, and
                60 seconds at most.

        Raises:
            ConfigurationError: Without `cluster`, or `timeout_seconds` is not a number more than 0.
            InvalidDataError: The question is not JSON.
            BrokerUnavailableError, PublishError, PayloadTooLargeError: The question could not be published.
            PublishOutcomeUnknownError: The link ended, or time ran out, before the broker's answer.
            NotStartedError, ClosedError: The backplane is not running.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        check_number("timeout_seconds", timeout_seconds)
        # A worker whose handler hangs answers that in time, which sets it apart from one that is gone.
        arguments = {"name": name, "question": question, "seconds": 0.9 * timeout_seconds}
        return await self._lifecycle.running().members().requests.ask("survey", Selector(), arguments, timeout_seconds)

    # --- commands ---

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
