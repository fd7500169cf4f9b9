"""`make brokers`: start one broker of each kind for manual use, print their URLs, and end them on Ctrl-C."""

from __future__ import annotations

import signal
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.brokers.broker import BrokerMissingError
from tests.brokers.kafka import shared_kafka
from tests.brokers.nats import shared_nats
from tests.brokers.postgres import shared_postgres
from tests.brokers.rabbitmq import shared_rabbitmq
from tests.brokers.redis import shared_redis
from tests.brokers.redis_cluster import single_node

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.brokers.broker import Broker

BROKERS: dict[str, Callable[[Path], Broker]] = {
    "Redis": shared_redis,
    "Redis Cluster": single_node,
    "NATS": shared_nats,
    "Kafka": lambda folder: shared_kafka(folder, announce=print),
    "PostgreSQL": shared_postgres,
    "RabbitMQ": shared_rabbitmq,
}


def main() -> int:
    """Start the brokers that this machine has; the exit status is 1 if one is missing."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    missing = 0
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="backplane-brokers-")))
        for name, make in BROKERS.items():
            print(f"{name:13} starting ...", end="\r", flush=True)
            (folder / name).mkdir()
            try:
                broker = stack.enter_context(make(folder / name))
            except BrokerMissingError as error:
                missing += 1
                print(f"{name:13} not here: {error}")
            else:
                print(f"{name:13} BACKPLANE_URL={broker.url}")
        print("Ctrl-C ends them.", flush=True)
        signal.pause()
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
