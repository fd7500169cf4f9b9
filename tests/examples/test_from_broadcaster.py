"""examples/from_broadcaster.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import redis

from tests.examples.example_server import SECONDS

if TYPE_CHECKING:
    from tests.brokers.broker import Broker
    from tests.examples.conftest import Serve

CHANNEL = "chatroom"


def broadcaster_receives(pubsub: Any) -> str:
    """Return the next message as encode/broadcaster 0.3.1 decodes it; an error here ends its subscription."""
    for message in pubsub.listen():
        if message["type"] == "message":
            return str(message["data"].decode())
    raise AssertionError("the subscription ended")


def test_all_clients_receive_what_one_sends(serve: Serve) -> None:
    """As in the original, what one client sends is received by all, itself included."""
    server = serve("from_broadcaster")
    with server.connect("/") as one, server.connect("/") as other:
        one.send("hello")
        assert [client.recv(timeout=SECONDS) for client in (one, other)] == ["hello", "hello"]


@pytest.mark.parametrize("wire_format", ["plain", "header"])
def test_a_rolling_move(serve: Serve, redis_broker: Broker, wire_format: str) -> None:
    """Without a header a worker that still runs broadcaster receives what is published here, and back."""
    server = serve("from_broadcaster", BACKPLANE_URL=f"{redis_broker.url}?wire_format={wire_format}")
    connected: Any = redis.from_url(redis_broker.url, socket_timeout=SECONDS)
    with connected as old, old.pubsub() as pubsub:
        pubsub.subscribe(CHANNEL)
        with server.connect("/") as client:
            old.publish(CHANNEL, "published there")
            assert client.recv(timeout=SECONDS) == broadcaster_receives(pubsub) == "published there"
            client.send("published here")
            if wire_format == "header":  # which is why the option exists
                with pytest.raises(UnicodeDecodeError):
                    broadcaster_receives(pubsub)
            else:
                assert broadcaster_receives(pubsub) == "published here"
            assert client.recv(timeout=SECONDS) == "published here"
