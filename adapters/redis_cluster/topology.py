"""What one node reports about its cluster, and whether that can be trusted.

A node in the minority of a partition goes on answering: SPUBLISH and SSUBSCRIBE succeed there
(`cluster-allow-pubsubshard-when-down`), while the majority may have made others the owners of its slots. Only its state
shows it. `cluster_state:fail` alone can also mean that some other slot has no node, which does not concern the rest.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import hiredis

from backplane.adapters.redis.errors import classify_reply, is_denied, unavailable
from backplane.adapters.redis.server_info import info_fields
from backplane.adapters.redis_cluster.slots import slot_map
from backplane.adapters.shared.server_address import format_address
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerError, BrokerUnavailableError
from backplane.journal.events import BROKER_DETAIL
from backplane.journal.writing import write

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backplane.adapters.redis.link import RedisLink
    from backplane.adapters.redis_cluster.slots import Host, SlotMap

__all__ = ["Report", "has_majority", "newest_report", "report_of"]

logger: Final = logging.getLogger("backplane.adapters.redis_cluster.topology")

# So many nodes are asked at once.
_MAX_ASKED: Final = 8
# After the first reply the others have this long: they may know of a newer configuration.
_OTHERS_SECONDS: Final = 0.1


class Report(NamedTuple):
    """What a node reports.

    Attributes:
        epoch: The newest configuration that it knows of.
        slots: Its map.
    """

    epoch: int
    slots: SlotMap


async def report_of(link: RedisLink, asked: Host) -> Report:
    """Ask the node at `asked` about its cluster.

    Raises:
        BrokerUnavailableError: The link ended, or the node is in a minority, or accepts no commands at present.
        BrokerError: It belongs to no cluster, or denies the question.
    """
    where = format_address(asked)
    try:
        fields = info_fields(await _info(link))
        if fields.get("cluster_state") == "fail" and not has_majority(await link.ask(b"CLUSTER", b"NODES")):
            raise unavailable(f"{where} is cut off from the majority of its cluster")
        reply = await link.ask(b"CLUSTER", b"SLOTS")
        slots = slot_map(reply, asked)
    except hiredis.ReplyError as error:
        if classify_reply(error) == "passing":
            raise unavailable(f"{where} takes no commands at present: {error}") from error
        if "cluster support disabled" in str(error):
            reason = f"{where} belongs to no cluster: the scheme of a single server is redis:// or rediss://"
        elif is_denied(error):
            reason = f"{where} denies a question about its cluster: grant +cluster|slots +cluster|info +cluster|nodes"
        else:
            reason = f"{where} does not answer as a node of a cluster: {error}"
        raise BrokerError(reason, adapter="redis", retriable=False) from error
    except ValueError as error:
        raise BrokerError(f"{where}: {error}", adapter="redis", retriable=False) from error
    if not slots.nodes:
        raise unavailable(f"{where} knows no node that serves a slot")
    return Report(int(fields.get("cluster_current_epoch", 0)), slots)


def has_majority(nodes: Any) -> bool:
    """Return whether the node that replied this to `CLUSTER NODES` reaches most of the nodes that serve slots."""
    voters = reached = 0
    for line in nodes.decode(errors="replace").splitlines() if isinstance(nodes, bytes) else []:
        fields = line.split()
        flags = fields[2].split(",") if len(fields) > 2 else []
        if "master" in flags and len(fields) > 8:  # slots follow
            voters += 1
            reached += not {"fail", "fail?"}.intersection(flags)
    return reached > voters // 2


async def newest_report(links: Iterable[tuple[RedisLink, Host]], *, seconds: float) -> Report:
    """Ask several nodes at the same time, and return the report with the newest configuration that most of them give.

    Args:
        links: A link to each, and its address.
        seconds: How long the first reply may take.

    Raises:
        BrokerUnavailableError: None replied in time that can be trusted.
        BrokerError: One of them belongs to no cluster.
    """
    asking: set[asyncio.Task[Report]] = {
        asyncio.create_task(report_of(link, host)) for link, host in list(links)[:_MAX_ASKED]
    }
    pending: set[asyncio.Task[Report]] = set(asking)
    try:
        with suppress(TimeoutError):
            async with PatientTimeout(seconds):
                while pending and not any(map(_report, asking - pending)):
                    _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if pending and len(pending) < len(asking):
            _, pending = await asyncio.wait(pending, timeout=_OTHERS_SECONDS)
        done = asking - pending
    finally:
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
    reports = [report for task in done if (report := _report(task)) is not None]
    if reports:
        epoch = max(report.epoch for report in reports)
        newest = [report for report in reports if report.epoch == epoch]
        # A node that was moved can know an address of its own that is outdated, while the others know the new one.
        return max(newest, key=lambda report: sum(report.slots == other.slots for other in newest))
    errors = [error for task in done if isinstance(error := task.exception(), Exception)]
    for error in errors:
        if not isinstance(error, BrokerUnavailableError):
            raise error
    raise unavailable("; ".join(str(getattr(error, "reason", error)) for error in errors) or "no node answers in time")


def _report(task: asyncio.Task[Report]) -> Report | None:
    return None if task.cancelled() or task.exception() is not None else task.result()


async def _info(link: RedisLink) -> Any:
    """Return the reply to `CLUSTER INFO`; `None` where an ACL denies it: then the node is trusted."""
    try:
        return await link.ask(b"CLUSTER", b"INFO")
    except hiredis.ReplyError as error:
        if not is_denied(error):
            raise
        write(logger, BROKER_DETAIL, "CLUSTER INFO is denied, so a node that is cut off goes unnoticed")
        return None
