"""What becomes of a message between its worker and the client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backplane.explain.explanation import Finding
from backplane.explain.wording import ago, count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backplane.explain.case import Case

__all__ = ["logged", "lost", "several", "waiting"]

# A client that takes what it is sent has nothing waiting for longer than a moment.
_MUCH_BYTES: Final = 64 * 1024


def waiting(case: Case) -> Iterator[Finding]:
    """The client does not take what it is sent, or its connection is not open."""
    for worker, client in case.found:
        if not client.joined:
            continue
        if client.state == "joining":
            yield Finding(
                code="joining",
                station="socket",
                text=f"{client.kind} {client.id} on worker {worker.name} is joining: its handshake is not answered yet",
                cure="look at what the handler and authorize wait for, if that lasts",
                worker=worker.worker,
            )
        elif client.waiting_messages:
            yield Finding(
                code="not reading",
                station="outbox",
                text=f"{client.kind} {client.id} on worker {worker.name} does not read: "
                f"{count(client.waiting_messages, 'message')} ({client.waiting_bytes:,} bytes) wait for it",
                cure="look at the client and its network; "
                + ("it is closed when more waits than its backlog allows" if client.when_full == "close" else "")
                + ("" if client.when_full == "close" else f"what does not fit is dropped ({client.when_full})"),
                worker=worker.worker,
            )
        elif (client.transport_bytes or 0) >= _MUCH_BYTES:
            yield Finding(
                code="not reading",
                station="socket",
                text=f"{client.kind} {client.id} on worker {worker.name} reads slowly: {client.transport_bytes:,} "
                "bytes wait in the server",
                cure="look at the client and its network",
                worker=worker.worker,
            )
        if client.dropped:
            yield Finding(
                code="dropped",
                station="outbox",
                text=f"{count(client.dropped, 'message')} were dropped for {client.kind} {client.id}, which read too "
                f"slowly ({client.when_full})",
                cure="give it a larger Backlog, or publish less",
                worker=worker.worker,
                is_fault=False,
            )
        if client.withheld:
            yield Finding(
                code="withheld",
                station="client",
                text=f"envelope= of the application returned None for {count(client.withheld, 'message')}, on any "
                f"channel, which {client.kind} {client.id} was not sent",
                cure="look at that function: what it returns None for is not sent",
                worker=worker.worker,
                is_fault=False,
            )


def logged(case: Case) -> Iterator[Finding]:
    """A worker has logged something of the channel or the client, or its adapter of the broker."""
    for worker in case.workers:
        for seconds_ago, sentence in worker.events:
            yield Finding(
                code="event",
                station="hub",
                text=f"worker {worker.name} logged {ago(seconds_ago)}: {sentence}",
                worker=worker.worker,
                is_fault=False,
            )


def several(case: Case) -> Iterator[Finding]:
    """Several connections are meant, of which not all need to have joined."""
    if len(case.found) > 1:
        yield Finding(
            code="several clients",
            station="client",
            text=f"{case.client} has {len(case.found)} connections, {sum(each.joined for _, each in case.found)} of "
            "which have joined the channel",
            is_fault=False,
        )


def lost(case: Case) -> Iterator[Finding]:
    """Messages may be missing, or were dropped as none of ours."""
    for worker in case.homes:
        if worker.in_gap:
            yield Finding(
                code="gap",
                station="link",
                text=f"messages of {case.channel} may be missing at worker {worker.name}: its subscribers are notified "
                "once the broker has confirmed the channel again",
                worker=worker.worker,
                is_fault=False,
            )
        elif worker.gap_seconds_ago is not None:
            yield Finding(
                code="gap",
                station="link",
                text=f"worker {worker.name} notified subscribers of a gap {ago(worker.gap_seconds_ago)}: "
                f"{worker.gap_reason}",
                cure="a client that does not load again after a gap shows an old state",
                worker=worker.worker,
                is_fault=False,
            )
        if worker.malformed or worker.unsupported:
            yield Finding(
                code="malformed",
                station="hub",
                text=f"worker {worker.name} has dropped {count(worker.malformed, 'payload')} with an invalid header "
                f"and {worker.unsupported} of a newer release, on any channel",
                cure="look at what publishes them: another program on the same channels, or a newer release",
                worker=worker.worker,
                is_fault=False,
            )
