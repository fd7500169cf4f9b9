"""A worker that applies commands and asks, over a broker that a test controls."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from backplane.cluster.topics import CONTROL, inbox_of
from backplane.cluster_types import Worker
from backplane.control.client_index import ClientIndex
from backplane.control.commands import CommandReceiver
from backplane.control.messages import Answer, Command, parse_answer
from backplane.control.requests import Requests
from backplane.control.surveys import Surveys
from backplane.control.user_cap import UserCap
from backplane.fanout.codec import decode
from tests.unit.cluster.world import buses
from tests.unit.doubles import FakeClient, until_idle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.unit.cluster.world import Broker, BusWorker

__all__ = ["ASKER", "ControlWorker", "control_workers", "ids"]

ASKER = "00000000000000ff"


class ControlWorker:
    """One worker: its clients, surveys and commands, and what it asks of the others.

    Attributes:
        alive: The workers that it takes for alive.
        knows_all: Whether these are all.
    """

    def __init__(self, broker: Broker, bus_worker: BusWorker) -> None:
        self.broker = broker
        self.bus = bus_worker.bus
        self.bus_worker = bus_worker
        self.clients = ClientIndex()
        self.surveys = Surveys()
        self.commands = CommandReceiver(self.bus, self.clients, self.surveys, bus_worker.journal)
        self.alive: list[Worker] = []
        self.knows_all = True
        self.requests = Requests(self.bus, lambda: list(self.alive), lambda: self.knows_all)
        self.cap = UserCap(self.clients, self.requests, self.commands, bus_worker.journal, seconds=30)

    @property
    def name(self) -> str:
        """Its name among the workers."""
        return self.bus.worker

    async def start(self) -> None:
        """Subscribe to commands and to its inbox."""
        await self.bus.subscribe(CONTROL, self.commands)
        await self.bus.subscribe(inbox_of(self.name), self.requests)

    def add(self, id: str, user: str | None = None, *channels: str) -> FakeClient:  # noqa: A002
        """Return a client that it serves."""
        client = FakeClient(id, user, *channels)
        self.clients.add(client, user)
        return client

    async def receives(self, *commands: Command | str) -> None:
        """Receive commands in one pass of the event loop, and apply them."""
        for command in commands:
            self.commands.received(CONTROL, command if isinstance(command, str) else command.encode())
        await until_idle()

    async def asked(self, kind: str, **parts: Any) -> Answer:
        """Receive a command that is to be answered; return the answer."""
        command = Command(kind=kind, reply_to=inbox_of(ASKER), **parts)
        await self.receives(command)
        return self.answers(command.id)[0]

    def answers(self, command_id: str) -> list[Answer]:
        """Return what was answered to a command."""
        answers: list[Answer] = []
        for channel, payload in self.broker.published:
            message = decode(channel, payload)
            assert message is not None
            answer = parse_answer(str(message.data))
            if channel == inbox_of(ASKER) and answer is not None and answer.id == command_id:
                answers.append(answer)
        return answers


@asynccontextmanager
async def control_workers(count: int = 1) -> AsyncGenerator[list[ControlWorker]]:
    """Run some workers, each of which takes all for alive."""
    async with buses(*[None] * count) as (broker, bus_workers):
        workers = [ControlWorker(broker, each) for each in bus_workers]
        alive = [Worker(id=worker.name) for worker in workers]
        for worker in workers:
            worker.alive = list(alive)
            await worker.start()
        try:
            yield workers
        finally:
            for worker in workers:
                async with asyncio.timeout(30):
                    await worker.commands.stop()


def ids(clients: Any) -> list[str]:
    """Return the ids of some clients."""
    return [client.id for client in clients]
