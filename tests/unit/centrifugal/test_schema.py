"""`backplane.centrifugal.schema`: the tables are those of the protocol's definition."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pytest

from backplane.centrifugal.schema import COMMAND, REPLY, Kind, MessageType, Shape

if TYPE_CHECKING:
    from collections.abc import Iterator

# `definitions/client.proto` of github.com/centrifugal/protocol 0.23.1, abridged: s text, y bytes, b bool, u unsigned, i
# signed, [X] a list, {X} a map from texts; what is in brackets without a letter is a message.
DEFINITION: Final = """
Command: 1 id u, 4 connect ConnectRequest, 5 subscribe SubscribeRequest, 6 unsubscribe UnsubscribeRequest,
    7 publish PublishRequest, 8 presence PresenceRequest, 9 presence_stats PresenceStatsRequest,
    10 history HistoryRequest, 12 send SendRequest, 13 rpc RPCRequest, 14 refresh RefreshRequest,
    15 sub_refresh SubRefreshRequest
Reply: 1 id u, 2 error Error, 4 push Push, 5 connect ConnectResult, 6 subscribe SubscribeResult, 7 unsubscribe Empty,
    8 publish Empty, 9 presence PresenceResult, 10 presence_stats PresenceStatsResult, 11 history HistoryResult,
    13 rpc RPCResult, 14 refresh RefreshResult, 15 sub_refresh SubRefreshResult
Error: 1 code u, 2 message s, 3 temporary b
Push: 2 channel s, 4 pub Publication, 5 join Join, 6 leave Join, 7 unsubscribe Unsubscribe, 8 message Message,
    9 subscribe Subscribe, 11 disconnect Disconnect
Publication: 4 data y, 5 info ClientInfo, 6 offset u, 7 tags {s}, 14 epoch s
ClientInfo: 1 user s, 2 client s, 3 conn_info y, 4 chan_info y
Join: 1 info ClientInfo
Unsubscribe: 2 code u, 3 reason s
Subscribe: 1 recoverable b, 4 epoch s, 5 offset u, 6 positioned b, 7 data y
Message: 1 data y
Disconnect: 1 code u, 2 reason s, 3 reconnect b
ConnectRequest: 1 token s, 2 data y, 3 subs {SubscribeRequest}, 4 name s, 5 version s, 6 headers {s}
ConnectResult: 1 client s, 2 version s, 3 expires b, 4 ttl u, 5 data y, 6 subs {SubscribeResult}, 7 ping u, 8 pong b
SubscribeRequest: 1 channel s, 2 token s, 3 recover b, 6 epoch s, 7 offset u, 8 data y, 9 positioned b,
    10 recoverable b, 11 join_leave b, 12 delta s, 13 tf y, 14 flag i, 15 type i
SubscribeResult: 1 expires b, 2 ttl u, 3 recoverable b, 6 epoch s, 7 publications [Publication], 8 recovered b,
    9 offset u, 10 positioned b, 11 data y, 12 was_recovering b
UnsubscribeRequest: 1 channel s
PresenceRequest: 1 channel s
PresenceStatsRequest: 1 channel s
PublishRequest: 1 channel s, 2 data y, 3 type i
SendRequest: 1 data y
HistoryRequest: 1 channel s, 7 limit i, 8 since Since, 9 reverse b
Since: 1 offset u, 2 epoch s
HistoryResult: 1 publications [Publication], 2 epoch s, 3 offset u
PresenceResult: 1 presence {ClientInfo}
PresenceStatsResult: 1 num_clients u, 2 num_users u
RPCRequest: 1 data y, 2 method s
RPCResult: 1 data y
RefreshRequest: 1 token s
RefreshResult: 1 client s, 2 version s, 3 expires b, 4 ttl u
SubRefreshRequest: 1 channel s, 2 token s, 3 type i
SubRefreshResult: 1 expires b, 2 ttl u
Empty:
"""
LETTERS: Final = {
    Kind.STRING: "s",
    Kind.BYTES: "y",
    Kind.BOOL: "b",
    Kind.UINT32: "u",
    Kind.UINT64: "u",
    Kind.INT32: "i",
    Kind.INT64: "i",
}
BRACKETS: Final = {Shape.ONE: "{}", Shape.LIST: "[{}]", Shape.MAP: "{{{}}}"}


def definitions() -> dict[str, list[tuple[int, str, str]]]:
    """Return the number, the name and the type of each field of each message."""
    found: dict[str, list[tuple[int, str, str]]] = {}
    for name, fields in re.findall(r"^(\w+):(.*(?:\n    .*)*)", DEFINITION, re.MULTILINE):
        found[name] = [
            (int(number), field, kind) for number, field, kind in re.findall(r"(\d+) (\w+) ([\w{}\[\]]+)", fields)
        ]
    return found


def pairs(name: str, message: MessageType) -> Iterator[tuple[str, MessageType]]:
    """Return each message that is in this one, with the name that its definition has."""
    yield name, message
    for field, (_, _, kind) in zip(message.fields, definitions()[name], strict=True):
        if isinstance(field.kind, MessageType):
            yield from pairs(kind.strip("[]{}"), field.kind)


@pytest.mark.parametrize(
    ("name", "message"), [*pairs("Command", COMMAND), *pairs("Reply", REPLY)], ids=lambda value: str(value)[:20]
)
def test_tables(name: str, message: MessageType) -> None:
    """Each field has the number, the type and the place of its definition, and there are no others."""
    defined = definitions()[name]
    for field, (number, field_name, kind) in zip(message.fields, defined, strict=True):
        letter = kind.strip("[]{}") if isinstance(field.kind, MessageType) else LETTERS[field.kind]
        assert (field.number, field.name, BRACKETS[field.shape].format(letter)) == (number, field_name, kind)
    assert [number for number, _, _ in defined] == sorted(number for number, _, _ in defined)


def test_all_definitions_are_used() -> None:
    """No definition above is left without its table."""
    used = {name for name, _ in (*pairs("Command", COMMAND), *pairs("Reply", REPLY))}
    assert used == definitions().keys()
