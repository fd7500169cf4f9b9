"""Any example, with a record of which worker serves which client; run as `labelled:app`.

A client names itself in the header `x-client`, and the worker's pid is written into a file of that name in the folder
LABELS before the client is accepted. A header of the response would be simpler, but not every server sends it.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["app"]

_FOLDER = Path(os.environ["LABELS"])
_example: Any = import_module(os.environ["EXAMPLE"]).app


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Run the example."""
    for name, value in scope.get("headers", ()):
        if name == b"x-client":
            (_FOLDER / value.decode()).write_text(str(os.getpid()))
    await _example(scope, receive, send)
