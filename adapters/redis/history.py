"""The commands by which messages are kept and recalled, and what their replies mean.

`scripts` describes what is at the server.
"""

from __future__ import annotations

import logging
import secrets
from hashlib import sha256
from itertools import count
from struct import Struct
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple
from zlib import crc32

import hiredis

from backplane.adapters.redis.errors import classify_reply, error_text, is_denied, is_read_only, unavailable
from backplane.adapters.redis.link import pack_arguments
from backplane.adapters.redis.patterns import escape_glob
from backplane.adapters.redis.scripts import GRANTS, PERMITTED, SCRIPTS
from backplane.broadcaster import KeptMessage, Recalled
from backplane.errors import BrokerError, ConfigurationError
from backplane.journal.events import HISTORY_MISFIT
from backplane.journal.writing import write
from backplane.message import Place, Position, Receipt

if TYPE_CHECKING:
    from backplane.adapters.redis.options import RedisOptions
    from backplane.adapters.redis.publisher_link import PublisherLink
    from backplane.adapters.redis.scripts import Scripts
    from backplane.history_rules import History

__all__ = ["KEYS_PREFIX", "UNUSED_NAME", "RedisHistory", "escaped", "load_scripts"]

logger: Final = logging.getLogger("backplane.adapters.redis.history")

KEYS_PREFIX: Final = "$backplane/"
"""What every key of a history begins with, after the prefix of the options."""

# A place lives for ten times the age of the messages, and at least for a day: once it is gone, a position of its
# channel is not found, although nothing was missed, and a lost link would close the clients of every quiet channel.
_PLACE_AGES: Final = 10
_LEAST_PLACE_SECONDS: Final = 86_400
_MAX_MILLISECONDS: Final = 1 << 52
# Channel names can be chosen by clients: the cache of their commands must not grow without bound.
_MAX_CACHED: Final = 10_000
_UINT64: Final = 1 << 64

_EPOCH: Final = Struct(">Q")
_CHECK: Final = Struct(">L")
_SHORT_CHECK: Final = Struct(">H")
_PLACE: Final = Struct(">8sQL")
_KEPT: Final = Struct(">8sQ")
_ELEMENT_BYTES: Final = 14  # check and time, in front of the payload

_ESCAPES: Final = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})
UNUSED_NAME: Final = "%"
"""The name of no channel, because of the escapes."""

_CLUSTER_CURE: Final = "whose history redis+cluster:// keeps, or valkey+cluster://, without pubsub=classic"


class _Packed(NamedTuple):
    """What all commands of a channel have in common, packed.

    Attributes:
        rule: The rule of the channel.
        keep: The command that keeps, up to the arguments of the message.
        once: The same with an idempotency key, up to that key.
        arguments: What follows that key, up to the arguments of the message.
    """

    rule: History
    keep: bytes
    once: bytes
    arguments: bytes


class RedisHistory:
    """Packs the commands of one adapter, and reads the replies.

    Args:
        options: Those of the adapter.
        username: The user that is logged in, as an error names it.

    Attributes:
        is_prepared: `prepare` was called once, so every new connection gets the scripts.
    """

    _scripts: ClassVar[Scripts] = SCRIPTS

    def __init__(self, options: RedisOptions, username: str | None) -> None:
        self._prefix = options.prefix
        self._wire_format = options.wire_format
        self._username = username or "default"
        self._packed: dict[str, _Packed] = {}
        self._epochs = count(secrets.randbits(64))
        self.is_prepared: bool = False

    async def prepare(self, link: PublisherLink, where: str) -> None:
        """Load the scripts, and check that the server permits what they do.

        Raises:
            ConfigurationError: The option `wire_format=plain` is given.
            BrokerError: The server cannot keep messages, or does not permit it; not retriable.
            BrokerUnavailableError: The link ended or leads to a replica, or the server accepts no commands at present.
        """
        self._begin()
        if link.server.is_cluster:
            raise _refused(f"{where} is a node of a Redis Cluster, {_CLUSTER_CURE}")
        await self._try(link, where, f"{self._start}{{{UNUSED_NAME}}}")
        self.is_prepared = True

    def keep(self, channel: str, payload: bytes, check: int, rule: History, key: bytes | None) -> bytes:
        """Return the command that publishes and stores `payload`, whose CRC-32 is `check`."""
        packed = self._packed.get(channel)
        if packed is None or packed.rule is not rule:
            packed = self._pack(channel, rule)
        # The first epoch is random; those that follow are never used by another process, and cost no system call.
        message = b"$8\r\n%b\r\n$4\r\n%b\r\n$%d\r\n%b\r\n" % (
            _EPOCH.pack(next(self._epochs) % _UINT64),
            _CHECK.pack(check),
            len(payload),
            payload,
        )
        if key is None:
            return packed.keep + message
        once = f"{self._stem(channel)}/once/{sha256(key).digest()[:16].hex()}".encode()
        return b"%b$%d\r\n%b\r\n%b%b" % (packed.once, len(once), once, packed.arguments, message)

    def recall(self, channel: str, rule: History, after: Position | None, limit: int, max_bytes: int) -> bytes:
        """Return the command that reads from the history of `channel`."""
        keys = _keys(self._stem(channel))
        numbers = (*_milliseconds(rule), _EPOCH.pack(next(self._epochs) % _UINT64), b"%d" % limit, b"%d" % max_bytes)
        position: tuple[bytes, ...] = ()
        if after is not None:
            check = (_SHORT_CHECK if after.is_compact else _CHECK).pack(after.check)
            position = after.epoch, b"%d" % after.offset, check
        return _evaluate(self._scripts.recall.digest, (*keys, *numbers, *position), keys=2)

    @staticmethod
    def receipt(reply: bytes, check: int) -> Receipt:
        """Return what the reply to `keep` means, for a message whose CRC-32 is `check`."""
        if len(reply) == _KEPT.size:
            epoch, offset = _KEPT.unpack(reply)
            return Receipt(position=Position(epoch, offset, check))
        return Receipt(position=Position(*_PLACE.unpack(reply)), duplicate=True)

    @staticmethod
    def recalled(reply: list[Any], after: Position | None) -> Recalled:
        """Return what the reply to `recall` means."""
        place, found, more, elements = reply
        top = Position(*_PLACE.unpack_from(place))
        offset = top.offset - len(elements) if after is None else after.offset
        items: list[KeptMessage] = []
        for element in elements:
            payload = element[_ELEMENT_BYTES:]
            (before_check,) = _CHECK.unpack_from(element)
            items.append(KeptMessage(payload, Place(top.epoch, offset + 1, crc32(payload), offset, before_check)))
            offset += 1
        return Recalled(items=items, top=top, found=bool(found), more=bool(more))

    def _pack(self, channel: str, rule: History) -> _Packed:
        if len(self._packed) >= _MAX_CACHED:
            self._packed.clear()
        place, log = _keys(self._stem(channel))
        name = (self._prefix + channel).encode()
        arguments = (name, b"%d" % (rule.max_messages + 1), *_milliseconds(rule))
        packed = _Packed(
            rule,
            _evaluate(self._scripts.keep.digest, (place, log, *arguments), keys=2, later=3),
            _evaluate(self._scripts.keep_once.digest, (place, log), keys=3, later=len(arguments) + 4),
            pack_arguments(arguments),
        )
        self._packed[channel] = packed
        return packed

    @property
    def _start(self) -> str:
        """What every key begins with."""
        return self._prefix + KEYS_PREFIX

    def _stem(self, channel: str) -> str:
        """Return what all keys of a channel begin with. What is in braces decides on the slot, so they share one."""
        return f"{self._start}{{{escaped(channel)}}}"

    def _begin(self) -> None:
        """Check the options, and draw the first epoch in the process that uses it: a fork must not use it twice."""
        if self._wire_format == "plain":
            raise ConfigurationError(
                "redis: a message that is kept has an envelope, which wire_format=plain excludes: take off that "
                "option, or the history"
            )
        self._epochs = count(secrets.randbits(64))

    async def _try(self, link: PublisherLink, where: str, stem: str) -> None:
        """Load the scripts, and run one on keys that begin with `stem` and belong to no channel."""
        try:
            await load_scripts(link)
            await link.ask(b"SCRIPT", b"LOAD", PERMITTED.text)
            await link.ask(b"EVALSHA", PERMITTED.digest, b"2", *_keys(stem))
        except hiredis.ReplyError as reply:
            self._judge(reply, where)

    def _judge(self, reply: hiredis.ReplyError, where: str) -> None:
        """Raise what an error reply to a command of `prepare` means."""
        text = error_text(reply)
        if is_denied(reply):
            pattern = f"{escape_glob(self._start)}*"
            raise _refused(
                f"{where} does not permit this user to keep messages: {text}. "
                f"Grant it: ACL SETUSER {self._username} {GRANTS} ~{pattern}"
            ) from reply
        if text.startswith(("MOVED", "ASK", "CLUSTERDOWN", "CROSSSLOT")):
            raise _refused(f"{where} is a node of a Redis Cluster, {_CLUSTER_CURE} ({text})") from reply
        if is_read_only(reply):
            raise unavailable(f"{where} is a replica, and messages are kept by the primary: {text}") from reply
        if text.startswith(("OOM", "MISCONF", "NOREPLICAS")):
            # Messages that are not kept can be published all the same, so the link must be usable.
            words = "%(url)s keeps no messages at present, so publishes with a history fail: %(reason)s"
            write(logger, HISTORY_MISFIT, words, url=where, reason=text)
        elif classify_reply(reply) == "passing":
            raise unavailable(f"{where} takes no commands at present: {text}") from reply
        else:
            raise _refused(f"{where} cannot keep messages: {text}") from reply


def escaped(channel: str) -> str:
    """Return the name of a channel without braces."""
    return channel.translate(_ESCAPES)


async def load_scripts(link: PublisherLink) -> None:
    """Make the server know the scripts of a link.

    Raises:
        hiredis.ReplyError: It refuses.
        BrokerUnavailableError: The link ended.
    """
    for script in link.scripts.all:
        await link.ask(b"SCRIPT", b"LOAD", script.text)


def _keys(stem: str) -> tuple[bytes, bytes]:
    return f"{stem}/place".encode(), f"{stem}/log".encode()


def _evaluate(digest: bytes, arguments: tuple[bytes, ...], *, keys: int, later: int = 0) -> bytes:
    """Return EVALSHA with some keys and arguments, to which as many as `later` are appended."""
    head = b"*%d\r\n" % (3 + len(arguments) + later)
    return head + pack_arguments((b"EVALSHA", digest, b"%d" % keys, *arguments))


def _milliseconds(rule: History) -> tuple[bytes, bytes]:
    """Return how long a message lives, and how long a place; the first is a second more than the age: see `scripts`."""
    age = min(round(rule.max_age_seconds * 1000), _MAX_MILLISECONDS)
    return b"%d" % (age + 1000), b"%d" % max(age * _PLACE_AGES, _LEAST_PLACE_SECONDS * 1000)


def _refused(reason: str) -> BrokerError:
    return BrokerError(reason, adapter="redis", retriable=False)
