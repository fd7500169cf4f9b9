"""A topic of Kafka, by the keys of its records: `kafka_topic("kafka://localhost:9092", "orders", group="sockets")`."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aiokafka import AIOKafkaConsumer  # type: ignore[import-untyped]

from .mirror import Item, Missing, Source

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator


def kafka_topic(url: str, topic: str, group: str | None = None) -> Source:
    """Return the records of `topic`: without a `group` those from now on; with one, each once in all its readers.

    A new group begins with the oldest record, and goes on after the last one that was passed on.
    """
    return Source(url=url, topic=topic, read=partial(_read, url, topic, group), resumes=group is not None)


@asynccontextmanager
async def _read(url: str, topic: str, group: str | None) -> AsyncGenerator[AsyncIterator[Item]]:
    consumer: Any = AIOKafkaConsumer(
        topic,
        bootstrap_servers=urlsplit(url).netloc,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest" if group else "latest",
        metadata_max_age_ms=30_000,  # until new partitions are noticed
    )
    try:
        await consumer.start()
        if group is None:
            await consumer.seek_to_end()
        yield _items(consumer, is_group=group is not None)
    finally:
        await consumer.stop()


async def _items(consumer: Any, *, is_group: bool) -> AsyncIterator[Item]:
    partitions = consumer.assignment()
    following: dict[Any, int] = {} if is_group else {each: await consumer.position(each) for each in partitions}
    while is_group or consumer.assignment() == partitions:
        batches = await consumer.getmany(timeout_ms=1000)
        for partition, records in batches.items():
            # Offsets skip some, as of transactions. But a position that Kafka has no more is reset silently.
            if records[0].offset != following.get(partition):
                expected = await consumer.committed(partition) if is_group else following.get(partition)
                oldest = (await consumer.beginning_offsets([partition]))[partition]
                if expected is not None and (expected < oldest or expected > records[0].offset):
                    yield Missing(f"records of {partition} were deleted before they were read")
            for record in records:
                yield _name(record.key), record.value
            following[partition] = records[-1].offset + 1
        if is_group and batches:
            await consumer.commit()
    raise LookupError("the topic has other partitions now")


def _name(key: bytes | None) -> str:
    return (key or b"").decode(errors="backslashreplace")
