"""JetStream's requests: to create a stream, to look at it, and to read from it.

Each is a publish to a subject of the server with a reply in JSON, or, of a direct read, as a message:
https://docs.nats.io/reference/reference-protocols/nats_api_reference.
"""

from __future__ import annotations

import json
import re
import time
from base64 import b64decode
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from pydantic import BaseModel

from backplane.adapters.nats.errors import unavailable
from backplane.adapters.nats.requests import status_of
from backplane.adapters.shared.error_chain import reason_of
from backplane.errors import BrokerError, BrokerUnavailableError, PublishError, PublishOutcomeUnknownError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping

    from backplane.adapters.nats.channel_log import Stream
    from backplane.adapters.nats.link import NatsLink
    from backplane.adapters.nats.requests import Reply

__all__ = ["JetStream", "JetStreamError", "NoResponderError", "StoredMessage", "StreamInfo", "StreamState", "answer_of"]

NO_MESSAGE: Final = 10037
NO_STREAM: Final = 10059
_OTHER_CONFIG: Final = 10058
_NEEDS_MAX_BYTES: Final = 10113
_MAX_BYTES_ABOVE_LIMIT: Final = (10023, 10028, 10047, 10122)  # of the server or the account, for memory or files
_NOT_ENABLED: Final = (10039, 10076)  # for the account, on the server
_NO_RESPONDER: Final = 503
_END_OF_BATCH: Final = 204
_NOT_FOUND: Final = 404
_NANOSECONDS: Final = 1_000_000_000

DUPLICATE_WINDOW_SECONDS: Final = 300
"""How long a second message with the same id is dropped. A stream must keep messages as long, the server demands."""


class JetStreamError(BrokerError):
    """JetStream refuses a request.

    Attributes:
        number: The server's number of the error (`err_code`).
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message, adapter="nats")
        self.number: int = number


class NoResponderError(BrokerUnavailableError):
    """No server answers requests to this subject: it has no JetStream, or there is no such stream at the moment."""


class _Config(BaseModel):
    subjects: list[str] = []
    max_msgs_per_subject: int = -1
    max_age: int = 0
    storage: str = ""
    num_replicas: int = 1
    max_bytes: int = -1
    duplicate_window: int = 0
    allow_direct: bool = False
    republish: dict[str, Any] | None = None


class StreamState(BaseModel):
    """The messages of a stream.

    Attributes:
        first_seq: Number of the oldest message.
        last_seq: Number of the newest message that there ever was.
        subjects: How many messages the subjects have, of those that were asked for.
    """

    first_seq: int = 0
    last_seq: int = 0
    subjects: dict[str, int] | None = None


class StreamInfo(BaseModel):
    """What the server knows of a stream.

    Attributes:
        created: When it was created.
        config: Its configuration.
        state: Its first and its last message.
        ts: The server's time. Servers since 2.10 send it.
    """

    created: str
    ts: str = ""
    config: _Config
    state: StreamState = StreamState()

    @property
    def now(self) -> float:
        """The server's time, by which it states when a message was stored; this machine's where it is not known."""
        return _time(self.ts) if self.ts else time.time()


class StoredMessage(NamedTuple):
    """A message of a stream.

    Attributes:
        subject: Its subject.
        sequence: Its number.
        stored_at: When it was stored, in seconds since the Unix epoch by the server's clock.
        payload: Its payload.
    """

    subject: bytes
    sequence: int
    stored_at: float
    payload: bytes


@dataclass(frozen=True, slots=True)
class JetStream:
    """JetStream at the other end of a link.

    Attributes:
        link: The link.
    """

    link: NatsLink

    async def info(self, stream: Stream, subject: bytes | None = None) -> StreamInfo:
        """Return what the stream's leader knows of it.

        Args:
            stream: The stream.
            subject: Count the messages of this subject.

        Raises:
            JetStreamError: There is no such stream, or the account has no JetStream.
            NoResponderError: The server has no JetStream.
            BrokerError: The user may not ask.
        """
        count = None if subject is None else {"subjects_filter": subject.decode()}
        return _info(await self._ask(f"STREAM.INFO.{stream.name}", count))

    async def create(self, stream: Stream, *, storage: str, replicas: int, max_bytes: int) -> StreamInfo:
        """Create the stream, or return that of this name. `max_bytes` is 0 for no limit.

        Raises:
            BrokerError: As for `info`, or the server cannot create it.
        """
        keeps_seconds = max(stream.rule.max_age_seconds, DUPLICATE_WINDOW_SECONDS)
        config = {
            "name": stream.name,
            "description": f"fastapi-backplane: history of the channels {ascii(stream.pattern)[:300]}",
            "subjects": [stream.subjects],
            "retention": "limits",
            "discard": "old",
            "max_msgs_per_subject": stream.rule.max_messages + 1,
            "max_age": int(keeps_seconds * _NANOSECONDS),
            "storage": storage,
            "num_replicas": replicas,
            "max_bytes": max_bytes or -1,
            "duplicate_window": DUPLICATE_WINDOW_SECONDS * _NANOSECONDS,
            "allow_direct": True,
            "republish": {"src": stream.subjects, "dest": stream.republished_to},
        }
        try:
            return _info(await self._ask(f"STREAM.CREATE.{stream.name}", config))
        except JetStreamError as error:
            if error.number == _NEEDS_MAX_BYTES:
                hint = "give it one by the option history_max_bytes of the URL"
                raise JetStreamError(f"{error.reason}: {hint}", error.number) from error
            if error.number in _MAX_BYTES_ABOVE_LIMIT:
                hint = "lower the option history_max_bytes of the URL, or raise the limits of the account"
                raise JetStreamError(f"{error.reason}: {hint}", error.number) from error
            if error.number != _OTHER_CONFIG:
                raise
        return await self.info(stream)  # another process has created it in the meantime, with other limits

    async def newest(self, stream: Stream, subject: bytes) -> StoredMessage | None:
        """Return the newest message of a subject that was stored before this was called."""
        return await self._get(stream, {"last_by_subj": subject.decode()}, by_leader=True)

    async def first(self, stream: Stream, subject: bytes) -> StoredMessage | None:
        """Return the oldest message of a subject that is still there."""
        return await self._get(stream, {"seq": 1, "next_by_subj": subject.decode()}, by_leader=True)

    async def at(self, stream: Stream, sequence: int) -> StoredMessage | None:
        """Return the message with this number."""
        return await self._get(stream, {"seq": sequence}, by_leader=True)

    async def between(self, stream: Stream, low: int, high: int) -> list[StoredMessage]:
        """Return the messages with numbers from `low` to `high` that are there, of all subjects, by a request each."""
        is_direct = _any_is_leader(stream)
        api = f"{'DIRECT.GET' if is_direct else 'STREAM.MSG.GET'}.{stream.name}"
        read = _direct_or_none if is_direct else _stored_or_none
        replies = await self._request_each(api, [{"seq": number} for number in range(low, high + 1)])
        return [message for reply in replies if (message := read(reply)) is not None]

    async def read(
        self, stream: Stream, subject: bytes, sequence: int, *, limit: int, max_bytes: int, by_leader: bool
    ) -> list[StoredMessage]:
        """Return messages of a subject from this number on: several at once from a server since 2.11, else one.

        Args:
            stream: The stream.
            subject: The subject.
            sequence: The lowest number.
            limit: Most messages.
            max_bytes: Most bytes, or one message.
            by_leader: Ask the leader. A replica can have fewer messages.
        """
        request: dict[str, object] = {"seq": sequence, "next_by_subj": subject.decode()}
        if not stream.allows_direct or (by_leader and not _any_is_leader(stream)):
            found = await self._get(stream, request, by_leader=True)
            return [] if found is None else [found]
        # An older server does not know the last two, and replies with the first message.
        replies = await self._request(
            f"DIRECT.GET.{stream.name}", {**request, "batch": min(limit, 1000), "max_bytes": max_bytes}
        )
        return [_direct(reply) for reply in replies if status_of(reply.headers) not in (_END_OF_BATCH, _NOT_FOUND)]

    async def _get(self, stream: Stream, request: dict[str, object], *, by_leader: bool) -> StoredMessage | None:
        if not by_leader or _any_is_leader(stream):
            return _direct_or_none((await self._request(f"DIRECT.GET.{stream.name}", request))[0])
        return _stored_or_none((await self._request(f"STREAM.MSG.GET.{stream.name}", request))[0])

    async def _ask(self, api: str, request: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Return an answer in JSON that is no error."""
        return answer_of((await self._request(api, request))[0])

    async def _request(self, api: str, request: Mapping[str, object] | None = None) -> list[Reply]:
        with _as_unavailable():
            replies = await self.link.request(f"$JS.API.{api}".encode(), _body(request))
        return _checked(api, replies)

    async def _request_each(self, api: str, requests: Iterable[Mapping[str, object]]) -> list[Reply]:
        with _as_unavailable():
            replies = await self.link.request_each(f"$JS.API.{api}".encode(), list(map(_body, requests)))
        return [_checked(api, each)[0] for each in replies]


def _body(request: Mapping[str, object] | None) -> bytes:
    return b"" if request is None else json.dumps(request).encode()


@contextmanager
def _as_unavailable() -> Generator[None]:
    """Raise what a publish raises as what a request raises."""
    try:
        yield
    except PublishOutcomeUnknownError as error:  # a request that is asked again does no harm
        raise unavailable(error.reason.removesuffix("; it may have been published")) from error
    except PublishError as error:
        if error.retriable:
            raise unavailable(error.reason) from error
        raise BrokerError(reason_of(error), adapter="nats") from error


def _checked(api: str, replies: list[Reply]) -> list[Reply]:
    """Return replies of JetStream.

    Raises:
        NoResponderError: No server answers.
        BrokerUnavailableError: It answers with a status that is no answer.
    """
    status = status_of(replies[0].headers)
    if status == _NO_RESPONDER:
        raise NoResponderError(f"no server answers $JS.API.{api}", adapter="nats")
    if status not in (0, _END_OF_BATCH, _NOT_FOUND):
        raise unavailable(f"JetStream answers {api} with status {status}")
    return replies


def answer_of(reply: Reply) -> dict[str, Any]:
    """Return an answer in JSON.

    Raises:
        JetStreamError: JetStream refuses.
        BrokerUnavailableError: It is not available, or this is no answer of it.
    """
    try:
        answer: Any = json.loads(reply.payload)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise unavailable("JetStream sent an answer that cannot be read")
    found = cast("dict[str, Any]", answer)
    if "error" in found:
        raise _error_of(found["error"])
    return found


def _error_of(error: dict[str, Any]) -> BrokerError:
    number, text = error.get("err_code", 0), str(error.get("description", ""))[:200]
    if error.get("code") == _NO_RESPONDER and number not in _NOT_ENABLED:
        return unavailable(f"JetStream is not available: {text} ({number})")
    return JetStreamError(f"JetStream refuses: {text} ({number})", number)


def _any_is_leader(stream: Stream) -> bool:
    """Whether only one server has the stream, and answers direct reads, which cost less."""
    return stream.allows_direct and stream.replicas == 1


def _info(answer: dict[str, Any]) -> StreamInfo:
    return StreamInfo.model_validate(answer)


def _stored_or_none(reply: Reply) -> StoredMessage | None:
    """Return the message that the leader returned, if there is one."""
    try:
        found = answer_of(reply)["message"]
    except JetStreamError as error:
        if error.number == NO_MESSAGE:
            return None
        raise
    payload = b64decode(found.get("data", ""))
    return StoredMessage(found["subject"].encode(), found["seq"], _time(found["time"]), payload)


def _direct_or_none(reply: Reply) -> StoredMessage | None:
    """Return the message of a direct read, if there is one."""
    return None if status_of(reply.headers) == _NOT_FOUND else _direct(reply)


def _direct(reply: Reply) -> StoredMessage:
    """Return the message of a direct read. The server's headers follow those of the publisher."""
    found = _DIRECT.match(reply.headers, reply.headers.rfind(b"\r\nNats-Stream: "))
    if found is None:
        raise unavailable("JetStream sent a message without its number")
    return StoredMessage(found[1], int(found[2]), _time(found[3].decode()), reply.payload)


_DIRECT: Final = re.compile(
    rb"\r\nNats-Stream: [^\r]*\r\nNats-Subject: ([^\r]*)\r\nNats-Sequence: (\d{1,19})\r\nNats-Time-Stamp: ([^\r]*)\r\n"
)


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
