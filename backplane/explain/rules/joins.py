"""Whether the client is there, and has joined the channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backplane.explain.explanation import Finding
from backplane.explain.wording import ago, count, place, quoted, unique

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backplane.explain.case import Case
    from backplane.explain.evidence import ClientEvidence, EndedClient, RefusedJoin, WorkerEvidence

__all__ = ["elsewhere", "not_joined", "unknown"]


def elsewhere(case: Case) -> Iterator[Finding]:
    """The client is connected to a worker of another deployment on the same broker."""
    what = f"{case.client} is on" if case.question.client else f"{case.channel} has subscribers on"
    for worker in case.elsewhere:
        yield Finding(
            code="wrong prefix",
            station="broker",
            text=f"{what} worker {worker.name}, which has {place(worker.broker, worker.prefix)}, and on no worker that "
            f"has {case.place}",
            cure="give all workers and publishers of a deployment the same prefix, or name (ipc://)",
            worker=worker.worker,
        )


def unknown(case: Case) -> Iterator[Finding]:
    """The client is not connected."""
    if case.question.client is None or case.found or case.elsewhere or not case.workers:
        return
    refusals = sorted(
        ((worker, refused) for worker in case.workers for refused in worker.refused_joins),
        key=lambda pair: pair[1].seconds_ago,
    )
    ends = sorted(
        ((worker, ended) for worker in case.workers for ended in worker.ended), key=lambda pair: pair[1].seconds_ago
    )
    if refusals and (
        not ends or refusals[0][1].client == ends[0][1].id or refusals[0][1].seconds_ago < ends[0][1].seconds_ago
    ):
        worker, refused = refusals[0]
        yield _refused_join(case, worker, f"client {refused.client}", refused, is_fault=True)
        return
    for worker, ended in ends[:3]:
        yield Finding(
            code="ended",
            station="socket",
            text=f"{case.client} is not connected: its {ended.kind} {ended.id} to worker {worker.name} ended "
            f"{ago(ended.seconds_ago)}, {_how(ended)}",
            cure="the client has to connect again, unless the code keeps it away",
            worker=worker.worker,
        )
    if not ends:
        near = sorted({name for worker in case.workers for name in worker.near_clients})
        yield Finding(
            code="unknown client",
            station="socket",
            text=f"{case.client} is connected to no worker of this deployment"
            + (f"; there are {quoted(near)}" if near else ""),
            cure="look at the name, and at the worker that the client is connected to: one with another broker, "
            f"database, prefix or account is none of this deployment ({case.place})",
        )


def _how(ended: EndedClient) -> str:
    """Return how a client has ended."""
    with_code = "" if ended.code is None else f" with {ended.code}"
    if ended.by in ("client", ""):
        return f"the client left{with_code}"
    return f"closed by the {ended.by}{with_code}: {ended.reason or 'no reason'}"


def not_joined(case: Case) -> Iterator[Finding]:
    """The client is connected, and has not joined the channel."""
    is_joined = bool(case.homes)
    for worker, client in case.found:
        if not client.joined and client.state in _ENDING:
            yield _ending(worker, client, is_joined)
        elif not client.joined:
            refused = next((each for each in worker.refused_joins if each.client == client.id), None)
            if refused is not None:
                name = f"{client.kind} {client.id}"
                yield _refused_join(case, worker, name, refused, is_fault=not is_joined)
            else:
                yield _unjoined(case, worker, client, is_joined)
    if case.question.client is None and case.workers and not case.homes:
        near = unique(name for worker in case.workers for name in worker.near_channels)
        yield Finding(
            code="no subscribers",
            station="hub",
            text=f"no client has joined {case.channel}"
            + (f"; there are subscribers of {quoted(near)}" if near else ""),
            cure="look at the name of the channel" if near else "let a client join it",
        )


_ENDING: Final = ("closing", "closed")


def _ending(worker: WorkerEvidence, client: ClientEvidence, is_joined: bool) -> Finding:
    """Return that a client is about to end: it has left all its channels, and its handler may still run."""
    ended = next((each for each in worker.ended if each.id == client.id), None)
    return Finding(
        code=client.state,
        station="socket",
        text=f"{client.kind} {client.id} on worker {worker.name} is {client.state}"
        + (f", {_how(ended)}" if ended else ""),
        cure="let it connect again, unless the code keeps it away; look at its handler if that does not end",
        worker=worker.worker,
        is_fault=not is_joined,
    )


_REFUSALS: Final = {
    "authorize": ("refused by authorize", "look at what authorize decides for this client and channel"),
    "broker": ("refused by the broker", "allow the account of the worker to subscribe to this channel"),
    "limit": ("refused by a limit", "let the client leave channels, or raise Limits(max_channels=...)"),
}


def _refused_join(case: Case, worker: WorkerEvidence, name: str, refused: RefusedJoin, *, is_fault: bool) -> Finding:
    code, cure = _REFUSALS.get(refused.by, _REFUSALS["authorize"])
    return Finding(
        code=code,
        station="broker" if refused.by == "broker" else "hub",
        text=f"{name} on worker {worker.name} has not joined {case.channel}: its join was refused "
        f"{ago(refused.seconds_ago)}, {refused.reason}",
        cure=cure,
        worker=worker.worker,
        is_fault=is_fault,
    )


def _unjoined(case: Case, worker: WorkerEvidence, client: ClientEvidence, is_joined: bool) -> Finding:
    near = f"; it has joined {quoted(client.near)}, whose name is similar" if client.near else ""
    return Finding(
        code="wrong channel" if client.near else "not joined",
        station="hub",
        text=f"{client.kind} {client.id} on worker {worker.name} has joined {count(client.channels, 'channel')}, and "
        f"not {case.channel}{near}",
        cure="let the publisher and the client use the same name" if client.near else "let it join the channel",
        worker=worker.worker,
        is_fault=not is_joined,
    )
