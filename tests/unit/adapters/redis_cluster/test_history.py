"""`backplane.adapters.redis_cluster.history`: all keys of a channel are in its slot, and no two channels share one."""

from __future__ import annotations

import asyncio
from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane import History
from backplane.adapters.redis.scripts import PERMITTED, SHARD_SCRIPTS
from backplane.adapters.redis_cluster.history import ShardHistory
from backplane.adapters.redis_cluster.links import ShardPublisherLink
from backplane.adapters.redis_cluster.options import RedisClusterOptions
from backplane.adapters.redis_cluster.slots import slot_of
from backplane.errors import BrokerError, ConfigurationError
from tests.unit.adapters.redis.recorded_links import RecordingTransport
from tests.unit.doubles import until_idle

RULE = History(max_messages=50, max_age_seconds=1.5)
# Names of what braces can do, in any order.
NAMES = st.lists(st.sampled_from(["{", "}", "%", "a", "/", "place", "ü"]), min_size=1, max_size=7).map("".join)
PREFIXES = ["", "shop:", "}", "{shop}:", "a{b}c{", "%"]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough."""
    return "asyncio", {"use_uvloop": False}


def history(**options: Any) -> ShardHistory:
    """Return the history of an adapter with these options, prepared but for its nodes."""
    made = ShardHistory(RedisClusterOptions(**options), "alice")
    made.begin()
    return made


def keys(used: ShardHistory, channel: str) -> list[bytes]:
    """Return the keys of a channel: place, log, and that of an idempotency key."""
    reader = hiredis.Reader()
    reader.feed(used.keep(channel, b"x", 7, RULE, b"key"))
    found: Any = reader.gets()
    assert found[:3] == [b"EVALSHA", SHARD_SCRIPTS.keep_once.digest, b"3"]
    return found[3:6]  # type: ignore[no-any-return]


@pytest.mark.parametrize("prefix", PREFIXES)
@given(first=NAMES, second=NAMES)
def test_keys_share_the_slot_of_their_channel_alone(prefix: str, first: str, second: str) -> None:
    """The keys of a channel are in its slot, whatever braces it and the prefix have, and are those of no other."""
    used = history(prefix=prefix)
    ours, theirs = keys(used, first), keys(used, second)
    assert {slot_of(key) for key in ours} == {slot_of((prefix + first).encode())}
    assert all(key.startswith(f"{prefix}$backplane/".encode()) for key in ours)
    assert set(ours).isdisjoint(theirs) == (first != second)


def test_names_of_keys() -> None:
    """The tag is the channel, or the tag that the channel has itself."""
    assert keys(history(prefix="shop:"), "orders")[0] == b"shop:$backplane/{shop:orders}/place"
    assert keys(history(prefix="shop:"), "{t}:a")[1] == b"shop:$backplane/{t}/%7Bt%7D:a/log"
    assert keys(history(prefix="{shop}:"), "orders")[1] == b"{shop}:$backplane/{orders}/log"


@pytest.mark.parametrize("prefix", ["a{b", "{}", "{"])
def test_a_brace_that_opens_no_tag_is_refused(prefix: str) -> None:
    """A name continues such a prefix with a tag of its own, in which its keys cannot be."""
    with pytest.raises(ConfigurationError, match="leave out its brace, or close it"):
        history(prefix=prefix)


async def prepared(reply: bytes) -> BaseException | None:
    """Return what preparing a node raises that answers the last command so."""
    link = ShardPublisherLink(10_000)
    RecordingTransport(link)
    preparing = asyncio.create_task(history(prefix="shop:").prepare_node(link, "here", 12_345))
    for script in (*SHARD_SCRIPTS.all, PERMITTED):
        await until_idle()
        link.data_received(b"$40\r\n%b\r\n" % script.digest)
    await until_idle()
    link.data_received(reply)
    await asyncio.wait([preparing])
    return preparing.exception()


@pytest.mark.anyio
@pytest.mark.parametrize("code", ["MOVED 12345 one:1", "ASK 12345 one:1", "TRYAGAIN Multiple", "CLUSTERDOWN no"])
async def test_a_slot_that_has_moved_refuses_no_history(code: str) -> None:
    """A node that does not serve the slot any more is not refused: what it denies shows at the first publish."""
    assert await prepared(b"-%b\r\n" % code.encode()) is None


@pytest.mark.anyio
async def test_what_a_node_denies() -> None:
    """What an ACL denies is refused for good, with the line to grant."""
    error = await prepared(b"-NOPERM this user has no permissions\r\n")
    assert isinstance(error, BrokerError)
    assert not error.retriable
    assert "~shop:$backplane/*" in str(error)
