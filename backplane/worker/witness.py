"""What this worker states of a client and a channel, when it is asked."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from backplane.channels import RESERVED_PREFIX
from backplane.control.surveys import SurveyError
from backplane.explain.evidence import ClientEvidence, Question, WorkerEvidence
from backplane.explain.near_names import near_names
from backplane.explain.recollection import ended_clients, recent_events, refused_joins
from backplane.worker.client_description import describe_client, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from backplane.control.messages import Command
    from backplane.fanout.subscription import Subscription
    from backplane.worker.clients import LocalClient
    from backplane.worker.runtime import Runtime

__all__ = ["KIND", "make_witness", "testify"]

KIND: Final = "explain"
"""The command that asks a worker."""

# So many questions a second are answered; each can take a look at every client.
_PER_SECOND: Final = 5
_MAX_CLIENTS: Final = 20
_MAX_OTHERS: Final = 100
# Clients in one pass of the event loop: to look at one takes a microsecond.
_SLICE: Final = 2_000
# For so many of them names that resemble the channel's are looked for: each may have joined thousands.
_MAX_WITH_NEAR: Final = 3
_SHORTEST_ID: Final = 4


def make_witness(runtime: Runtime) -> Callable[[Command], Any]:
    """Return what answers the question of another worker, for this one."""
    answered: deque[float] = deque(maxlen=_PER_SECOND)

    async def answer(command: Command) -> dict[str, Any]:
        now = asyncio.get_running_loop().time()
        if len(answered) == _PER_SECOND and now - answered[0] < 1:
            raise SurveyError(f"more than {_PER_SECOND} questions a second: ask again later")
        answered.append(now)
        arguments = command.arguments
        question = Question(
            channel=_text(arguments.get("channel")),
            client=None if arguments.get("client") is None else _text(arguments["client"]),
            test=_text(arguments.get("test")),
        )
        return asdict(await testify(runtime, question, _seconds(arguments.get("seconds"))))

    return answer


async def testify(runtime: Runtime, question: Question, seconds: float) -> WorkerEvidence:
    """Return what this worker knows, once a path test has arrived, or has not within `seconds`."""
    channel, hub, broker = question.channel, runtime.hub, runtime.broker_subscriptions
    test_received = None
    if question.test and (channel in hub.channels or hub.patterns.match(channel) is not None):
        test_received = await runtime.path_tests.wait(channel, _test_id(question.test), seconds)
    is_meant = _matcher(question.client)
    clients = [] if question.client is None else await _clients(runtime, question, is_meant)
    now, worker, health = _now(), runtime.members().own(), runtime.health()
    joined, published = hub.channels.get(channel), runtime.published_channels
    if joined is None and (matched := hub.patterns.match(channel)) is not None:
        joined = matched.counts
    subscribers = hub.audience(channel)
    others = (each for each in runtime.members().workers() if each.is_alive and each != worker)
    return WorkerEvidence(
        worker=worker.id,
        host=worker.host,
        pid=worker.pid,
        version=worker.version,
        broker=runtime.broker_url,
        prefix=runtime.prefix,
        wire_format=runtime.wire_format,
        state=health.state,
        state_seconds=round(now - runtime.state_changed_at, 1),
        received_seconds_ago=round(now - runtime.supervisor.status.session.last_received_at, 1),
        subscribers=subscribers,
        subscribed_seconds_ago=None if joined is None else _seconds_since(joined.since),
        messages=None if joined is None else joined.messages,
        last_message_seconds_ago=None if joined is None else _seconds_since(joined.last_received_at),
        published_seconds_ago=published.seconds_ago(channel),
        wanted=channel in broker.wanted or hub.patterns.is_wanted(channel, confirmed=False),
        confirmed=channel in broker.confirmed or hub.patterns.is_wanted(channel, confirmed=True),
        refused=broker.refusal(channel) or "",
        in_gap=channel in hub.gaps.opened,
        test_received=test_received,
        malformed=hub.malformed,
        unsupported=hub.unsupported,
        gap_seconds_ago=health.last_gap_seconds_ago,
        gap_reason=health.last_gap_reason or "",
        clients=tuple(clients),
        ended=() if question.client is None else ended_clients(runtime.journal, is_meant),
        refused_joins=() if question.client is None else refused_joins(runtime.journal, channel, is_meant),
        near_published=() if channel in published else near_names(channel, published),
        events=recent_events(runtime.journal, channel, {client.id for client in clients}),
        near_channels=()
        if subscribers or question.client is not None
        else near_names(channel, _open_channels(hub.channels)),
        others=tuple((each.id, each.host, each.pid) for each in islice(others, _MAX_OTHERS)),
        near_clients=()
        if clients or question.client is None
        else near_names(question.client, filter(None, map(name_of, _consumers(runtime)))),
    )


def _matcher(client: str | None) -> Callable[[str, str | None], bool]:
    """Return whether a client is meant, by its id and its user."""
    wanted = client or ""
    is_start_of_id = len(wanted) >= _SHORTEST_ID and set(wanted) <= set("0123456789abcdef")

    def is_meant(client_id: str, user: str | None) -> bool:
        return bool(wanted) and (user == wanted or (is_start_of_id and client_id.startswith(wanted)))

    return is_meant


async def _clients(
    runtime: Runtime, question: Question, is_meant: Callable[[str, str | None], bool]
) -> list[ClientEvidence]:
    """Return the clients that are meant, found in several passes of the event loop."""
    found: list[ClientEvidence] = []
    joined = runtime.hub.channels.get(question.channel)
    last = [] if joined is None else [token and token.hex() for token in joined.excluded or ()]
    patterns = runtime.hub.patterns.texts(question.channel)
    for number, client in enumerate(tuple(_consumers(runtime)), 1):
        if is_meant(client.id, name_of(client)):
            found.append(_client(client, question.channel, patterns, last, with_near=len(found) < _MAX_WITH_NEAR))
            if len(found) == _MAX_CLIENTS:
                break
        if number % _SLICE == 0:
            await asyncio.sleep(0)
    return found


def _client(
    client: LocalClient | Subscription,
    channel: str,
    patterns: Sequence[str],
    last: Sequence[str | bytes | None],
    *,
    with_near: bool,
) -> ClientEvidence:
    """Return what is known of a client, with the patterns of the channel, and whom its last messages exclude."""
    joined = channel in client.channels or any(pattern in client.patterns for pattern in patterns)
    return ClientEvidence(
        **describe_client(client, _now()),
        last_messages=len(last),
        excluded=last.count(client.id),
        withheld=client.withheld,
        joined=joined,
        channels=len(client.channels),
        near=() if joined or not with_near else near_names(channel, client.channels),
        when_full=client.outbox.when_full(channel),
    )


def _consumers(runtime: Runtime) -> Iterator[LocalClient | Subscription]:
    """Yield the clients of the worker, and what the application itself has subscribed."""
    yield from runtime.clients.connected
    yield from runtime.subscriptions


def _seconds_since(moment: float | None) -> float | None:
    """Return how long ago a moment was, by the clock of the host, which can have been set back since."""
    return None if moment is None else max(0.0, round(time.time() - moment, 1))


def _now() -> float:
    return asyncio.get_running_loop().time()


def _open_channels(channels: Iterable[str]) -> Iterable[str]:
    return (channel for channel in channels if not channel.startswith(RESERVED_PREFIX))


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 1_000:
        raise SurveyError("the question is not one that this release knows")
    return value


def _test_id(value: str) -> bytes:
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise SurveyError("the question is not one that this release knows") from None


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value <= 30 else 1.0
