"""A random model of a broker that keeps messages, links that fail, and the repair of one track.

`python -m tests.unit.history.model 100000` runs it for long; `--seed` repeats one run.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from zlib import crc32

from backplane.broadcaster import KeptMessage, Recalled
from backplane.history.track import HELD, Track
from backplane.message import Place, Position

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.history.track import Ask, Mended

__all__ = ["BrokenError", "Broker", "Faults", "HoldingTrack", "Run", "run_many"]

_START = 10_000


class BrokenError(AssertionError):
    """A run has broken a promise."""


class HoldingTrack(Track):
    """A planted fault: what is held outlives the link it came by."""

    def lost(self, reason: str) -> None:
        """Keep what is held."""
        held = self.held
        self.held = []
        super().lost(reason)
        self.held = held


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Planted faults of a run.

    Attributes:
        no_check: No position has a check: messages are distinguished by epoch and offset alone.
        found_by_numbers: The broker takes any position within its numbers for one that can be resumed.
        track: The class of the track.
    """

    no_check: bool = False
    found_by_numbers: bool = False
    track: type[Track] = Track


@dataclass(slots=True, kw_only=True)
class Broker:
    """The log of one channel.

    Attributes:
        random: Source of numbers.
        kept: How many messages it keeps: `max_messages + 1`.
        sparse: Offsets are not contiguous, and the check of the message before is not stated (NATS).
        faults: Planted faults.
        newest: The place of the newest message there ever was in this epoch.
        log: What is kept.
        before: By payload, the payload of the message before it in the log, or the epoch of which it is the first.
    """

    random: random.Random
    kept: int
    sparse: bool = False
    faults: Faults = Faults()
    newest: Place = field(init=False)
    log: deque[KeptMessage] = field(default_factory=deque[KeptMessage])
    before: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    _newest_payload: bytes = field(init=False)
    _past: list[tuple[Place, bytes]] = field(default_factory=list[tuple[Place, bytes]])
    _count: int = 0

    def __post_init__(self) -> None:
        self.reset()

    def publish(self) -> KeptMessage:
        """Keep a message."""
        self._count += 1
        payload = b"%d" % self._count
        last = self.newest
        offset = last.offset + (self.random.randint(1, 3) if self.sparse else 1)
        check = 0 if self.faults.no_check else crc32(payload)
        no_check_before = self.sparse or self.faults.no_check
        place = Place(last.epoch, offset, check, last.offset, None if no_check_before else last.check)
        self._past.append((last, self._newest_payload))
        self.before[payload] = self._newest_payload
        self.newest, self._newest_payload = place, payload
        kept = KeptMessage(payload, place)
        self.log.append(kept)
        if len(self.log) > self.kept:
            self.log.popleft()
        return kept

    def trim(self) -> None:
        """Drop some of the oldest messages, as limits, age or an eviction do."""
        for _ in range(self.random.randint(1, len(self.log) or 1)):
            if self.log:
                self.log.popleft()

    def reset(self) -> None:
        """Lose everything."""
        epoch = self.random.randbytes(8)
        self.newest, self._newest_payload = Place(epoch, 0, 0), epoch
        self.log.clear()
        self._past.clear()

    def lose_tail(self, most: int) -> None:
        """Lose the newest messages: their offsets are used again."""
        for _ in range(min(self.random.randint(1, most), len(self._past))):
            self.newest, self._newest_payload = self._past.pop()
            if self.log:
                self.log.pop()

    def payload_at(self, position: Position) -> bytes | None:
        """Return the payload of the message at a position, or the epoch for the position before the first one."""
        if position == self.newest:
            return self._newest_payload
        return next((payload for place, payload in self._past if place == position), None)

    def recall(self, ask: Ask) -> Recalled:
        """Read from the log."""
        kept = list(self.log)
        if ask.after is None:
            items = kept[-ask.limit :] if ask.limit else []
            return Recalled(items=items, top=self.newest, more=len(items) < len(kept))
        start = self._start_after(ask.after, kept)
        if start is None:
            return Recalled(top=self.newest, found=False)
        items = kept[start : start + ask.limit]
        return Recalled(items=items, top=self.newest, more=start + len(items) < len(kept))

    def _start_after(self, after: Position, kept: list[KeptMessage]) -> int | None:
        if after == self.newest:
            return len(kept)
        if self.faults.found_by_numbers:
            if after.epoch != self.newest.epoch or after.offset > self.newest.offset:
                return None
            if not kept or after.offset < (kept[0].place.before or 0):
                return None
            return sum(item.place.offset <= after.offset for item in kept)
        if kept and kept[0].place.epoch == after.epoch and kept[0].place.before == after.offset:
            check = kept[0].place.before_check
            if check == after.check or after.offset == 0:
                return 0
        return next((index + 1 for index, item in enumerate(kept) if item.place == after), None)


Entry = tuple[Literal["message"], bytes] | tuple[Literal["gap"], "bytes | None"] | tuple[Literal["event"], str]


class Run:
    """One random run: steps of broker, link and repair in any order, then a calm end.

    Args:
        seed: Repeats the run.
        faults: Planted faults.

    Attributes:
        suffices: The history suffices: no gap may be reported, and nothing may be missing.
        out: What a subscriber receives, and what happened.
        gaps: How many gaps were reported.
        proved: How many doubts ended without a read.
    """

    def __init__(self, seed: int, faults: Faults = Faults()) -> None:  # frozen
        self.random = random.Random(seed)
        choose = self.random
        self.suffices = choose.random() < 0.35
        self.latest = choose.random() < 0.15
        self.broker = Broker(
            random=choose,
            kept=1000 if self.suffices else choose.choice((2, 4, 11, 1000)),
            sparse=choose.random() < 0.4,
            faults=faults,
        )
        self.limit = 1000 if self.suffices else choose.choice((3, 8, 1000))
        # What is dropped from a link without an error, or repeated.
        self.skips = choose.choice((0.0, 0.0, 0.05, 0.3))
        self.repeats = choose.choice((0.0, 0.0, 0.1))
        max_held = choose.choice((1, 3, 10, 1000))
        self.track = faults.track(max_held, choose.choice((4, 1 << 20)), latest=self.latest)
        self.link: deque[KeptMessage] | None = deque()
        self.ask: Ask | None = None
        self.answer: Recalled | None = None
        self.out: list[Entry] = []
        self.gaps = 0
        self.proved = 0
        for _ in range(choose.randint(0, 5)):
            self.broker.publish()
        self.steps: list[tuple[int, Callable[[], None]]] = [
            (30, self.publish),
            (35, self.arrive),
            (25, self.repair),
            (4, self.cut),
            (8, self.connect),
        ]
        if not self.suffices:
            gives_up = choose.random() < 0.5
            if gives_up:  # without a read, a repetition looks like any message
                self.repeats = 0.0
            damage = choose.choice((1, 1, 3))
            self.steps += [
                (damage, self.trim),
                (damage, self.reset),
                (damage, self.fail_over),
                (damage * gives_up, self.give_up),
                (damage, self.certain_gap),
            ]

    def play(self) -> None:
        """Run it.

        Raises:
            BrokenError: A promise is broken.
        """
        weights = [weight for weight, _ in self.steps]
        functions = [step for _, step in self.steps]
        for step in self.random.choices(functions, weights, k=self.random.choice((10, 40, 100, 400))):
            step()
        self.end()
        self.judge()

    # -- steps ---------------------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Publish one message; it may never arrive, or twice."""
        kept = self.broker.publish()
        if self.link is None:
            return
        if self.random.random() < self.skips:
            self.out.append(("event", "skip"))
            return
        self.link.append(kept)
        while self.random.random() < self.repeats:
            self.link.append(self.random.choice(list(self.link)))
            self.out.append(("event", "repeat"))

    def arrive(self) -> None:
        """Let one message arrive."""
        if not self.link:
            return
        kept, held = self.link.popleft(), len(self.track.held)
        if (taken := self.track.take(kept.place, kept.payload)) > 0:
            self.out.append(("message", kept.payload))
            self.proved += taken > 1
        elif taken == HELD and self.track.doubt is None:
            raise BrokenError("held without a doubt")
        if taken == HELD and len(self.track.held) <= held:
            self.out.append(("event", "overflow"))

    def repair(self) -> None:
        """Go one step further: ask, read at the broker, mend."""
        if self.answer is not None:
            answer, self.answer, self.ask = self.answer, None, None
            mended = self.track.mend(answer)
            self.deliver(mended)
            if mended.again != (self.track.doubt is not None):
                raise BrokenError("`again` and the doubt differ")
        elif self.link is None:
            pass
        elif self.ask is not None:
            self.answer = self.broker.recall(self.ask)
        elif self.track.doubt is not None:
            self.ask = self.track.ask(self.limit)

    def cut(self) -> None:
        """Lose the link with what is on it; an answer may still arrive."""
        if self.link is None:
            return
        self.link = None
        self.out.append(("event", "cut"))
        self.track.lost("the link was cut")
        if self.answer is None or self.random.random() < 0.5:
            self.ask = self.answer = None

    def connect(self) -> None:
        """Open a link."""
        if self.link is None:
            self.link = deque()

    def trim(self) -> None:
        """Drop the oldest messages."""
        self.out.append(("event", "trim"))
        self.broker.trim()

    def reset(self) -> None:
        """Lose the history, at times with the link."""
        self.out.append(("event", "reset"))
        if self.random.random() < 0.5:
            self.cut()
        self.broker.reset()

    def fail_over(self) -> None:
        """Lose the newest messages. Links to the broker are lost, but not always where it is a cluster."""
        track = self.track
        # Directly after a read, what is older than it is expected from the link, and numbers can mislead; so can they
        # where the broker does not state checks and messages are on their way, or lost there, or where messages that it
        # has lost are repeated. Quiet channels are compared for it.
        expects_older = track.last is not None and track.last.offset == track._overtaken  # pyright: ignore[reportPrivateUsage]
        misled = (self.broker.sparse and (self.skips > 0 or bool(self.link))) or self.repeats > 0
        if expects_older or misled or self.track.doubt is not None or self.random.random() < 0.8:
            self.out.append(("event", "failover"))
            self.cut()
        else:
            self.out.append(("event", "silent failover"))
        self.broker.lose_tail(6)

    def give_up(self) -> None:
        """End the doubt without a read."""
        if self.track.doubt is not None and self.link is not None and self.random.random() < 0.3:
            self.out.append(("event", "give up"))
            self.deliver(self.track.give_up("gave up"))

    def certain_gap(self) -> None:
        """Know of a gap that no read can close."""
        if self.track.doubt is not None and self.track.last is not None:
            self.out.append(("event", "certain"))
            self.track.gap_reason = "certain"

    def deliver(self, mended: Mended) -> None:
        """Receive what was mended."""
        if mended.gap is not None:
            self.gaps += 1
            position = mended.position
            self.out.append(("gap", None if position is None else self.broker.payload_at(position)))
        for kept in mended.items:
            self.out.append(("message", kept.payload))

    def end(self) -> None:
        """Let everything arrive, and one more message, without a fault."""
        self.skips = self.repeats = 0.0
        self.connect()
        self.calm()
        self.publish()
        self.calm()
        if self.track.doubt is not None:
            raise BrokenError(f"the doubt does not end: {self.track.doubt}")

    def calm(self) -> None:
        """Let everything arrive."""
        for _ in range(400):
            self.arrive()
            self.repair()
        if self.link or self.ask is not None:
            raise BrokenError("the repair does not end")

    # -- judgement -----------------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Check what a subscriber has received."""
        messages = [payload for kind, payload in self.out if kind == "message"]
        newest = self.broker.payload_at(self.broker.newest)
        if self.out[-1] not in (("message", newest), ("gap", newest)):
            raise BrokenError("the last message is missing")
        if self.latest:
            if self.gaps:
                raise BrokenError("a gap, though only the newest message counts")
            self._judge_order()
            return
        if len(messages) != len(set(messages)):
            raise BrokenError("a message twice")
        self._judge_stretches()
        if self.suffices and self.gaps:
            raise BrokenError("a gap, though the history suffices")
        if self.gaps > sum(kind == "event" for kind, _ in self.out):
            raise BrokenError("more gaps than faults")

    def _judge_order(self) -> None:
        last = 0
        for kind, what in self.out:
            if what == "silent failover":  # what it lost can still arrive
                return
            if kind == "event" and what in ("failover", "reset", "give up"):
                last = 0
            elif kind == "message":
                assert isinstance(what, bytes)
                if int(what) <= last:
                    raise BrokenError("an older message after a newer one")
                last = int(what)

    def _judge_stretches(self) -> None:
        last: bytes | None = None  # what the next message must follow; `None` where anything may come
        gap = False
        for kind, what in self.out:
            if kind == "event":
                gap = False
            elif kind == "gap":
                if gap and what is not None and what == last:
                    raise BrokenError("two gaps at one place")
                assert what is None or isinstance(what, bytes)
                last, gap = what, True
            else:
                assert isinstance(what, bytes)
                if last is not None and self.broker.before[what] != last:
                    raise BrokenError(f"{what!r} follows {last!r} without a gap")
                last, gap = what, False


def run_many(
    count: int,
    *,
    start: int = _START,
    faults: Faults = Faults(),  # frozen
    most: int = sys.maxsize,
) -> list[tuple[int, str]]:
    """Return the seeds of the runs that broke a promise, with what was broken; stop when there are `most`."""
    broken: list[tuple[int, str]] = []
    for seed in range(start, start + count):
        try:
            Run(seed, faults).play()
        except BrokenError as error:
            broken.append((seed, str(error)))
            if len(broken) >= most:
                break
    return broken


def main() -> int:
    """Run the model as often as the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=2_000)
    parser.add_argument("--seed", type=int, default=_START, help="of the first run")
    arguments = parser.parse_args()
    broken: list[tuple[int, str]] = []
    began, part = time.monotonic(), 5_000
    for start in range(0, arguments.count, part):
        count = min(part, arguments.count - start)
        broken += run_many(count, start=arguments.seed + start)
        seconds = time.monotonic() - began
        sys.stdout.write(f"{start + count} runs in {seconds:.0f} s, {len(broken)} broken\n")
        sys.stdout.flush()
    for seed, reason in broken[:20]:
        sys.stdout.write(f"broken: --seed {seed}: {reason}\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
