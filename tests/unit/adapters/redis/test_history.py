"""`backplane.adapters.redis.history`: the commands that are sent, and what replies mean; without a server."""

from __future__ import annotations

import asyncio
import logging
from hashlib import sha256
from typing import Any
from zlib import crc32

import hiredis
import pytest

from backplane.adapters.redis.history import RedisHistory
from backplane.adapters.redis.options import RedisOptions
from backplane.adapters.redis.scripts import PERMITTED, SCRIPTS
from backplane.adapters.redis.server_info import ServerInfo
from backplane.errors import BrokerError, BrokerUnavailableError, ConfigurationError
from backplane.history_rules import History
from backplane.message import Position
from backplane.testing.resume_conformance import compacted
from tests.unit.adapters.redis.recorded_links import publisher
from tests.unit.doubles import until_idle

pytestmark = pytest.mark.anyio

RULE = History(max_messages=50, max_age_seconds=1.5)
EPOCH = b"epoch 8."


def history(username: str | None = None, **options: Any) -> RedisHistory:
    """Return the history of an adapter with these options."""
    return RedisHistory(RedisOptions(**options), username)


def arguments(command: bytes) -> list[bytes]:
    """Return the arguments of a packed command, which must be one whole command."""
    reader = hiredis.Reader()
    reader.feed(command)
    found = reader.gets()
    assert found is not False
    assert reader.gets() is False
    return found  # type: ignore[no-any-return]


def test_keep_is_one_command() -> None:
    """A message is kept by EVALSHA with the keys of its channel, its limits in milliseconds, an epoch and its check."""
    name, digest, keys, place, log, channel, most, age, life, epoch, check, payload = arguments(
        history(prefix="shop:").keep("room", b"hello\r\n", crc32(b"hello\r\n"), RULE, None)
    )
    assert (name, digest, keys) == (b"EVALSHA", SCRIPTS.keep.digest, b"2")
    assert (place, log) == (b"shop:$backplane/{room}/place", b"shop:$backplane/{room}/log")
    assert (channel, most, age, life) == (b"shop:room", b"51", b"2500", b"86400000")
    assert (len(epoch), check, payload) == (8, crc32(b"hello\r\n").to_bytes(4), b"hello\r\n")


def test_key_is_hashed_into_the_name_of_a_third_one() -> None:
    """With an idempotency key a third key is named by its hash, so that any bytes can be one."""
    found = arguments(history().keep("room", b"x", 7, RULE, b"\0\xff"))
    assert found[:3] == [b"EVALSHA", SCRIPTS.keep_once.digest, b"3"]
    assert found[5] == b"$backplane/{room}/once/" + sha256(b"\0\xff").hexdigest()[:32].encode()
    assert found[6:10] == [b"room", b"51", b"2500", b"86400000"]
    assert found[11:] == [(7).to_bytes(4), b"x"]


@pytest.mark.parametrize(
    ("channel", "name"), [("a{b}c", "a%7Bb%7Dc"), ("%7B", "%257B"), ("{}", "%7B%7D"), ("é/place", "é/place")]
)
def test_names_are_escaped(channel: str, name: str) -> None:
    """Braces are escaped, because those of a key decide on its slot, and so is the escape."""
    found = arguments(history().keep(channel, b"", 0, RULE, None))
    assert found[3:6] == [
        f"$backplane/{{{name}}}/place".encode(),
        f"$backplane/{{{name}}}/log".encode(),
        channel.encode(),
    ]


def test_each_command_has_an_epoch_of_its_own() -> None:
    """No epoch is used twice, whichever command makes it."""
    used = history()
    commands = [used.keep("room", b"", 0, RULE, None) for _ in range(100)]
    commands += [used.recall("room", RULE, None, 1, 1) for _ in range(100)]
    epochs = [arguments(command)[9] for command in commands[:100]] + [
        arguments(command)[7] for command in commands[100:]
    ]
    assert len(set(epochs)) == 200


def test_rule_of_a_channel_can_change() -> None:
    """The limits are those of the rule of the call, also where another one was used before."""
    used = history()
    assert arguments(used.keep("room", b"", 0, RULE, None))[6] == b"51"
    latest = History(latest=True, max_age_seconds=1e300)
    assert arguments(used.keep("room", b"", 0, latest, None))[6:9] == [
        b"2",
        b"%d" % (2**52 + 1000),
        b"%d" % (10 * 2**52),
    ]
    assert arguments(used.keep("room", b"", 0, History(max_age_seconds=1e-9), None))[7] == b"1000"


def test_commands_of_channels_are_cached_within_bounds() -> None:
    """Channels without end do not fill the memory."""
    used = history()
    for number in range(10_050):
        used.keep(f"room-{number}", b"", 0, RULE, None)
    assert len(used._packed) <= 10_000  # pyright: ignore[reportPrivateUsage]


def test_recall_passes_the_position() -> None:
    """A recall has the keys, the lives, an epoch, its bounds, and the position after which it reads."""
    used = history()
    found = arguments(used.recall("room", RULE, Position(EPOCH, 2**63, 0xDEADBEEF), 20, 4096))
    assert found[:5] == [b"EVALSHA", SCRIPTS.recall.digest, b"2", b"$backplane/{room}/place", b"$backplane/{room}/log"]
    assert found[5:7] == [b"2500", b"86400000"]
    assert found[8:] == [b"20", b"4096", EPOCH, b"%d" % 2**63, b"\xde\xad\xbe\xef"]
    assert arguments(used.recall("room", RULE, None, 0, 1))[8:] == [b"0", b"1"]
    for check, short in ((0xDEADBEEF, b"\x9d\x9e"), (65_534, b"\xff\xff"), (65_535, b"\0\1"), (0, b"\0\0\0\0")):
        compact = compacted(Position(EPOCH, 7, check))
        assert arguments(used.recall("room", RULE, compact, 20, 4096))[8:] == [b"20", b"4096", EPOCH, b"7", short]


def test_receipt_of_a_repetition_names_the_first() -> None:
    """A reply with a check is that of an earlier message with the same key."""
    reply = EPOCH + (7).to_bytes(8)
    assert RedisHistory.receipt(reply, 9).position == Position(EPOCH, 7, 9)
    assert RedisHistory.receipt(reply, 9).duplicate is False
    repeated = RedisHistory.receipt(reply + (5).to_bytes(4), 9)
    assert (repeated.position, repeated.duplicate) == (Position(EPOCH, 7, 5), True)


@pytest.mark.parametrize("after", [None, Position(EPOCH, 5, 0)])
def test_elements_are_numbered(after: Position | None) -> None:
    """Without a position the newest element has the offset of the place, with one the oldest follows it."""
    top = EPOCH + (7).to_bytes(8) + crc32(b"7").to_bytes(4) + b"1234567890"
    elements = [(0xAA).to_bytes(4) + b"1234567890" + b"6", crc32(b"6").to_bytes(4) + b"1234567890" + b"7"]
    found = RedisHistory.recalled([top, 1, 1, elements], after)
    assert (found.found, found.more, found.top) == (True, True, Position(EPOCH, 7, crc32(b"7")))
    assert [(item.payload, item.place.offset, item.place.before) for item in found.items] == [
        (b"6", 6, 5),
        (b"7", 7, 6),
    ]
    assert [item.place.before_check for item in found.items] == [0xAA, crc32(b"6")]
    assert found.items[-1].place == found.top
    assert RedisHistory.recalled([top, 0, 0, []], after).found is False


async def prepared(used: RedisHistory, reply: bytes) -> BaseException | None:
    """Return what `prepare` raises where the server answers its last command so."""
    link, _, _ = publisher(10_000)
    preparing = asyncio.create_task(used.prepare(link, "redis://here"))
    for script in (*SCRIPTS.all, PERMITTED):
        await until_idle()
        link.data_received(b"$40\r\n%b\r\n" % script.digest)
    await until_idle()
    link.data_received(reply)
    await asyncio.wait([preparing])
    return preparing.exception()


@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        (
            "NOPERM this user has no permissions to run the 'evalsha' command",
            BrokerError,
            "Grant it: ACL SETUSER alice +",
        ),
        (
            "ERR The user executing the script can't run this command or subcommand script: 1, on @user_script:2.",
            BrokerError,
            r"~sh\*p:$backplane/*",
        ),
        (
            "ERR Error running script (call to f_1): @user_script:2: @user_script: 2: The user executing the script "
            "can't run this command or subcommand",
            BrokerError,
            "Grant it",
        ),
        ("MOVED 5 127.0.0.1:7000", BrokerError, "a node of a Redis Cluster"),
        ("ERR unknown command 'EVALSHA'", BrokerError, "cannot keep messages: ERR unknown command"),
        ("READONLY You can't write against a read only replica.", BrokerUnavailableError, "is a replica"),
        ("BUSY Redis is busy running a script.", BrokerUnavailableError, "takes no commands at present"),
        ("NOSCRIPT No matching script.", BrokerUnavailableError, "takes no commands at present"),
    ],
)
async def test_refusal_to_prepare_states_what_to_do(reply: str, error: type[BrokerError], text: str) -> None:
    """What a server denies is refused for good, with the line to grant; what passes is tried again."""
    raised = await prepared(history("alice", prefix="sh*p:"), b"-%b\r\n" % reply.encode())
    assert isinstance(raised, BrokerError)
    assert type(raised) is error
    assert raised.retriable == (error is BrokerUnavailableError)
    assert text in str(raised)


@pytest.mark.parametrize("state", ["OOM command not allowed", "MISCONF cannot save", "NOREPLICAS Not enough"])
async def test_server_that_refuses_writes_for_a_while_is_usable(state: str, caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing can be kept for the moment the link is used, for other messages, and a warning is logged."""
    used = history()
    with caplog.at_level(logging.WARNING):
        assert await prepared(used, b"-%b\r\n" % state.encode()) is None
    assert state in caplog.text
    assert used.is_prepared


async def test_server_that_permits_all_is_prepared() -> None:
    """Where all is permitted nothing is raised, and new connections get the scripts from then on."""
    used = history()
    assert not used.is_prepared
    assert await prepared(used, b"$6\r\n123456\r\n") is None
    assert used.is_prepared


async def test_plain_payloads_and_clusters_are_refused() -> None:
    """Neither payloads without a header nor a cluster can have a history; nothing is sent."""
    link, transport, _ = publisher()
    with pytest.raises(ConfigurationError, match="wire_format=plain"):
        await history(wire_format="plain").prepare(link, "here")
    link.server = ServerInfo(is_cluster=True)
    with pytest.raises(BrokerError, match=r"whose history redis\+cluster:"):
        await history().prepare(link, "here")
    assert transport.written == []
