"""What a worker states of a client and a channel, when it is asked why the one does not receive the other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

__all__ = [
    "MAX_NAME",
    "ClientEvidence",
    "EndedClient",
    "Question",
    "RefusedJoin",
    "WorkerEvidence",
    "is_client_name",
    "parse_evidence",
]

MAX_NAME: Final = 512
"""Longest name of a client that can be asked for, in characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked.

    Attributes:
        channel: The channel.
        client: The id of a connection, event stream or subscription, the first digits of one (four or more), or a user,
            a `client_key` or the name of a subscription. `None`: any client.
        test: The id of a path test that was published on the channel, as hex digits; empty where there is none.
    """

    channel: str
    client: str | None = None
    test: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientEvidence:
    """One client of a worker.

    Attributes:
        id: Its random name.
        user: Its user or `client_key`, or the name of a subscription, where there is one.
        kind: `connection`, `event stream`, or `subscription` for one of the application itself.
        transport: `lane`, `handed over`, `asgi`, `sse`, or nothing for a subscription.
        state: Where it is between its handshake and its end.
        joined: It has joined the channel.
        channels: How many channels it has joined.
        near: Those of them whose names resemble the channel's, where it has not joined that.
        dropped: How many messages were dropped for it.
        when_full: What happens to a message that does not fit into what may wait for it.
        waiting_messages, waiting_bytes: What waits for it in this package.
        transport_bytes: What the server has buffered for it; `None` where that is not known.
        received_seconds_ago: When it last sent anything, its answers to pings included; `None` where not known.
        last_messages: Of how many of the last messages of the channel it is known whom they exclude.
        excluded: How many of these were published with `exclude=` this client.
        withheld: For how many messages, on any channel, its `envelope` returned `None`, so that they were not sent.
    """

    id: str
    user: str | None = None
    kind: str = "connection"
    transport: str = ""
    state: str = "open"
    joined: bool = False
    channels: int = 0
    near: tuple[str, ...] = ()
    dropped: int = 0
    when_full: str = ""
    waiting_messages: int = 0
    waiting_bytes: int = 0
    transport_bytes: int | None = None
    received_seconds_ago: float | None = None
    last_messages: int = 0
    excluded: int = 0
    withheld: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedClient:
    """A client that has ended lately.

    Attributes:
        id: As of `ClientEvidence`.
        user: As there.
        kind: As there.
        code: With which code it was closed; `None` where there was none, as its network ended.
        by: Who closed it: `client`, `server`, or `worker`, which is this package.
        reason: Why, in words.
        seconds_ago: How long ago it ended.
    """

    id: str
    user: str | None = None
    kind: str = "connection"
    code: int | None = None
    by: str = ""
    reason: str = ""
    seconds_ago: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedJoin:
    """A join of the channel that was refused lately to a client that is meant.

    Attributes:
        client: The id of the client.
        by: What refused it: `authorize`, `broker` or `limit`.
        reason: Why, in words.
        seconds_ago: How long ago.
    """

    client: str
    by: str = "authorize"
    reason: str = ""
    seconds_ago: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEvidence:
    """One worker. What another version of this package states beside is dropped.

    Attributes:
        worker: Its id.
        host, pid: Where it runs.
        version: Of this package.
        broker: The URL of its broker, without its password.
        prefix: The prefix of its channels on the broker.
        wire_format: In which format it publishes.
        state: How its link is.
        state_seconds: For how long it has been so.
        received_seconds_ago: When the last message came from the broker, a probe included.
        subscribers: How many clients of it have joined the channel.
        subscribed_seconds_ago: When the first of them did.
        messages: How many messages of the channel it has received since; `None` where that is not counted.
        last_message_seconds_ago: When the last of them.
        published_seconds_ago: When it last published on the channel itself; `None` where that is not known.
        wanted: It has asked the broker to deliver the channel.
        confirmed: The broker has confirmed that.
        refused: Why the broker has refused it; empty where it has not.
        in_gap: Messages of the channel may be missing, and its subscribers are not notified yet.
        test_received: The path test has arrived; `None` where it was not waited for: no client has joined.
        malformed, unsupported: Messages that were dropped since the start, on any channel.
        gap_seconds_ago: When clients were last notified of a gap, on any channel; `None` where they never were.
        gap_reason: Why.
        clients: The clients that are meant.
        ended: Those of them that have ended.
        refused_joins: Joins of the channel by them that were refused.
        events: What it has logged lately of the channel, or of these clients, the last one first: how many seconds ago,
            and the sentence.
        near_published: Channels whose names resemble this one's, that it has published to lately, where it has
            published nothing on this one.
        near_channels: Channels of the worker whose names resemble this one's, where no client has joined it.
        others: The id, host and process of the other workers that it knows to be alive, up to 100.
        near_clients: Users of the worker whose names resemble the one that is asked for, where there is none.
    """

    worker: str
    host: str = ""
    pid: int = 0
    version: str = ""
    broker: str = ""
    prefix: str = ""
    wire_format: str = ""
    state: str = ""
    state_seconds: float = 0.0
    received_seconds_ago: float | None = None
    subscribers: int = 0
    subscribed_seconds_ago: float | None = None
    messages: int | None = None
    last_message_seconds_ago: float | None = None
    published_seconds_ago: float | None = None
    wanted: bool = False
    confirmed: bool = False
    refused: str = ""
    in_gap: bool = False
    test_received: bool | None = None
    malformed: int = 0
    unsupported: int = 0
    gap_seconds_ago: float | None = None
    gap_reason: str = ""
    clients: tuple[ClientEvidence, ...] = ()
    ended: tuple[EndedClient, ...] = ()
    refused_joins: tuple[RefusedJoin, ...] = ()
    events: tuple[tuple[float, str], ...] = ()
    near_published: tuple[str, ...] = ()
    near_channels: tuple[str, ...] = ()
    near_clients: tuple[str, ...] = ()
    others: tuple[tuple[str, str, int], ...] = ()

    @property
    def name(self) -> str:
        """How it is named in sentences: its host and process."""
        return f"{self.host or '?'}/{self.pid}"


def is_client_name(name: object) -> bool:
    """Return whether a client can be asked for by this name: one that JSON can hold."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        return False
    try:
        name.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates, or a byte of the command line that is no UTF-8
        return False
    return True


def parse_evidence(answer: object) -> WorkerEvidence | None:
    """Return what a worker has answered; `None` where that is none."""
    try:
        evidence: WorkerEvidence = _adapter().validate_python(answer)
    except ValidationError:
        return None
    return evidence


@cache  # made where it is first needed: most processes never do
def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(WorkerEvidence)
