"""Topics of an MQTT broker, wildcards as they are: `mqtt_topics("mqtt://localhost", "sensors/#")`."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from aiomqtt import Client, Message

from backplane.errors import BrokerError

from .mirror import Item, Missing, Source

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator


def mqtt_topics(url: str, topic: str) -> Source:
    """Return the messages of `topic`; of `$share/GROUP/TOPIC` one of all readers of the group gets each of them.

    After each connection the broker first sends what it retains.
    """
    return Source(url=url, topic=topic, read=partial(_read, url, topic))


class _Queue(asyncio.Queue[Message]):
    """What waits here. Above 65,536 messages aiomqtt drops the newest one, and only logs it."""

    overrun = False

    def put_nowait(self, item: Message) -> None:
        self.overrun = self.overrun or self.full()
        super().put_nowait(item)


@asynccontextmanager
async def _read(url: str, topic: str) -> AsyncGenerator[AsyncIterator[Item]]:
    parts = urlsplit(url)
    is_tls = parts.scheme == "mqtts"
    queues: list[_Queue] = []

    def queue(maxsize: int) -> _Queue:
        queues.append(_Queue(maxsize))
        return queues[-1]

    async with Client(
        parts.hostname or "localhost",
        parts.port or (8883 if is_tls else 1883),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        tls_context=ssl.create_default_context() if is_tls else None,
        keepalive=10,
        queue_type=queue,  # type: ignore[arg-type]  # it is called, no more
        max_queued_incoming_messages=65_536,
    ) as client:
        granted = await client.subscribe(topic, qos=1)
        if any((code if isinstance(code, int) else code.value) >= 128 for code in granted):
            raise BrokerError("the broker refused the topic")
        yield _items(client, queues[0])


async def _items(client: Client, queue: _Queue) -> AsyncIterator[Item]:
    async for message in client.messages:
        if queue.overrun:
            queue.overrun = False
            yield Missing("this process did not read fast enough")
        yield str(message.topic), message.payload
