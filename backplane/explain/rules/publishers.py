"""Whether anything is published, and meant for the client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backplane.explain.explanation import Finding
from backplane.explain.wording import ago, count, quoted, unique

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backplane.explain.case import Case

__all__ = ["excluded", "nothing_published"]


def nothing_published(case: Case) -> Iterator[Finding]:
    """No message has come on the channel. It explains why a client receives nothing, and is a note without a client."""
    counted = [worker for worker in case.homes if worker.messages is not None]
    if not counted or any(worker.messages for worker in case.homes):
        return
    since = max(worker.subscribed_seconds_ago or 0.0 for worker in counted)
    near = unique(name for worker in case.workers for name in worker.near_published)
    earlier = [worker for worker in case.workers if worker.published_seconds_ago is not None]
    last = min(earlier, key=lambda worker: worker.published_seconds_ago or 0.0, default=None)
    yield Finding(
        code="nothing published",
        station="publisher",
        text=f"no message was received on {case.channel} since its first subscriber came {ago(since)}"
        + (f"; worker {last.name} last published there {ago(last.published_seconds_ago or 0.0)}" if last else "")
        + (f"; what is published to is {quoted(near)}" if near else ""),
        cure="let the publisher and the client use the same name"
        if near
        else "look at what should publish: the name of the channel, its URL and prefix, and whether it runs",
        is_fault=case.question.client is not None,
    )


def excluded(case: Case) -> Iterator[Finding]:
    """The last messages were not meant for the client: the publisher has excluded it, as an author usually is."""
    for worker, client in case.found:
        if client.joined and client.excluded:
            all_of_them = client.excluded == client.last_messages
            of = count(client.last_messages, "message")
            yield Finding(
                code="excluded",
                station="publisher",
                text=f"{client.kind} {client.id} on worker {worker.name} was excluded from "
                + (f"each of the last {of}" if all_of_them else f"{client.excluded} of the last {of}")
                + f" on {case.channel}: published with exclude= its id",
                cure="exclude= is meant for the sender of a message: look at which connection the publisher passes",
                worker=worker.worker,
                is_fault=all_of_them and not _others_receive(case),
            )


def _others_receive(case: Case) -> bool:
    """Return whether another connection that is meant was excluded from less."""
    return any(client.joined and client.excluded < client.last_messages for _, client in case.found)
