"""What a protocol above WebSocket changes for one client: in which form it is notified, pinged and closed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backplane.connection.driver import ConnectionDriver
    from backplane.connection.envelope import EnvelopeFunction
    from backplane.fanout.batch import Batch
    from backplane.message import Gap, Joined

__all__ = ["ClientProtocol"]


class ClientProtocol(Protocol):
    """One client of a protocol. Without one a client is sent messages, as they are or in an envelope.

    Its methods are called in the event loop and must not block. What one of them raises closes the client with 1011.
    """

    @property
    def user(self) -> str | None:
        """The user of the client, where its protocol names one."""
        ...

    @property
    def pings(self) -> bool:
        """Whether the client is pinged by `ping`, every `heartbeat_seconds`, and not as any other."""
        ...

    @property
    def pong_seconds(self) -> float:
        """How long the client may take to answer a ping."""
        ...

    def begin(self, driver: ConnectionDriver, /) -> None:
        """Take the connection, before its handshake."""

    @property
    def envelope(self) -> EnvelopeFunction:
        """Returns what is sent for a message: one function for all clients that are sent the same."""
        ...

    @property
    def held(self) -> Mapping[str, list[Batch] | None]:
        """The channels whose messages are not sent at present, each with those that are kept, or `None` to drop them.

        The driver adds to the lists.
        """
        ...

    def joined(self, joined: Joined, /) -> None:
        """Take the notice of a join, before any message of the channel that is not held."""

    def missed(self, batch: Batch, /) -> None:
        """Take what is given back of a channel that is held: by a join, right after its notice, or after a loss.

        What is given back of other channels is sent as messages are.
        """

    def left(self, channel: str, /) -> None:
        """Take the notice that a channel was left, by whatever means."""

    def gap(self, gap: Gap, /) -> None:
        """Take the notice that messages may be missing."""

    def message(self, data: str | bytes, /) -> str | bytes | None:
        """Return what is sent where the application sends `data` to this client alone; `None` sends nothing."""
        ...

    def ping(self) -> str | bytes:
        """Return the message that is sent as a ping, and take note of it."""
        ...

    def close_frame(self, code: int, reason: str, /) -> tuple[int, str]:
        """Return the code and reason with which the client is closed, for those of this package."""
        ...
