"""`backplane.adapters.redis_cluster.topology`: when a node can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import hiredis
import pytest

from backplane.adapters.redis_cluster.slots import SLOTS
from backplane.adapters.redis_cluster.topology import has_majority, newest_report, report_of
from backplane.errors import BrokerError, BrokerUnavailableError
from tests.unit.doubles import Gate

if TYPE_CHECKING:
    from backplane.adapters.redis.link import RedisLink

pytestmark = pytest.mark.anyio

HOST = ("10.0.0.1", 7001)


def nodes(*flags: str) -> bytes:
    """Return what CLUSTER NODES replies for primaries with these flags, and for what serves no slot."""
    lines = [f"id{n} h:1@2 {flag} - 0 0 {n} connected {n}-{n}" for n, flag in enumerate(flags)]
    lines += ["r1 h:1@2 slave id0 0 0 1 connected", "e1 h:1@2 master,fail - 0 0 1 connected", ""]
    return "\n".join(lines).encode()


class Link:
    """A link whose replies are given by command."""

    def __init__(self, **replies: Any) -> None:
        self.gate = Gate()
        self.replies = {
            "INFO": b"cluster_state:ok\r\ncluster_current_epoch:3\r\n",
            "SLOTS": [[0, SLOTS - 1, [b"10.0.0.1", 7001, b"id"]]],
            "NODES": nodes("myself,master"),
            **replies,
        }

    async def ask(self, *parts: bytes) -> Any:
        """Reply."""
        await self.gate.passage()
        reply = self.replies[parts[1].decode()]
        if isinstance(reply, Exception):
            raise reply
        return reply


def link(**replies: Any) -> RedisLink:
    """Return such a link."""
    return cast("RedisLink", Link(**replies))


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        (nodes("myself,master", "master", "master"), True),
        (nodes("myself,master", "master", "master,fail"), True),
        (nodes("myself,master", "master,fail?", "master,fail"), False),
        (nodes("myself,master", "master,fail?"), False),
        (nodes("myself,master"), True),
        (None, False),
    ],
)
def test_has_majority(reply: Any, found: bool) -> None:
    """A node needs contact with more than half of the nodes that serve slots; replicas do not count."""
    assert has_majority(reply) is found


async def test_a_report() -> None:
    """A node that is well reports its map and its epoch; one that denies the state is trusted."""
    report = await report_of(link(), HOST)
    assert (report.epoch, report.slots.nodes) == (3, {HOST})
    assert (await report_of(link(INFO=hiredis.ReplyError("NOPERM no")), HOST)).epoch == 0


async def test_a_slot_without_a_node_is_no_isolation() -> None:
    """`cluster_state:fail` with a majority: some other slot has no node."""
    down = b"cluster_state:fail\r\ncluster_current_epoch:4\r\n"
    assert (await report_of(link(INFO=down), HOST)).epoch == 4
    with pytest.raises(BrokerUnavailableError, match="cut off from the majority"):
        await report_of(link(INFO=down, NODES=nodes("myself,master", "master,fail?")), HOST)


@pytest.mark.parametrize(
    ("replies", "text", "retriable"),
    [
        ({"INFO": hiredis.ReplyError("LOADING dataset")}, "takes no commands at present", True),
        ({"SLOTS": []}, "knows no node", True),
        ({"SLOTS": hiredis.ReplyError("ERR This instance has cluster support disabled")}, "redis://", False),
        ({"SLOTS": hiredis.ReplyError("NOPERM no")}, r"\+cluster\|slots", False),
        ({"SLOTS": hiredis.ReplyError("ERR unknown command")}, "does not answer as a node", False),
        ({"SLOTS": [1]}, "not a reply to CLUSTER SLOTS", False),
    ],
)
async def test_no_report(replies: dict[str, Any], text: str, retriable: bool) -> None:
    """Each reason for having no map is stated, and whether another try can help."""
    with pytest.raises(BrokerError, match=text) as raised:
        await report_of(link(**replies), HOST)
    assert raised.value.retriable is retriable


async def test_the_newest_report_counts() -> None:
    """Of several maps that of the newest configuration is used; who cannot be trusted is left out."""
    newer = link(INFO=b"cluster_state:ok\r\ncluster_current_epoch:9\r\n")
    cut_off = link(INFO=b"cluster_state:fail\r\n", NODES=nodes("master", "master,fail"))
    report = await newest_report([(link(), HOST), (newer, HOST), (cut_off, HOST)], seconds=5)
    assert report.epoch == 9
    with pytest.raises(BrokerUnavailableError, match="cut off"):
        await newest_report([(cut_off, HOST)], seconds=5)
    with pytest.raises(BrokerError) as raised:
        await newest_report([(link(SLOTS=[1]), HOST), (cut_off, HOST)], seconds=5)
    assert not raised.value.retriable


async def test_most_nodes_decide() -> None:
    """A node whose own address is outdated is outvoted by others with the same configuration."""
    outdated = [[0, SLOTS - 1, [b"10.0.0.9", 7001, b"id"]]]
    for links in ([link(SLOTS=outdated), link(), link()], [link(), link(), link(SLOTS=outdated)]):
        report = await newest_report([(each, HOST) for each in links], seconds=5)
        assert report.slots.nodes == {HOST}


async def test_who_does_not_answer_is_not_waited_for() -> None:
    """One answer is enough; without any the question ends in time."""
    silent = Link()
    silent.gate.close()
    links = [(cast("RedisLink", silent), HOST), (link(), HOST)]
    assert (await newest_report(links, seconds=30)).epoch == 3
    with pytest.raises(BrokerUnavailableError, match="no node answers in time"):
        await newest_report(links[:1], seconds=0.05)
