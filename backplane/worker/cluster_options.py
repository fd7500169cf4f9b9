"""The options of a `Backplane` that concern all workers together, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backplane.errors import ConfigurationError

if TYPE_CHECKING:
    from backplane.control.surveys import Surveys
    from backplane.presence_types import PresenceRules
    from backplane.worker.cluster import ClusterMode

__all__ = ["ClusterOptions"]


class ClusterOptions:
    """What `Backplane` was given.

    Args:
        presence: Which channels have presence.
        cluster: `True`, `False` or `"observer"`.
        secret: Signs what workers exchange; `None` for no signatures.
        surveys: The handlers of surveys.

    Attributes:
        presence, secret, surveys: As above.
        mode: Whether the worker is a member of the cluster or observes it; `None` without either.

    Raises:
        ConfigurationError: `cluster` is something else.
    """

    def __init__(self, *, presence: PresenceRules, cluster: object, secret: bytes | None, surveys: Surveys) -> None:
        if not (isinstance(cluster, bool) or cluster == "observer"):
            raise ConfigurationError(f"cluster must be True, False or 'observer', not {cluster!r:.100}")
        self.presence: Final = presence
        self.secret: Final = secret
        self.surveys: Final = surveys
        self.mode: ClusterMode | None = None
        if cluster == "observer":
            self.mode = "observer"
        elif cluster or presence:
            self.mode = "member"
