"""`backplane.explain.verdict`: which fault is named for what the workers state, and in which order."""

from __future__ import annotations

from typing import Any

import pytest

from backplane.cluster_types import Worker
from backplane.explain.case import Case
from backplane.explain.evidence import ClientEvidence, EndedClient, Question, RefusedJoin, WorkerEvidence
from backplane.explain.verdict import explain

ASKED = Question(channel="orders:42", client="ada")


def client(**given: Any) -> ClientEvidence:
    """Return a client that has joined the channel, and reads."""
    usual: dict[str, Any] = {"id": "c1", "user": "ada", "joined": True, "channels": 1, "when_full": "close"}
    return ClientEvidence(**usual | given)


def worker(name: str = "w1", *clients: ClientEvidence, **given: Any) -> WorkerEvidence:
    """Return a worker that receives the channel."""
    usual: dict[str, Any] = {
        "worker": name,
        "host": "web",
        "pid": int(name[1:]),
        "broker": "redis://redis",
        "state": "live",
        "subscribers": len(clients),
        "wanted": bool(clients),
        "confirmed": bool(clients),
        "test_received": True if clients else None,
        "clients": clients,
    }
    return WorkerEvidence(**usual | given)


GOOD = worker("w1", client())
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "whole": ("whole", {"workers": (GOOD, worker("w2"))}),
    "no worker": ("no workers", {"workers": ()}),
    "a worker is silent, and the client may be there": (
        "silent worker",
        {"workers": (worker("w1"),), "missing": (Worker(id="w2", host="web", pid=2),)},
    ),
    "only silent workers": ("silent worker", {"workers": (), "missing": (Worker(id="w2", host="web", pid=2),)}),
    "a worker answers with an error, and the client may be there": (
        "no evidence",
        {"workers": (worker("w1"),), "errors": ((Worker(id="w2", host="web", pid=2), "ask again later"),)},
    ),
    "only errors": ("no evidence", {"workers": (), "errors": ((Worker(id="w2", host="web", pid=2), "too many"),)}),
    "an error elsewhere": ("whole", {"workers": (GOOD,), "errors": ((Worker(id="w2"), "too many"),)}),
    "unknown": ("unknown client", {"workers": (worker("w1", near_clients=("Ada",)),)}),
    "elsewhere": (
        "wrong prefix",
        {
            "workers": (worker("w1"),),
            "elsewhere": (worker("w2", client(), prefix="shop2:"),),
            "place": "redis, 'shop:'",
        },
    ),
    "ended": (
        "ended",
        {"workers": (worker("w1", ended=(EndedClient(id="c1", by="worker", code=4000, reason="reload"),)),)},
    ),
    "refused, and gone later for another reason": (
        "ended",
        {
            "workers": (
                worker(
                    "w1",
                    refused_joins=(RefusedJoin(client="c1", seconds_ago=90),),
                    ended=(EndedClient(id="c2", by="client", code=1001, seconds_ago=5),),
                ),
            )
        },
    ),
    "left": ("ended", {"workers": (worker("w1", ended=(EndedClient(id="c1", seconds_ago=31),)),)}),
    "refused, and gone": (
        "refused by authorize",
        {
            "workers": (
                worker("w1", refused_joins=(RefusedJoin(client="c1", reason="no"),), ended=(EndedClient(id="c1"),)),
            )
        },
    ),
    "refused by authorize": (
        "refused by authorize",
        {"workers": (worker("w1", client(joined=False), refused_joins=(RefusedJoin(client="c1", reason="no"),)),)},
    ),
    "its join was refused by the broker": (
        "refused by the broker",
        {"workers": (worker("w1", client(joined=False), refused_joins=(RefusedJoin(client="c1", by="broker"),)),)},
    ),
    "refused by a limit": (
        "refused by a limit",
        {"workers": (worker("w1", client(joined=False), refused_joins=(RefusedJoin(client="c1", by="limit"),)),)},
    ),
    "another channel": ("wrong channel", {"workers": (worker("w1", client(joined=False, near=("order:42",))),)}),
    "not joined": ("not joined", {"workers": (worker("w1", client(joined=False)),)}),
    "link down": ("link down", {"workers": (worker("w1", client(), state="degraded", test_received=False),)}),
    "refused by the broker": (
        "refused by the broker",
        {"workers": (worker("w1", client(), refused="NOPERM", confirmed=False, test_received=False),)},
    ),
    "not confirmed": ("not subscribed", {"workers": (worker("w1", client(), confirmed=False, test_received=False),)}),
    "receives nothing, others do": (
        "receives nothing",
        {"workers": (worker("w1", client(), test_received=False), worker("w2", client(id="c2", user=None)))},
    ),
    "receives nothing, and no other does": (
        "receives nothing",
        {"workers": (worker("w1", client(), test_received=False),)},
    ),
    "not tested": (
        "whole",
        {"workers": (worker("w1", client(), test_received=None),), "not_tested": "path_test=False"},
    ),
    "nothing published": (
        "nothing published",
        {"workers": (worker("w1", client(), messages=0, subscribed_seconds_ago=40.0, near_published=("order:42",)),)},
    ),
    "published before": (
        "nothing published",
        {"workers": (worker("w1", client(), messages=0), worker("w2", published_seconds_ago=90.0))},
    ),
    "published": ("whole", {"workers": (worker("w1", client(), messages=3, last_message_seconds_ago=2.0),)}),
    "excluded from all": ("excluded", {"workers": (worker("w1", client(last_messages=3, excluded=3), messages=3),)}),
    "excluded from some": ("whole", {"workers": (worker("w1", client(last_messages=16, excluded=3), messages=20),)}),
    "one of two connections is excluded": (
        "whole",
        {"workers": (worker("w1", client(last_messages=3, excluded=3), client(id="c2", last_messages=3), messages=3),)},
    ),
    "still joining": ("joining", {"workers": (worker("w1", client(state="joining")),)}),
    "being closed": (
        "closing",
        {
            "workers": (
                worker(
                    "w1",
                    client(state="closing", joined=False, channels=0),
                    ended=(EndedClient(id="c1", by="worker", code=4003, reason="banned"),),
                ),
            )
        },
    ),
    "closed, and its handler runs": ("closed", {"workers": (worker("w1", client(state="closed", joined=False)),)}),
    "the link of the worker that answers is lost": ("link down", {"workers": (worker("w1", state="degraded"),)}),
    "does not read": ("not reading", {"workers": (worker("w1", client(waiting_messages=3, waiting_bytes=99)),)}),
    "drops": ("not reading", {"workers": (worker("w1", client(waiting_messages=1, when_full="drop_oldest")),)}),
    "waits in the server": ("not reading", {"workers": (worker("w1", client(transport_bytes=70_000)),)}),
    "dropped before": ("whole", {"workers": (worker("w1", client(dropped=3)),)}),
    "withheld": ("whole", {"workers": (worker("w1", client(withheld=3)),)}),
    "a gap before": ("whole", {"workers": (worker("w1", client(), gap_seconds_ago=7300.0, gap_reason="lost"),)}),
    "a gap now": ("whole", {"workers": (worker("w1", client(), in_gap=True),)}),
    "logged": ("whole", {"workers": (worker("w1", client(), events=((3.0, "a subscriber failed"),)),)}),
    "malformed": ("whole", {"workers": (worker("w1", client(), malformed=1, unsupported=2),)}),
    "two clients, one has joined": ("whole", {"workers": (worker("w1", client(), client(id="c2", joined=False)),)}),
    "other settings": ("whole", {"workers": (GOOD, worker("w2", broker="redis://redis/1"))}),
}


@pytest.mark.parametrize("name", CASES)
def test_verdict(name: str) -> None:
    """The first fault on the way is the verdict, in a sentence, and what to do about it."""
    verdict, known = CASES[name]
    found = explain(Case(question=ASKED, **known))
    assert found.verdict == verdict
    assert found.text[0].islower()
    assert found.cure or found.verdict == "whole"
    assert found.is_whole == (verdict == "whole")
    shown = found.to_json()
    assert (shown["answered"], shown["asked"]) == (len(found.workers), len(found.workers) + len(found.missing))
    assert [finding.is_fault for finding in found.findings] == sorted(
        (finding.is_fault for finding in found.findings), reverse=True
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("receives nothing, others do", ["web/1", "web/2", "restart this worker"]),
        ("receives nothing, and no other does", ["web/1", "prefix ''", "redis://redis"]),
        ("only errors", ["web/2", "too many", "ask again"]),
        ("only silent workers", ["web/2", "py-spy dump --pid 2"]),
        ("unknown", ["'Ada'"]),
        ("being closed", ["is closing, closed by the worker with 4003: banned"]),
        ("elsewhere", ["web/2", "prefix 'shop2:'", "redis, 'shop:'"]),
        ("ended", ["closed by the worker with 4000: reload"]),
        ("refused, and gone later for another reason", ["the client left with 1001"]),
        ("left", ["31 s ago", "the client left"]),
        ("another channel", ["'order:42'"]),
        ("drops", ["drop_oldest"]),
        ("waits in the server", ["70,000 bytes"]),
        ("dropped before", ["3 messages were dropped"]),
        ("withheld", ["envelope= of the application returned None for 3 messages", "is not sent"]),
        ("a gap before", ["2 h ago", "lost"]),
        ("a gap now", ["may be missing"]),
        ("logged", ["worker web/1 logged 3 s ago: a subscriber failed"]),
        ("malformed", ["1 payload", "2 of a newer release"]),
        ("two clients, one has joined", ["2 connections, 1 of which"]),
        ("other settings", ["web/2: redis://redis/1"]),
        ("nothing published", ["40 s ago", "'order:42'", "the same name"]),
        ("published before", ["worker web/2 last published there 90 s ago", "whether it runs"]),
        ("excluded from all", ["from each of the last 3 messages"]),
        ("excluded from some", ["from 3 of the last 16 messages"]),
        ("not tested", ["path_test=False"]),
    ],
)
def test_words(name: str, words: list[str]) -> None:
    """What was found is named: the worker, the names that resemble, the numbers."""
    found = explain(Case(question=ASKED, **CASES[name][1]))
    text = " ".join(part for finding in found.findings for part in (finding.text, finding.cure))
    assert [word for word in words if word not in text] == []


def test_channel_alone() -> None:
    """Without a client every worker with a subscriber is followed; without one, names that resemble are shown."""
    question = Question(channel="orders:42")
    workers = (worker("w1", subscribers=2, confirmed=True, test_received=True), worker("w2"))
    assert explain(Case(question=question, workers=workers)).text.startswith("channel 'orders:42' has subscribers on 1")
    found = explain(Case(question=question, workers=(worker("w1", near_channels=("order:42",)),), not_tested="no"))
    assert (found.verdict, "'order:42'" in found.text) == ("no subscribers", True)
    silent = worker("w2", subscribers=1, confirmed=True, test_received=False)
    found = explain(Case(question=question, workers=(*workers, silent)))
    assert (found.verdict, found.findings[0].worker) == ("receives nothing", "w2")
    assert explain(Case(question=question, workers=workers, not_tested="off")).text.endswith("1 worker")


def test_a_quiet_channel() -> None:
    """Without a client that nothing was published is a note: the way is whole."""
    quiet = worker("w1", subscribers=2, confirmed=True, test_received=True, messages=0)
    found = explain(Case(question=Question(channel="orders:42"), workers=(quiet,)))
    assert (found.verdict, [finding.code for finding in found.findings]) == ("whole", ["nothing published"])


def test_time_in_words() -> None:
    """Minutes from two on, hours from two on."""
    for seconds, words in ((119, "119 s ago"), (600, "10 min ago"), (7200, "2 h ago")):
        ended = EndedClient(id="c1", seconds_ago=seconds)
        assert words in explain(Case(question=ASKED, workers=(worker("w1", ended=(ended,)),))).text
