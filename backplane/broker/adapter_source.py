"""Where a `Backplane` gets its adapter from: a URL, which can be opened again, or an object, which is one link."""

from __future__ import annotations

import os
from typing import Final
from weakref import WeakKeyDictionary

from backplane.broadcaster import Broadcaster, Options
from backplane.broker.registry import broadcaster_from_url
from backplane.concurrency.affinity import LoopAffinity
from backplane.errors import ConfigurationError, LifecycleError

__all__ = ["AdapterSource"]

_DEFAULT_URL: Final = "memory://"

# The event loop of each adapter object that is in use. One that was not given back before that loop ended cannot be
# used again, by whichever `Backplane`: it still has the sockets and tasks of that loop.
_used_in: Final[WeakKeyDictionary[Broadcaster, LoopAffinity]] = WeakKeyDictionary()


class AdapterSource:
    """Makes the adapters of one `Backplane`.

    Args:
        given: A URL or an adapter. Defaults to the environment variable `BACKPLANE_URL`, else `memory://`.

    Attributes:
        adapter: The present adapter.
        is_default: Neither the application nor the environment has chosen one.

    Raises:
        ConfigurationError, MissingDependencyError: The URL cannot be used.
    """

    def __init__(self, given: str | Broadcaster | None) -> None:
        if not isinstance(given, str | Broadcaster | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"a Backplane takes a URL or an adapter object, not {given!r:.100}")
        self._given = given or os.environ.get("BACKPLANE_URL")
        self.is_default: bool = not self._given
        self.adapter: Broadcaster = self._make()

    def take(self) -> None:
        """Take the adapter for this event loop, until `give_back`; a URL can always be taken.

        Raises:
            LifecycleError: Another `Backplane`, event loop or process uses the object; the message names the remedy.
        """
        if not isinstance(self._given, Broadcaster):
            return
        used_in = _used_in.get(self._given)
        if used_in is not None and used_in.is_alive:
            raise LifecycleError("this adapter object is one link, and another Backplane uses it: make one for each")
        if used_in is not None:
            raise LifecycleError(
                "the adapter object of this Backplane belongs to an event loop that has ended, or to the process that "
                "this one was forked from: make a Backplane with a new one, or with a URL, which can be opened again"
            )
        _used_in[self._given] = LoopAffinity()

    def give_back(self) -> None:
        """Allow the next start of the adapter, which is stopped."""
        if isinstance(self._given, Broadcaster):
            _used_in.pop(self._given, None)

    def renew(self) -> None:
        """Replace an adapter that belongs to an event loop that has ended, or to the parent process."""
        self.adapter = self._make()

    def url_for_another(self) -> str:
        """Return the URL with which a thread opens a link of its own to the same broker.

        Raises:
            ConfigurationError: There is no such URL.
        """
        if isinstance(self._given, Broadcaster):
            raise ConfigurationError(
                "`sync.publish` of a Backplane that is not started opens a link of its own, and an adapter object has "
                "only one: start the Backplane, or give it a URL"
            )
        if not self._given:
            raise ConfigurationError(
                "`sync.publish` of a Backplane that is not started needs the broker of the web workers: "
                "set BACKPLANE_URL. The default, memory://, would reach no other process"
            )
        return self._given

    def _make(self) -> Broadcaster:
        given = self._given
        adapter = given if isinstance(given, Broadcaster) else broadcaster_from_url(given or _DEFAULT_URL)
        if not isinstance(getattr(adapter, "options", None), Options):  # read by each publish
            raise ConfigurationError(
                f"the options of {type(adapter).__name__} must be a backplane.broadcaster.Options or a subclass, "
                "which Broadcaster.__init__ takes together with the URL"
            )
        return adapter
