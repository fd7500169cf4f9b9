"""Synchronous code in a process of its own, a cron job or a task, that notifies the users of notifications.py.

Run it in this folder, with the broker of the web workers:

    BACKPLANE_URL=ipc://notifications python notify_task.py ada "your order was shipped"

In a task queue the function below is the task: see celery/.
"""

import sys

from backplane.sync import SyncBackplane

backplane = SyncBackplane()  # at import; opens nothing before the first publish


def notify(user: str, title: str) -> None:
    """Notify a user; raises what `Backplane.publish` raises."""
    backplane.publish(f"users:{user}", {"title": title})


if __name__ == "__main__":
    notify(*sys.argv[1:])
