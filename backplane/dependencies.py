"""Finding the application's `Backplane` in a request: a FastAPI dependency that works on plain Starlette too."""

from __future__ import annotations

from starlette.requests import HTTPConnection  # noqa: TC002  # FastAPI reads the annotation

from backplane.core import Backplane
from backplane.errors import NotStartedError
from backplane.worker.deployment import NO_LIFESPAN

__all__ = ["get_backplane"]


def get_backplane(connection: HTTPConnection) -> Backplane:
    """Return the `Backplane` of this application: `Annotated[Backplane, Depends(get_backplane)]`.

    Works in HTTP and WebSocket routes, with `lifespan=backplane.lifespan` or with your own lifespan that yields
    `{"backplane": backplane}`.

    Raises:
        NotStartedError: The lifespan state holds none.
    """
    found = getattr(connection.state, "backplane", None)
    if not isinstance(found, Backplane):
        raise NotStartedError(
            "no Backplane in the lifespan state: pass lifespan=backplane.lifespan, "
            f'or yield {{"backplane": backplane}} from your own. {NO_LIFESPAN}'
        )
    return found
