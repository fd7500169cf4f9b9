"""`backplane.centrifugal.encoding`: both encodings read what SDKs send, and write what the reference server writes."""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.centrifugal.encoding import JSON, MAX_COMMAND_BYTES, PROTOBUF, BadFrameError, Command, Encoding
from backplane.centrifugal.protobuf import message_of
from backplane.centrifugal.schema import COMMAND, RANGES, Kind, MessageType, Shape
from tests.unit.centrifugal.recorded import RECORDED, Recorded

if TYPE_CHECKING:
    from collections.abc import Mapping

ENCODINGS: Final[dict[str, Encoding]] = {"json": JSON, "protobuf": PROTOBUF}
both = pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)
INFO: Final = {"user": "ann", "client": "c", "conn_info": b'{"name":"ann"}'}


def frame_of(encoding: Encoding, *commands: Mapping[str, Any]) -> str | bytes:
    """Return the frame in which a client sends these commands."""
    if encoding is PROTOBUF:
        messages = [message_of(COMMAND, command) for command in commands]
        return b"".join(varint(len(message)) + message for message in messages)
    return "\n".join(json.dumps(_embedded(command)) for command in commands)


def varint(value: int) -> bytes:
    """Return a number as Protobuf writes it."""
    found: list[int] = []
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _embedded(value: Any) -> Any:
    if isinstance(value, bytes):
        return json.loads(value)
    return {name: _embedded(item) for name, item in value.items()} if isinstance(value, dict) else value


# --- what was recorded ---------------------------------------------------------------------------------------------


def by_name(recorded: Recorded) -> str:
    """Return the id of a test of one recorded frame."""
    return recorded.name


@pytest.mark.parametrize("recorded", [each for each in RECORDED if each.from_client], ids=by_name)
def test_commands_of_sdks_are_read(recorded: Recorded) -> None:
    """Every frame that an SDK sent is read as the commands that are in it."""
    expected: list[Command] = []
    for message in map(dict[str, Any], recorded.messages):
        command_id = message.pop("id", 0)
        name, body = message.popitem() if message else ("", {})
        sent = {field: value for field, value in body.items() if value or isinstance(value, dict)}
        expected.append(Command(command_id, name, sent))
    assert ENCODINGS[recorded.encoding].decode(recorded.frame) == expected


# In the scenario "compact" the server numbers its channels, which this one never does.
@pytest.mark.parametrize(
    "recorded", [each for each in RECORDED if not each.from_client and "-compact:" not in each.name], ids=by_name
)
def test_frames_of_the_reference_server_are_written(recorded: Recorded) -> None:
    """What the reference server sent is written the same: byte by byte in Protobuf, the same values in JSON."""
    encoding = ENCODINGS[recorded.encoding]
    if isinstance(recorded.frame, bytes):
        _add_epoch(recorded)
    written = encoding.join([_written(encoding, message) for message in recorded.messages])
    if isinstance(written, str):
        assert isinstance(recorded.frame, str)
        assert [json.loads(line) for line in written.split("\n")] == [
            json.loads(line) for line in recorded.frame.split("\n")
        ]
    else:
        assert written == recorded.frame


def _written(encoding: Encoding, message: dict[str, Any]) -> str | bytes:
    if not message:
        return encoding.ping
    if (push := message.get("push")) is not None:
        ((name, body),) = ((name, body) for name, body in push.items() if name != "channel")
        return encoding.push(push.get("channel", ""), name, body)
    if (error := message.get("error")) is not None:
        return encoding.error(message["id"], error["code"], error["message"], error.get("temporary", False))
    ((name, body),) = ((name, body) for name, body in message.items() if name != "id")
    return encoding.reply(message["id"], name, body)


def _add_epoch(recorded: Recorded) -> None:
    """Add the epoch of the first publication of a stream, which what was printed below the frame leaves out."""
    assert isinstance(recorded.frame, bytes)
    for message in recorded.messages:
        publication = message.get("push", {}).get("pub", {})
        if publication.get("offset") == 1 and (found := re.search(rb"\x30\x01r\x08(\w{8})", recorded.frame)):
            publication["epoch"] = found[1].decode()


def test_recordings_are_there() -> None:
    """Both encodings and all SDKs are among what was recorded, and every command and reply."""
    assert {(each.encoding, each.name.split("-")[0]) for each in RECORDED} >= {
        (encoding, sdk) for encoding in ENCODINGS for sdk in ("js", "python")
    } | {("protobuf", "go")}
    names = {name for each in RECORDED if each.from_client for message in each.messages for name in message}
    assert names == COMMAND.by_name.keys()


# --- what both do --------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "command",
    [
        {},
        {"id": 1},
        {"id": 1, "connect": {}, "rpc": {}},
        {"subscribe": {"channel": "a"}},
        *({"id": 1, name: {}} for name in ("subscribe", "unsubscribe", "publish", "presence", "history")),
        {"id": 1, "presence_stats": {"channel": ""}},
        {"id": 1, "subscribe": {"channel": "a" * 70_000}, "send": {}},
        {"send": {"data": b'"%b"' % (b"x" * MAX_COMMAND_BYTES)}},
    ],
    ids=str,
)
def test_bad_commands(encoding: Encoding, command: dict[str, Any]) -> None:
    """A second pong, no request, several, no id or channel, and too large a message cost the connection."""
    with pytest.raises(BadFrameError):
        encoding.decode(frame_of(encoding, {}, command))


@both
def test_pong_and_send_have_no_id(encoding: Encoding) -> None:
    """An empty command is a pong; a message needs no id, and a subscription is refreshed without a channel."""
    frame = frame_of(encoding, {}, {"send": {"data": b"1"}}, {"id": 7, "sub_refresh": {"token": "t"}})
    assert encoding.decode(frame) == [
        Command(0, "", {}),
        Command(0, "send", {"data": b"1"}),
        Command(7, "sub_refresh", {"token": "t"}),
    ]


@both
def test_large_command_is_named(encoding: Encoding) -> None:
    """A command of more than 64 KiB is known by its id and name, so that it can be refused, and others are executed."""
    large = {"id": 7, "publish": {"channel": "a", "data": b'"%b"' % (b"x" * MAX_COMMAND_BYTES)}}
    small = {"id": 8, "publish": {"channel": "a", "data": b'"x"'}}
    assert encoding.decode(frame_of(encoding, large, small)) == [
        Command(7, "publish", {}, oversized=True),
        Command(8, "publish", {"channel": "a", "data": b'"x"'}),
    ]


@both
def test_limit_of_a_command_is_exact(encoding: Encoding) -> None:
    """64 KiB are allowed and one byte more is not, counted as sent."""
    (fits,) = encoding.decode(frame_of(encoding, filled(encoding, MAX_COMMAND_BYTES)))
    (exceeds,) = encoding.decode(frame_of(encoding, filled(encoding, MAX_COMMAND_BYTES + 1)))
    assert (fits.oversized, exceeds.oversized) == (False, True)


def filled(encoding: Encoding, size: int) -> dict[str, Any]:
    """Return a command that takes `size` bytes as `encoding` sends it."""
    length = size - 100
    while True:
        command = {"id": 7, "rpc": {"data": b'"%b"' % (b"x" * length)}}
        taken = len(message_of(COMMAND, command)) if encoding is PROTOBUF else len(str(frame_of(encoding, command)))
        if taken == size:
            return command
        length += size - taken


@both
def test_many_commands_in_a_frame(encoding: Encoding) -> None:
    """10,000 subscribes in one frame are read; with one more it is refused, before the rest is read."""
    command = {"id": 1, "subscribe": {"channel": "a"}}
    assert len(encoding.decode(frame_of(encoding, *[command] * 10_000))) == 10_000
    with pytest.raises(BadFrameError, match="too many"):
        encoding.decode(frame_of(encoding, *[command] * 10_001))


@both
def test_unknown_field_of_a_reply(encoding: Encoding) -> None:
    """A result with a field that the protocol does not have is a fault of the server, and is reported as one."""
    with pytest.raises(KeyError, match="recoverd"):
        encoding.reply(1, "subscribe", {"recoverd": True})


@both
def test_empty_messages_are_there(encoding: Encoding) -> None:
    """Fields that hold nothing are left out, but a message is there even if it holds nothing."""
    frame = frame_of(encoding, {"id": 1, "history": {"channel": "a", "since": {}, "limit": 0, "reverse": False}})
    assert encoding.decode(frame) == [Command(1, "history", {"channel": "a", "since": {}})]


@both
def test_history_of_everything(encoding: Encoding) -> None:
    """`limit` -1, which Protobuf sends in ten bytes, is read as such, and so are offsets of 64 bits."""
    since = {"offset": (1 << 64) - 1, "epoch": "e"}
    frame = frame_of(encoding, {"id": 1, "history": {"channel": "a", "limit": -1, "since": since}})
    assert encoding.decode(frame) == [Command(1, "history", {"channel": "a", "limit": -1, "since": since})]


# --- properties ----------------------------------------------------------------------------------------------------

JSON_TEXTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
).map(lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
VALUES = {
    Kind.STRING: st.text(min_size=1),
    Kind.BYTES: JSON_TEXTS.filter(lambda text: text != b"null"),  # as a tag filter it would be none
    Kind.BOOL: st.just(value=True),
    **{kind: st.integers(values[0], values[-1]).filter(bool) for kind, values in RANGES.items()},
}


def bodies(message: MessageType, required: str = "") -> st.SearchStrategy[dict[str, Any]]:
    """Return messages of this type, in which fields are left out that hold nothing."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field in message.fields:
        values = bodies(field.kind) if isinstance(field.kind, MessageType) else VALUES[field.kind]
        if field.shape is Shape.MAP:
            values = st.dictionaries(st.text(), values, min_size=1, max_size=3)
        fields[field.name] = values
    needed = {name: fields.pop(name) for name in tuple(fields) if name == required}
    return st.fixed_dictionaries(needed, optional=fields)


COMMANDS = st.sampled_from([field for field in COMMAND.fields if field.name != "id"]).flatmap(
    lambda field: st.tuples(
        st.integers(1, (1 << 32) - 1), st.just(field.name), bodies(_message(field.kind), "channel")
    ).map(lambda parts: Command(*parts))
)


def _message(kind: Kind | MessageType) -> MessageType:
    assert isinstance(kind, MessageType)
    return kind


@both
@given(commands=st.lists(COMMANDS, min_size=1, max_size=3))
def test_commands_survive(encoding: Encoding, commands: list[Command]) -> None:
    """Whatever a client sends is read as it was sent, the application's data with the same meaning."""
    frame = frame_of(encoding, *({"id": command.id, command.name: command.body} for command in commands))
    assert [_meant(command) for command in encoding.decode(frame)] == [_meant(command) for command in commands]


def _meant(command: Command) -> Any:
    """Return a command with its JSON parsed: a float has more than one text."""
    return command._replace(body=_embedded(command.body))


FRAMES = {name: [each.frame for each in RECORDED if each.encoding == name] for name in ENCODINGS}


@both
@given(data=st.data())
def test_damaged_frames_cost_the_connection(encoding: Encoding, data: st.DataObject) -> None:
    """Random bytes and texts, and frames in which some are changed, raise nothing else than a bad frame."""
    kind = st.text(max_size=20) if encoding is JSON else st.binary(max_size=20)
    pieces = data.draw(st.lists(kind | st.sampled_from(FRAMES[encoding.name]).flatmap(parts), min_size=1, max_size=4))
    frame = encoding.join(pieces) if encoding is PROTOBUF else "".join(map(str, pieces))
    try:
        commands = encoding.decode(frame)
    except BadFrameError:
        return
    assert all(command.name in {*COMMAND.by_name, ""} for command in commands)


def parts(frame: str | bytes) -> st.SearchStrategy[str | bytes]:
    """Return what is between two places of a frame."""
    return st.tuples(st.integers(0, len(frame)), st.integers(0, len(frame))).map(
        lambda ends: frame[min(ends) : max(ends)]
    )


@both
@given(frame=st.binary() | st.text())
def test_frames_of_any_kind(encoding: Encoding, frame: str | bytes) -> None:
    """A text or binary frame is read or refused by either encoding."""
    try:
        commands = encoding.decode(frame)
    except BadFrameError:
        return
    assert commands


@both
@given(
    channel=st.text(min_size=1),
    data=st.text() | st.binary() | JSON_TEXTS | JSON_TEXTS.map(bytes.decode),
    is_json=st.booleans(),
    offset=st.none() | st.integers(1, 1 << 53),
    info=st.sampled_from([None, {}, INFO]),
    tags=st.none() | st.dictionaries(st.text(), st.text(), max_size=2),
)
def test_publication_is_a_push(encoding: Encoding, channel: str, data: str | bytes, **rest: Any) -> None:
    """The fast way to write a publication gives the same frame as the table-driven one."""
    body = encoding.publication_body(data, **rest)
    assert encoding.publication(channel, data, **rest) == encoding.push(channel, "pub", body)


@both
@given(text=st.text() | JSON_TEXTS.map(bytes.decode))
def test_embedded_text(encoding: Encoding, text: str) -> None:
    """In Protobuf a text is its UTF-8; in JSON the same value, or a string that holds it, always in one line."""
    found = encoding.embed(text, is_json=False)
    if encoding is PROTOBUF:
        assert found == text.encode()
        return
    assert b"\n" not in found
    try:
        expected = json.loads(text, parse_constant=_refuse)
    except ValueError:
        expected = text
    assert json.loads(found) == expected


def _refuse(constant: str) -> None:
    raise ValueError(constant)
