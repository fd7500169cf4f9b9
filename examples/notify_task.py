"""A task of a task queue, in synchronous code, that notifies the users of notifications.py.

Run it in this folder, with the broker of the web workers:

    BACKPLANE_URL=ipc://notifications python notify_task.py ada "your order was shipped"

With Celery the function below is the task, and nothing else changes:

    app = Celery("shop", broker="redis://localhost")
    app.task(autoretry_for=(BrokerUnavailableError,), retry_backoff=True)(notify)

`BrokerUnavailableError` says that nothing was published, so a retry cannot say it twice.
"""

import asyncio
import sys

from backplane import Backplane


def notify(user: str, title: str) -> None:
    """Tell a user something; raises what `Backplane.publish` raises."""
    asyncio.run(_publish(f"users:{user}", {"title": title}))


async def _publish(channel: str, data: object) -> None:
    # A connection for each task, on an event loop of its own: nothing to share between forks or threads.
    async with Backplane() as backplane:
        await backplane.publish(channel, data)


if __name__ == "__main__":
    notify(*sys.argv[1:])
