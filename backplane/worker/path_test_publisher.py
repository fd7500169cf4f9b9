"""Publishes the message by which the way of a channel is tested."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from backplane.broker.publisher import WaitingPublisher
from backplane.channels import validate_channel
from backplane.errors import ConfigurationError
from backplane.fanout.codec import encode_path_test

if TYPE_CHECKING:
    from backplane.worker.runtime import Runtime

__all__ = ["publish_path_test"]


async def publish_path_test(runtime: Runtime, channel: str, test_id: bytes) -> None:
    """Publish a path test: `Hub.on_path_test` reports it on each worker that the channel reaches, this one too.

    It takes the way of a message without a history. No subscriber and no history gets it, and a worker of an older
    release drops it as malformed. A subscriber that is none of ours receives 33 bytes.

    Args:
        runtime: This worker.
        channel: Which one is tested.
        test_id: 8 bytes that name the test.

    Raises:
        InvalidChannelError: The name is not legal.
        ConfigurationError: With `wire_format=plain` there is no header that could state what it is.
        BrokerUnavailableError, PublishOutcomeUnknownError, PublishError, ClosedError: As `publish`; nothing is kept
            for later.
    """
    validate_channel(channel)
    if runtime.wire_format == "plain":
        raise ConfigurationError(
            "a path test needs the header that wire_format=plain leaves out: take off that option to test the path"
        )
    payload = encode_path_test(test_id, origin=runtime.origin, published_at=time.time())
    await WaitingPublisher(runtime.supervisor.attempts).publish(channel, payload)
