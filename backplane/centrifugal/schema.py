"""The messages of the Centrifugal client protocol, as tables: the name, the number and the type of each field.

Source: `definitions/client.proto` of github.com/centrifugal/protocol 0.23.1 (MIT). Numbers and names never change; what
is new comes as a new field, which a reader that does not know it skips. So the tables hold only what this server reads
or writes. All fields may be absent, which means the same as 0, false and the empty text.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

__all__ = [
    "CHANNEL_COMMANDS",
    "CLIENT_INFO",
    "COMMAND",
    "PUBLICATION",
    "RANGES",
    "REPLY",
    "Field",
    "Kind",
    "MessageType",
    "Shape",
]


class Kind(Enum):
    """The type of a value that is no message.

    `BYTES` are the application's: in JSON they are any JSON value, embedded; in Protobuf any bytes.
    """

    BOOL = "bool"
    BYTES = "bytes"
    INT32 = "int32"
    INT64 = "int64"
    STRING = "string"
    UINT32 = "uint32"
    UINT64 = "uint64"


RANGES: Final[dict[Kind | MessageType, range]] = {
    Kind.INT32: range(-(1 << 31), 1 << 31),
    Kind.INT64: range(-(1 << 63), 1 << 63),
    Kind.UINT32: range(1 << 32),
    Kind.UINT64: range(1 << 64),
}
"""The kinds that are integers, and which."""


class Shape(Enum):
    """How many values a field has."""

    ONE = "one"
    LIST = "list"
    MAP = "map from texts"


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: What names it in Protobuf.
        name: What names it in JSON, and in the bodies of commands and replies.
        kind: The type of the value, or of the values.
        shape: How many values there are.
        always: In JSON it is also written when it is 0, empty or not given: an SDK reads it without a default.
    """

    number: int
    name: str
    kind: Kind | MessageType
    shape: Shape = Shape.ONE
    always: bool = False


class MessageType:
    """The fields of a message, in the order of their numbers, in which they are written.

    Attributes:
        fields: All of them.
        by_name: The same by name.
        by_number: The same by number.
    """

    __slots__ = ("by_name", "by_number", "fields")

    def __init__(self, *fields: Field) -> None:
        self.fields: tuple[Field, ...] = fields
        self.by_name: dict[str, Field] = {field.name: field for field in fields}
        self.by_number: dict[int, Field] = {field.number: field for field in fields}

    def check_names(self, names: AbstractSet[str]) -> None:
        """Raise a `KeyError` if the message does not have all these fields, which is a fault of the writer."""
        if not names <= self.by_name.keys():
            raise KeyError(f"unknown fields: {sorted(names - self.by_name.keys())}")


CLIENT_INFO: Final = MessageType(
    Field(1, "user", Kind.STRING, always=True),
    Field(2, "client", Kind.STRING, always=True),
    Field(3, "conn_info", Kind.BYTES),
    Field(4, "chan_info", Kind.BYTES),
)

PUBLICATION: Final = MessageType(
    Field(4, "data", Kind.BYTES, always=True),
    Field(5, "info", CLIENT_INFO),
    Field(6, "offset", Kind.UINT64),
    Field(7, "tags", Kind.STRING, Shape.MAP),
    Field(14, "epoch", Kind.STRING),
)

_ERROR = MessageType(
    Field(1, "code", Kind.UINT32, always=True),
    Field(2, "message", Kind.STRING, always=True),
    Field(3, "temporary", Kind.BOOL),
)

_JOIN_OR_LEAVE = MessageType(Field(1, "info", CLIENT_INFO, always=True))

_PUSH = MessageType(
    Field(2, "channel", Kind.STRING),
    Field(4, "pub", PUBLICATION),
    Field(5, "join", _JOIN_OR_LEAVE),
    Field(6, "leave", _JOIN_OR_LEAVE),
    Field(
        7,
        "unsubscribe",
        MessageType(Field(2, "code", Kind.UINT32, always=True), Field(3, "reason", Kind.STRING, always=True)),
    ),
    Field(8, "message", MessageType(Field(1, "data", Kind.BYTES, always=True))),
    Field(
        9,
        "subscribe",
        MessageType(
            Field(1, "recoverable", Kind.BOOL),
            Field(4, "epoch", Kind.STRING),
            Field(5, "offset", Kind.UINT64),
            Field(6, "positioned", Kind.BOOL),
            Field(7, "data", Kind.BYTES),
        ),
    ),
    Field(
        11,
        "disconnect",
        MessageType(
            Field(1, "code", Kind.UINT32, always=True),
            Field(2, "reason", Kind.STRING, always=True),
            Field(3, "reconnect", Kind.BOOL),
        ),
    ),
)

_SUBSCRIBE_REQUEST = MessageType(
    Field(1, "channel", Kind.STRING),
    Field(2, "token", Kind.STRING),
    Field(3, "recover", Kind.BOOL),
    Field(6, "epoch", Kind.STRING),
    Field(7, "offset", Kind.UINT64),
    Field(8, "data", Kind.BYTES),
    Field(9, "positioned", Kind.BOOL),
    Field(10, "recoverable", Kind.BOOL),
    Field(11, "join_leave", Kind.BOOL),
    Field(12, "delta", Kind.STRING),
    Field(13, "tf", Kind.BYTES),  # a message, of which it only matters that it is there
    Field(14, "flag", Kind.INT64),
    Field(15, "type", Kind.INT32),
)

_SUBSCRIBE_RESULT = MessageType(
    Field(1, "expires", Kind.BOOL),
    Field(2, "ttl", Kind.UINT32),
    Field(3, "recoverable", Kind.BOOL),
    Field(6, "epoch", Kind.STRING),
    Field(7, "publications", PUBLICATION, Shape.LIST),
    Field(8, "recovered", Kind.BOOL),
    Field(9, "offset", Kind.UINT64),
    Field(10, "positioned", Kind.BOOL),
    Field(11, "data", Kind.BYTES),
    Field(12, "was_recovering", Kind.BOOL),
)

_CONNECT_REQUEST = MessageType(
    Field(1, "token", Kind.STRING),
    Field(2, "data", Kind.BYTES),
    Field(3, "subs", _SUBSCRIBE_REQUEST, Shape.MAP),
    Field(4, "name", Kind.STRING),
    Field(5, "version", Kind.STRING),
    Field(6, "headers", Kind.STRING, Shape.MAP),
)

_CONNECT_RESULT = MessageType(
    Field(1, "client", Kind.STRING, always=True),
    Field(2, "version", Kind.STRING),
    Field(3, "expires", Kind.BOOL),
    Field(4, "ttl", Kind.UINT32),
    Field(5, "data", Kind.BYTES),
    Field(6, "subs", _SUBSCRIBE_RESULT, Shape.MAP),
    Field(7, "ping", Kind.UINT32),
    Field(8, "pong", Kind.BOOL),
)

_CHANNEL = MessageType(Field(1, "channel", Kind.STRING))
_EMPTY = MessageType()
_EXPIRY = MessageType(Field(1, "expires", Kind.BOOL), Field(2, "ttl", Kind.UINT32))

COMMAND: Final = MessageType(
    Field(1, "id", Kind.UINT32),
    Field(4, "connect", _CONNECT_REQUEST),
    Field(5, "subscribe", _SUBSCRIBE_REQUEST),
    Field(6, "unsubscribe", _CHANNEL),
    Field(
        7,
        "publish",
        MessageType(Field(1, "channel", Kind.STRING), Field(2, "data", Kind.BYTES), Field(3, "type", Kind.INT32)),
    ),
    Field(8, "presence", _CHANNEL),
    Field(9, "presence_stats", _CHANNEL),
    Field(
        10,
        "history",
        MessageType(
            Field(1, "channel", Kind.STRING),
            Field(7, "limit", Kind.INT32),
            Field(8, "since", MessageType(Field(1, "offset", Kind.UINT64), Field(2, "epoch", Kind.STRING))),
            Field(9, "reverse", Kind.BOOL),
        ),
    ),
    Field(12, "send", MessageType(Field(1, "data", Kind.BYTES))),
    Field(13, "rpc", MessageType(Field(1, "data", Kind.BYTES), Field(2, "method", Kind.STRING))),
    Field(14, "refresh", MessageType(Field(1, "token", Kind.STRING))),
    Field(
        15,
        "sub_refresh",
        MessageType(Field(1, "channel", Kind.STRING), Field(2, "token", Kind.STRING), Field(3, "type", Kind.INT32)),
    ),
)
"""What a client sends: an id and one request. `ping` (11) is missing because servers refuse it."""

CHANNEL_COMMANDS: Final = frozenset({"subscribe", "unsubscribe", "publish", "presence", "presence_stats", "history"})
"""The commands that are bad requests without a channel. `sub_refresh` is none: centrifuge-python 0.5 sends it without,
and is answered with error 107."""

REPLY: Final = MessageType(
    Field(1, "id", Kind.UINT32),
    Field(2, "error", _ERROR),
    Field(4, "push", _PUSH),
    Field(5, "connect", _CONNECT_RESULT),
    Field(6, "subscribe", _SUBSCRIBE_RESULT),
    Field(7, "unsubscribe", _EMPTY),
    Field(8, "publish", _EMPTY),
    Field(9, "presence", MessageType(Field(1, "presence", CLIENT_INFO, Shape.MAP, always=True))),
    Field(
        10,
        "presence_stats",
        MessageType(Field(1, "num_clients", Kind.UINT32, always=True), Field(2, "num_users", Kind.UINT32, always=True)),
    ),
    Field(
        11,
        "history",
        MessageType(
            Field(1, "publications", PUBLICATION, Shape.LIST, always=True),
            Field(2, "epoch", Kind.STRING, always=True),
            Field(3, "offset", Kind.UINT64, always=True),
        ),
    ),
    Field(13, "rpc", MessageType(Field(1, "data", Kind.BYTES))),
    Field(
        14,
        "refresh",
        MessageType(
            Field(1, "client", Kind.STRING),
            Field(2, "version", Kind.STRING),
            Field(3, "expires", Kind.BOOL),
            Field(4, "ttl", Kind.UINT32),
        ),
    ),
    Field(15, "sub_refresh", _EXPIRY),
)
"""What a server sends: an id with an error or a result, or a push."""
