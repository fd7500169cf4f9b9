"""Where a `Backplane` has its adapter from: a URL, which can be opened again, or an object, which is one link."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary, ref

from backplane.broadcaster import Broadcaster
from backplane.errors import ConfigurationError, LifecycleError
from backplane.registry import broadcaster_from_url

if TYPE_CHECKING:
    from backplane.core import Backplane

__all__ = ["AdapterSource"]

_DEFAULT_URL: Final = "memory://"

# Of the objects, who started each last.
_started_by: Final[WeakKeyDictionary[Broadcaster, ref[Backplane]]] = WeakKeyDictionary()


class AdapterSource:
    """Makes the adapters of one `Backplane`.

    Args:
        given: A URL or an adapter. Defaults to the environment variable `BACKPLANE_URL`, else `memory://`.

    Attributes:
        adapter: The present one.
        is_default: Nobody has chosen it.

    Raises:
        ConfigurationError, MissingDependencyError: The URL cannot be used.
    """

    def __init__(self, given: str | Broadcaster | None) -> None:
        self._given = given or os.environ.get("BACKPLANE_URL")
        self._is_used_up = False
        self.is_default = not self._given
        self.adapter = self._made()

    def check_startable(self, backplane: Backplane) -> None:
        """Check that the adapter can be started, for `backplane`; a URL always can.

        Raises:
            LifecycleError: The object belongs elsewhere; the message says where, and names the cure.
        """
        if not isinstance(self._given, Broadcaster):
            return
        other = _started_by.get(self._given, lambda: None)()
        if other is not None and other is not backplane and other.state != "closed":
            raise LifecycleError("this adapter object is one link, and another Backplane uses it: make one for each")
        if self._is_used_up:
            raise LifecycleError(
                "the adapter object of this Backplane belongs to an event loop that has ended, or to the process that "
                "this one was forked from: make a Backplane with a new one, or with a URL, which can be opened again"
            )
        _started_by[self._given] = ref(backplane)

    def renew(self) -> None:
        """Replace an adapter that belongs to an event loop that has ended, or to the parent process."""
        self._is_used_up = isinstance(self._given, Broadcaster)
        self.adapter = self._made()

    def url_for_another(self) -> str:
        """Return the URL with which a thread opens a link of its own to the same broker.

        Raises:
            ConfigurationError: There is none.
        """
        if isinstance(self._given, Broadcaster):
            raise ConfigurationError(
                "`sync.publish` of a Backplane that is not started opens a link of its own, and an adapter object has "
                "only one: start the Backplane, or give it a URL"
            )
        if not self._given:
            raise ConfigurationError(
                "`sync.publish` of a Backplane that is not started needs the broker of the web workers: "
                "set BACKPLANE_URL. The default, memory://, would reach nobody"
            )
        return self._given

    def _made(self) -> Broadcaster:
        given = self._given
        return given if isinstance(given, Broadcaster) else broadcaster_from_url(given or _DEFAULT_URL)
