"""The Celery example with a publish at import: the publisher's thread and link exist before Celery forks."""

import os

from shop import backplane, queue  # type: ignore[import-not-found]  # the example, on the path of the process

__all__ = ["queue"]

backplane.sync.publish("imports", str(os.getpid()))  # pyright: ignore[reportUnknownMemberType]
