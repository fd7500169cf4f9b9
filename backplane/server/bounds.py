"""The defaults of Uvicorn's options under `backplane run` and the Gunicorn worker."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["BOUNDS"]

BOUNDS: Final[dict[str, Any]] = {
    # For endpoints without `connect`, whose `Limits` are lower. Uvicorn's default is 16 MiB.
    "ws_max_size": 1024 * 1024,
    # Compression per client costs up to ten times a message's CPU, and a message can inflate to 1,000 times its bytes.
    "ws_per_message_deflate": False,
    # With the drain before and the end of the lifespan after it, below the 30 s of Gunicorn and Kubernetes.
    "timeout_graceful_shutdown": 15,
}
"""Options of `uvicorn.Config`."""
