"""What `backplane run` and the Gunicorn worker ask of Uvicorn where nobody asks for something else."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["BOUNDS"]

BOUNDS: Final[dict[str, Any]] = {
    # Of endpoints without `connect`, whose `Limits` go further down. Uvicorn's own is 16 MiB.
    "ws_max_size": 1024 * 1024,
    # Each client's own compression costs up to ten times a message's CPU, and 1,000 times its bytes to inflate.
    "ws_per_message_deflate": False,
    # With a drain before it and the end of the lifespan after it, less than the 30 s of Gunicorn and Kubernetes.
    "timeout_graceful_shutdown": 15,
}
"""Options of `uvicorn.Config`."""
