"""An adapter whose link a test opens, cuts and silences, for the tests of what a link does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from backplane.broadcaster import Capabilities
from backplane.errors import BrokerUnavailableError
from tests.unit.doubles import ControlledBroadcaster, Gate

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.broadcaster import Sink

__all__ = ["Adapter"]


class Adapter(ControlledBroadcaster):
    """An adapter whose link the test opens, cuts and silences.

    Attributes:
        links: The sink of every `start` that succeeded.
        start_gate, stop_gate, publish_gate: Hold these calls.
        start_errors: What the next tries to start raise, one each.
        start_error: What every try to start raises, if anything.
        stop_error: What `stop` raises, if anything.
        publish_gates: Hold the next publishes, one each.
        publish_errors: What `publish` raises, by channel.
        silent: Whether a publish is accepted and nothing comes back.
        cancel_gate: Holds a `subscribe` that is cancelled, as a client library's cleanup would.
        cancel_error: What a cancelled `subscribe` raises instead, if anything.
        published: Every payload that was accepted.
    """

    def __init__(self, *, brokered: bool = False, resumes: bool = False) -> None:
        super().__init__()
        self._brokered = brokered
        self._resumes = resumes
        self.links: list[Sink] = []
        self.start_gate = Gate()
        self.stop_gate = Gate()
        self.publish_gate = Gate()
        self.publish_gates: list[Gate] = []
        self.cancel_gate = Gate()
        self.start_errors: list[Exception] = []
        self.start_error: Exception | None = None
        self.stop_error: Exception | None = None
        self.cancel_error: Exception | None = None
        self.publish_errors: dict[str, Exception] = {}
        self.silent = False
        self.published: list[tuple[str, bytes]] = []

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return Capabilities(
            brokered=self._brokered,
            reach="network",
            publish_returns="accepted",
            resumes=self._resumes,
            max_payload_bytes=1024,
        )

    @property
    def verbs(self) -> list[str]:
        """The calls so far, without their channels."""
        return [verb for verb, _ in self.calls]

    def cut(self) -> None:
        """Lose the present link."""
        self.links[-1].lost(BrokerUnavailableError("cut"))

    async def start(self, sink: Sink) -> None:
        """Open a link, or fail as the test demands."""
        self._record("start")
        await self.start_gate.passage()
        if self.start_errors:
            raise self.start_errors.pop(0)
        if self.start_error is not None:
            raise self.start_error
        self.links.append(sink)
        await super().start(sink)
        self._changed.set()

    async def stop(self) -> None:
        """Close the link, or fail as the test demands."""
        self._record("stop")
        await self.stop_gate.passage()
        if self.stop_error is not None:
            raise self.stop_error
        await super().stop()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Accept, and deliver unless silent."""
        self._record("publish", channel)
        await (self.publish_gates.pop(0) if self.publish_gates else self.publish_gate).passage()
        if channel in self.publish_errors:
            raise self.publish_errors[channel]
        self.published.append((channel, payload))
        if not self.silent:
            await super().publish(channel, payload)
        self._changed.set()

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe; once cancelled, clean up as the test demands."""
        try:
            await super().subscribe(channels)
        except asyncio.CancelledError:
            await self.cancel_gate.passage()
            if self.cancel_error is not None:
                raise self.cancel_error from None
            raise

    def _record(self, verb: str, *channels: str) -> None:
        self.calls.append((verb, channels))
        self._changed.set()
