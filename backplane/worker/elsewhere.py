"""Whether a client that no worker of this deployment has is connected to a worker with another prefix, or name."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from backplane.broadcaster import SupportsOthers
from backplane.cluster.topics import CONTROL
from backplane.control.messages import Selector
from backplane.control.surveys import Surveys
from backplane.errors import BackplaneError
from backplane.explain.evidence import parse_evidence
from backplane.presence_types import PresenceRules
from backplane.worker.cluster_options import ClusterOptions

if TYPE_CHECKING:
    from backplane.broadcaster import Broadcaster
    from backplane.explain.evidence import Question, WorkerEvidence
    from backplane.worker.runtime import Runtime

__all__ = ["look_elsewhere"]

# A broker that many applications share: those whose prefix or name is most alike are asked.
_MOST: Final = 5
_MOST_SECONDS: Final = 1.0

# Each look opens a link for each prefix that it asks.
_MOST_LOOKS: Final = 3
_looks: Final[WeakKeyDictionary[Runtime, int]] = WeakKeyDictionary()


async def look_elsewhere(runtime: Runtime, question: Question, kind: str, seconds: float) -> list[WorkerEvidence]:
    """Return what workers of other deployments on the same broker state, of those that have what is looked for.

    They are asked as `backplane why` asks them, given their URL: where they have the same `control_secret`, or none.
    Nothing else of them is returned. Takes no longer than three seconds; what cannot be asked is left out, and so is
    what would be a fourth look at a time.

    Args:
        runtime: Who asks.
        question: What is asked.
        kind: The command that asks it.
        seconds: How long a worker may take to answer.
    """
    broadcaster = runtime.broadcaster
    if not isinstance(broadcaster, SupportsOthers) or _looks.get(runtime, 0) >= _MOST_LOOKS:
        return []
    _looks[runtime] = _looks.get(runtime, 0) + 1
    seconds = min(seconds, _MOST_SECONDS)
    try:
        async with asyncio.timeout(3 * seconds):
            others = await broadcaster.others(CONTROL, _MOST)
            asked = (_ask(runtime, other, question, kind, seconds) for other in others)
            found = [each for answers in await asyncio.gather(*asked) for each in answers]
    except (BackplaneError, TimeoutError):
        return []
    finally:
        _looks[runtime] -= 1
    return [each for each in found if each.clients or (question.client is None and each.subscribers)]


async def _ask(
    runtime: Runtime, broadcaster: Broadcaster, question: Question, kind: str, seconds: float
) -> list[WorkerEvidence]:
    """Ask the workers of one deployment, by a link of its own that no worker notices."""
    options = ClusterOptions(
        presence=PresenceRules({}), cluster="observer", secret=runtime.control_secret, surveys=Surveys()
    )
    observer = type(runtime)(broadcaster, replace(runtime.settings, start="strict"), cluster=options)
    try:
        await observer.start()
    except BackplaneError:
        return []  # an ACL denies it
    try:
        arguments = {**asdict(question), "test": "", "seconds": 0}
        answers = await observer.members().requests.ask(kind, Selector(), arguments, seconds)
    except BackplaneError:
        return []
    finally:
        await observer.stop()
    return [evidence for answer in answers.by_worker.values() if (evidence := parse_evidence(answer)) is not None]
