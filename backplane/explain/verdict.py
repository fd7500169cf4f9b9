"""What follows from what the workers state: one rule for each fault, in the order of a message's way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from backplane.explain.explanation import Explanation, Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from backplane.cluster_types import Worker
    from backplane.explain.evidence import ClientEvidence, Question, RefusedJoin, WorkerEvidence

__all__ = ["Case", "explain"]

# A client that takes what it is sent has nothing waiting for longer than a moment.
_MUCH_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Case:
    """What is known.

    Attributes:
        question: What was asked.
        workers: What each worker stated.
        missing: The workers that did not answer.
        errors: The workers whose answer is of no use, and why.
        not_tested: Why no path test was published; empty where one was.
    """

    question: Question
    workers: tuple[WorkerEvidence, ...]
    missing: tuple[Worker, ...] = ()
    errors: tuple[tuple[Worker, str], ...] = ()
    not_tested: str = ""

    @property
    def channel(self) -> str:
        """The channel, as sentences name it."""
        return repr(self.question.channel)

    @property
    def client(self) -> str:
        """The client, as sentences name it."""
        return "any client" if self.question.client is None else f"client {self.question.client!r}"

    @cached_property
    def found(self) -> list[tuple[WorkerEvidence, ClientEvidence]]:
        """The clients that are meant, each with its worker; those that have joined the channel first."""
        found = [(worker, client) for worker in self.workers for client in worker.clients]
        return sorted(found, key=lambda pair: not pair[1].joined)

    @cached_property
    def homes(self) -> list[WorkerEvidence]:
        """The workers on which the message should arrive: those of the client, or all that have subscribers."""
        if self.question.client is None:
            return [worker for worker in self.workers if worker.subscribers]
        joined = [worker for worker, client in self.found if client.joined]
        return list({worker.worker: worker for worker in joined}.values())


def explain(case: Case) -> Explanation:
    """Return the explanation of a case: the first fault on the way decides."""
    found = [finding for rule in _RULES for finding in rule(case)]
    faults = [finding for finding in found if finding.is_fault]
    first = faults[0] if faults else _whole(case)
    return Explanation(
        verdict=first.code,
        text=first.text,
        cure=first.cure,
        findings=(*faults, *(finding for finding in found if not finding.is_fault)),
        workers=case.workers,
        missing=tuple(worker.id for worker in (*case.missing, *(worker for worker, _ in case.errors))),
        channel=case.question.channel,
        client=case.question.client,
        tested=not case.not_tested,
        not_tested=case.not_tested,
    )


def _whole(case: Case) -> Finding:
    tested = "" if case.not_tested else ", and a test message arrived at its worker"
    if case.question.client is None:
        tested = "" if case.not_tested else ", and a test message arrived there"
        text = f"channel {case.channel} has subscribers on {_count(len(case.homes), 'worker')}{tested}"
    else:
        text = f"{case.client} has joined {case.channel}, nothing waits for it{tested}"
    cure = "look at the proxy and at the client itself: what is published is handed to the socket"
    return Finding(code="whole", station="client", text=text, cure=cure, is_fault=False)


# --- who is there ---


def _unanswered(case: Case) -> Iterator[Finding]:
    if not case.workers and not case.missing and not case.errors:
        yield Finding(
            code="no workers",
            station="broker",
            text="no worker answered, and none is known",
            cure="start the workers with Backplane(cluster=True), and ask with their URL, prefix, database and "
            "control_secret: a worker with others is none of this deployment",
        )


def _missing(case: Case) -> Iterator[Finding]:
    for worker in case.missing:
        yield Finding(
            code="silent worker",
            station="link",
            text=f"worker {worker.host or '?'}/{worker.pid} ({worker.id}) did not answer"
            + ("" if case.homes else ", and no other one has what is looked for"),
            cure="its event loop stands, or it receives nothing from the broker: look at its log and health, and "
            f"restart it if it does not answer (py-spy dump --pid {worker.pid} shows what it does)",
            worker=worker.id,
            is_fault=not case.homes,
        )


def _erring(case: Case) -> Iterator[Finding]:
    for worker, reason in case.errors:
        yield Finding(
            code="no evidence",
            station="hub",
            text=f"worker {worker.host or '?'}/{worker.pid} ({worker.id}) answered with an error: {reason}",
            cure="ask again in a second; a worker of an older release has to be updated",
            worker=worker.id,
            is_fault=not case.homes,
        )


def _unknown(case: Case) -> Iterator[Finding]:
    if case.question.client is None or case.found or not case.workers:
        return
    refusals = [(worker, refused) for worker in case.workers for refused in worker.refused_joins]
    if refusals:
        worker, refused = min(refusals, key=lambda pair: pair[1].seconds_ago)
        yield _refused_join(case, worker, f"client {refused.client}", refused, is_fault=True)
        return
    ends = sorted(
        ((worker, ended) for worker in case.workers for ended in worker.ended), key=lambda pair: pair[1].seconds_ago
    )
    for worker, ended in ends[:3]:
        how = "the client left" if ended.code is None else f"closed with {ended.code}: {ended.reason or 'no reason'}"
        yield Finding(
            code="ended",
            station="socket",
            text=f"{case.client} is not connected: its {ended.kind} {ended.id} to worker {worker.name} ended "
            f"{_ago(ended.seconds_ago)}, {how}",
            cure="the client has to connect again, unless the code keeps it away",
            worker=worker.worker,
        )
    if not ends:
        near = sorted({name for worker in case.workers for name in worker.near_clients})
        broker = next(iter(case.workers))
        yield Finding(
            code="unknown client",
            station="socket",
            text=f"{case.client} is connected to no worker of this deployment"
            + (f"; there are {_names(near)}" if near else ""),
            cure="look at the name, and at the worker that the client is connected to: one with another broker, "
            f"database, prefix or account is none of this deployment ({_place(broker)})",
        )


def _differing(case: Case) -> Iterator[Finding]:
    places = {(worker.broker, worker.prefix) for worker in case.workers}
    if len(places) > 1:
        shown = "; ".join(f"{worker.name}: {_place(worker)}" for worker in case.workers)
        yield Finding(
            code="different settings",
            station="broker",
            text=f"workers are configured differently: {shown}",
            cure="give all workers the same URL and prefix",
            is_fault=False,
        )


# --- the join ---


def _not_joined(case: Case) -> Iterator[Finding]:
    is_joined = bool(case.homes)
    for worker, client in case.found:
        if not client.joined:
            refused = next((each for each in worker.refused_joins if each.client == client.id), None)
            if refused is not None:
                name = f"{client.kind} {client.id}"
                yield _refused_join(case, worker, name, refused, is_fault=not is_joined)
            else:
                yield _unjoined(case, worker, client, is_joined)
    if case.question.client is None and case.workers and not case.homes:
        near = _unique(name for worker in case.workers for name in worker.near_channels)
        yield Finding(
            code="no subscribers",
            station="hub",
            text=f"no client has joined {case.channel}"
            + (f"; there are subscribers of {_names(near)}" if near else ""),
            cure="look at the name of the channel" if near else "let a client join it",
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
        f"{_ago(refused.seconds_ago)}, {refused.reason}",
        cure=cure,
        worker=worker.worker,
        is_fault=is_fault,
    )


def _unjoined(case: Case, worker: WorkerEvidence, client: ClientEvidence, is_joined: bool) -> Finding:
    near = f"; it has joined {_names(client.near)}, whose name is similar" if client.near else ""
    return Finding(
        code="wrong channel" if client.near else "not joined",
        station="hub",
        text=f"{client.kind} {client.id} on worker {worker.name} has joined {_count(client.channels, 'channel')}, and "
        f"not {case.channel}{near}",
        cure="let the publisher and the client use the same name" if client.near else "let it join the channel",
        worker=worker.worker,
        is_fault=not is_joined,
    )


# --- the way to the worker ---


def _link(case: Case) -> Iterator[Finding]:
    for worker in case.homes:
        if worker.state != "live":
            yield Finding(
                code="link down",
                station="link",
                text=f"the link of worker {worker.name} to the broker has been {worker.state} for "
                f"{worker.state_seconds:.0f} s",
                cure="the worker reconnects by itself; if others are live, look at its network, and at its log",
                worker=worker.worker,
            )


def _subscription(case: Case) -> Iterator[Finding]:
    for worker in case.homes:
        if worker.refused:
            yield Finding(
                code="refused by the broker",
                station="broker",
                text=f"the broker refuses {case.channel} to worker {worker.name}: {worker.refused}",
                cure="allow its account to subscribe to this channel; it is tried again every probe interval",
                worker=worker.worker,
            )
        elif worker.state == "live" and not worker.confirmed:
            yield Finding(
                code="not subscribed",
                station="broker",
                text=f"worker {worker.name} has subscribers of {case.channel}, and the broker has not confirmed its "
                "subscription",
                cure="it is tried again by itself; if that lasts, look at the worker's log and at the broker's load",
                worker=worker.worker,
            )


def _path(case: Case) -> Iterator[Finding]:
    """Return who did not receive the test message, where others did; or that none has."""
    if case.not_tested:
        if case.homes:
            yield Finding(
                code="not tested",
                station="publisher",
                text=f"no test message was published on {case.channel}: {case.not_tested}",
                is_fault=False,
            )
        return
    silent = [worker for worker in case.homes if worker.test_received is False and _should_receive(worker)]
    reached = [worker for worker in case.workers if worker.test_received]
    for worker in silent:
        others = f"; it arrived at {', '.join(each.name for each in reached[:3])}" if reached else ""
        yield Finding(
            code="receives nothing",
            station="link",
            text=f"worker {worker.name} is subscribed to {case.channel}, and does not receive what is published: the "
            f"broker took a test message, and it did not arrive{others}",
            cure="restart this worker, and report it"
            if reached
            else "compare prefix, database and account of the publisher with those of the worker "
            f"({_place(worker)}); if they are the same, restart the worker",
            worker=worker.worker,
        )


def _should_receive(worker: WorkerEvidence) -> bool:
    return worker.state == "live" and worker.confirmed and not worker.refused


# --- from the worker to the client ---


def _waiting(case: Case) -> Iterator[Finding]:
    for worker, client in case.found:
        if not client.joined:
            continue
        if client.state in ("joining", "closing", "closed"):
            yield Finding(
                code=client.state,
                station="socket",
                text=f"{client.kind} {client.id} on worker {worker.name} is {client.state}",
                cure="wait until its handshake is answered" if client.state == "joining" else "let it connect again",
                worker=worker.worker,
            )
        elif client.waiting_messages:
            yield Finding(
                code="not reading",
                station="outbox",
                text=f"{client.kind} {client.id} on worker {worker.name} does not read: "
                f"{_count(client.waiting_messages, 'message')} ({client.waiting_bytes:,} bytes) wait for it",
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
                text=f"{_count(client.dropped, 'message')} were dropped for {client.kind} {client.id}, which read too "
                f"slowly ({client.when_full})",
                cure="give it a larger Backlog, or publish less",
                worker=worker.worker,
                is_fault=False,
            )


def _several(case: Case) -> Iterator[Finding]:
    if len(case.found) > 1:
        yield Finding(
            code="several clients",
            station="client",
            text=f"{case.client} has {len(case.found)} connections, {sum(each.joined for _, each in case.found)} of "
            "which have joined the channel",
            is_fault=False,
        )


def _lost(case: Case) -> Iterator[Finding]:
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
                text=f"worker {worker.name} notified subscribers of a gap {_ago(worker.gap_seconds_ago)}: "
                f"{worker.gap_reason}",
                cure="a client that does not load again after a gap shows an old state",
                worker=worker.worker,
                is_fault=False,
            )
        if worker.malformed or worker.unsupported:
            yield Finding(
                code="malformed",
                station="hub",
                text=f"worker {worker.name} has dropped {_count(worker.malformed, 'payload')} with an invalid header "
                f"and {worker.unsupported} of a newer release, on any channel",
                cure="look at what publishes them: another program on the same channels, or a newer release",
                worker=worker.worker,
                is_fault=False,
            )


_RULES: Final[tuple[Callable[[Case], Iterable[Finding]], ...]] = (
    _unanswered,
    _missing,
    _erring,
    _unknown,
    _not_joined,
    _link,
    _subscription,
    _path,
    _waiting,
    _differing,
    _several,
    _lost,
)


def _place(worker: WorkerEvidence) -> str:
    """Return where a worker finds its channels."""
    return f"{worker.broker or 'an unknown broker'}, prefix {worker.prefix!r}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 7200 else f"{seconds / 3600:.0f} h ago"


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))[:3]
