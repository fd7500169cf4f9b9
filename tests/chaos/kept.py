"""Workers whose channels have a history, with a channel without one beside them, and what is promised of both."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Final

from backplane import History
from tests.chaos.case_table import KEPT_FIGURES
from tests.chaos.checker import GapSeen, check
from tests.chaos.workload import GREETING, QUICK, Workload, running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Mapping, Sequence

    from backplane import Settings
    from tests.chaos.checker import Event, Outcome
    from tests.chaos.workload import Participant

__all__ = ["KEPT", "KEPT_QUICK", "PLAIN", "RULES", "KeptCaseRecorder", "KeptWorkload", "running_kept"]

KEPT: Final = ("kept-red", "kept-green")
PLAIN: Final = "plain"
RULES: Final = {"kept-*": History(max_messages=20_000, max_age_seconds=600)}
KEPT_QUICK: Final = replace(QUICK, max_recall_messages=20_000, max_recall_bytes=64 * 1024 * 1024)

_DETECTION_SECONDS: Final = 20.0


@dataclass(slots=True, kw_only=True)
class KeptResult:
    """What the channels with a history had, of all subscribers together.

    Attributes:
        messages: Messages that the broker had acknowledged.
        links: How many links were lost.
        gaps: Gaps that were received.
        lost: Messages that were acknowledged and did not arrive.
        twice: Messages that arrived again.
        disordered: Messages that arrived after a later one.
        unknown: Messages of which the publisher does not know whether they were published.
        plain_gaps: Gaps on the channel without a history.
        plain_lost: Messages lost on it.
        faults: Every broken guarantee, as text.
    """

    messages: int = 0
    links: int = 0
    gaps: int = 0
    lost: int = 0
    twice: int = 0
    disordered: int = 0
    unknown: int = 0
    plain_gaps: int = 0
    plain_lost: int = 0
    faults: list[str] = field(default_factory=list[str])


class KeptWorkload(Workload):
    """A workload on channels with a history, and on one without.

    Args:
        near: URL through the fault.
        far: URL that bypasses it; the same where all use it.
        rules: The rules of all.
        settings: Of all participants.
        plain_lossless: Whether the adapter loses nothing on a channel without a history either.
    """

    def __init__(
        self,
        near: str,
        far: str,
        *,
        rules: Mapping[str, History] = RULES,
        settings: Settings = KEPT_QUICK,
        plain_lossless: bool = False,
    ) -> None:
        super().__init__(near, far, settings, lossless=plain_lossless, channels=(*KEPT, PLAIN), history=rules)

    def judge(
        self,
        *,
        gaps: Mapping[str, int] | int = 0,
        at_most: Collection[str] = (),
        more_plain_gaps: int = 0,
        others: Mapping[str, Mapping[str, list[Outcome]]] | None = None,
        stored: Mapping[str, Collection[tuple[str, int]]] | None = None,
    ) -> KeptResult:
        """Check every channel of every subscriber.

        Args:
            gaps: How many gaps each kept channel of a subscriber has exactly: of all, or by their names. Where it is 0
                nothing acknowledged may be missing.
            at_most: Names of subscribers that may have fewer: whether the broker has lost what they miss is up to the
                moment of the fault.
            more_plain_gaps: How many gaps the channel without a history may have beside those of lost links.
            others: Outcomes of further publishers, by channel and name.
            stored: The messages that the broker has at the end, by channel, where it may have lost acknowledged ones.
                Only a subscriber that has received one of those can know, and then has a gap.
        """
        result = KeptResult(links=sum(len(one.degraded_at) for one in self.participants))
        for subscriber in self.subscribers:
            expected = gaps if isinstance(gaps, int) else gaps[subscriber.name]
            for channel in self.channels:
                published = {one.name: one.outcomes[channel] for one in self.publishers}
                published |= (others or {}).get(channel, {})
                kept = channel != PLAIN
                if kept and stored is not None:
                    published = {
                        name: [
                            "unknown" if outcome == "ok" and (name, number) not in stored[channel] else outcome
                            for number, outcome in enumerate(outcomes)
                        ]
                        for name, outcomes in published.items()
                    }
                most = expected if kept else 0 if self.lossless else len(subscriber.degraded_at) + more_plain_gaps
                lossless = not most if kept else self.lossless
                found = check(published, subscriber.seen[channel], max_gaps=most, lossless=lossless)
                if kept and stored is not None and not _is_reported(subscriber.seen[channel], stored[channel]):
                    found.faults.append("no gap follows a message that the broker has lost")
                if kept and subscriber.name not in at_most and found.gaps < most:
                    found.faults.append(f"{found.gaps} gaps received, and {most} were due")
                result.faults += [f"{subscriber.name} on {channel}: {fault}" for fault in found.faults]
                if kept:
                    result.gaps += found.gaps
                    result.lost += found.lost
                    result.twice += found.twice
                    result.disordered += found.disordered
                else:
                    result.plain_gaps += found.gaps
                    result.plain_lost += found.lost
        for channel in KEPT:
            result.faults += self._other_orders(channel)
            for publisher in self.publishers:
                result.messages += publisher.outcomes[channel].count("ok")
                result.unknown += publisher.outcomes[channel].count("unknown")
        return result

    def _other_orders(self, channel: str) -> list[str]:
        """Return whose order of messages is another: there is one, the same for all."""
        orders = {
            one.name: [event for event in one.seen[channel] if not isinstance(event, GapSeen)]
            for one in self.subscribers
        }
        shared = set[tuple[str, int]].intersection(*map(set, orders.values()))
        first, *rest = [(name, [event for event in order if event in shared]) for name, order in orders.items()]
        faults = [f"{name} has another order on {channel} than {first[0]}" for name, order in rest if order != first[1]]
        for name, order in orders.items():  # without a gap also what is not acknowledged reaches all or none
            if len(self.seen_gaps(channel)) == 0 and len(order) != len(shared):
                faults.append(f"{name} has {len(order) - len(shared)} messages on {channel} that others have not")
        return faults

    def seen_gaps(self, channel: str) -> Collection[str]:
        """Return the subscribers that have received a gap on `channel`."""
        return [one.name for one in self.subscribers if any(isinstance(event, GapSeen) for event in one.seen[channel])]

    async def stored(self) -> dict[str, set[tuple[str, int]]]:
        """Return what the broker has, by channel."""
        pages = {
            channel: await self.participants[-1].backplane.history(channel, limit=RULES["kept-*"].max_messages)
            for channel in KEPT
        }
        texts = {channel: [str(message.data).split() for message in page.messages] for channel, page in pages.items()}
        return {
            channel: {(words[0], int(words[1])) for words in found if words[1] != GREETING}
            for channel, found in texts.items()
        }

    async def all_live(self, participants: Collection[Participant] | None = None) -> None:
        """Wait until all, or these, are live."""
        for participant in self.participants if participants is None else participants:
            await participant.backplane.wait_for_state("live")

    async def lost(self, since: float) -> None:
        """Wait until all near the fault have lost their link: since then, or shortly before, by an earlier fault."""
        async with asyncio.timeout(_DETECTION_SECONDS):
            for participant in self.near:
                while participant.backplane.state == "live" and not any(at >= since for at in participant.degraded_at):
                    await participant.backplane.wait_for_state("degraded")

    async def go_on(self, publisher: Participant, count: int = 10) -> None:
        """Wait until `publisher` has published so many more on every kept channel, each acknowledged."""
        for channel in KEPT:
            outcomes = publisher.outcomes[channel]
            before = outcomes.count("ok")
            while outcomes.count("ok") < before + count:
                await publisher.publish(channel)


def _is_reported(seen: Sequence[Event], stored: Collection[tuple[str, int]]) -> bool:
    """Whether a gap follows each message that the broker has lost."""
    lost = False
    for event in seen:
        if isinstance(event, GapSeen):
            lost = False
        elif event not in stored:
            lost = True
        elif lost:
            return False
    return not lost


@asynccontextmanager
async def running_kept(
    near: str,
    far: str | None = None,
    *,
    rules: Mapping[str, History] = RULES,
    settings: Settings = KEPT_QUICK,
    plain_lossless: bool = False,
    filler: str = "",
) -> AsyncGenerator[KeptWorkload]:
    """Run a workload on kept channels, and a plain one; fail on unhandled and on logged errors."""
    workload = KeptWorkload(near, far or near, rules=rules, settings=settings, plain_lossless=plain_lossless)
    async with running(workload, filler=filler):
        yield workload


class KeptCaseRecorder:
    """Puts a result into the table of kept channels, then fails the test where a guarantee was broken.

    Args:
        properties: The user properties of the test's report.
    """

    def __init__(self, properties: list[tuple[str, object]]) -> None:
        self._properties = properties

    def __call__(self, case: str, broker: str, result: KeptResult) -> None:
        """Record one case."""
        self._properties.append((KEPT_FIGURES, (case, broker, *map(str, astuple(result)[:-1]))))
        assert not result.faults, "\n".join(result.faults[:20])
